//! One case after the other: a line each, more where one fails.

use std::{fmt, time::Instant};

use anyhow::Result;

use crate::{
    cases::{Case, Needs, all},
    cluster::Cluster,
    stop,
};

/// How many.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    passed: u32,
    pub(crate) failed: u32,
    skipped: u32,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

/// Why the cluster can't answer a case.
fn lack(cluster: &Cluster, needs: &Needs) -> Result<Option<String>> {
    if cluster.nodes.len() < needs.nodes {
        let (has, needs) = (cluster.nodes.len(), needs.nodes);
        return Ok(Some(format!(
            "needs {needs} nodes for ordinary pods, the cluster has {has}"
        )));
    }
    if needs.local && (cluster.local.is_none() || cluster.probe.is_none()) {
        return Ok(Some(
            "needs powers over nodes or the API server that only a local cluster gives".into(),
        ));
    }
    if needs.helm && cluster.helm.is_none() {
        return Ok(Some(
            "needs Helm: `cargo xtask deploy-check` builds it, --helm names another".into(),
        ));
    }
    if needs.dual_stack && !cluster.is_dual_stack()? {
        return Ok(Some("needs pods with IPv6 addresses".into()));
    }
    Ok(None)
}

/// Runs all whose names contain one of the words.
pub(crate) fn run(cluster: &Cluster, words: &[String]) -> Summary {
    let mut summary = Summary::default();
    let chosen = |case: &Case| words.is_empty() || words.iter().any(|word| case.name.contains(word.as_str()));
    for case in all().iter().filter(|case| chosen(case)) {
        if stop::stopped() {
            break;
        }
        let start = Instant::now();
        let result = match lack(cluster, &case.needs) {
            Ok(Some(reason)) => {
                summary.skipped += 1;
                println!("skip  {:<32} {reason}", case.name);
                continue;
            }
            Ok(None) => (case.run)(cluster, case.name),
            Err(error) => Err(error),
        };
        let seconds = start.elapsed().as_secs_f64();
        match result {
            Ok(note) => {
                summary.passed += 1;
                println!("ok    {:<32} {seconds:6.1} s  {note}", case.name);
            }
            Err(error) => {
                summary.failed += 1;
                println!(
                    "FAIL  {:<32} {seconds:6.1} s  {error:#}\n{}",
                    case.name,
                    details(cluster)
                );
            }
        }
    }
    summary
}

/// What helps to understand a failure.
fn details(cluster: &Cluster) -> String {
    let text = format!("{}\n{}", "the agents:", cluster.agent_state());
    text.lines().map(|line| format!("      | {line}\n")).collect()
}
