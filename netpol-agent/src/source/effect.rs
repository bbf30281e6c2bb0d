//! Policies that mean nothing to any pod: accepted by every API server, and mostly a slip of the pen.
//!
//! Warnings only. A policy may well be there before its pods are, so that each says what was looked for and not found.

use std::collections::BTreeMap;

use netpol_policy::{
    model::{
        NamespaceScope, ObjectName, Peer, Peers, Pod, Policy, PortSpec, Ports, Rule, Selector, Snapshot,
    },
    oracle::selects,
};

use super::{Problem, Severity};

/// So many are said; a cluster with more has a generator at fault.
const MOST: usize = 100;

/// What has no effect in `snapshot`, in order of policies.
#[must_use]
pub fn without(snapshot: &Snapshot) -> Vec<Problem> {
    let mut look = Look {
        snapshot,
        anywhere: BTreeMap::new(),
        found: Vec::new(),
    };
    for policy in snapshot.policies.values() {
        if look.found.len() >= MOST {
            break;
        }
        look.policy(policy);
    }
    look.found
}

struct Look<'s> {
    snapshot: &'s Snapshot,
    /// Whether pods of any namespace match, by both selectors: few policies have their own.
    anywhere: BTreeMap<(&'s NamespaceScope, &'s Selector), bool>,
    found: Vec<Problem>,
}

impl<'s> Look<'s> {
    fn policy(&mut self, policy: &'s Policy) {
        let selected = |pod: &&Pod| selects(&policy.selector, &pod.labels);
        let pods: Vec<&Pod> = self.pods_of(&policy.name.namespace).filter(selected).collect();
        if pods.is_empty() {
            // A namespace without pods waits for them; one with pods, of which none is meant, is worth a word.
            if self.pods_of(&policy.name.namespace).next().is_some() {
                let message = "selects no pod of its namespace: it has no effect".to_owned();
                self.warn(
                    policy,
                    "spec.podSelector".to_owned(),
                    message,
                    "correct the labels, if pods with them are not yet to come",
                );
            }
            return;
        }
        for rule in policy.ingress.iter().flatten() {
            self.peers(policy, rule, "ingress", "from");
            self.named_ports(policy, rule, &pods);
        }
        for rule in policy.egress.iter().flatten() {
            self.peers(policy, rule, "egress", "to");
        }
    }

    /// Running pods of a namespace.
    fn pods_of(&self, namespace: &netpol_policy::model::Str) -> impl Iterator<Item = &'s Pod> + use<'s> {
        let namespace = namespace.clone();
        let first = ObjectName::new(namespace.clone(), "");
        self.snapshot
            .pods
            .range(first..)
            .take_while(move |(name, _)| name.namespace == namespace)
            .map(|(_, pod)| pod)
            .filter(|pod| pod.is_endpoint())
    }

    fn peers(&mut self, policy: &'s Policy, rule: &'s Rule, direction: &str, field: &str) {
        let Peers::Of(peers) = &rule.peers else { return };
        for (at, peer) in peers.iter().enumerate() {
            let Peer::Pods { namespaces, pods } = peer else {
                continue;
            };
            let matches = match namespaces {
                NamespaceScope::Own => self
                    .pods_of(&policy.name.namespace)
                    .any(|pod| selects(pods, &pod.labels)),
                NamespaceScope::Matching(_) => self.anywhere(namespaces, pods),
            };
            if !matches {
                let field = format!("spec.{direction}[{}].{field}[{at}]", rule.index);
                let message = "matches no pod: it allows nothing".to_owned();
                self.warn(
                    policy,
                    field,
                    message,
                    "correct the labels, if pods or namespaces with them are not yet to come",
                );
            }
        }
    }

    fn anywhere(&mut self, scope: &'s NamespaceScope, pods: &'s Selector) -> bool {
        if let Some(known) = self.anywhere.get(&(scope, pods)) {
            return *known;
        }
        let NamespaceScope::Matching(namespaces) = scope else {
            return false;
        };
        let spaces = self
            .snapshot
            .namespaces
            .values()
            .filter(|space| selects(namespaces, &space.labels));
        let found = spaces
            .into_iter()
            .any(|space| self.pods_of(&space.name).any(|pod| selects(pods, &pod.labels)));
        self.anywhere.insert((scope, pods), found);
        found
    }

    fn named_ports(&mut self, policy: &Policy, rule: &Rule, selected: &[&Pod]) {
        let Ports::Of(ports) = &rule.ports else { return };
        for (at, port) in ports.iter().enumerate() {
            let PortSpec::Named(name) = &port.port else {
                continue;
            };
            let has = |pod: &&Pod| {
                pod.ports
                    .iter()
                    .any(|known| known.name == *name && known.protocol == port.protocol)
            };
            if !selected.iter().any(has) {
                let field = format!("spec.ingress[{}].ports[{at}].port", rule.index);
                let message = format!(
                    "no pod that the policy selects has a port named {name:?} ({}): it allows nothing",
                    port.protocol.name()
                );
                self.warn(
                    policy,
                    field,
                    message,
                    "name a port of the pods' containers, or write its number",
                );
            }
        }
    }

    fn warn(&mut self, policy: &Policy, field: String, message: String, help: &str) {
        self.found.push(Problem {
            file: None,
            line: None,
            severity: Severity::Warning,
            object: Some(format!("NetworkPolicy {}", policy.name)),
            field: Some(field),
            message,
            help: help.to_owned(),
        });
    }
}

#[cfg(test)]
mod tests {
    use netpol_policy::model::{
        Event, Labels, NamedPort, Namespace, Operator, PortMatch, Protocol, Requirement,
    };

    use super::*;

    fn app(value: &str) -> Selector {
        Selector {
            requirements: vec![Requirement {
                key: "app".into(),
                operator: Operator::In(vec![value.into()]),
            }],
        }
    }

    fn rule(peer: Peer, port: PortSpec) -> Rule {
        Rule {
            index: 0,
            peers: Peers::Of(vec![peer]),
            ports: Ports::Of(vec![PortMatch {
                protocol: Protocol::Tcp,
                port,
            }]),
        }
    }

    fn warnings(selector: Selector, rule: Rule) -> Vec<(String, String)> {
        let mut snapshot = Snapshot::default();
        for name in ["prod", "empty"] {
            snapshot.apply(Event::Namespace(Namespace::new(name, [])));
        }
        snapshot.apply(Event::Pod(Pod {
            name: ObjectName::new("prod", "db-0"),
            uid: "".into(),
            labels: [("app", "db")].into_iter().collect::<Labels>(),
            node: None,
            host_network: false,
            completed: false,
            terminating: false,
            addresses: Vec::new(),
            ports: vec![NamedPort {
                name: "sql".into(),
                protocol: Protocol::Tcp,
                number: 5432,
            }],
        }));
        for namespace in ["prod", "empty"] {
            snapshot.apply(Event::Policy(Policy {
                name: ObjectName::new(namespace, "p"),
                selector: selector.clone(),
                ingress: Some(vec![rule.clone()]),
                egress: None,
            }));
        }
        without(&snapshot)
            .into_iter()
            .map(|problem| {
                (
                    problem.object.unwrap_or_default(),
                    problem.field.unwrap_or_default(),
                )
            })
            .collect()
    }

    fn own(pods: Selector) -> Peer {
        Peer::Pods {
            namespaces: NamespaceScope::Own,
            pods,
        }
    }

    fn said(field: &str) -> Vec<(String, String)> {
        vec![("NetworkPolicy prod/p".to_owned(), field.to_owned())]
    }

    #[test]
    fn slips_are_named_and_what_means_something_is_not() {
        let good = rule(own(app("db")), PortSpec::Named("sql".into()));
        assert_eq!(warnings(app("db"), good.clone()), []);
        assert_eq!(warnings(app("bd"), good), said("spec.podSelector"));
        let port = rule(own(app("db")), PortSpec::Named("sqll".into()));
        assert_eq!(warnings(app("db"), port), said("spec.ingress[0].ports[0].port"));
        let peer = rule(own(app("web")), PortSpec::All);
        assert_eq!(warnings(app("db"), peer), said("spec.ingress[0].from[0]"));
        let everywhere = |pods| {
            rule(
                Peer::Pods {
                    namespaces: NamespaceScope::Matching(Selector::default()),
                    pods,
                },
                PortSpec::All,
            )
        };
        assert_eq!(warnings(app("db"), everywhere(app("db"))), []);
        assert_eq!(
            warnings(app("db"), everywhere(app("x"))),
            said("spec.ingress[0].from[0]")
        );
    }
}
