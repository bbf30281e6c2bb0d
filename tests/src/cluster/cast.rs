//! Pods in one line each, and their manifests.

use std::fmt::Write as _;

use netpol_policy::model::{ObjectName, Pod};

use super::{parse, pod_address};

/// A running pod `namespace/name` of `node-NODE` whose addresses (both families) end in `host`. `labels`: `key=value`
/// pairs with commas between them.
///
/// # Panics
/// Where `name` or `labels` are written otherwise.
#[must_use]
pub fn pod(name: &str, node: u8, host: u8, labels: &str) -> Pod {
    let name: ObjectName = parse(name);
    let pairs = labels.split(',').filter(|pair| !pair.is_empty());
    Pod {
        uid: format!("{}-{node}-{host}", name.name).into(),
        name,
        labels: pairs
            .map(|pair| pair.split_once('=').expect("key=value"))
            .collect(),
        node: Some(format!("node-{node}").into()),
        host_network: false,
        completed: false,
        terminating: false,
        addresses: [true, false].map(|v4| pod_address(node, host, v4)).to_vec(),
        ports: Vec::new(),
    }
}

/// `pods` as manifests, which [`super::Cluster::apply`] takes with policies behind them.
#[must_use]
pub fn manifests<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> String {
    let mut out = String::new();
    for pod in pods {
        let labels: Vec<_> = pod
            .labels
            .iter()
            .map(|(key, value)| format!("{key}: {value}"))
            .collect();
        let addresses: Vec<_> = pod
            .addresses
            .iter()
            .map(|address| format!("{{ip: \"{address}\"}}"))
            .collect();
        let _ = write!(
            out,
            "---\napiVersion: v1\nkind: Pod\n\
             metadata: {{namespace: {}, name: {}, uid: {}, labels: {{{}}}}}\n\
             spec: {{nodeName: {}}}\nstatus: {{phase: {}, podIPs: [{}]}}\n",
            pod.name.namespace,
            pod.name.name,
            pod.uid,
            labels.join(", "),
            pod.node.as_deref().unwrap_or_default(),
            if pod.completed { "Succeeded" } else { "Running" },
            addresses.join(", "),
        );
    }
    out
}
