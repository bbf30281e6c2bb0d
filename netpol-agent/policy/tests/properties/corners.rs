//! The generators reach the corners they are there for.

use std::collections::BTreeMap;

use ipnet::IpNet;
use netpol_policy::{
    generate::{self, Shape},
    model::{Peer, Peers, Pod, PortMatch, PortSpec, Ports, Rule, Snapshot},
};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

fn rules(snapshot: &Snapshot) -> impl Iterator<Item = &Rule> {
    let policies = snapshot.policies.values();
    policies.flat_map(|policy| policy.ingress.iter().chain(&policy.egress).flatten())
}

fn blocks(snapshot: &Snapshot) -> Vec<(&IpNet, &[IpNet])> {
    let peers = rules(snapshot).flat_map(|rule| match &rule.peers {
        Peers::Any => &[][..],
        Peers::Of(peers) => peers,
    });
    let blocks = peers.filter_map(|peer| match peer {
        Peer::IpBlock { cidr, except } => Some((cidr, &except[..])),
        Peer::Pods { .. } => None,
    });
    blocks.collect()
}

fn ports(rule: &Rule) -> &[PortMatch] {
    match &rule.ports {
        Ports::Any => &[],
        Ports::Of(ports) => ports,
    }
}

fn pairs<T>(all: &[T]) -> impl Iterator<Item = (&T, &T)> {
    (1..all.len()).flat_map(move |n| all[..n].iter().map(move |one| (one, &all[n])))
}

fn share_an_address(a: &Pod, b: &Pod) -> bool {
    a.addresses.iter().any(|address| b.addresses.contains(address))
}

fn covered(cidr: &IpNet, except: &[IpNet]) -> bool {
    IpNet::aggregate(&except.to_vec()).contains(cidr)
}

/// The corners that `snapshot` has.
fn corners(snapshot: &Snapshot) -> Vec<&'static str> {
    let blocks = blocks(snapshot);
    let cidr_is = |text: &str| blocks.iter().any(|(cidr, _)| cidr.to_string().ends_with(text));
    let pods: Vec<_> = snapshot.pods.values().collect();
    let running: Vec<_> = pods.iter().copied().filter(|pod| pod.is_endpoint()).collect();
    let spec = |is: fn(&PortSpec) -> bool| rules(snapshot).flat_map(ports).any(|port| is(&port.port));
    let two_numbers = |pod: &Pod| {
        pairs(&pod.ports).any(|(a, b)| (&a.name, a.protocol) == (&b.name, b.protocol) && a.number != b.number)
    };
    let found = [
        (
            "overlapping blocks",
            pairs(&blocks).any(|((a, _), (b, _))| a != b && a.contains(*b)),
        ),
        (
            "equal blocks, different excepts",
            pairs(&blocks).any(|(a, b)| a.0 == b.0 && a.1 != b.1),
        ),
        (
            "except equal to its block",
            blocks.iter().any(|(cidr, except)| except.contains(cidr)),
        ),
        (
            "excepts that cover their block together",
            blocks
                .iter()
                .any(|(cidr, except)| !except.contains(cidr) && covered(cidr, except)),
        ),
        ("0.0.0.0/0", cidr_is("0.0.0.0/0")),
        ("::/0", cidr_is("::/0")),
        ("/32", cidr_is("/32")),
        ("/128", cidr_is("/128")),
        (
            "v4-mapped",
            blocks
                .iter()
                .any(|(cidr, _)| cidr.to_string().starts_with("::ffff:")),
        ),
        (
            "endPort 65535",
            spec(|port| matches!(port, PortSpec::Range(1..=65534, 65535))),
        ),
        ("named port", spec(|port| matches!(port, PortSpec::Named(_)))),
        (
            "250 ports in one rule",
            rules(snapshot).any(|rule| ports(rule).len() >= 250),
        ),
        (
            "one name for two numbers in a pod",
            running.iter().any(|pod| two_numbers(pod)),
        ),
        (
            "pods with all labels the same",
            pairs(&running).any(|(a, b)| a.labels == b.labels),
        ),
        ("dual stack", running.iter().any(|pod| pod.addresses.len() == 2)),
        ("no address", running.iter().any(|pod| pod.addresses.is_empty())),
        ("completed", pods.iter().any(|pod| pod.completed)),
        ("hostNetwork", pods.iter().any(|pod| pod.host_network)),
        (
            "address of a completed pod used again",
            running
                .iter()
                .any(|a| pods.iter().any(|b| b.completed && share_an_address(a, b))),
        ),
        (
            "address of a terminating pod used again",
            pairs(&running).any(|(a, b)| a.terminating != b.terminating && share_an_address(a, b)),
        ),
        (
            "address of two running pods",
            pairs(&running).any(|(a, b)| !a.terminating && !b.terminating && share_an_address(a, b)),
        ),
        (
            "namespace without object",
            pods.iter()
                .any(|pod| !snapshot.namespaces.contains_key(&pod.name.namespace)),
        ),
    ];
    found
        .into_iter()
        .filter(|(_, found)| *found)
        .map(|(name, _)| name)
        .collect()
}

#[test]
fn every_corner_is_reached_in_a_thousand_snapshots() {
    let mut runner = TestRunner::deterministic();
    let strategy = generate::snapshots(Shape::default());
    let mut reached: BTreeMap<&str, u32> = BTreeMap::new();
    for _ in 0..1000 {
        let snapshot = strategy
            .new_tree(&mut runner)
            .expect("nothing is rejected")
            .current();
        for corner in corners(&snapshot) {
            *reached.entry(corner).or_default() += 1;
        }
    }
    let rare: Vec<_> = reached.iter().filter(|(_, count)| **count < 10).collect();
    assert_eq!((reached.len(), rare), (22, vec![]), "{reached:#?}");
}
