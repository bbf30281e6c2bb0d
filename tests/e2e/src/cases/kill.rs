//! The agent dies or is replaced while pods talk.

use std::{collections::BTreeMap, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{Case, TWO, case};
use crate::{
    cluster::{Cluster, SYSTEM},
    kubectl::until,
    load::{Load, pause},
    objects::Pod,
};

/// The cases.
pub(super) fn cases() -> Vec<Case> {
    vec![
        case(
            "kill-under-load",
            "agents are killed with SIGKILL every second for a minute; pods lose nothing, nothing denied gets through",
            TWO,
            killed,
        ),
        case(
            "rolling-update-under-load",
            "agents are replaced node by node; pods lose nothing, nothing denied gets through",
            TWO,
            replaced,
        ),
        case(
            "restart-keeps-what-is-in-force",
            "with no agent at all, what was in force stays so; the next agent takes it over",
            TWO,
            absent,
        ),
    ]
}

/// Seconds a kill, at most: a second until the killer looks again, one that kubelet waits, and its own work.
const PACE: u64 = 4;

/// A pod a node that sees the node's processes; it kills those that are called as the agent and are of its node.
fn killers(cluster: &Cluster, ns: &str, seconds: u64) -> Vec<Pod> {
    let seconds = seconds.to_string();
    let words = [
        "kill",
        "--name",
        "netpol-agent",
        "--every-ms",
        "1000",
        "--seconds",
        &seconds,
    ];
    let killer = |node: &crate::cluster::Node| {
        Pod::new(ns, &format!("killer-{}", node.name), &[("app", "killer")], &words)
            .on(&node.name)
            .of_the_node()
            .with("hostPID", json!(true))
            .with("restartPolicy", json!("Never"))
            .container("securityContext", json!({"privileged": true}))
    };
    cluster.nodes.iter().map(killer).collect()
}

fn killed(cluster: &Cluster, name: &str) -> Result<String> {
    let seconds = if cluster.whole { 60 } else { 20 };
    let load = Load::start(cluster, &format!("e2e-{name}"))?;
    let ns = load.namespace();
    let restarts = cluster.agent_restarts()?;
    let (kills, tally) = load.during(|| {
        let pods = killers(cluster, ns, seconds);
        let objects: Vec<Value> = pods.iter().map(|pod| pod.object(&cluster.image)).collect();
        cluster.kubectl.apply(&objects)?;
        until(Duration::from_secs(seconds + 90), || ended(cluster, ns))
    })?;
    // Where kubelet is not told otherwise it waits up to five minutes before it starts what died so often.
    until(Duration::from_secs(330), || cluster.wait_for_agents())?;
    let restarts = cluster.agent_restarts()? - restarts;
    let least = if cluster.local.is_some() {
        seconds / PACE
    } else {
        1
    };
    ensure!(
        kills.len() == cluster.nodes.len() && kills.values().all(|count| *count >= least) && restarts > 0,
        "kills: {kills:?}, {restarts} restarts; fewer than {least} a node test nothing"
    );
    load.during(|| pause(Duration::from_secs(3)))?;
    Ok(format!(
        "{} kills in {seconds} s, {restarts} starts; {tally}",
        kills.values().sum::<u64>()
    ))
}

/// How many agents each killer killed, once all have ended.
fn ended(cluster: &Cluster, ns: &str) -> Result<BTreeMap<String, u64>> {
    let pods = cluster.kubectl.list(&["pods", "-n", ns, "-l", "app=killer"])?;
    let mut kills = BTreeMap::new();
    for pod in &pods {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let phase = &pod["status"]["phase"];
        ensure!(phase == "Succeeded", "{name} is {phase}");
        let text = cluster.kubectl.log(ns, name, 1)?;
        let line: Value =
            serde_json::from_str(text.trim()).with_context(|| format!("{name} said {text:?}"))?;
        kills.insert(name.to_owned(), line["killed"].as_u64().unwrap_or(0));
    }
    Ok(kills)
}

fn replaced(cluster: &Cluster, name: &str) -> Result<String> {
    let load = Load::start(cluster, &format!("e2e-{name}"))?;
    let rounds = if cluster.whole { 3 } else { 1 };
    let ((), tally) = load.during(|| {
        for _ in 0..rounds {
            cluster
                .kubectl
                .run(&["rollout", "restart", "daemonset/netpol-agent", "-n", SYSTEM])?;
            cluster.wait_for_agents()?;
        }
        Ok(())
    })?;
    Ok(format!("{rounds} roll-outs; {tally}"))
}

fn absent(cluster: &Cluster, name: &str) -> Result<String> {
    let load = Load::start(cluster, &format!("e2e-{name}"))?;
    let ((), tally) = load.during(|| {
        cluster
            .kubectl
            .run(&["delete", "daemonset", "netpol-agent", "-n", SYSTEM, "--wait"])?;
        until(Duration::from_secs(60), || {
            let left = cluster.agents()?.len();
            ensure!(left == 0, "{left} agents are still there");
            Ok(())
        })?;
        thread::sleep(Duration::from_secs(5));
        cluster.deploy_agent()
    })?;
    Ok(tally.to_string())
}
