//! What has no effect is what the API's reading of each selector says, pod by pod.

use proptest::prelude::*;

use super::*;
use crate::{
    generate::{self, LOCAL_NODE, Readable, Shape},
    model::{self, Snapshot},
    oracle::selects,
};

/// As [`Compiler::without_effect`], with nothing but the objects.
fn reference(snapshot: &Snapshot) -> Vec<(ObjectName, Idle)> {
    let mut found = Vec::new();
    for policy in snapshot.policies.values() {
        let own = |name: &ObjectName| name.namespace == policy.name.namespace;
        let pods: Vec<_> = pods(snapshot).filter(|pod| own(&pod.name)).collect();
        let selected: Vec<_> = pods
            .iter()
            .copied()
            .filter(|pod| selects(&policy.selector, &pod.labels))
            .collect();
        if selected.is_empty() {
            found.extend((!pods.is_empty()).then(|| (policy.name.clone(), Idle::Selector)));
            continue;
        }
        for (direction, rules) in [
            (Direction::Ingress, &policy.ingress),
            (Direction::Egress, &policy.egress),
        ] {
            for rule in rules.iter().flatten() {
                let idle = idle_peers(snapshot, policy, rule, direction);
                found.extend(idle.map(|idle| (policy.name.clone(), idle)));
                if let Ports::Of(ports) = &rule.ports {
                    for (at, port) in ports.iter().enumerate() {
                        let PortSpec::Named(name) = port.port.clone() else {
                            continue;
                        };
                        let (rule, protocol) = (rule.index, port.protocol);
                        let has = |known: &model::NamedPort| known.name == name && known.protocol == protocol;
                        let all: Vec<_> = self::pods(snapshot).collect();
                        let asked = match direction {
                            Direction::Ingress => &selected[..],
                            Direction::Egress => &all,
                        };
                        if !asked.iter().any(|pod| pod.ports.iter().any(has)) {
                            found.push((
                                policy.name.clone(),
                                Idle::Port {
                                    direction,
                                    rule,
                                    at,
                                    name,
                                    protocol,
                                },
                            ));
                        }
                    }
                }
            }
        }
    }
    found
}

fn pods(snapshot: &Snapshot) -> impl Iterator<Item = &model::Pod> {
    snapshot.pods.values().filter(|pod| pod.is_endpoint())
}

fn idle_peers<'s>(
    snapshot: &'s Snapshot,
    policy: &'s model::Policy,
    rule: &'s Rule,
    direction: Direction,
) -> impl Iterator<Item = Idle> + 's {
    let peers = match &rule.peers {
        Peers::Any => &[][..],
        Peers::Of(peers) => peers,
    };
    peers.iter().enumerate().filter_map(move |(at, peer)| {
        let Peer::Pods {
            namespaces,
            pods: selector,
        } = peer
        else {
            return None;
        };
        let meant = |pod: &model::Pod| {
            let namespace = match snapshot.namespaces.get(&pod.name.namespace) {
                Some(namespace) => namespace.labels.clone(),
                None => model::Namespace::new(pod.name.namespace.clone(), []).labels,
            };
            let there = match namespaces {
                NamespaceScope::Own => pod.name.namespace == policy.name.namespace,
                NamespaceScope::Matching(namespaces) => selects(namespaces, &namespace),
            };
            there && selects(selector, &pod.labels)
        };
        let rule = rule.index;
        (!pods(snapshot).any(meant)).then_some(Idle::Peer { direction, rule, at })
    })
}

proptest! {
    #[test]
    fn what_has_no_effect_is_what_means_no_pod(
        snapshot in generate::snapshots(Shape::default()).prop_map(Readable),
    ) {
        let mut compiler = Compiler::new(LOCAL_NODE.into(), 1);
        compiler.load(&snapshot.0);
        prop_assert_eq!(compiler.without_effect(usize::MAX), reference(&snapshot.0));
        // Looking has changed nothing.
        let all = snapshot.0.into_events().map(|event| match event {
            model::Event::Namespace(object) => model::Event::NamespaceGone(object.name),
            model::Event::Node(object) => model::Event::NodeGone(object.name),
            model::Event::Pod(object) => model::Event::PodGone(object.name),
            model::Event::Policy(object) => model::Event::PolicyGone(object.name),
            gone => gone,
        });
        compiler.apply_all(all);
        prop_assert!(compiler.is_vacant());
    }
}
