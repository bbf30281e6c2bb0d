//! Snapshots and flows as a person reads them: manifests, and one sentence.

use std::fmt::{self, Write as _};

use crate::{
    model::{
        Labels, NamespaceScope, Node, Operator, Peer, Peers, Pod, Policy, PortSpec, Ports, Rule, Selector,
        Snapshot,
    },
    oracle::{End, Flow},
};

/// Wraps what failing tests print: [`manifests`] for a snapshot, a sentence for a flow.
#[derive(Clone, PartialEq, Eq)]
pub struct Readable<T>(pub T);

impl fmt::Debug for Readable<Snapshot> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n{}", manifests(&self.0))
    }
}

impl fmt::Display for Readable<&Flow> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Flow {
            from,
            to,
            protocol,
            port,
        } = self.0;
        let protocol = match *protocol {
            6 => "TCP".to_owned(),
            17 => "UDP".to_owned(),
            132 => "SCTP".to_owned(),
            other => format!("IP protocol {other}"),
        };
        write!(
            f,
            "{} -> {}, {protocol} port {port}",
            Readable(from),
            Readable(to)
        )
    }
}

impl fmt::Display for Readable<&End> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            End::Pod(name, address) => write!(f, "pod {name} ({address})"),
            End::Ip(address) => write!(f, "{address}"),
            End::Node(name, address) => write!(f, "node {name} ({address})"),
        }
    }
}

/// `snapshot` as a stream of YAML documents. What YAML can not say is a comment: a rule that was left out, and
/// a list that matches nothing.
#[must_use]
pub fn manifests(snapshot: &Snapshot) -> String {
    let mut out = String::new();
    for namespace in snapshot.namespaces.values() {
        let _ = write!(
            out,
            "---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: {}\n",
            namespace.name
        );
        label_lines(&mut out, &namespace.labels);
    }
    snapshot
        .nodes
        .values()
        .for_each(|node| write_node(&mut out, node));
    snapshot.pods.values().for_each(|pod| write_pod(&mut out, pod));
    snapshot
        .policies
        .values()
        .for_each(|policy| write_policy(&mut out, policy));
    out
}

fn label_lines(out: &mut String, labels: &Labels) {
    if labels.iter().len() > 0 {
        let pairs: Vec<_> = labels
            .iter()
            .map(|(key, value)| format!("{key}: {value}"))
            .collect();
        let _ = writeln!(out, "  labels: {{{}}}", pairs.join(", "));
    }
}

fn write_node(out: &mut String, node: &Node) {
    let _ = write!(
        out,
        "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: {}\n",
        node.name
    );
    out.push_str("status:\n  addresses:\n");
    for address in &node.addresses {
        let _ = writeln!(out, "  - {{type: InternalIP, address: \"{address}\"}}");
    }
}

fn write_pod(out: &mut String, pod: &Pod) {
    let _ = write!(
        out,
        "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {}\n  namespace: {}\n  uid: {}\n",
        pod.name.name, pod.name.namespace, pod.uid
    );
    label_lines(out, &pod.labels);
    if pod.terminating {
        out.push_str("  deletionTimestamp: \"2024-01-01T00:00:00Z\"\n");
    }
    out.push_str("spec:\n");
    if let Some(node) = &pod.node {
        let _ = writeln!(out, "  nodeName: {node}");
    }
    if pod.host_network {
        out.push_str("  hostNetwork: true\n");
    }
    // A name is unique within a container, so that each port gets one of its own.
    out.push_str("  containers:\n  - {name: main, image: none}\n");
    for (at, port) in pod.ports.iter().enumerate() {
        let _ = writeln!(
            out,
            "  - {{name: c{at}, image: none, ports: [{{name: {}, protocol: {}, containerPort: {}}}]}}",
            port.name,
            port.protocol.name(),
            port.number
        );
    }
    let phase = if pod.completed { "Succeeded" } else { "Running" };
    let _ = writeln!(out, "status:\n  phase: {phase}");
    if let Some(first) = pod.addresses.first() {
        let all: Vec<_> = pod
            .addresses
            .iter()
            .map(|ip| format!("{{ip: \"{ip}\"}}"))
            .collect();
        let _ = writeln!(out, "  podIP: \"{first}\"\n  podIPs: [{}]", all.join(", "));
    }
}

fn write_policy(out: &mut String, policy: &Policy) {
    let _ = write!(
        out,
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: {}\n  namespace: {}\n",
        policy.name.name, policy.name.namespace
    );
    let directions = [
        ("Ingress", "ingress", "from", &policy.ingress),
        ("Egress", "egress", "to", &policy.egress),
    ];
    let types: Vec<_> = directions.iter().filter(|d| d.3.is_some()).map(|d| d.0).collect();
    let _ = writeln!(out, "spec:\n  podSelector: {}", Flat(&policy.selector));
    let _ = writeln!(out, "  policyTypes: [{}]", types.join(", "));
    for (_, field, peers, rules) in directions {
        let Some(rules) = rules else { continue };
        if rules.is_empty() {
            let _ = writeln!(out, "  {field}: []");
            continue;
        }
        let _ = writeln!(out, "  {field}:");
        let mut expected = 0;
        for rule in rules {
            for index in expected..rule.index {
                let _ = writeln!(out, "  # rule {index} was left out: not understood");
            }
            expected = rule.index + 1;
            write_rule(out, peers, rule);
        }
    }
}

fn write_rule(out: &mut String, field: &str, rule: &Rule) {
    let mut lines = Vec::new();
    match &rule.peers {
        Peers::Any => {}
        Peers::Of(peers) if peers.is_empty() => {
            lines.push(format!("{field}: [] # every peer was left out: nobody"))
        }
        Peers::Of(peers) => {
            lines.push(format!("{field}:"));
            lines.extend(peers.iter().map(|peer| format!("- {}", Flat(peer))));
        }
    }
    match &rule.ports {
        Ports::Any => {}
        Ports::Of(ports) if ports.is_empty() => {
            lines.push("ports: [] # every port was left out: none".to_owned())
        }
        Ports::Of(ports) => {
            lines.push("ports:".to_owned());
            lines.extend(ports.iter().map(|port| {
                let protocol = port.protocol.name();
                match &port.port {
                    PortSpec::All => format!("- {{protocol: {protocol}}}"),
                    PortSpec::Range(a, b) if a == b => format!("- {{protocol: {protocol}, port: {a}}}"),
                    PortSpec::Range(a, b) => format!("- {{protocol: {protocol}, port: {a}, endPort: {b}}}"),
                    PortSpec::Named(name) => format!("- {{protocol: {protocol}, port: {name}}}"),
                }
            }));
        }
    }
    if lines.is_empty() {
        lines.push("{}".to_owned());
    }
    for (at, line) in lines.iter().enumerate() {
        let _ = writeln!(out, "  {} {line}", if at == 0 { "-" } else { " " });
    }
}

/// In flow style, on one line.
struct Flat<'a, T>(&'a T);

impl fmt::Display for Flat<'_, Selector> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.requirements.is_empty() {
            return f.write_str("{}");
        }
        f.write_str("{matchExpressions: [")?;
        for (at, requirement) in self.0.requirements.iter().enumerate() {
            let (operator, values) = match &requirement.operator {
                Operator::In(values) => ("In", Some(values)),
                Operator::NotIn(values) => ("NotIn", Some(values)),
                Operator::Exists => ("Exists", None),
                Operator::DoesNotExist => ("DoesNotExist", None),
            };
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{{key: {}, operator: {operator}", requirement.key)?;
            match values {
                Some(values) => write!(f, ", values: [{}]}}", values.join(", "))?,
                None => f.write_str("}")?,
            }
        }
        f.write_str("]}")
    }
}

impl fmt::Display for Flat<'_, Peer> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Peer::Pods { namespaces, pods } => match namespaces {
                NamespaceScope::Own => write!(f, "{{podSelector: {}}}", Flat(pods)),
                NamespaceScope::Matching(namespaces) => {
                    let (namespaces, pods) = (Flat(namespaces), Flat(pods));
                    write!(f, "{{namespaceSelector: {namespaces}, podSelector: {pods}}}")
                }
            },
            Peer::IpBlock { cidr, except } if except.is_empty() => {
                write!(f, "{{ipBlock: {{cidr: \"{cidr}\"}}}}")
            }
            Peer::IpBlock { cidr, except } => {
                let except: Vec<_> = except.iter().map(|net| format!("\"{net}\"")).collect();
                write!(
                    f,
                    "{{ipBlock: {{cidr: \"{cidr}\", except: [{}]}}}}",
                    except.join(", ")
                )
            }
        }
    }
}
