//! What runs in the guest: the very test binaries that run on this machine.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context, Result, ensure};

use super::{FLOOR, Job, LONG_TERM, TCX, fetch::output};
use crate::{
    build,
    ui::{root, run_quietly},
};

/// One test target of `netpol-tests` in the guest.
#[derive(Debug)]
struct Target {
    name: &'static str,
    /// For the guest's shell, before the harness starts.
    before: &'static str,
    /// For the harness.
    arguments: &'static str,
    /// The kernels of [`Scope::Choice`].
    choice: &'static [&'static str],
}

const fn target(name: &'static str, arguments: &'static str, choice: &'static [&'static str]) -> Target {
    Target {
        name,
        before: "",
        arguments,
        choice,
    }
}

/// Which tests run on which kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Scope {
    /// All tests on all kernels.
    All,
    /// The program tests on all kernels; of those with sockets each on one kernel at least.
    Choice,
}

const EVERYWHERE: &[&str] = &[FLOOR, LONG_TERM, TCX];

/// In the order in which they run. Everything is slower there, so of what this machine's kernel answers as well
/// only a choice runs.
const TARGETS: &[Target] = &[
    target("program_load", "--nocapture", EVERYWHERE),
    Target {
        before: OLD_TEST_RUN,
        ..target("program", "", EVERYWHERE)
    },
    target("netns_rig", "", EVERYWHERE),
    target("netns_sctp", "", &[FLOOR]),
    target("netns_ipvs", "", &[LONG_TERM]),
    Target {
        before: "export NETPOL_MAY_SET_CLOCK=1\n",
        ..target("netns_clock", "", &[LONG_TERM])
    },
    target("netns_uplinks", "", &[TCX]),
    target(
        "netns_examples",
        "--test-threads 1 --exact three_tier db_policy",
        &[FLOOR, TCX],
    ),
];

/// Random cases of a property in the guest (flows; the tests divide by how many there are in a snapshot).
const CASES: u32 = 1_200;

/// Random frames of which the programs and their build for the host must say the same.
const FRAMES: u32 = 3_000;

/// What goes into the guest.
#[derive(Debug)]
pub(super) struct Suite {
    /// Copied to `/tests` under their own names.
    pub(super) objects: Vec<PathBuf>,
    /// Copied to `/tests` under their own names.
    pub(super) binaries: Vec<PathBuf>,
    /// Copied to `/tests/examples`.
    pub(super) examples: PathBuf,
    /// In order.
    pub(super) jobs: Vec<Job>,
}

impl Suite {
    /// What runs on the kernel of this version.
    pub(super) fn jobs_on(&self, version: &str, scope: Scope) -> Vec<&Job> {
        self.jobs
            .iter()
            .filter(|job| scope == Scope::All || job.choice.contains(&version))
            .collect()
    }
}

/// How many times longer than usual a test waits before it calls something missing.
const SLOW: u32 = 5;

/// What every job begins with.
fn prelude() -> String {
    format!(
        "export NETPOL_AGENT=/tests/netpol-agent NETPOL_EBPF_OBJECT=/tests/netpol.o\n\
         export NETPOL_EXAMPLES=/tests/examples PROPTEST_CASES={CASES} NETPOL_CASES={FRAMES} RUST_BACKTRACE=1 NETPOL_SLOW={SLOW}\n"
    )
}

/// Before the program tests: the test run of 5.10 can't set `ingress_ifindex`.
const OLD_TEST_RUN: &str = "case $(uname -r) in 5.10.*)\n\
    export NETPOL_EBPF_OBJECT=/tests/netpol-ingress-in-priority.o NETPOL_INGRESS_IN_PRIORITY=1\n\
    esac\n";

/// Builds the tests (of one target only, where `job` names it) that go with `objects` and the debug agent that are there.
///
/// # Errors
/// The compiler's, or a target that is not there.
pub(super) fn build(objects: Vec<PathBuf>, job: Option<&str>) -> Result<Suite> {
    let targets = || {
        TARGETS
            .iter()
            .filter(|target| job.is_none_or(|job| job == target.name))
    };
    ensure!(
        targets().next().is_some(),
        "there is no job {}",
        job.unwrap_or_default()
    );
    let cargo = |arguments: &[&str]| {
        let mut cargo = build::cargo("test");
        cargo
            .args(["--package", "netpol-tests", "--no-run"])
            .args(arguments);
        for target in targets() {
            cargo.args(["--test", target.name]);
        }
        cargo
    };
    // First for people, who are shown errors and a clock; then for the names of what was built.
    run_quietly("tests for the kernels", &mut cargo(&[]))?;
    let mut cargo = cargo(&["--message-format", "json-render-diagnostics"]);
    let built = executables(&output(&mut cargo)?)?;
    let mut suite = Suite {
        objects,
        binaries: vec![root().join("target/debug/netpol-agent")],
        examples: root().join("deploy/examples"),
        jobs: Vec::new(),
    };
    for Target {
        name,
        before,
        arguments,
        choice,
    } in targets()
    {
        let binary = built
            .get(*name)
            .with_context(|| format!("cargo built no test target {name}"))?;
        let file = binary
            .file_name()
            .context("a binary without name")?
            .to_string_lossy();
        suite.jobs.push(Job {
            name: (*name).to_owned(),
            script: format!("{}{before}exec /tests/{file} {arguments}\n", prelude()),
            choice,
        });
        suite.binaries.push(binary.clone());
    }
    ensure!(
        suite.binaries.len() > targets().count(),
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
