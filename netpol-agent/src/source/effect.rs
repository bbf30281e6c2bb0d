//! Policies that mean nothing to any pod, in words.
//!
//! Warnings only. A policy may well be there before its pods are, so that each says what was looked for and not found.

use netpol_policy::{
    compile::{Compiler, Idle},
    model::{Direction, ObjectName},
};

use super::{Problem, Severity};

/// So many are said; a cluster with more has a generator at fault.
const MOST: usize = 100;

/// What has no effect of what `compiler` knows, in order of policies.
#[must_use]
pub fn without(compiler: &Compiler) -> Vec<Problem> {
    let found = compiler.without_effect(MOST);
    found
        .into_iter()
        .map(|(policy, idle)| warning(&policy, &idle))
        .collect()
}

fn warning(policy: &ObjectName, idle: &Idle) -> Problem {
    let (field, message, help) = match idle {
        Idle::Selector => (
            "spec.podSelector".to_owned(),
            "selects no pod of its namespace: it has no effect".to_owned(),
            "correct the labels, if pods with them are not yet to come",
        ),
        Idle::Peer { direction, rule, at } => (
            match direction {
                Direction::Ingress => format!("spec.ingress[{rule}].from[{at}]"),
                Direction::Egress => format!("spec.egress[{rule}].to[{at}]"),
            },
            "matches no pod: it allows nothing".to_owned(),
            "correct the labels, if pods or namespaces with them are not yet to come",
        ),
        Idle::Port {
            direction,
            rule,
            at,
            name,
            protocol,
        } => (
            match direction {
                Direction::Ingress => format!("spec.ingress[{rule}].ports[{at}].port"),
                Direction::Egress => format!("spec.egress[{rule}].ports[{at}].port"),
            },
            format!(
                "no pod{} has a port named {name:?} ({}): it allows nothing",
                match direction {
                    Direction::Ingress => " that the policy selects",
                    Direction::Egress => "",
                },
                protocol.name()
            ),
            "name a port of the pods' containers, or write its number",
        ),
    };
    Problem {
        file: None,
        line: None,
        severity: Severity::Warning,
        object: Some(format!("NetworkPolicy {policy}")),
        field: Some(field),
        message,
        help: help.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use netpol_policy::model::{
        Event, Labels, NamedPort, Namespace, NamespaceScope, Operator, Peer, Peers, Pod, Policy, PortMatch,
        PortSpec, Ports, Protocol, Requirement, Rule, Selector,
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
        let mut compiler = Compiler::new("n1".into(), 1);
        for name in ["prod", "empty"] {
            compiler.apply(Event::Namespace(Namespace::new(name, [])));
        }
        compiler.apply(Event::Pod(Pod {
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
            compiler.apply(Event::Policy(Policy {
                name: ObjectName::new(namespace, "p"),
                selector: selector.clone(),
                ingress: Some(vec![rule.clone()]),
                egress: None,
            }));
        }
        without(&compiler)
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
