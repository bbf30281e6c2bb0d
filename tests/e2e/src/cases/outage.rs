//! The API server is away, or does not answer, while pods talk and a policy waits.

use std::{
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{Case, LOCAL, case, lists};
use crate::{
    agent,
    asks::{Asks, tcp_to},
    cluster::{Cluster, Node, SYSTEM},
    kubectl::until,
    load::{Load, pause},
    local::Local,
    objects::{Pod, policy},
};

/// The cases.
pub(super) fn cases() -> Vec<Case> {
    vec![
        case(
            "api-server-stopped",
            "the API server is stopped for a minute; pods lose nothing, nothing denied gets through, agents say since when \
             they know nothing new, one that is killed waits, and a policy that waits is in force soon after",
            LOCAL,
            stopped,
        ),
        case(
            "api-server-hangs",
            "the API server accepts and answers nothing for a while; the same holds",
            LOCAL,
            hangs,
        ),
    ]
}

fn stopped(cluster: &Cluster, name: &str) -> Result<String> {
    let local = cluster.machine()?;
    let (here, there) = cluster.two();
    let note = around(cluster, name, 1, |away| {
        let mut server = local.api_server()?;
        let start = Instant::now();
        local.signal(&server, "KILL")?;
        let seen = outage(local, (here, there), start, away);
        // It must be there again whatever was seen, or nothing else can be.
        local.start(&mut server)?;
        seen
    })?;
    for node in [here, there] {
        until(Duration::from_secs(60), || fresh(node))?;
        lists::came_by_streams(node)?;
    }
    said(cluster, here)?;
    Ok(note)
}

/// What agents say while the API server is away; one of them is killed.
fn outage(local: &Local, (here, there): (&Node, &Node), start: Instant, away: Duration) -> Result<()> {
    for node in [here, there] {
        until(Duration::from_secs(15), || stale(node))?;
    }
    let heard = agent::metric(here, LAST)?;
    agent::kill(local, there)?;
    until(Duration::from_secs(60), || waits(there))?;
    pause(away.saturating_sub(start.elapsed()))?;
    waits(there)?;
    stale(here)?;
    let now = agent::metric(here, LAST)?;
    ensure!(
        now == heard,
        "{LAST} of {} went from {heard} to {now} without an API server",
        here.name
    );
    Ok(())
}

const LAST: &str = "netpol_source_last_success_timestamp_seconds";
const STALE: &str = "netpol_source_stale";

/// Ready, and says since when it knows nothing new.
fn stale(node: &Node) -> Result<()> {
    let (code, text) = agent::get(node, "/readyz")?;
    let since = text
        .split_once("policy is in force as of ")
        .and_then(|(_, rest)| rest.split_whitespace().next()?.parse::<u64>().ok());
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    // Who watches hears something every minute.
    ensure!(
        code == 200 && since.is_some_and(|since| (now - 600..=now).contains(&since)),
        "without an API server, the agent of {} answered {code} {text:?} to /readyz",
        node.name
    );
    let value = agent::metric(node, STALE)?;
    ensure!(value == 1.0, "{STALE} of {} is {value}", node.name);
    Ok(())
}

/// An agent that began without an API server is there, and not ready.
fn waits(node: &Node) -> Result<()> {
    let (code, text) = agent::get(node, "/readyz")?;
    ensure!(
        code == 503 && text.starts_with("waiting for the API server to list "),
        "an agent that began without an API server, on {}, answered {code} {text:?} to /readyz",
        node.name
    );
    Ok(())
}

/// In touch again.
pub(super) fn fresh(node: &Node) -> Result<()> {
    let (code, text) = agent::get(node, "/readyz")?;
    ensure!(
        (code, text.trim()) == (200, "ok"),
        "{} answers {code} {text:?} to /readyz",
        node.name
    );
    let value = agent::metric(node, STALE)?;
    ensure!(value == 0.0, "{STALE} of {} is {value}", node.name);
    Ok(())
}

/// The log of the agent that lived through it.
fn said(cluster: &Cluster, node: &Node) -> Result<()> {
    let agents = cluster.agents()?;
    let own = agents
        .iter()
        .find(|pod| pod["spec"]["nodeName"] == node.name.as_str());
    let pod = own.and_then(|pod| pod["metadata"]["name"].as_str());
    let pod = pod.with_context(|| format!("node {} has no agent", node.name))?;
    let log = cluster.kubectl.log(SYSTEM, pod, 500)?;
    for line in [
        "what is in force stays; changes are not seen until it answers",
        "the API server answers again",
    ] {
        ensure!(
            log.contains(line),
            "the agent of {} did not say {line:?}:\n{log}",
            node.name
        );
    }
    Ok(())
}

fn hangs(cluster: &Cluster, name: &str) -> Result<String> {
    let local = cluster.machine()?;
    around(cluster, name, 0, |away| {
        let server = local.api_server()?;
        local.signal(&server, "STOP")?;
        let waited = pause(away);
        // It must go on whatever happened, or nothing else can.
        local.signal(&server, "CONT")?;
        waited
    })
}

fn around(
    cluster: &Cluster,
    name: &str,
    killed: u64,
    outage: impl Fn(Duration) -> Result<()>,
) -> Result<String> {
    let away = Duration::from_secs(if cluster.whole { 60 } else { 20 });
    let load = Load::start(cluster, &format!("e2e-{name}"))?;
    let ns = load.namespace();
    let (here, there) = cluster.two();
    let later = Pod::server(ns, "later", &[("app", "later")], &[9000], &[]).on(&there.name);
    let asker = Pod::server(ns, "asker", &[("app", "asker")], &[], &[]).on(&here.name);
    cluster.start(&[later, asker])?;
    let later = cluster.pod(ns, "later")?;
    let mut open = Asks::default();
    let mut closed = Asks::default();
    for address in &later.addresses {
        open.allow(
            (ns, "asker"),
            tcp_to(*address, 9000),
            "later",
            "before the policy that waits",
        );
        closed.deny(
            (ns, "asker"),
            tcp_to(*address, 9000),
            "with the policy that waited",
        );
    }
    open.settle(cluster)?;
    let restarts = cluster.agent_restarts()?;
    let waiting = policy(
        ns,
        "later",
        &[("app", "later")],
        json!({"policyTypes": ["Ingress"]}),
    );
    let (took, tally) = load.during(|| {
        thread::scope(|scope| {
            let file = scope.spawn(|| {
                thread::sleep(Duration::from_secs(1));
                // It waits as long as the API server is away.
                let applied = until(away * 3 + Duration::from_secs(60), || {
                    cluster.kubectl.apply(std::slice::from_ref(&waiting))
                });
                applied.map(|()| Instant::now())
            });
            outage(away)?;
            let applied = file
                .join()
                .map_err(|_| anyhow::anyhow!("the thread that applies died"))??;
            closed.settle(cluster)?;
            Ok(applied.elapsed())
        })
    })?;
    let restarted = cluster.agent_restarts()? - restarts;
    ensure!(
        restarted == killed,
        "{restarted} agents were started again, {killed} were killed: an API server that is away is no reason"
    );
    cluster.wait_for_agents()?;
    let (away, took) = (away.as_secs(), took.as_secs_f64());
    Ok(format!(
        "away for {away} s; the policy that waited was seen in force within {took:.1} s; {tally}"
    ))
}
