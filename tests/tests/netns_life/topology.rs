//! What carries a node's address: a veth, and a bridge above it (`netns_uplinks` has a bond and a VLAN).

use netpol_tests::{
    cluster::{Options, Uplink},
    town::{
        text, town,
        uplink::{check, play, pods, policies, role},
    },
};

#[test]
fn an_uplink_that_is_a_veth_leads_outside() {
    let cluster = play(Uplink::Plain);
    assert_eq!(role(&cluster.node(1).status(), "eth0"), ("outside", 2));
}

#[test]
fn a_bridge_as_uplink_leads_outside_over_its_port() {
    let cluster = play(Uplink::Bridge);
    let status = cluster.node(1).status();
    assert_eq!(
        (role(&status, "up0"), role(&status, "eth0")),
        (("none", 0), ("outside", 2))
    );
}

/// Filters instead of links: the same verdicts, also after a restart, and from each way to the other while connections
/// go on (see `kill` for the load).
#[test]
fn clsact_filters_judge_as_links_do() {
    let pods = pods();
    let clsact = || vec!["--attach".to_owned(), "clsact".to_owned()];
    let options = Options {
        arguments: clsact(),
        ..Options::default()
    };
    let mut cluster = town(2, options, &pods);
    cluster.write(&text(&pods, &policies())).unwrap();
    for arguments in [clsact(), clsact(), Vec::new(), clsact()] {
        cluster.options.arguments = arguments.clone();
        cluster.start().unwrap();
        let attach = cluster.node(1).status()["agent"]["attach"].clone();
        assert_eq!(attach == "clsact", !arguments.is_empty(), "{attach}");
        check(&cluster);
        for node in [1, 2] {
            cluster.node_mut(node).kill_agent().unwrap();
        }
        check(&cluster);
    }
}
