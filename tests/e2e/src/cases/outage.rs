//! The API server is away, or does not answer, while pods talk and a policy waits.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{Case, LOCAL, case};
use crate::{
    asks::{Asks, tcp_to},
    cluster::Cluster,
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
            "the API server is stopped for a minute; pods lose nothing, nothing denied gets through, no agent restarts, \
             and a policy that waits is in force soon after",
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

fn local(cluster: &Cluster) -> Result<&Local> {
    cluster
        .local
        .as_ref()
        .context("the cluster is not on this machine")
}

fn stopped(cluster: &Cluster, name: &str) -> Result<String> {
    let local = local(cluster)?;
    around(cluster, name, |away| {
        let mut server = local.api_server()?;
        local.signal(&server, "KILL")?;
        pause(away)?;
        local.start(&mut server)
    })
}

fn hangs(cluster: &Cluster, name: &str) -> Result<String> {
    let local = local(cluster)?;
    around(cluster, name, |away| {
        let server = local.api_server()?;
        local.signal(&server, "STOP")?;
        let waited = pause(away);
        // It must go on whatever happened, or nothing else can.
        local.signal(&server, "CONT")?;
        waited
    })
}

fn around(cluster: &Cluster, name: &str, outage: impl Fn(Duration) -> Result<()>) -> Result<String> {
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
        restarted == 0,
        "{restarted} agents were started again: an API server that is away is no reason"
    );
    cluster.wait_for_agents()?;
    let (away, took) = (away.as_secs(), took.as_secs_f64());
    Ok(format!(
        "away for {away} s; the policy that waited was seen in force within {took:.1} s; {tally}"
    ))
}
