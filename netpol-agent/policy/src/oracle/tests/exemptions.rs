//! The own node, the pod itself, `hostNetwork`.

use super::said;
use crate::{build::*, model::*, oracle::End};

/// `a/x` on node-1 and `a/y` on node-2, both isolated in both directions with nothing allowed.
fn closed(more: impl IntoIterator<Item = Pod>) -> Snapshot {
    let y = Pod {
        node: Some("node-2".into()),
        ..pod("a/y", "app=y", &["10.0.2.1"])
    };
    let x = pod("a/x", "app=x", &["10.0.1.1", "fd00::1"]);
    snapshot(
        [],
        [
            node("node-1", &["10.1.0.1", "fd01::1"]),
            node("node-2", &["10.1.0.2"]),
        ],
        more.into_iter().chain([x, y]),
        [policy("a/p", matching(""), Some(vec![]), Some(vec![]))],
    )
}

fn node_end(name: &str, address: &str) -> End {
    End::Node(name.into(), ip(address))
}

const DROP: &str = "DROP by a/p";
const OWN: &str = "PASS OwnNode by a/p";
const SELF: &str = "PASS Itself by a/p";

#[test]
fn the_own_node_is_always_allowed_by_any_of_its_addresses_and_another_never() {
    let snapshot = closed([]);
    let x = || end("a/x", "10.0.1.1");
    let both_ways = |other: End| {
        [
            said(&snapshot, &tcp_flow(other.clone(), x(), 80)),
            said(&snapshot, &tcp_flow(x(), other, 80)),
        ]
    };
    let own = [["open", OWN], [OWN, "open"]];
    let foreign = [["open", DROP], [DROP, "open"]];
    assert_eq!(both_ways(node_end("node-1", "10.1.0.1")), own);
    assert_eq!(both_ways(node_end("node-1", "fd01::1")), own);
    // The bridge's address is in no Node object: by name it is the node all the same.
    assert_eq!(both_ways(node_end("node-1", "10.0.1.254")), own);
    assert_eq!(both_ways(at("10.1.0.1")), own);
    assert_eq!(both_ways(at("10.0.1.254")), foreign);
    assert_eq!(both_ways(node_end("node-2", "10.1.0.2")), foreign);
    assert_eq!(both_ways(at("10.1.0.2")), foreign);
    assert_eq!(both_ways(node_end("node-2", "10.1.0.1")), foreign);
}

#[test]
fn another_node_is_matched_by_its_address() {
    let mut snapshot = closed([]);
    let rules = || Some(vec![from_to([block("10.1.0.2/32", &[])])]);
    snapshot.apply(Event::Policy(policy("a/p", matching(""), rules(), rules())));
    let flow = tcp_flow(node_end("node-2", "10.1.0.2"), end("a/x", "10.0.1.1"), 80);
    assert_eq!(said(&snapshot, &flow), ["open", "PASS by a/p rules a/p#0"]);
}

#[test]
fn a_pod_on_no_node_has_no_own_node() {
    let unbound = Pod {
        node: None,
        ..pod("a/z", "", &["10.0.1.9"])
    };
    let host = Pod {
        host_network: true,
        node: None,
        ..pod("a/host", "", &["10.1.0.7"])
    };
    let flow = tcp_flow(end("a/host", "10.1.0.7"), end("a/z", "10.0.1.9"), 80);
    assert_eq!(said(&closed([unbound, host]), &flow), ["open", DROP]);
}

#[test]
fn an_address_that_two_nodes_claim_is_nobodys_own_node() {
    let mut snapshot = closed([]);
    snapshot.apply(Event::Node(node("node-2", &["10.1.0.1"])));
    let flow = tcp_flow(at("10.1.0.1"), at("10.0.1.1"), 80);
    assert_eq!(said(&snapshot, &flow), ["open", DROP]);
}

#[test]
fn a_pod_can_not_block_itself_by_whichever_address() {
    let snapshot = closed([]);
    let between = |from, to| said(&snapshot, &tcp_flow(from, to, 80));
    assert_eq!(
        between(end("a/x", "10.0.1.1"), end("a/x", "10.0.1.1")),
        [SELF, SELF]
    );
    assert_eq!(between(end("a/x", "10.0.1.1"), at("10.0.1.1")), [SELF, SELF]);
    assert_eq!(between(at("fd00::1"), end("a/x", "10.0.1.1")), [SELF, SELF]);
    assert_eq!(between(at("10.0.1.1"), at("10.0.2.1")), [DROP, DROP]);
}

#[test]
fn of_two_owners_only_one_is_itself() {
    let double = pod("a/z", "", &["10.0.1.1"]);
    let flow = tcp_flow(end("a/x", "10.0.1.1"), at("10.0.1.1"), 80);
    assert_eq!(said(&closed([double]), &flow), [DROP, DROP]);
}

#[test]
fn a_host_network_pod_is_its_node() {
    let host = |node: &str, address: &str| Pod {
        host_network: true,
        node: Some(node.into()),
        ..pod("a/host", "app=host", &[address])
    };
    let to_x = |snapshot: &Snapshot, from| said(snapshot, &tcp_flow(from, end("a/x", "10.0.1.1"), 80));
    let from_x = |snapshot: &Snapshot, to| said(snapshot, &tcp_flow(end("a/x", "10.0.1.1"), to, 80));

    // On the pod's own node: always allowed, and never isolated itself.
    let mut snapshot = closed([host("node-1", "10.1.0.1")]);
    assert_eq!(to_x(&snapshot, end("a/host", "10.1.0.1")), ["open", OWN]);
    assert_eq!(from_x(&snapshot, end("a/host", "10.1.0.1")), [OWN, "open"]);

    // On another: no selector matches it, only a block; also where it is asked for by address.
    let rules = |peer| Some(vec![from_to([peer])]);
    let all_pods = || pods_in(matching(""), matching(""));
    for end in [end("a/host", "10.1.0.2"), at("10.1.0.2")] {
        snapshot = closed([host("node-2", "10.1.0.2")]);
        snapshot.apply(Event::Policy(policy(
            "a/p",
            matching(""),
            rules(all_pods()),
            rules(all_pods()),
        )));
        assert_eq!(to_x(&snapshot, end.clone()), ["open", DROP]);
        assert_eq!(from_x(&snapshot, end.clone()), [DROP, "open"]);
        let node = || block("10.1.0.2/32", &[]);
        snapshot.apply(Event::Policy(policy(
            "a/p",
            matching(""),
            rules(node()),
            rules(node()),
        )));
        assert_eq!(to_x(&snapshot, end.clone()), ["open", "PASS by a/p rules a/p#0"]);
        assert_eq!(from_x(&snapshot, end), ["PASS by a/p rules a/p#0", "open"]);
    }
}

#[test]
fn an_address_of_a_running_host_network_pod_is_its_nodes_without_a_node_object() {
    let host = Pod {
        host_network: true,
        ..pod("a/host", "", &["10.1.0.9"])
    };
    let done = Pod {
        completed: true,
        ..host.clone()
    };
    let flow = tcp_flow(at("10.1.0.9"), at("10.0.1.1"), 80);
    assert_eq!(said(&closed([host]), &flow), ["open", OWN]);
    assert_eq!(said(&closed([done]), &flow), ["open", DROP]);
}

#[test]
fn exempt_and_not_isolated_is_said_to_be_both() {
    let mut snapshot = closed([]);
    snapshot.apply(Event::PolicyGone(name("a/p")));
    let flow = tcp_flow(end("a/x", "10.0.1.1"), node_end("node-1", "10.1.0.1"), 80);
    assert_eq!(said(&snapshot, &flow), ["open OwnNode", "open"]);
}

#[test]
fn where_rules_were_not_asked_none_is_named() {
    let mut snapshot = closed([]);
    let any = || Some(vec![rule(Peers::Any, Ports::Any)]);
    snapshot.apply(Event::Policy(policy("a/p", matching(""), any(), any())));
    let flow = tcp_flow(node_end("node-1", "10.1.0.1"), end("a/x", "10.0.1.1"), 80);
    assert_eq!(said(&snapshot, &flow), ["open", OWN]);
}
