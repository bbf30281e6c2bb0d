//! What is wrong with the source, with what it means for this node.

use std::path::Path;

use tokio::time::Instant;

use super::{Agent, EFFECTS, known::Known};
use crate::source::{Problem, Severity, effect};

impl Agent {
    /// Looks for policies without effect, now and again.
    pub(super) fn look_for_effects(&mut self) {
        if self.effects.1.is_none_or(|then| then.elapsed() >= EFFECTS) {
            self.effects = (effect::without(&self.compiler), Some(Instant::now()));
        }
    }

    /// Tells what is wrong with the source now and was not before.
    pub(super) fn note(&mut self, mut problems: Vec<Problem>) {
        problems.extend(unknown_node(&self.known));
        problems.extend(no_results(self.datapath.cni_cache(), self.datapath.unbound()));
        problems.extend(self.effects.0.iter().cloned());
        if problems == self.problems {
            return;
        }
        for problem in &problems {
            if self.problems.iter().any(|old| old.is_same(problem)) {
                continue;
            }
            match problem.severity {
                Severity::Error => tracing::error!("{problem}"),
                Severity::Warning => tracing::warn!("{problem}"),
            }
        }
        self.problems = problems;
        self.report_due = true;
    }
}

/// Without CNI results a pod is told by a route, an alias or its own address, each of which comes later.
fn no_results(directory: &Path, (pods, devices): (usize, usize)) -> Option<Problem> {
    if pods == 0 || devices == 0 || directory.exists() {
        return None;
    }
    Some(Problem {
        file: None,
        line: None,
        severity: Severity::Warning,
        object: Some(format!("CNI results {}", directory.display())),
        field: None,
        message: "are not there: a pod's rules are in force only when a route, an alias or its address in the API says whose its \
                  veth is; until then it gets what --unknown-pods says"
            .to_owned(),
        help: "name the runtime's directory with --cni-cache, mounted into the agent's pod; or grant CAP_SYS_ADMIN, so that \
               pods' own namespaces can be asked"
            .to_owned(),
    })
}

/// A node that nobody names is most probably misspelt: nothing would be enforced.
fn unknown_node(known: &Known) -> Option<Problem> {
    if known.is_node || !known.pods.is_empty() {
        return None;
    }
    let node = &known.node;
    Some(Problem {
        file: None,
        line: None,
        severity: Severity::Warning,
        object: Some(format!("Node {node}")),
        field: None,
        message: "no pod is on this node and no Node object has its name: nothing is enforced".to_owned(),
        help: "give --node the spec.nodeName of this node's pods".to_owned(),
    })
}
