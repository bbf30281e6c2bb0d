//! Namespaces, nodes and pods.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::{collection::vec, option, prelude::*, sample::select};

use super::rules::labels;
use crate::model::{NamedPort, Namespace, Node, ObjectName, Pod, Protocol, Str};

/// The node that most pods run on.
pub const LOCAL_NODE: &str = "node-1";
const NAMESPACES: [&str; 3] = ["blue", "green", "red"];
const NODES: [&str; 2] = [LOCAL_NODE, "node-2"];
const PODS: [&str; 3] = ["a", "b", "c"];
pub(super) const PORT_NAMES: [&str; 3] = ["web", "alt", "dns"];

pub(super) fn namespace_names() -> impl Strategy<Value = Str> {
    select(&NAMESPACES[..]).prop_map(Str::from)
}

pub(super) fn node_names() -> impl Strategy<Value = Str> {
    select(&NODES[..]).prop_map(Str::from)
}

pub(super) fn pod_names() -> impl Strategy<Value = ObjectName> {
    (namespace_names(), select(&PODS[..])).prop_map(|(namespace, name)| ObjectName::new(namespace, name))
}

/// A namespace; those that are not drawn are missing from the snapshot.
pub fn namespaces() -> impl Strategy<Value = Namespace> {
    let team = prop_oneof![3 => Just("one"), 1 => Just("two")];
    (namespace_names(), option::of(team))
        .prop_map(|(name, team)| Namespace::new(name, team.map(|team| ("team".into(), team.into()))))
}

/// A node with its addresses; now and then one that is a pod's, too.
pub fn nodes() -> impl Strategy<Value = Node> {
    let address = prop_oneof![
        8 => select(vec![v4(10, 1, 0, 1), v4(10, 1, 0, 2), v6(0xfd01, 1), v6(0xfd01, 2)]),
        1 => pod_v4(),
    ];
    (node_names(), vec(address, 0..=2)).prop_map(|(name, addresses)| Node { name, addresses })
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6(first: u16, last: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, last))
}

fn pod_v4() -> impl Strategy<Value = IpAddr> {
    (1..=8_u8).prop_map(|last| v4(10, 0, 0, last))
}

fn pod_v6() -> impl Strategy<Value = IpAddr> {
    (1..=8_u16).prop_map(|last| v6(0xfd00, last))
}

/// Addresses that a snapshot's blocks are built around, pods' and others.
pub(super) fn landmarks() -> Vec<IpAddr> {
    let mapped = IpAddr::V6(Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped());
    (0..=9)
        .flat_map(|last| [v4(10, 0, 0, last as u8), v6(0xfd00, last)])
        .chain([
            v4(10, 0, 1, 0),
            v4(10, 1, 0, 1),
            v4(10, 1, 0, 2),
            v4(192, 0, 2, 1),
        ])
        .chain([
            v4(0, 0, 0, 0),
            v4(127, 255, 255, 255),
            v4(128, 0, 0, 0),
            v4(255, 255, 255, 255),
        ])
        .chain([
            v6(0xfd01, 1),
            v6(0xfd01, 2),
            v6(0x2001, 1),
            mapped,
            v6(0, 0),
            v6(0xfd00, 0xffff),
        ])
        .chain([IpAddr::V6(Ipv6Addr::from(u128::MAX))])
        .collect()
}

/// Ports at edges: of sixteen bits, of the chunks and words in which the tables keep them, neighbours, and a gap of
/// one.
pub(super) const PORT_EDGES: [u16; 17] = [
    1, 53, 63, 64, 80, 81, 83, 443, 511, 512, 513, 1023, 8080, 32767, 32768, 65534, 65535,
];

pub(super) fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![4 => Just(Protocol::Tcp), 2 => Just(Protocol::Udp), 1 => Just(Protocol::Sctp)]
}

fn container_ports() -> impl Strategy<Value = Vec<NamedPort>> {
    let number = prop_oneof![3 => select(vec![80_u16, 81]), 1 => select(&PORT_EDGES[..])];
    let port = (select(&PORT_NAMES[..]), protocol(), number).prop_map(|(name, protocol, number)| NamedPort {
        name: name.into(),
        protocol,
        number,
    });
    vec(port, 0..=3).prop_map(|mut ports| {
        ports.sort();
        ports.dedup();
        ports
    })
}

/// A pod: mostly running on [`LOCAL_NODE`] with one or two addresses out of eight a family.
pub fn pod() -> impl Strategy<Value = Pod> {
    let node = prop_oneof![6 => Just(Some(LOCAL_NODE)), 2 => Just(Some("node-2")), 1 => Just(None)];
    let state = prop_oneof![
        12 => Just((false, false, false)),
        2 => Just((true, false, false)),
        2 => Just((false, true, false)),
        2 => Just((false, false, true)),
        1 => any::<(bool, bool, bool)>(),
    ];
    let addresses = (option::weighted(0.8, pod_v4()), option::weighted(0.5, pod_v6()));
    (
        pod_names(),
        0..3_u8,
        labels(),
        node,
        state,
        addresses,
        container_ports(),
    )
        .prop_map(
            |(name, uid, labels, node, (host_network, completed, terminating), (v4, v6), ports)| Pod {
                uid: format!("{name}-{uid}").into(),
                name,
                labels,
                node: node.map(Str::from),
                host_network,
                completed,
                terminating,
                addresses: v4.into_iter().chain(v6).collect(),
                ports,
            },
        )
}

/// Pods, several of which may have one name (the last is there).
pub fn pods() -> impl Strategy<Value = Vec<Pod>> {
    vec(pod(), 1..=9)
}
