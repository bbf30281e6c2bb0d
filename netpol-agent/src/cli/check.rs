//! `check`: everything that is wrong with a directory of manifests, without enforcing it.

use std::io::{self, Write};

use serde::Serialize;

use super::{BadInput, Exit, Manifests, Output, count};
use crate::source::{Loaded, Problem, manifests};

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

/// Bad input where there is an error; warnings alone are well.
pub(super) fn run(args: &Args) -> anyhow::Result<Exit> {
    let loaded = manifests::load(&args.manifests.dir).map_err(|error| BadInput(error.to_string()))?;
    Ok(report(&loaded, args.output, io::stdout().lock())?)
}

fn report(loaded: &Loaded, output: Output, to: impl Write) -> io::Result<Exit> {
    Report::of(loaded).print(output, to)?;
    Ok(if loaded.has_errors() {
        Exit::BadInput
    } else {
        Exit::Ok
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::*;

    /// One policy with a warning, and with an error where `port` is bad; the report with the directory cut off.
    fn check(port: &str, output: Output) -> (Exit, String) {
        let dir = tempfile::TempDir::new().expect("a temporary directory");
        let text = format!(
            "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: db, namespace: prod}}
spec:
  ingress:
  - ports: [{{port: {port}}}]
"
        );
        fs::write(dir.path().join("db.yaml"), text).expect("written");
        let mut loaded = manifests::load(dir.path()).expect("readable");
        for problem in &mut loaded.problems {
            problem.file = Some(PathBuf::from("db.yaml"));
        }
        let mut printed = Vec::new();
        let exit = report(&loaded, output, &mut printed).expect("printed");
        (exit, String::from_utf8(printed).expect("text"))
    }

    const WARNING: &str = "warning: db.yaml:1: NetworkPolicy prod/db: metadata.namespace: no manifest defines the \
                           namespace prod: its only label is its name; help: add a Namespace object with its labels";

    #[test]
    fn warnings_alone_are_well() {
        let (exit, printed) = check("80", Output::Text);
        assert_eq!(exit, Exit::Ok);
        let end = "0 errors, 1 warning in 1 policy, 0 pods, 0 namespaces and 0 nodes";
        assert_eq!(printed, format!("{WARNING}\n{end}\n"));
    }

    #[test]
    fn errors_are_bad_input() {
        let (exit, printed) = check("0", Output::Json);
        assert_eq!(exit, Exit::BadInput);
        let printed: serde_json::Value = serde_json::from_str(&printed).expect("JSON");
        assert_eq!(
            printed,
            serde_json::json!({
                "errors": 1, "warnings": 1, "namespaces": 0, "nodes": 0, "pods": 0, "policies": 1,
                "problems": [
                    {
                        "file": "db.yaml",
                        "line": 1,
                        "severity": "warning",
                        "object": "NetworkPolicy prod/db",
                        "field": "metadata.namespace",
                        "message": "no manifest defines the namespace prod: its only label is its name",
                        "help": "add a Namespace object with its labels",
                    },
                    {
                        "file": "db.yaml",
                        "line": 6,
                        "severity": "error",
                        "object": "NetworkPolicy prod/db",
                        "field": "spec.ingress[0].ports[0].port",
                        "message": "the number 0 is not a port: the whole rule allows nothing",
                        "help": "use a whole number from 1 to 65535",
                    },
                ],
            })
        );
    }

    #[test]
    fn a_directory_that_is_not_there_is_bad_input() {
        let args = Args {
            manifests: Manifests {
                dir: "/nonexistent/manifests".into(),
            },
            output: Output::Text,
        };
        let error = run(&args).unwrap_err();
        assert_eq!(super::super::exit_of(&error), Exit::BadInput);
    }
}
