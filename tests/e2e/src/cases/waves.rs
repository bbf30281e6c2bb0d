//! Pods in waves, each with a probe as its first process: policy is in force before it, and who is not isolated loses
//! nothing. What is denied is counted by those whom it would reach, too.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{ANY, Case, case, metrics};
use crate::{
    asks::tcp_to,
    cluster::{Cluster, Placed},
    kubectl::until,
    objects::{Pod, pods, policy, tcp, udp},
    witness::{self, CONTROL, DATAGRAMS, PORT},
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
    cluster.kubectl.apply(&policies(ns))?;
    cluster.start(&[
        witness::pod(ns, "open", &here.name),
        witness::pod(ns, "shut", &there.name),
        witness::pod(ns, "plain", &there.name),
        witness::control(ns, &here.name),
    ])?;
    let servers = Servers {
        open: cluster.pod(ns, "open")?,
        shut: cluster.pod(ns, "shut")?,
        plain: cluster.pod(ns, "plain")?,
    };
    let before = metrics::read(cluster)?;
    let (mut first, mut owners) = (Vec::new(), Vec::new());
    for start in (0..all).step_by(size) {
        let wave: Vec<Pod> = (start..all.min(start + size))
            .map(|at| pod(cluster, ns, at, &servers))
            .collect();
        let objects: Vec<Value> = wave.iter().map(|pod| pod.object(&cluster.image)).collect();
        cluster.kubectl.apply(&objects)?;
        let done = until(Duration::from_secs(180), || cluster.ended(ns, "wave", wave.len()))?;
        for pod in &done {
            first.extend(check(pod)?);
            owners.push(format!(
                "{}: {}",
                pod["metadata"]["name"], pod["status"]["podIPs"]
            ));
        }
        cluster.remove_pods(ns, "wave")?;
    }
    for witness in ["shut", "plain"] {
        witness::nothing_arrived(cluster, ns, witness)
            .with_context(|| format!("the pods were {}", owners.join(", ")))?;
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

/// Whom the pods try.
struct Servers {
    /// Everybody may reach it.
    open: Placed,
    /// Its own policy lets nobody in: its programs are there long before the pods that try.
    shut: Placed,
    /// No policy selects it: only the programs and the rules of a pod that has just begun keep that from reaching it.
    plain: Placed,
}

/// The even ones may reach `open` only, by their own policy; the odd ones are not isolated, and `shut` does not want them.
fn policies(ns: &str) -> Vec<Value> {
    let ports = json!([tcp(PORT), udp(DATAGRAMS)]);
    let control = json!([{"from": [pods(&[("app", CONTROL)])]}]);
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
            json!({"policyTypes": ["Ingress"], "ingress": control}),
        ),
    ]
}

fn pod(cluster: &Cluster, ns: &str, at: usize, servers: &Servers) -> Pod {
    let is_isolated = at.is_multiple_of(2);
    let mut words = vec!["first".to_owned()];
    for address in &servers.open.addresses {
        words.extend(["--allow".into(), tcp_to(*address, PORT)]);
    }
    words.extend(witness::denied(if is_isolated {
        &servers.plain
    } else {
        &servers.shut
    }));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let kind = if is_isolated { "isolated" } else { "free" };
    let node = &cluster.nodes[at / 2 % cluster.nodes.len()];
    Pod::new(ns, &format!("wave-{at}"), &[("wave", kind)], &words)
        .on(&node.name)
        .with("restartPolicy", json!("Never"))
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
