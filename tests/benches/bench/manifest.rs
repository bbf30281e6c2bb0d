//! The workload's objects as manifests, a file a namespace.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result, bail};
use netpol_policy::model::{
    Event, NamespaceScope, Operator, Peer, Peers, Pod, Policy, PortSpec, Ports, Rule, Selector,
};
use serde_json::{Value, json};

/// Writes the objects of `events` into `directory`: `NAMESPACE.json`, and `namespaces.json`.
pub(crate) fn write_all(directory: &Path, events: Vec<Event>) -> Result<()> {
    let mut files: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for event in events {
        let (file, object) = match event {
            Event::Namespace(space) => {
                let labels: BTreeMap<_, _> = space.labels.iter().collect();
                let metadata = json!({"name": &*space.name, "labels": labels});
                let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata});
                ("namespaces".to_owned(), object)
            }
            Event::Pod(object) => (object.name.namespace.to_string(), pod(&object)),
            Event::Policy(object) => (object.name.namespace.to_string(), policy(&object)),
            other => bail!("not in a workload: {other:?}"),
        };
        files.entry(file).or_default().push(object);
    }
    for (name, items) in files {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        let path = directory.join(format!("{name}.json"));
        fs::write(&path, list.to_string()).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// A pod.
pub(crate) fn pod(pod: &Pod) -> Value {
    let labels: BTreeMap<_, _> = pod.labels.iter().collect();
    let ports: Vec<_> = pod
        .ports
        .iter()
        .map(|port| json!({"name": &*port.name, "containerPort": port.number, "protocol": port.protocol.name()}))
        .collect();
    let addresses: Vec<_> = pod.addresses.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": &*pod.name.namespace, "name": &*pod.name.name, "uid": &*pod.uid, "labels": labels},
        "spec": {"nodeName": pod.node.as_deref(), "containers": [{"name": "main", "image": "none", "ports": ports}]},
        "status": {"phase": "Running", "podIPs": addresses},
    })
}

/// A policy.
pub(crate) fn policy(policy: &Policy) -> Value {
    let rules = |rules: &Option<Vec<Rule>>, ends: &str| {
        let rules = rules.iter().flatten();
        rules.map(|one| rule(one, ends)).collect::<Vec<_>>()
    };
    let mut types = vec!["Ingress"];
    types.extend(policy.egress.as_ref().map(|_| "Egress"));
    if policy.ingress.is_none() {
        types.remove(0);
    }
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": &*policy.name.namespace, "name": &*policy.name.name},
        "spec": {
            "podSelector": selector(&policy.selector),
            "policyTypes": types,
            "ingress": rules(&policy.ingress, "from"),
            "egress": rules(&policy.egress, "to"),
        },
    })
}

fn rule(rule: &Rule, ends: &str) -> Value {
    let mut object = json!({});
    if let Peers::Of(peers) = &rule.peers {
        object[ends] = peers.iter().map(peer).collect();
    }
    if let Ports::Of(ports) = &rule.ports {
        let port = |port: &netpol_policy::model::PortMatch| {
            let mut object = json!({"protocol": port.protocol.name()});
            match &port.port {
                PortSpec::All => {}
                PortSpec::Named(name) => object["port"] = json!(&**name),
                PortSpec::Range(first, last) => {
                    object["port"] = json!(first);
                    object["endPort"] = json!(last);
                }
            }
            object
        };
        object["ports"] = ports.iter().map(port).collect();
    }
    object
}

fn peer(peer: &Peer) -> Value {
    match peer {
        Peer::IpBlock { cidr, except } => {
            let except: Vec<_> = except.iter().map(ToString::to_string).collect();
            json!({"ipBlock": {"cidr": cidr.to_string(), "except": except}})
        }
        Peer::Pods { namespaces, pods } => {
            let mut object = json!({"podSelector": selector(pods)});
            if let NamespaceScope::Matching(namespaces) = namespaces {
                object["namespaceSelector"] = selector(namespaces);
            }
            object
        }
    }
}

fn selector(selector: &Selector) -> Value {
    let expression = |(key, operator, values): (&str, &str, &[netpol_policy::model::Str])| {
        let mut object = json!({"key": key, "operator": operator});
        if !values.is_empty() {
            object["values"] = values.iter().map(|value| json!(&**value)).collect();
        }
        object
    };
    let expressions = selector.requirements.iter().map(|requirement| {
        let key = &*requirement.key;
        expression(match &requirement.operator {
            Operator::In(values) => (key, "In", values),
            Operator::NotIn(values) => (key, "NotIn", values),
            Operator::Exists => (key, "Exists", &[]),
            Operator::DoesNotExist => (key, "DoesNotExist", &[]),
        })
    });
    json!({"matchExpressions": expressions.collect::<Vec<_>>()})
}
