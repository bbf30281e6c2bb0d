//! Random snapshots, edits and flows, biased to where NetworkPolicy implementations go wrong.
//!
//! Everything is drawn from a vocabulary so small that collisions are the rule: pods that share all labels or
//! an address, one CIDR with several `except` lists, one port name for two numbers. [`flows`] then derives from
//! a snapshot the ends and ports at its edges, and [`manifests`] writes it as YAML, so that a failure can be
//! read, and pasted into a file.

mod flows;
mod objects;
mod rules;
mod text;

use proptest::{collection::vec, option, prelude::*};

use crate::model::{Event, ObjectName, Snapshot, Str};
pub use flows::{ends, flows, ports};
pub use objects::{LOCAL_NODE, namespaces, nodes, pod, pods};
pub use rules::{ip_block, labels, policy, rule, selector};
pub use text::{Readable, manifests};

/// How much of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// At most this many pods (nine names).
    pub pods: usize,
    /// At most this many policies.
    pub policies: usize,
    /// At most this many rules a direction.
    pub rules: usize,
    /// Also what only a source can produce: rules left out because they were not understood, and lists that
    /// match nothing because all their entries were left out. YAML can not say these.
    pub left_out: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            pods: 9,
            policies: 6,
            rules: 4,
            left_out: true,
        }
    }
}

/// A snapshot.
pub fn snapshots(shape: Shape) -> impl Strategy<Value = Snapshot> {
    (
        vec(namespaces(), 0..=3),
        vec(nodes(), 0..=2),
        vec(pod(), 1..=shape.pods),
        vec(policy(shape), 0..=shape.policies),
    )
        .prop_map(|(namespaces, nodes, pods, policies)| {
            crate::build::snapshot(namespaces, nodes, pods, policies)
        })
}

/// A change; often of an object that is there.
pub fn events(shape: Shape) -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => pod().prop_map(Event::Pod),
        6 => policy(shape).prop_map(Event::Policy),
        2 => namespaces().prop_map(Event::Namespace),
        1 => nodes().prop_map(Event::Node),
        3 => objects::pod_names().prop_map(Event::PodGone),
        3 => rules::policy_names().prop_map(Event::PolicyGone),
        1 => objects::namespace_names().prop_map(Event::NamespaceGone),
        1 => objects::node_names().prop_map(Event::NodeGone),
    ]
}

/// A snapshot whose policies select every pod of their namespace, one of them with `rules` rules for ingress.
pub fn large_rulesets(rules: usize) -> impl Strategy<Value = Snapshot> {
    let shape = Shape::default();
    (
        snapshots(shape),
        vec(rule(shape.left_out), rules),
        option::of(vec(rule(shape.left_out), rules)),
    )
        .prop_map(|(mut snapshot, ingress, egress)| {
            let namespace: Str = snapshot
                .pods
                .keys()
                .next()
                .map_or_else(|| "blue".into(), |name| name.namespace.clone());
            let name = ObjectName::new(namespace, "large");
            let large = crate::build::policy(
                &name.to_string(),
                crate::build::matching(""),
                Some(ingress),
                egress,
            );
            snapshot.policies.insert(name, large);
            snapshot
        })
}
