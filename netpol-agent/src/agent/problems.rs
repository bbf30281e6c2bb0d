//! What is wrong with the source, with what it means for this node.

use std::path::Path;

use tokio::time::{Duration, Instant};

use super::{Agent, known::Known};
use crate::source::{Problem, Severity, effect};

/// A policy without effect is looked for this long after a change: it may come before its pods.
const AFTER: Duration = Duration::from_secs(3);
/// The next look is so many times later than one as that one took, so that looking costs next to nothing where everything changes all the time ...
const REST: u32 = 1000;
/// ... but not earlier and not later than this.
const RESTS: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(120));

/// What was found wrong by sources that are not asked each time.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// By the source of objects, as it said last.
    source: Vec<Problem>,
    /// Policies without effect.
    idle: Vec<Problem>,
    /// Before then they are not looked for again.
    rested: Option<Instant>,
    /// When they are looked for next.
    due: Option<Instant>,
}

impl Agent {
    /// Looks for policies without effect at once.
    pub(super) fn look_for_effects(&mut self) {
        let begun = Instant::now();
        self.found.idle = effect::without(&self.compiler);
        self.found.rested = Some(Instant::now() + (begun.elapsed() * REST).clamp(RESTS.0, RESTS.1));
        self.found.due = None;
    }

    /// Something has changed: policies without effect are looked for soon.
    pub(super) fn effects_may_change(&mut self) {
        let soon = Instant::now() + AFTER;
        let rested = self.found.rested.unwrap_or(soon);
        self.found.due.get_or_insert(soon.max(rested));
    }

    /// When policies without effect are looked for next.
    pub(super) fn effects_due(&self) -> Option<Instant> {
        self.found.due
    }

    /// Looks for policies without effect if it is time, and tells what is new.
    pub(super) fn look_for_due_effects(&mut self) {
        if self.found.due.is_some_and(|due| due <= Instant::now()) {
            self.look_for_effects();
            self.tell();
        }
    }

    /// Tells what is wrong with the source now and was not before.
    pub(super) fn note(&mut self, problems: Vec<Problem>) {
        self.found.source = problems;
        self.tell();
    }

    fn tell(&mut self) {
        let mut problems = self.found.source.clone();
        problems.extend(unknown_node(&self.known));
        problems.extend(no_results(self.datapath.cni_cache(), self.datapath.unbound()));
        problems.extend(self.found.idle.iter().cloned());
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
