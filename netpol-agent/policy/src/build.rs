//! Short ways to write objects in tests. What cannot be parsed panics: the test is wrong.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{
    model::{
        Labels, NamedPort, Namespace, NamespaceScope, Node, ObjectName, Operator, Peer, Peers, Pod, Policy,
        PortMatch, PortSpec, Ports, Protocol, Requirement, Rule, Selector, Snapshot, Str,
    },
    oracle::{End, Flow},
};

/// `namespace/name`.
#[must_use]
pub fn name(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').expect("namespace/name");
    ObjectName::new(namespace, name)
}

/// An address.
#[must_use]
pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// `key=value` pairs with commas between them; "" for none.
#[must_use]
pub fn labels(text: &str) -> Labels {
    pairs(text).collect()
}

fn pairs(text: &str) -> impl Iterator<Item = (Str, Str)> {
    text.split(',').filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').expect("key=value");
        (key.into(), value.into())
    })
}

/// A namespace with `labels` (as in [`labels`]).
#[must_use]
pub fn namespace(name: &str, labels: &str) -> Namespace {
    Namespace::new(name, pairs(labels).collect::<Vec<_>>())
}

/// A node.
#[must_use]
pub fn node(name: &str, addresses: &[&str]) -> Node {
    Node {
        name: name.into(),
        addresses: addresses.iter().map(|text| ip(text)).collect(),
    }
}

/// A running pod on `node-1`. Its uid is its name.
#[must_use]
pub fn pod(text: &str, with: &str, addresses: &[&str]) -> Pod {
    Pod {
        name: name(text),
        uid: text.into(),
        labels: labels(with),
        node: Some("node-1".into()),
        host_network: false,
        completed: false,
        terminating: false,
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        ports: Vec::new(),
    }
}

/// A named container port.
#[must_use]
pub fn container_port(name: &str, protocol: Protocol, number: u16) -> NamedPort {
    NamedPort {
        name: name.into(),
        protocol,
        number,
    }
}

/// A selector of all these requirements.
#[must_use]
pub fn selector(requirements: impl IntoIterator<Item = Requirement>) -> Selector {
    let mut requirements: Vec<_> = requirements.into_iter().collect();
    requirements.sort();
    requirements.dedup();
    Selector { requirements }
}

/// The selector of `matchLabels` (as in [`labels`]); "" matches everything.
#[must_use]
pub fn matching(labels: &str) -> Selector {
    selector(pairs(labels).map(|(key, value)| requirement(&key, Operator::In(vec![value]))))
}

/// One of `matchExpressions`.
#[must_use]
pub fn requirement(key: &str, operator: Operator) -> Requirement {
    Requirement {
        key: key.into(),
        operator,
    }
}

/// The values of an operator, sorted.
#[must_use]
pub fn values(values: &[&str]) -> Vec<Str> {
    let mut values: Vec<Str> = values.iter().map(|&value| value.into()).collect();
    values.sort();
    values.dedup();
    values
}

/// `podSelector` alone: pods of the policy's namespace.
#[must_use]
pub fn pods(pods: Selector) -> Peer {
    Peer::Pods {
        namespaces: NamespaceScope::Own,
        pods,
    }
}

/// `namespaceSelector` and `podSelector` in one peer; the latter empty where it is absent.
#[must_use]
pub fn pods_in(namespaces: Selector, pods: Selector) -> Peer {
    Peer::Pods {
        namespaces: NamespaceScope::Matching(namespaces),
        pods,
    }
}

/// `ipBlock`.
#[must_use]
pub fn block(cidr: &str, except: &[&str]) -> Peer {
    let net = |text: &str| text.parse::<IpNet>().expect("a CIDR").trunc();
    let mut except: Vec<_> = except.iter().map(|text| net(text)).collect();
    except.sort();
    except.dedup();
    Peer::IpBlock {
        cidr: net(cidr),
        except,
    }
}

/// One entry of `ports`.
#[must_use]
pub fn port(protocol: Protocol, port: PortSpec) -> PortMatch {
    PortMatch { protocol, port }
}

/// TCP and one number.
#[must_use]
pub fn tcp(number: u16) -> PortMatch {
    port(Protocol::Tcp, PortSpec::Range(number, number))
}

/// TCP and a name.
#[must_use]
pub fn tcp_named(name: &str) -> PortMatch {
    port(Protocol::Tcp, PortSpec::Named(name.into()))
}

/// A rule. An empty list is what the model says it is (`Of` nothing: matches nothing); [`policy`] numbers it.
#[must_use]
pub fn rule(peers: Peers, ports: Ports) -> Rule {
    Rule {
        index: 0,
        peers,
        ports,
    }
}

/// A rule with these peers and every port.
#[must_use]
pub fn from_to(peers: impl IntoIterator<Item = Peer>) -> Rule {
    rule(Peers::Of(peers.into_iter().collect()), Ports::Any)
}

/// A rule with these ports and every peer.
#[must_use]
pub fn on_ports(ports: impl IntoIterator<Item = PortMatch>) -> Rule {
    rule(Peers::Any, Ports::Of(ports.into_iter().collect()))
}

/// A policy that relates to the directions that are `Some`; its rules are numbered in order.
#[must_use]
pub fn policy(
    text: &str,
    selector: Selector,
    ingress: Option<Vec<Rule>>,
    egress: Option<Vec<Rule>>,
) -> Policy {
    let numbered = |rules: Option<Vec<Rule>>| {
        rules.map(|rules| {
            let numbered = (0..).zip(rules).map(|(index, rule)| Rule { index, ..rule });
            numbered.collect()
        })
    };
    Policy {
        name: name(text),
        selector,
        ingress: numbered(ingress),
        egress: numbered(egress),
    }
}

/// A snapshot of these objects; the last of one name wins.
#[must_use]
pub fn snapshot(
    namespaces: impl IntoIterator<Item = Namespace>,
    nodes: impl IntoIterator<Item = Node>,
    pods: impl IntoIterator<Item = Pod>,
    policies: impl IntoIterator<Item = Policy>,
) -> Snapshot {
    Snapshot {
        namespaces: namespaces.into_iter().map(|it| (it.name.clone(), it)).collect(),
        nodes: nodes.into_iter().map(|it| (it.name.clone(), it)).collect(),
        pods: pods.into_iter().map(|it| (it.name.clone(), it)).collect(),
        policies: policies.into_iter().map(|it| (it.name.clone(), it)).collect(),
    }
}

/// A pod by an address: `namespace/name` and the address.
#[must_use]
pub fn end(pod: &str, address: &str) -> End {
    End::Pod(name(pod), ip(address))
}

/// An address as an end.
#[must_use]
pub fn at(address: &str) -> End {
    End::Ip(ip(address))
}

/// A flow to a TCP port.
#[must_use]
pub fn tcp_flow(from: End, to: End, port: u16) -> Flow {
    Flow {
        from,
        to,
        protocol: Protocol::Tcp.number(),
        port,
    }
}
