//! A bond and a VLAN as a node's uplink: one packet crosses two ways out, or two ways in, and is judged once.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use netpol_tests::{
    cluster::Uplink,
    harness::{self, Test},
    net::Rig,
    town::uplink::{play, role},
};

fn judged_once(uplink: Uplink) -> Result<()> {
    let cluster = play(uplink);
    let status = cluster.node(1).status();
    for device in ["up0", "eth0"] {
        let found = role(&status, device);
        ensure!(found == ("outside", 2), "{device}: {found:?}");
    }
    Ok(())
}

fn main() -> ExitCode {
    let rig = Rig::new("nptest").unwrap();
    let trial = rig.namespace("trial").unwrap();
    let has = |line: &str| trial.ip(line).is_ok();
    assert!(has("link add under type veth peer name far"));
    let lacks = (!has("link add above type bond") || !has("link add tagged link under type vlan id 5"))
        .then_some("this kernel has no bonds or no VLANs");
    harness::main(
        lacks,
        || Ok(()),
        &[
            Test {
                name: "a_bond_and_its_slave_judge_once",
                run: |()| judged_once(Uplink::Bond),
            },
            Test {
                name: "a_vlan_and_its_parent_judge_once",
                run: |()| judged_once(Uplink::Vlan),
            },
        ],
    )
}
