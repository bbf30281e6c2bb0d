//! Ports, ranges, names, protocols.

use netpol_common::proto;

use super::{egress, ingress, said};
use crate::{build::*, model::*, oracle::Flow};

/// `a/server` reachable from everyone on `ports`.
fn serving(server: Pod, ports: impl IntoIterator<Item = PortMatch>) -> Snapshot {
    let p = policy("a/p", matching("app=server"), Some(vec![on_ports(ports)]), None);
    snapshot([], [], [server, pod("a/client", "", &["10.0.0.1"])], [p])
}

fn server(ports: impl IntoIterator<Item = NamedPort>) -> Pod {
    Pod {
        ports: ports.into_iter().collect(),
        ..pod("a/server", "app=server", &["10.0.0.2"])
    }
}

/// Which of `flows` (protocol, port) pass to `a/server`.
fn passing(snapshot: &Snapshot, flows: &[(u8, u16)]) -> Vec<(u8, u16)> {
    let passes = |&(protocol, port): &(u8, u16)| {
        let flow = Flow {
            protocol,
            ..tcp_flow(at("10.0.0.1"), at("10.0.0.2"), port)
        };
        let [egress, ingress] = said(snapshot, &flow);
        assert_eq!(egress, "open");
        ingress == "PASS by a/p rules a/p#0"
    };
    flows.iter().copied().filter(passes).collect()
}

const TCP: u8 = proto::TCP;
const UDP: u8 = proto::UDP;
const SCTP: u8 = proto::SCTP;

#[test]
fn a_number_is_that_number_of_that_protocol() {
    let asked = [
        (TCP, 79),
        (TCP, 80),
        (TCP, 81),
        (UDP, 80),
        (SCTP, 80),
        (proto::ICMP, 0),
    ];
    assert_eq!(passing(&serving(server([]), [tcp(80)]), &asked), [(TCP, 80)]);
    let sctp = port(Protocol::Sctp, PortSpec::Range(80, 80));
    assert_eq!(passing(&serving(server([]), [sctp]), &asked), [(SCTP, 80)]);
}

#[test]
fn a_range_includes_both_ends_up_to_the_last_port() {
    let asked = [
        (TCP, 31999),
        (TCP, 32000),
        (TCP, 32001),
        (TCP, 65534),
        (TCP, 65535),
        (TCP, 0),
    ];
    let range = port(Protocol::Tcp, PortSpec::Range(32000, 65535));
    assert_eq!(
        passing(&serving(server([]), [range]), &asked),
        [(TCP, 32000), (TCP, 32001), (TCP, 65534), (TCP, 65535)]
    );
}

#[test]
fn a_protocol_without_port_means_all_its_ports() {
    let asked = [(UDP, 0), (UDP, 53), (UDP, 65535), (TCP, 53), (proto::ICMPV6, 0)];
    let all = port(Protocol::Udp, PortSpec::All);
    assert_eq!(
        passing(&serving(server([]), [all]), &asked),
        [(UDP, 0), (UDP, 53), (UDP, 65535)]
    );
}

#[test]
fn protocols_without_ports_need_a_rule_without_ports() {
    let asked = [
        (proto::ICMP, 0),
        (proto::ICMPV6, 0),
        (47, 0),
        (0, 0),
        (255, 0),
        (TCP, 1),
    ];
    let every_port = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(|it| port(it, PortSpec::All));
    assert_eq!(passing(&serving(server([]), every_port), &asked), [(TCP, 1)]);
    let any = policy(
        "a/p",
        matching(""),
        Some(vec![rule(Peers::Any, Ports::Any)]),
        None,
    );
    let open = snapshot([], [], [server([])], [any]);
    assert_eq!(passing(&open, &asked), asked);
}

#[test]
fn three_hundred_ports_in_one_rule_all_count() {
    let snapshot = serving(server([]), (0..300).map(|n| tcp(1000 + 2 * n)));
    let asked: Vec<_> = (999..1601).map(|port| (TCP, port)).collect();
    let even: Vec<_> = (0..300).map(|n| (TCP, 1000 + 2 * n)).collect();
    assert_eq!(passing(&snapshot, &asked), even);
}

#[test]
fn a_name_is_resolved_at_the_receiving_pod_by_name_and_protocol() {
    let declared = [
        container_port("web", Protocol::Tcp, 8080),
        container_port("web", Protocol::Udp, 8081),
        container_port("other", Protocol::Tcp, 8082),
    ];
    let asked = [
        (TCP, 8080),
        (TCP, 8081),
        (TCP, 8082),
        (UDP, 8080),
        (UDP, 8081),
        (TCP, 80),
    ];
    let snapshot = serving(server(declared.clone()), [tcp_named("web")]);
    assert_eq!(passing(&snapshot, &asked), [(TCP, 8080)]);
    let udp = port(Protocol::Udp, PortSpec::Named("web".into()));
    assert_eq!(passing(&serving(server(declared), [udp]), &asked), [(UDP, 8081)]);
    assert_eq!(passing(&serving(server([]), [tcp_named("web")]), &asked), []);
}

#[test]
fn one_name_for_two_numbers_means_both() {
    let declared = [
        container_port("web", Protocol::Tcp, 80),
        container_port("web", Protocol::Tcp, 8080),
    ];
    let asked = [(TCP, 80), (TCP, 81), (TCP, 8080)];
    assert_eq!(
        passing(&serving(server(declared), [tcp_named("web")]), &asked),
        [(TCP, 80), (TCP, 8080)]
    );
}

/// `a/client` may go to `peers` on the named TCP port `web`, which is 80 at `a/old` and 8080 at `a/new`.
fn to_named(peers: Peers) -> Snapshot {
    let web = |number| vec![container_port("web", Protocol::Tcp, number)];
    let pods = [
        pod("a/client", "app=client", &["10.0.0.1"]),
        Pod {
            ports: web(80),
            ..pod("a/old", "app=web", &["10.0.0.2", "fd00::2"])
        },
        Pod {
            ports: web(8080),
            ..pod("a/new", "app=web", &["10.0.0.3"])
        },
        pod("a/bare", "app=web", &["10.0.0.4"]),
        Pod {
            host_network: true,
            node: Some("node-2".into()),
            ports: web(80),
            ..pod("a/host", "app=web", &["10.1.0.2"])
        },
    ];
    let rules = vec![rule(peers, Ports::Of(vec![tcp_named("web")]))];
    let p = policy("a/p", matching("app=client"), None, Some(rules));
    snapshot([], [node("node-2", &["10.1.0.2"])], pods, [p])
}

fn named_reach(peers: Peers) -> Vec<(&'static str, u16)> {
    let snapshot = to_named(peers);
    let targets = [
        "10.0.0.2",
        "fd00::2",
        "10.0.0.3",
        "10.0.0.4",
        "10.1.0.2",
        "192.0.2.1",
    ];
    let asked = targets
        .into_iter()
        .flat_map(|target| [(target, 80), (target, 8080)]);
    asked
        .filter(|&(target, port)| {
            egress(&snapshot, end("a/client", "10.0.0.1"), at(target), port) == "PASS by a/p rules a/p#0"
        })
        .collect()
}

#[test]
fn in_egress_a_name_is_resolved_at_each_destination_pod() {
    let resolved = [("10.0.0.2", 80), ("fd00::2", 80), ("10.0.0.3", 8080)];
    assert_eq!(named_reach(Peers::Of(vec![pods(matching("app=web"))])), resolved);
    assert_eq!(named_reach(Peers::Any), resolved);
    let everywhere = Peers::Of(vec![block("0.0.0.0/0", &[])]);
    assert_eq!(named_reach(everywhere), [("10.0.0.2", 80), ("10.0.0.3", 8080)]);
}

#[test]
fn in_egress_a_name_means_nothing_where_the_peer_does_not_match() {
    let other = Peers::Of(vec![
        block("10.0.0.0/24", &["10.0.0.2/32"]),
        pods(matching("app=none")),
    ]);
    assert_eq!(named_reach(other), [("10.0.0.3", 8080)]);
}

#[test]
fn peers_and_ports_of_one_rule_are_anded_those_of_two_are_not_mixed() {
    let rules = vec![
        rule(
            Peers::Of(vec![block("10.0.0.1/32", &[])]),
            Ports::Of(vec![tcp(80)]),
        ),
        rule(
            Peers::Of(vec![block("10.0.0.3/32", &[])]),
            Ports::Of(vec![tcp(81)]),
        ),
    ];
    let snapshot = snapshot(
        [],
        [],
        [server([])],
        [policy("a/p", matching(""), Some(rules), None)],
    );
    let by = |from, port| ingress(&snapshot, at(from), at("10.0.0.2"), port);
    assert_eq!(by("10.0.0.1", 80), "PASS by a/p rules a/p#0");
    assert_eq!(by("10.0.0.1", 81), "DROP by a/p");
    assert_eq!(by("10.0.0.3", 80), "DROP by a/p");
    assert_eq!(by("10.0.0.3", 81), "PASS by a/p rules a/p#1");
}

#[test]
fn in_egress_a_name_is_resolved_by_address_not_by_the_name_of_a_pod_that_has_none() {
    let mut snapshot = to_named(Peers::Any);
    let unborn = Pod {
        addresses: vec![],
        ..snapshot.pods[&name("a/old")].clone()
    };
    snapshot.apply(Event::Pod(unborn));
    let to = |to| egress(&snapshot, end("a/client", "10.0.0.1"), to, 80);
    assert_eq!(to(end("a/old", "10.0.0.2")), "DROP by a/p");
}
