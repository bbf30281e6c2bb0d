//! What carries a node's address: a veth, and a bridge, a bond or a VLAN above it.

use netpol_policy::model::Pod;
use netpol_tests::{
    cluster::{Cluster, Options, Uplink},
    net::Rig,
};
use serde_json::Value as Json;

use crate::{app, assert_closed, assert_open, egress, ingress, over, serve, text, town};

/// Pods of both nodes: `a` opens connections to `b` and outside and takes none, `b` takes those of `a` and opens none;
/// `c` and `d` are free.
pub(crate) fn pods() -> Vec<Pod> {
    vec![app("a", 1, 10), app("b", 2, 20), app("c", 1, 11), app("d", 2, 21)]
}

pub(crate) fn policies() -> Vec<String> {
    vec![
        ingress("a", &[]),
        egress("a", &["b", "172.18.0.100/32", "fd00:18::100/128"]),
        ingress("b", &["a"]),
        egress("b", &[]),
    ]
}

/// Everything that [`policies`] allows passes, everything else is dropped once and for its reason.
pub(crate) fn check(cluster: &Cluster) {
    let _servers = serve(cluster, &["a", "b", "c", "d", "outside"]);
    let before = [1, 2].map(|node| cluster.node(node).drops());
    let since = |node: usize| cluster.node(node).drops().since(&before[node - 1]);
    for (from, to) in [
        ("a", "b"),
        ("a", "outside"),
        ("c", "d"),
        ("d", "c"),
        ("c", "outside"),
        ("outside", "d"),
    ] {
        assert_open(cluster, from, to);
    }
    assert!(since(1).is_empty(), "{:?}", since(1));
    assert!(since(2).is_empty(), "{:?}", since(2));
    // Each sends four packets, which are dropped at one place. Where one is bridged twice, it is counted once.
    for (from, to) in [
        ("outside", "b"),
        ("c", "b"),
        ("d", "b"),
        ("outside", "a"),
        ("b", "outside"),
        ("b", "d"),
        ("a", "c"),
    ] {
        assert_closed(cluster, from, to);
    }
    let (first, second) = (since(1), since(2));
    assert_eq!(first.of("default/a", "denied-ingress"), 4, "{first:?}");
    assert_eq!(first.of("default/a", "denied-egress"), 4, "{first:?}");
    assert_eq!(second.of("default/b", "denied-ingress"), 12, "{second:?}");
    assert_eq!(second.of("default/b", "denied-egress"), 8, "{second:?}");
    assert_eq!(first.total() + second.total(), 28, "{first:?} {second:?}");
}

fn role<'a>(status: &'a Json, device: &str) -> (&'a str, usize) {
    let devices = status["agent"]["devices"].as_array().unwrap();
    let found = devices.iter().find(|found| found["name"] == device).unwrap();
    (
        found["role"].as_str().unwrap(),
        found["programs"].as_array().unwrap().len(),
    )
}

fn play(uplink: Uplink) -> Cluster {
    let pods = pods();
    let mut cluster = town(2, over(uplink), &pods);
    cluster.write(&text(&pods, &policies())).unwrap();
    cluster.start().unwrap();
    check(&cluster);
    cluster
}

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

/// Not every kernel has these devices; those of `cargo xtask test --kernels` do.
fn play_where_there_is(uplink: Uplink, kind: &str) {
    let rig = Rig::new("nptest").unwrap();
    let trial = rig.namespace("trial").unwrap();
    if trial.ip(&format!("link add trial link lo type {kind}")).is_err() {
        eprintln!("not tested: this kernel has no {kind}");
        return;
    }
    let cluster = play(uplink);
    let status = cluster.node(1).status();
    assert_eq!(
        (role(&status, "up0"), role(&status, "eth0")),
        (("outside", 2), ("outside", 2))
    );
}

#[test]
fn a_bond_and_its_slave_judge_once() {
    play_where_there_is(Uplink::Bond, "bond");
}

#[test]
fn a_vlan_and_its_parent_judge_once() {
    play_where_there_is(Uplink::Vlan, "vlan id 5");
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
