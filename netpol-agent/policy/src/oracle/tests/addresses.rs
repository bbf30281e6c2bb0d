//! `ipBlock`, families, and who owns an address.

use super::{egress, ingress, said};
use crate::{build::*, model::*};

/// A pod that everyone in `peers` may reach, beside the pods `others`.
fn guarded(peers: impl IntoIterator<Item = Peer>, others: impl IntoIterator<Item = Pod>) -> Snapshot {
    let server = pod("a/server", "app=server", &["10.9.0.1", "fd09::1"]);
    let p = policy("a/p", matching("app=server"), Some(vec![from_to(peers)]), None);
    snapshot([], [], others.into_iter().chain([server]), [p])
}

/// Which of `sources` pass to the guarded pod.
fn admitted<'s>(snapshot: &Snapshot, sources: &[&'s str]) -> Vec<&'s str> {
    let passes = |source: &&str| {
        let to = if ip(source).is_ipv4() {
            "10.9.0.1"
        } else {
            "fd09::1"
        };
        ingress(snapshot, at(source), at(to), 80) == "PASS by a/p rules a/p#0"
    };
    sources.iter().copied().filter(passes).collect()
}

#[test]
fn a_block_is_all_its_addresses_and_no_other() {
    let sources = ["10.0.0.255", "10.0.1.0", "10.0.1.255", "10.0.2.0", "fd00::1"];
    let admitted_by = |cidr| admitted(&guarded([block(cidr, &[])], []), &sources);
    assert_eq!(admitted_by("10.0.1.0/24"), ["10.0.1.0", "10.0.1.255"]);
    assert_eq!(admitted_by("10.0.1.255/32"), ["10.0.1.255"]);
    assert_eq!(
        admitted_by("0.0.0.0/0"),
        ["10.0.0.255", "10.0.1.0", "10.0.1.255", "10.0.2.0"]
    );
    assert_eq!(admitted_by("::/0"), ["fd00::1"]);
    assert_eq!(admitted_by("fd00::1/128"), ["fd00::1"]);
}

#[test]
fn a_v4_mapped_address_is_an_ipv6_address() {
    let sources = ["10.0.0.1", "::ffff:10.0.0.1"];
    let admitted_by = |cidr| admitted(&guarded([block(cidr, &[])], []), &sources);
    assert_eq!(admitted_by("10.0.0.0/8"), ["10.0.0.1"]);
    assert_eq!(admitted_by("::ffff:0:0/96"), ["::ffff:10.0.0.1"]);
    let peer = guarded([pods(matching(""))], [pod("a/client", "", &["10.0.0.1"])]);
    assert_eq!(admitted(&peer, &sources), ["10.0.0.1"]);
}

#[test]
fn except_is_taken_from_its_own_block_only() {
    let sources = ["10.0.0.1", "10.0.0.2", "10.0.0.3"];
    let holed = block("10.0.0.0/24", &["10.0.0.1/32", "10.0.0.2/31"]);
    assert_eq!(admitted(&guarded([holed.clone()], []), &sources), [""; 0]);
    let another = guarded([holed.clone(), block("10.0.0.2/32", &[])], []);
    assert_eq!(admitted(&another, &sources), ["10.0.0.2"]);
    let selected = guarded(
        [holed, pods(matching("app=x"))],
        [pod("a/x", "app=x", &["10.0.0.3"])],
    );
    assert_eq!(admitted(&selected, &sources), ["10.0.0.3"]);
}

#[test]
fn equal_blocks_with_different_excepts_are_two_blocks() {
    let sources = ["10.0.0.1", "10.0.0.2", "10.0.0.3"];
    let low = block("10.0.0.0/24", &["10.0.0.1/32", "10.0.0.3/32"]);
    let high = block("10.0.0.0/24", &["10.0.0.2/32", "10.0.0.3/32"]);
    assert_eq!(
        admitted(&guarded([low, high], []), &sources),
        ["10.0.0.1", "10.0.0.2"]
    );
}

#[test]
fn except_may_cover_everything() {
    let sources = ["10.0.0.1", "192.0.2.1"];
    assert_eq!(
        admitted(&guarded([block("0.0.0.0/0", &["0.0.0.0/0"])], []), &sources),
        [""; 0]
    );
    let halves = block("0.0.0.0/0", &["0.0.0.0/1", "128.0.0.0/1"]);
    assert_eq!(admitted(&guarded([halves], []), &sources), [""; 0]);
}

#[test]
fn a_block_covers_pods_and_nodes_too() {
    let snapshot = guarded(
        [block("10.0.0.0/24", &["10.0.0.2/32"])],
        [
            pod("a/x", "app=x", &["10.0.0.1"]),
            pod("b/y", "app=y", &["10.0.0.2"]),
        ],
    );
    assert_eq!(admitted(&snapshot, &["10.0.0.1", "10.0.0.2"]), ["10.0.0.1"]);
    let by_pod = ingress(&snapshot, end("a/x", "10.0.0.1"), end("a/server", "10.9.0.1"), 80);
    assert_eq!(by_pod, "PASS by a/p rules a/p#0");
}

#[test]
fn a_dual_stack_pod_is_matched_by_both_its_addresses() {
    let x = pod("a/x", "app=x", &["10.0.0.1", "fd00::1"]);
    let sources = ["10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"];
    assert_eq!(
        admitted(&guarded([pods(matching("app=x"))], [x]), &sources),
        ["10.0.0.1", "fd00::1"]
    );
}

#[test]
fn a_completed_pod_has_no_address() {
    let done = Pod {
        completed: true,
        ..pod("a/x", "app=x", &["10.0.0.1"])
    };
    let selects_x = || [pods(matching("app=x"))];
    assert_eq!(
        admitted(&guarded(selects_x(), [done.clone()]), &["10.0.0.1"]),
        [""; 0]
    );
    let reused = guarded(
        selects_x(),
        [done.clone(), pod("a/new", "app=new", &["10.0.0.1"])],
    );
    assert_eq!(admitted(&reused, &["10.0.0.1"]), [""; 0]);
    // Whoever asks for the completed pod by name gets what its address is now.
    let isolated = policy("a/out", matching("app=x"), None, Some(vec![]));
    let mut snapshot = guarded([], [done]);
    snapshot.apply(Event::Policy(isolated));
    let flow = tcp_flow(end("a/x", "10.0.0.1"), at("192.0.2.1"), 80);
    assert_eq!(said(&snapshot, &flow), ["open", "open"]);
}

#[test]
fn a_running_pod_takes_an_address_from_a_terminating_one() {
    let old = Pod {
        terminating: true,
        ..pod("a/x", "app=x", &["10.0.0.1"])
    };
    let selects = |app: &str| [pods(matching(app))];
    assert_eq!(
        admitted(&guarded(selects("app=x"), [old.clone()]), &["10.0.0.1"]),
        ["10.0.0.1"]
    );
    for new in ["a/new", "a/z-new"] {
        let both = [old.clone(), pod(new, "app=new", &["10.0.0.1"])];
        assert_eq!(
            admitted(&guarded(selects("app=x"), both.clone()), &["10.0.0.1"]),
            [""; 0]
        );
        assert_eq!(
            admitted(&guarded(selects("app=new"), both), &["10.0.0.1"]),
            ["10.0.0.1"]
        );
    }
}

#[test]
fn of_two_owners_both_must_match() {
    let both = || {
        [
            pod("a/x", "app=x,tier=front", &["10.0.0.1"]),
            pod("a/y", "app=y,tier=front", &["10.0.0.1"]),
        ]
    };
    let admitted_by = |peers: Vec<Peer>| admitted(&guarded(peers, both()), &["10.0.0.1"]);
    assert_eq!(admitted_by(vec![pods(matching("tier=front"))]), ["10.0.0.1"]);
    assert_eq!(admitted_by(vec![pods(matching("app=x"))]), [""; 0]);
    // One peer for each is not one peer for both.
    assert_eq!(
        admitted_by(vec![pods(matching("app=x")), pods(matching("app=y"))]),
        [""; 0]
    );
    assert_eq!(admitted_by(vec![block("10.0.0.1/32", &[])]), ["10.0.0.1"]);
}

#[test]
fn of_two_owners_both_must_have_the_named_port_and_the_permission() {
    let with = |name: &str, app: &str, numbers: &[u16]| Pod {
        ports: numbers
            .iter()
            .map(|&n| container_port("web", Protocol::Tcp, n))
            .collect(),
        ..pod(name, app, &["10.0.0.1"])
    };
    let client = pod("a/client", "app=client", &["10.0.0.2"]);
    let owners = [with("a/x", "app=x", &[80, 81]), with("a/y", "app=y", &[81, 82])];
    let named = policy(
        "a/p",
        matching("app=client"),
        None,
        Some(vec![on_ports([tcp_named("web")])]),
    );
    let pods = owners.into_iter().chain([client]);
    let mut snapshot = snapshot([], [], pods, [named]);
    let to = |snapshot: &Snapshot, port| egress(snapshot, at("10.0.0.2"), at("10.0.0.1"), port);
    assert_eq!(
        [80, 81, 82].map(|port| to(&snapshot, port)),
        ["DROP by a/p", "PASS by a/p rules a/p#0", "DROP by a/p"]
    );
    // Only one of them is isolated: what goes to the address must suit that one.
    snapshot.apply(Event::Policy(policy(
        "a/in",
        matching("app=y"),
        Some(vec![]),
        None,
    )));
    let flow = |to| tcp_flow(at("192.0.2.1"), to, 81);
    assert_eq!(said(&snapshot, &flow(at("10.0.0.1"))), ["open", "DROP by a/in"]);
    assert_eq!(said(&snapshot, &flow(end("a/x", "10.0.0.1"))), ["open", "open"]);
    assert_eq!(
        said(&snapshot, &flow(end("a/y", "10.0.0.1"))),
        ["open", "DROP by a/in"]
    );
}

#[test]
fn a_pod_without_address_is_isolated_and_nobodys_peer() {
    let unborn = pod("a/x", "app=x", &[]);
    let mut snapshot = guarded([pods(matching("app=x"))], [unborn]);
    let from = || end("a/x", "10.0.0.1");
    assert_eq!(ingress(&snapshot, from(), at("10.9.0.1"), 80), "DROP by a/p");
    snapshot.apply(Event::Policy(policy(
        "a/out",
        matching("app=x"),
        None,
        Some(vec![]),
    )));
    assert_eq!(
        said(&snapshot, &tcp_flow(from(), at("10.9.0.1"), 80)),
        ["DROP by a/out", "DROP by a/p"]
    );
}
