//! What holds whatever carries a node's address: a veth, and a bridge, a bond or a VLAN above it.

use netpol_policy::model::Pod;
use serde_json::Value as Json;

use super::{app, assert_closed, assert_open, egress, ingress, over, serve, text, town};
use crate::cluster::{Cluster, Uplink};

/// Pods of both nodes: `a` opens connections to `b` and outside and takes none, `b` takes those of `a` and opens none;
/// `c` and `d` are free.
pub fn pods() -> Vec<Pod> {
    vec![app("a", 1, 10), app("b", 2, 20), app("c", 1, 11), app("d", 2, 21)]
}

/// What [`pods`] may do.
pub fn policies() -> Vec<String> {
    vec![
        ingress("a", &[]),
        egress("a", &["b", "172.18.0.100/32", "fd00:18::100/128"]),
        ingress("b", &["a"]),
        egress("b", &[]),
    ]
}

/// Everything that [`policies`] allows passes, everything else is dropped once and for its reason.
pub fn check(cluster: &Cluster) {
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

/// A device's role and how many programs it has, in `status`.
pub fn role<'a>(status: &'a Json, device: &str) -> (&'a str, usize) {
    let devices = status["agent"]["devices"].as_array().unwrap();
    let found = devices.iter().find(|found| found["name"] == device).unwrap();
    (
        found["role"].as_str().unwrap(),
        found["programs"].as_array().unwrap().len(),
    )
}

/// A cluster of two nodes with this uplink in which [`check`] holds.
pub fn play(uplink: Uplink) -> Cluster {
    let pods = pods();
    let mut cluster = town(2, over(uplink), &pods);
    cluster.write(&text(&pods, &policies())).unwrap();
    cluster.start().unwrap();
    check(&cluster);
    cluster
}
