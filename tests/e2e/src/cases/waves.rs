//! Pods in waves, each with a probe as its first process: policy is in force before it, and who is not isolated loses
//! nothing.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{ANY, Case, case, metrics};
use crate::{
    asks::{tcp_to, udp_to},
    cluster::{Cluster, Placed},
    kubectl::until,
    objects::{Pod, pods, policy, tcp, udp},
};

/// Pods of a wave: more than the machine can start at a time.
const WAVE: usize = 25;
/// Pods of a ripple: one a node at a time, as a roll-out starts them.
const RIPPLE: usize = 2;

/// The case.
pub(super) fn cases() -> Vec<Case> {
    vec![
        case(
            "waves-of-pods",
            "300 pods in waves of 25: no first process gets a packet through that policy denies, no allowed first \
             connection fails; and how long it takes until policy is in force",
            ANY,
            |cluster, name| waves(cluster, name, if cluster.whole { 300 } else { 100 }, WAVE),
        ),
        case(
            "pods-one-a-node",
            "300 pods, one a node at a time: the same",
            ANY,
            |cluster, name| waves(cluster, name, if cluster.whole { 300 } else { 40 }, RIPPLE),
        ),
    ]
}

fn waves(cluster: &Cluster, name: &str, all: usize, size: usize) -> Result<String> {
    let space = cluster.space(&format!("e2e-{name}"), &[])?;
    let ns = space.name.as_str();
    let (here, there) = cluster.two();
    let server = |name: &str, node: &str| Pod::server(ns, name, &[("app", name)], &[8080], &[5353]).on(node);
    cluster.start(&[server("open", &here.name), server("shut", &there.name)])?;
    cluster.kubectl.apply(&policies(ns))?;
    let (open, shut) = (cluster.pod(ns, "open")?, cluster.pod(ns, "shut")?);
    let before = metrics::read(cluster)?;
    let mut first = Vec::new();
    for start in (0..all).step_by(size) {
        let wave: Vec<Pod> = (start..all.min(start + size))
            .map(|at| pod(cluster, ns, at, &open, &shut))
            .collect();
        let objects: Vec<Value> = wave.iter().map(|pod| pod.object(&cluster.image)).collect();
        cluster.kubectl.apply(&objects)?;
        let done = until(Duration::from_secs(180), || ended(cluster, ns, wave.len()))?;
        for pod in &done {
            first.extend(check(pod)?);
        }
        cluster.kubectl.run(&[
            "delete",
            "pods",
            "-n",
            ns,
            "-l",
            "wave",
            "--grace-period=0",
            "--force",
        ])?;
    }
    first.sort_unstable();
    let at = |share: usize| {
        first
            .get((first.len() * share / 100).min(first.len() - 1))
            .map_or(0, |us| us / 1000)
    };
    let after = metrics::read(cluster)?;
    let guarded = after.since(&before, "netpol_pod_guarded_seconds")?;
    let enforced = after.since(&before, "netpol_pod_enforced_seconds")?;
    Ok(format!(
        "{all} pods, {} first connections: median {} ms, p99 {} ms after the first process began; veth announced to \
         guarded: {guarded}; to policy in force: {enforced}",
        first.len(),
        at(50),
        at(99)
    ))
}

/// The even ones may reach `open` only, by their own policy; the odd ones are not isolated, and `shut` does not want them.
fn policies(ns: &str) -> Vec<Value> {
    let ports = json!([tcp(8080), udp(5353)]);
    vec![
        policy(
            ns,
            "isolated",
            &[("wave", "isolated")],
            json!({"policyTypes": ["Ingress", "Egress"], "egress": [{"to": [pods(&[("app", "open")])], "ports": ports}]}),
        ),
        policy(
            ns,
            "shut",
            &[("app", "shut")],
            json!({"policyTypes": ["Ingress"]}),
        ),
    ]
}

fn pod(cluster: &Cluster, ns: &str, at: usize, open: &Placed, shut: &Placed) -> Pod {
    let mut words = vec!["first".to_owned()];
    for address in &open.addresses {
        words.extend(["--allow".into(), tcp_to(*address, 8080)]);
    }
    for address in &shut.addresses {
        words.extend([
            "--deny".into(),
            tcp_to(*address, 8080),
            "--deny".into(),
            udp_to(*address, 5353),
        ]);
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let kind = if at.is_multiple_of(2) { "isolated" } else { "free" };
    let node = &cluster.nodes[at / 2 % cluster.nodes.len()];
    Pod::new(ns, &format!("wave-{at}"), &[("wave", kind)], &words)
        .on(&node.name)
        .with("restartPolicy", json!("Never"))
}

fn ended(cluster: &Cluster, ns: &str, count: usize) -> Result<Vec<Value>> {
    let pods = cluster.kubectl.list(&["pods", "-n", ns, "-l", "wave"])?;
    let done = |pod: &&Value| matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let done: Vec<Value> = pods.iter().filter(done).cloned().collect();
    ensure!(done.len() == count, "{} of {count} pods have ended", done.len());
    Ok(done)
}

/// The microseconds of its first connections.
fn check(pod: &Value) -> Result<Vec<u64>> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let message = &pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"];
    let message = message
        .as_str()
        .with_context(|| format!("{name} left no message: {}", pod["status"]))?;
    let line: Value = serde_json::from_str(message).with_context(|| format!("{name} said {message:?}"))?;
    ensure!(
        line["fine"] == true,
        "{name} ({}): {line}",
        pod["metadata"]["labels"]["wave"]
    );
    let allowed = line["allow"].as_array().into_iter().flatten();
    Ok(allowed.filter_map(|one| one["us"].as_u64()).collect())
}
