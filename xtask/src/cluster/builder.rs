//! The builder: starts everything inside of the cluster, writes it down in `cluster.json`, and ends. Its children are init's then.

use std::{
    io::Write as _,
    path::Path,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{
    Cni,
    addresses::batch,
    components,
    control::{self, kubectl},
    daemon::{Daemon, call},
    node::Node,
    pki::Pki,
    record::Record,
    supervisor::call_me,
};

/// How long nodes may take to be known, and again to be ready.
const LIMIT: Duration = Duration::from_secs(90);

/// The hidden verb.
pub(super) fn run(dir: &Path) -> Result<ExitCode> {
    call_me(c"npc-builder");
    match build(dir) {
        Ok(()) => {
            tell("ready")?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            tell(&format!(
                "error {}",
                serde_json::to_string(&format!("{error:#}"))?
            ))?;
            Ok(ExitCode::FAILURE)
        }
    }
}

fn tell(line: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").context("writing to the supervisor")
}

fn step(what: &str, start: Instant) -> Result<()> {
    tell(&format!("step {what} {:.1}", start.elapsed().as_secs_f64()))
}

fn build(dir: &Path) -> Result<()> {
    let start = Instant::now();
    let mut record = Record::read(dir)?;
    control::network(&record.network)?;
    let pki = control::certificates(dir, &record)?;
    let mut daemons = control::api_server(dir, &record, &pki)?;
    // Runtimes start while the API server does.
    let mut nodes = thread::scope(|scope| {
        let made: Vec<_> = (1..=record.options.nodes)
            .map(|number| {
                let record = &record;
                scope.spawn(move || runtime(dir, record, number))
            })
            .collect();
        let controllers = control::controllers(dir, &record, &pki, &mut daemons);
        let nodes: Result<Vec<_>> = made
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect();
        controllers.and(nodes)
    })?;
    step("control plane", start)?;
    if !nodes.is_empty() {
        join(&record, &pki, &mut nodes, &mut daemons, start)?;
    }
    let written: Vec<_> = nodes.iter().map(Node::record).collect();
    let all = nodes.iter_mut().flat_map(|node| &mut node.daemons);
    let components = daemons
        .iter_mut()
        .chain(all)
        .map(Daemon::record)
        .collect::<Result<_>>()?;
    record.nodes = written;
    record.daemons = components;
    record.ready = true;
    record.write(dir)
}

/// Makes nodes of the runtimes, and waits until they are ready.
fn join(
    record: &Record,
    pki: &Pki,
    nodes: &mut [Node<'_>],
    daemons: &mut [Daemon],
    start: Instant,
) -> Result<()> {
    for node in &mut *nodes {
        node.join(pki)?;
    }
    let ranges = await_ranges(record, nodes, daemons)?;
    pod_network(record, nodes, &ranges)?;
    step("pods' network", start)?;
    await_ready(record, nodes, daemons)?;
    step("nodes ready", start)
}

fn runtime<'a>(dir: &'a Path, record: &'a Record, number: u8) -> Result<Node<'a>> {
    let mut node = Node::create(dir, record, number)?;
    node.runtime(&components::images(&record.components))?;
    Ok(node)
}

/// The ranges for pods of each node, when all have them.
fn await_ranges(record: &Record, nodes: &mut [Node<'_>], daemons: &mut [Daemon]) -> Result<Vec<Vec<String>>> {
    until("the nodes' ranges for pods", nodes, daemons, |nodes| {
        let known = objects(record)?;
        let ranges: Vec<Vec<String>> = nodes
            .iter()
            .filter_map(|node| ranges(&known, &node.name))
            .collect();
        Ok((ranges.len() == nodes.len()).then_some(ranges))
    })
}

fn await_ready(record: &Record, nodes: &mut [Node<'_>], daemons: &mut [Daemon]) -> Result<()> {
    until("the nodes to be ready", nodes, daemons, |nodes| {
        let known = objects(record)?;
        let ready = nodes.iter().all(|node| is_ready(&known, &node.name));
        // Pods are refused until the controllers have made their account.
        let mut account = kubectl(record);
        account.args(["get", "serviceaccount", "default"]);
        Ok((ready && call(&mut account).is_ok()).then_some(()))
    })
}

/// All Nodes, as JSON.
fn objects(record: &Record) -> Result<Value> {
    let mut get = kubectl(record);
    get.args(["get", "nodes", "-o", "json"]);
    serde_json::from_str(&call(&mut get)?).context("reading what kubectl says of nodes")
}

fn item<'a>(known: &'a Value, name: &str) -> Option<&'a Value> {
    known["items"]
        .as_array()?
        .iter()
        .find(|item| item["metadata"]["name"] == name)
}

fn ranges(known: &Value, name: &str) -> Option<Vec<String>> {
    let ranges = item(known, name)?["spec"]["podCIDRs"].as_array()?;
    Some(
        ranges
            .iter()
            .filter_map(|range| range.as_str().map(str::to_owned))
            .collect(),
    )
}

/// It says so, and the taints are gone that keep pods away until it does: those go a moment later.
fn is_ready(known: &Value, name: &str) -> bool {
    let Some(item) = item(known, name) else {
        return false;
    };
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let ready = |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
    list(&item["status"]["conditions"]).iter().any(ready) && list(&item["spec"]["taints"]).is_empty()
}

/// Asks again and again, as long as every component lives.
fn until<T>(
    what: &str,
    nodes: &mut [Node<'_>],
    daemons: &mut [Daemon],
    mut done: impl FnMut(&[Node<'_>]) -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        // An API server under load may refuse a question: asked again, and told only if there is never an answer.
        let answer = done(nodes);
        if let Ok(Some(done)) = answer {
            return Ok(done);
        }
        let all = nodes.iter_mut().flat_map(|node| &mut node.daemons);
        daemons.iter_mut().chain(all).try_for_each(Daemon::check)?;
        if start.elapsed() > LIMIT {
            answer.with_context(|| format!("waiting for {what}"))?;
            bail!(
                "waiting for {what} took more than {} s: the logs of kubelet say why",
                LIMIT.as_secs()
            );
        }
        thread::sleep(Duration::from_millis(200));
    }
}

fn pod_network(record: &Record, nodes: &mut [Node<'_>], ranges: &[Vec<String>]) -> Result<()> {
    thread::scope(|scope| {
        let made: Vec<_> = nodes
            .iter_mut()
            .zip(ranges)
            .map(|(node, ranges)| scope.spawn(move || node.pod_network(ranges)))
            .collect();
        made.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    let routes: Vec<_> = nodes
        .iter()
        .zip(ranges)
        .map(|(node, ranges)| node.routes(ranges))
        .collect();
    // The API server reaches pods too (its proxy, webhooks).
    batch("routes of the control plane to pods", &routes.concat())?;
    if record.options.cni == Cni::Ptp {
        for (to, node) in nodes.iter().enumerate() {
            let others = routes.iter().enumerate().filter(|(other, _)| *other != to);
            node.ip(&others.map(|(_, lines)| &**lines).collect::<String>())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_ready_when_its_condition_says_so() {
        let known: Value = serde_json::json!({"items": [
            {"metadata": {"name": "n1"}, "spec": {"podCIDRs": ["10.244.0.0/24"]},
             "status": {"conditions": [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": "True"}]}},
            {"metadata": {"name": "n2"}, "spec": {}, "status": {"conditions": [{"type": "Ready", "status": "False"}]}},
            {"metadata": {"name": "n3"}, "spec": {"taints": [{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]},
             "status": {"conditions": [{"type": "Ready", "status": "True"}]}},
        ]});
        let ready = ["n1", "n2", "n3", "n4"].map(|name| is_ready(&known, name));
        assert_eq!(ready, [true, false, false, false]);
        assert_eq!(ranges(&known, "n1"), Some(vec!["10.244.0.0/24".into()]));
        assert_eq!(ranges(&known, "n2"), None);
    }
}
