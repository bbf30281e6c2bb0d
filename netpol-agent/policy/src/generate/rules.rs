//! Labels, selectors, peers, ports, policies.

use std::net::IpAddr;

use ipnet::IpNet;
use proptest::{
    collection::vec,
    option,
    prelude::*,
    sample::{Index, select, subsequence},
};

use super::{
    Shape,
    objects::{PORT_EDGES, PORT_NAMES, landmarks, namespace_names, protocol},
};
use crate::model::{
    Labels, NAMESPACE_NAME_LABEL, NamespaceScope, ObjectName, Operator, Peer, Peers, Policy, PortMatch,
    PortSpec, Ports, Requirement, Rule, Selector, Str,
};

const APPS: [&str; 3] = ["api", "db", "web"];
const TIERS: [&str; 2] = ["back", "front"];

/// A pod's labels; half of all pods have the same.
pub fn labels() -> impl Strategy<Value = Labels> {
    let drawn = (
        option::weighted(0.8, select(&APPS[..])),
        option::of(select(&TIERS[..])),
    );
    prop_oneof![Just((Some("web"), Some("front"))), drawn].prop_map(|(app, tier)| {
        let app = app.map(|app| ("app", app));
        app.into_iter().chain(tier.map(|tier| ("tier", tier))).collect()
    })
}

fn requirement(key: &'static str, vocabulary: &'static [&'static str]) -> impl Strategy<Value = Requirement> {
    let values = || {
        subsequence(vocabulary, 1..=vocabulary.len())
            .prop_map(|values| values.into_iter().map(Str::from).collect::<Vec<_>>())
    };
    prop_oneof![
        3 => values().prop_map(|mut values| { values.truncate(1); Operator::In(values) }),
        2 => values().prop_map(Operator::In),
        2 => values().prop_map(Operator::NotIn),
        1 => Just(Operator::Exists),
        1 => Just(Operator::DoesNotExist),
    ]
    .prop_map(move |operator| Requirement {
        key: key.into(),
        operator,
    })
}

fn all_of(one: impl Strategy<Value = Requirement>) -> impl Strategy<Value = Selector> {
    vec(one, 0..=2).prop_map(crate::build::selector)
}

/// A selector of pods; often the empty one.
pub fn selector() -> impl Strategy<Value = Selector> {
    all_of(prop_oneof![3 => requirement("app", &APPS), 2 => requirement("tier", &TIERS)])
}

fn namespace_selector() -> impl Strategy<Value = Selector> {
    all_of(prop_oneof![
        requirement("team", &["one", "two"]),
        requirement(NAMESPACE_NAME_LABEL, &["blue", "green", "red"]),
    ])
}

/// An `ipBlock` around a landmark: of any size, often the same twice, with holes of any size down to all of it.
pub fn ip_block() -> impl Strategy<Value = Peer> {
    let landmarks = landmarks();
    let lengths = |address: IpAddr| match address {
        IpAddr::V4(_) => vec![0, 1, 8, 23, 24, 28, 29, 30, 31, 32],
        IpAddr::V6(_) => vec![0, 1, 16, 64, 96, 120, 124, 126, 127, 128],
    };
    let within = landmarks.clone();
    let net = |address: IpAddr, length: u8| {
        let net = IpNet::new(address, length).expect("lengths fit the family");
        net.trunc()
    };
    let hole = (any::<Index>(), any::<Index>());
    (select(landmarks), any::<Index>(), any::<bool>(), vec(hole, 0..=3)).prop_map(
        move |(address, length, halves, holes)| {
            let cidr = net(address, *length.get(&lengths(address)));
            let inside: Vec<_> = within
                .iter()
                .copied()
                .filter(|address| cidr.contains(address))
                .collect();
            let mut except: Vec<_> = holes
                .into_iter()
                .map(|(which, length)| {
                    let hole = *which.get(&inside);
                    let mut lengths = lengths(hole);
                    lengths.retain(|length| *length >= cidr.prefix_len());
                    net(hole, *length.get(&lengths))
                })
                .collect();
            // Two halves cover everything without being equal to it.
            if halves && except.len() > 2 && cidr.prefix_len() < cidr.max_prefix_len() {
                except = cidr
                    .subnets(cidr.prefix_len() + 1)
                    .expect("shorter than an address")
                    .collect();
            }
            except.sort();
            except.dedup();
            Peer::IpBlock { cidr, except }
        },
    )
}

fn peer() -> impl Strategy<Value = Peer> {
    let scope = prop_oneof![
        Just(NamespaceScope::Own),
        namespace_selector().prop_map(NamespaceScope::Matching)
    ];
    let pods = (scope, selector()).prop_map(|(namespaces, pods)| Peer::Pods { namespaces, pods });
    prop_oneof![3 => pods, 2 => ip_block()]
}

fn port() -> impl Strategy<Value = PortMatch> {
    let edge = || select(&PORT_EDGES[..]);
    let spec = prop_oneof![
        1 => Just(PortSpec::All),
        3 => edge().prop_map(|port| PortSpec::Range(port, port)),
        2 => (edge(), edge()).prop_map(|(a, b)| PortSpec::Range(a.min(b), a.max(b))),
        3 => select(&PORT_NAMES[..]).prop_map(|name| PortSpec::Named(name.into())),
    ];
    (protocol(), spec).prop_map(|(protocol, port)| PortMatch { protocol, port })
}

/// Up to three hundred single ports in one rule, so that no fixed number of them can be enough.
fn many_ports() -> impl Strategy<Value = Vec<PortMatch>> {
    (
        protocol(),
        0..60_000_u16,
        select(vec![1_u16, 2, 3, 17]),
        4..=300_u16,
    )
        .prop_map(|(protocol, first, step, count)| {
            let numbers = (0..count).map(|n| first.saturating_add(n.saturating_mul(step)).max(1));
            let single = |port| PortMatch {
                protocol,
                port: PortSpec::Range(port, port),
            };
            numbers.map(single).collect()
        })
}

/// A rule with index 0.
pub fn rule(left_out: bool) -> impl Strategy<Value = Rule> {
    let least = usize::from(!left_out);
    let peers = prop_oneof![1 => Just(Peers::Any), 4 => vec(peer(), least..=3).prop_map(Peers::Of)];
    let ports = prop_oneof![
        8 => Just(Ports::Any),
        12 => vec(port(), least..=4).prop_map(Ports::Of),
        1 => many_ports().prop_map(Ports::Of),
    ];
    (peers, ports).prop_map(|(peers, ports)| Rule {
        index: 0,
        peers,
        ports,
    })
}

/// The rules of one direction: `None` where the policy does not relate to it.
fn direction(shape: Shape) -> impl Strategy<Value = Option<Vec<Rule>>> {
    // A weight of 1 is not a probability for proptest.
    let rule = if shape.left_out {
        option::weighted(0.9, rule(true)).boxed()
    } else {
        rule(false).prop_map(Some).boxed()
    };
    let rules = vec(rule, 0..=shape.rules);
    let numbered = rules.prop_map(|rules| {
        let numbered = (0..).zip(rules);
        numbered
            .filter_map(|(index, rule)| Some(Rule { index, ..rule? }))
            .collect()
    });
    option::weighted(0.7, numbered)
}

pub(super) fn policy_names() -> impl Strategy<Value = ObjectName> {
    let names = select(&["p", "q", "r", "s"][..]);
    (namespace_names(), names).prop_map(|(namespace, name)| ObjectName::new(namespace, name))
}

/// A policy. One that relates to neither direction has lost its types, or all of them were unknown.
pub fn policy(shape: Shape) -> impl Strategy<Value = Policy> {
    let parts = (policy_names(), selector(), direction(shape), direction(shape));
    parts.prop_map(move |(name, selector, ingress, egress)| Policy {
        name,
        selector,
        // YAML can not say "neither": the default of `policyTypes` has at least Ingress.
        ingress: if ingress.is_none() && egress.is_none() && !shape.left_out {
            Some(Vec::new())
        } else {
            ingress
        },
        egress,
    })
}
