//! `check`: everything that is wrong with a directory of manifests, without enforcing it.

use std::io::{self, Write};

use serde::Serialize;

use super::{BadInput, Exit, Manifests, Output};
use crate::source::{
    Problem,
    manifests::{self, Loaded},
};

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    manifests: Manifests,

    /// How to print.
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

/// `-o json`
#[derive(Debug, PartialEq, Serialize)]
struct Report<'l> {
    errors: usize,
    warnings: usize,
    namespaces: usize,
    nodes: usize,
    pods: usize,
    policies: usize,
    problems: &'l [Problem],
}

impl<'l> Report<'l> {
    fn of(loaded: &'l Loaded) -> Self {
        let errors = loaded
            .problems
            .iter()
            .filter(|problem| problem.is_error())
            .count();
        let snapshot = &loaded.snapshot;
        Self {
            errors,
            warnings: loaded.problems.len() - errors,
            namespaces: snapshot.namespaces.len(),
            nodes: snapshot.nodes.len(),
            pods: snapshot.pods.len(),
            policies: snapshot.policies.len(),
            problems: &loaded.problems,
        }
    }

    fn print(&self, output: Output, mut to: impl Write) -> io::Result<()> {
        if output == Output::Json {
            serde_json::to_writer_pretty(&mut to, self)?;
            return writeln!(to);
        }
        for problem in self.problems {
            writeln!(to, "{problem}")?;
        }
        writeln!(
            to,
            "{}, {} in {}, {}, {} and {}",
            count(self.errors, "error", "errors"),
            count(self.warnings, "warning", "warnings"),
            count(self.policies, "policy", "policies"),
            count(self.pods, "pod", "pods"),
            count(self.namespaces, "namespace", "namespaces"),
            count(self.nodes, "node", "nodes"),
        )
    }
}

fn count(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// Bad input where there is an error; warnings alone are well.
pub(super) fn run(args: &Args) -> anyhow::Result<Exit> {
    let loaded = manifests::load(&args.manifests.dir).map_err(|error| BadInput(error.to_string()))?;
    Report::of(&loaded).print(args.output, io::stdout().lock())?;
    Ok(if loaded.has_errors() {
        Exit::BadInput
    } else {
        Exit::Ok
    })
}
