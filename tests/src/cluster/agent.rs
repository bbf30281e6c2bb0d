//! The real agent as a process.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use netpol_policy::model::ObjectName;
use serde_json::Value as Json;

use super::Options;
use crate::net::{Child, Namespace};

/// The agent under test: `NETPOL_AGENT`, else the release binary, else the debug one.
///
/// # Errors
/// Where there is none.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("NETPOL_AGENT").map(PathBuf::from) {
        ensure!(
            path.is_file(),
            "NETPOL_AGENT names {}, which is not there",
            path.display()
        );
        return Ok(path);
    }
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    ["release", "debug"]
        .into_iter()
        .map(|profile| target.join(profile).join("netpol-agent"))
        .find(|path| path.is_file())
        .context("there is no netpol-agent to test: build it with `cargo xtask build`, or set NETPOL_AGENT")
}

/// The agent of the next version of the map ABI, which is beside [`binary`]: `cargo xtask test` builds it.
///
/// # Errors
/// Where there is none.
pub fn next_binary() -> Result<PathBuf> {
    let path = binary()?.with_file_name("netpol-agent-abi-next");
    ensure!(
        path.is_file(),
        "there is no {}: run the tests by `cargo xtask test`, which builds it",
        path.display()
    );
    Ok(path)
}

/// A running agent; killed when dropped.
#[derive(Debug)]
pub struct Agent {
    /// The process.
    pub child: Child,
    pins: PathBuf,
    log: PathBuf,
}

impl Agent {
    pub(super) fn start(
        namespace: &Namespace,
        node: &str,
        pins: &Path,
        directory: &Path,
        manifests: &Path,
        options: &Options,
    ) -> Result<Self> {
        let log = directory.join("agent.log");
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("open {}", log.display()))?;
        let binary = options.binary.clone().map_or_else(binary, Ok)?;
        let mut command = Command::new(binary);
        command
            .arg("run")
            .arg("--manifests")
            .arg(manifests)
            .args(["--node", node]);
        command
            .arg("--pin")
            .arg(pins)
            .arg("--state")
            .arg(directory.join("state"));
        command
            .arg("--cni-cache")
            .arg(directory.join("cni"))
            .args(&options.arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
        Ok(Self {
            child: namespace.spawn(&mut command)?,
            pins: pins.to_owned(),
            log,
        })
    }

    /// `netpol-agent status -o json`; null where it says nothing.
    #[must_use]
    pub fn status(&self) -> Json {
        let Ok(binary) = binary() else { return Json::Null };
        let mut command = Command::new(binary);
        command
            .arg("status")
            .arg("--pin")
            .arg(&self.pins)
            .args(["-o", "json"]);
        let output = command
            .stdin(Stdio::null())
            .output()
            .map(|done| done.stdout)
            .unwrap_or_default();
        serde_json::from_slice(&output).unwrap_or_default()
    }

    /// The end of what it logged.
    #[must_use]
    pub fn log(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Whether it says that the manifests with the policy `marker` are in force, and all of `pods` have programs.
    pub(super) fn enforces(&mut self, marker: &str, pods: &[&ObjectName]) -> Result<bool> {
        if let Some(status) = self.child.inner().try_wait()? {
            bail!("the agent has ended ({status}):\n{}", self.log());
        }
        let status = self.status();
        let report = &status["agent"];
        // A report of a predecessor says nothing about this process.
        if report["pid"] != self.child.id() || report["in_force"] != true {
            return Ok(false);
        }
        let attached = |wanted: &ObjectName| {
            let mut pods = report["pods"].as_array().into_iter().flatten();
            pods.any(|pod| {
                pod["name"] == wanted.to_string()
                    && pod["devices"].as_array().is_some_and(|list| !list.is_empty())
            })
        };
        let mut policies = report["policies"].as_array().into_iter().flatten();
        Ok(policies.any(|policy| policy == marker) && pods.iter().all(|pod| attached(pod)))
    }
}
