//! How agents list: by streams where the API server has them, in pages where not, and anew where it can't go on.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{Case, LOCAL, case, outage::fresh};
use crate::{
    agent,
    asks::{Asks, tcp_to},
    cluster::{Cluster, Node, Space},
    kubectl::until,
    local::{Local, Running},
    objects::{Pod, policy},
};

/// The cases.
pub(super) fn cases() -> Vec<Case> {
    vec![
        case(
            "lists-streamed",
            "every agent has listed all four kinds by streams, and none in pages",
            LOCAL,
            streamed,
        ),
        case(
            "lists-paged",
            "an API server that streams no lists: agents list in pages, and policies hold; by streams again where it has them",
            LOCAL,
            paged,
        ),
        case(
            "deleted-while-away",
            "a policy goes from etcd while no API server runs; the next one can't tell agents: they list by streams again, and \
             the policy is gone",
            LOCAL,
            deleted,
        ),
    ]
}

const KINDS: [&str; 4] = ["namespaces", "networkpolicies", "nodes", "pods"];
const STREAMED: &str = "streamed";
const PAGED: &str = "paged";

/// How many lists of a kind the node's agent has had in a way.
fn lists(node: &Node, kind: &str, way: &str) -> Result<u64> {
    let (code, text) = agent::get(node, "/metrics")?;
    ensure!(
        code == 200,
        "{} answered {code} to a request for /metrics",
        node.name
    );
    let series = format!("netpol_source_lists_total{{resource=\"{kind}\",way=\"{way}\"}} ");
    match text.lines().find_map(|line| line.strip_prefix(&series)) {
        Some(count) => count.trim().parse().with_context(|| format!("{series}{count}")),
        // A series without a value is left out.
        None => Ok(0),
    }
}

/// All lists of the node's agent came in this way.
///
/// # Errors
/// One came in the other, or a kind was not listed yet.
fn came(node: &Node, way: &str) -> Result<()> {
    let other = if way == STREAMED { PAGED } else { STREAMED };
    for kind in KINDS {
        let (own, others) = (lists(node, kind, way)?, lists(node, kind, other)?);
        ensure!(
            own > 0 && others == 0,
            "the agent of {} has listed {kind} {own} times {way}, {others} times {other}",
            node.name
        );
    }
    Ok(())
}

/// By streams.
///
/// # Errors
/// As for [`came`].
pub(super) fn came_by_streams(node: &Node) -> Result<()> {
    came(node, STREAMED)
}

fn streamed(cluster: &Cluster, _name: &str) -> Result<String> {
    cluster.nodes.iter().try_for_each(came_by_streams)?;
    Ok(format!("{} agents", cluster.nodes.len()))
}

/// Two pods on two nodes, of which the one isolates itself.
struct Pair<'c> {
    space: Space<'c>,
    open: Asks,
    closed: Asks,
}

impl<'c> Pair<'c> {
    /// The server is on the second node.
    fn start(cluster: &'c Cluster, name: &str) -> Result<Self> {
        let space = cluster.space(&format!("e2e-{name}"), &[])?;
        let ns = &space.name;
        let (here, there) = cluster.two();
        let isolated = policy(
            ns,
            "server",
            &[("app", "server")],
            json!({"policyTypes": ["Ingress"]}),
        );
        cluster.kubectl.apply(&[isolated])?;
        cluster.start(&[
            Pod::server(ns, "server", &[("app", "server")], &[9000], &[]).on(&there.name),
            Pod::server(ns, "asker", &[("app", "asker")], &[], &[]).on(&here.name),
        ])?;
        let (mut open, mut closed) = (Asks::default(), Asks::default());
        for address in cluster.pod(ns, "server")?.addresses {
            let (from, to) = ((ns.as_str(), "asker"), tcp_to(address, 9000));
            open.allow(from, to.clone(), "server", "without the policy");
            closed.deny(from, to, "with the policy");
        }
        closed.settle(cluster)?;
        Ok(Self { space, open, closed })
    }
}

fn paged(cluster: &Cluster, name: &str) -> Result<String> {
    let local = cluster.machine()?;
    let pair = Pair::start(cluster, name)?;
    let usual = local.api_server()?;
    let mut without = usual.clone();
    without.words.push("--feature-gates=WatchList=false".to_owned());
    end(local, &usual)?;
    let seen = local.start(&mut without).and_then(|()| {
        began_anew(cluster, local, PAGED)?;
        pair.closed.hold(cluster)?;
        let words = ["delete", "networkpolicy", "server", "-n", &pair.space.name];
        cluster.kubectl.run(&words)?;
        pair.open.settle(cluster)
    });
    // As it was before, whatever was seen.
    if let Ok(running) = local.api_server() {
        end(local, &running)?;
    }
    let mut again = usual;
    local.start(&mut again)?;
    seen?;
    began_anew(cluster, local, STREAMED)?;
    pair.open.hold(cluster)?;
    Ok(String::new())
}

/// Agents that begin anew list in this way.
fn began_anew(cluster: &Cluster, local: &Local, way: &str) -> Result<()> {
    ready(cluster)?;
    for node in &cluster.nodes {
        agent::kill(local, node)?;
    }
    for node in &cluster.nodes {
        until(Duration::from_secs(60), || fresh(node))?;
        came(node, way)?;
    }
    cluster.wait_for_agents()
}

fn deleted(cluster: &Cluster, name: &str) -> Result<String> {
    let local = cluster.machine()?;
    let pair = Pair::start(cluster, name)?;
    let restarts = cluster.agent_restarts()?;
    let policies = |node| lists(node, "networkpolicies", STREAMED);
    let before = cluster.nodes.iter().map(policies).collect::<Result<Vec<_>>>()?;
    let mut server = local.api_server()?;
    end(local, &server)?;
    let removed = remove_from_etcd(local, &format!("networkpolicies/{}/server", pair.space.name));
    // It must be there again whatever happened.
    local.start(&mut server)?;
    removed?;
    ready(cluster)?;
    pair.open.settle(cluster)?;
    for (node, before) in cluster.nodes.iter().zip(before) {
        until(Duration::from_secs(60), || fresh(node))?;
        came_by_streams(node)?;
        let after = policies(node)?;
        ensure!(
            after > before,
            "the agent of {} has not listed policies again: a watch that goes on is told of what is gone",
            node.name
        );
    }
    let restarted = cluster.agent_restarts()? - restarts;
    ensure!(restarted == 0, "{restarted} agents were started again");
    Ok(String::new())
}

/// Kills the API server, and waits until its port is free.
fn end(local: &Local, server: &Running) -> Result<()> {
    local.signal(server, "KILL")?;
    until(Duration::from_secs(30), || {
        ensure!(local.api_server().is_err(), "the API server does not end");
        Ok(())
    })
}

fn ready(cluster: &Cluster) -> Result<()> {
    until(Duration::from_secs(90), || {
        cluster.kubectl.run(&["get", "--raw", "/readyz"])
    })
    .map(drop)
}

/// Removes an object without the API server's knowledge.
fn remove_from_etcd(local: &Local, object: &str) -> Result<()> {
    // By etcd's gateway for JSON; the machine need not have an HTTP client, but bash is one.
    let answer = local.in_control(&format!(
        "bash -e <<'END'
         key=$(printf %s /registry/{object} | base64 -w0)
         body=\"{{\\\"key\\\":\\\"$key\\\"}}\"
         exec 3<>/dev/tcp/127.0.0.1/2379
         printf 'POST /v3/kv/deleterange HTTP/1.0\\r\\nContent-Length: %s\\r\\n\\r\\n%s' ${{#body}} \"$body\" >&3
         cat <&3
\nEND\n"
    ))?;
    // It puts a space here and there, on purpose.
    let packed: String = answer.split_whitespace().collect();
    ensure!(
        packed.contains("\"deleted\":\"1\""),
        "etcd was asked to remove {object}, and answered {answer:?}"
    );
    Ok(())
}
