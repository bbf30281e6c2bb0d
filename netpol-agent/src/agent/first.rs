//! What is known before anything is written: the source says it piece by piece, so that no one has to hold all of it at once.

use std::collections::BTreeSet;

use netpol_policy::{
    compile::Compiler,
    model::{Event, Str},
};

use super::{known::Known, source::bad_input};
use crate::source::{Change, Problem, parse};

/// Everything listed so far.
pub(super) struct First {
    /// Not settled: nothing may be concluded from a part.
    pub(super) compiler: Compiler,
    pub(super) known: Known,
    pub(super) problems: Vec<Problem>,
    nodes: BTreeSet<Str>,
}

impl First {
    pub(super) fn new(node: &str) -> Self {
        Self {
            compiler: Compiler::new(node.into(), 1),
            known: Known::new(node.to_owned()),
            problems: Vec::new(),
            nodes: BTreeSet::new(),
        }
    }

    /// Takes in what comes next; whether that was all.
    pub(super) fn take(&mut self, change: Change) -> bool {
        for event in change.events {
            match &event {
                Event::Node(node) => drop(self.nodes.insert(node.name.clone())),
                Event::NodeGone(name) => drop(self.nodes.remove(name)),
                _ => {}
            }
            self.known.apply(&event);
            self.compiler.stage(event);
        }
        self.problems = change.problems;
        change.complete
    }

    /// A node that the cluster does not have is misspelt: nothing would be enforced, and nobody would notice.
    pub(super) fn check_node(&self) -> anyhow::Result<()> {
        let node = &self.known.node;
        if self.known.is_node {
            return Ok(());
        }
        let names: Vec<&str> = self.nodes.iter().map(|name| &**name).collect();
        let help = match parse::closest(node, &names) {
            Some(name) => format!("did you mean {name}?"),
            None => format!(
                "the cluster has {} nodes, among them {}",
                names.len(),
                names[..names.len().min(5)].join(", ")
            ),
        };
        Err(bad_input(format!(
            "--node {node}: the cluster has no such node; help: {help}"
        ))
        .into())
    }
}
