//! What runs in the guest: the very test binaries that run on this machine.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context, Result, ensure};

use super::{Job, fetch::output};
use crate::{build, ui::root};

/// Test targets of `netpol-tests`, in the order in which they run, with arguments for the harness.
const TARGETS: &[(&str, &str)] = &[("program_load", "--nocapture")];

/// What goes into the guest.
#[derive(Debug)]
pub(super) struct Suite {
    /// The kernel object.
    pub(super) object: PathBuf,
    /// Copied to `/tests` under their own names.
    pub(super) binaries: Vec<PathBuf>,
    /// In order.
    pub(super) jobs: Vec<Job>,
}

/// Builds the tests that go with the object and the debug agent that are there.
///
/// # Errors
/// The compiler's, or a target that is not there.
pub(super) fn build() -> Result<Suite> {
    let mut cargo = build::cargo("test");
    cargo.args([
        "--package",
        "netpol-tests",
        "--no-run",
        "--message-format",
        "json-render-diagnostics",
    ]);
    for (target, _) in TARGETS {
        cargo.args(["--test", target]);
    }
    let built = executables(&output(&mut cargo)?)?;
    let mut suite = Suite {
        object: root().join("target/bpf/netpol.o"),
        binaries: vec![root().join("target/debug/netpol-agent")],
        jobs: Vec::new(),
    };
    for (target, arguments) in TARGETS {
        let binary = built
            .get(*target)
            .with_context(|| format!("cargo built no test target {target}"))?;
        let file = binary
            .file_name()
            .context("a binary without name")?
            .to_string_lossy();
        suite.jobs.push(Job {
            name: (*target).to_owned(),
            script: format!(
                "export NETPOL_AGENT=/tests/netpol-agent NETPOL_EBPF_OBJECT=/tests/netpol.o\n\
                 exec /tests/{file} {arguments}\n"
            ),
        });
        suite.binaries.push(binary.clone());
    }
    ensure!(
        suite.binaries.len() > TARGETS.len(),
        "two test targets of one name"
    );
    Ok(suite)
}

/// Test target → executable, from cargo's messages.
fn executables(messages: &str) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: serde_json::Value = serde_json::from_str(line).context("reading cargo's messages")?;
        if let (Some(executable), Some(name), Some(true)) = (
            message["executable"].as_str(),
            message["target"]["name"].as_str(),
            message["profile"]["test"].as_bool(),
        ) {
            found.insert(name.to_owned(), PathBuf::from(executable));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_test_executables_count() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"load"},"profile":{"test":true},"executable":"/t/load-1"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"agent"},"profile":{"test":false},"executable":"/t/agent"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"lib"},"profile":{"test":true},"executable":null}"#,
            "\nwarning: not JSON\n",
        );
        let found = executables(messages).expect("they parse");
        assert_eq!(
            found,
            BTreeMap::from([("load".into(), PathBuf::from("/t/load-1"))])
        );
    }
}
