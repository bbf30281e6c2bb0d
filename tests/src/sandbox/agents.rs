//! The real agent, once a node.

use std::{
    collections::BTreeSet,
    fs,
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use netpol_policy::model::Snapshot;
use nix::sys::signal::Signal;
use serde_json::Value as Json;

use super::{build::Network, layout::Layout, pod::cni_results};
use crate::net::{Child, Rig, wait_until};

/// How long an agent may take until it says that everything is in force.
const READY: Duration = Duration::from_secs(60);

/// The agents of all nodes.
#[derive(Debug)]
pub struct Agents {
    binary: PathBuf,
    agents: Vec<Agent>,
}

#[derive(Debug)]
struct Agent {
    node: String,
    pin: PathBuf,
    log: PathBuf,
    child: Child,
}

impl Agents {
    /// Starts `binary run` on every node.
    ///
    /// # Errors
    /// It can not be started.
    pub fn start(
        binary: &Path,
        rig: &Rig,
        layout: &Layout,
        network: &Network,
        manifests: &Path,
        attach: Option<&str>,
    ) -> Result<Self> {
        let mut agents = Vec::new();
        for (at, node) in layout.nodes.iter().enumerate() {
            let directory = rig.directory().join(format!("node-{at}"));
            fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
            let (pin, log) = (rig.pins().join(format!("node-{at}")), directory.join("agent.log"));
            let output = File::create(&log).with_context(|| format!("create {}", log.display()))?;
            let mut command = Command::new(binary);
            command
                .arg("run")
                .arg("--manifests")
                .arg(manifests)
                .args(["--node", &node.name]);
            command
                .arg("--pin")
                .arg(&pin)
                .arg("--state")
                .arg(directory.join("state"));
            command.arg("--cni-cache").arg(cni_results(rig, at));
            if let Some(attach) = attach {
                command.args(["--attach", attach]);
            }
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
            let child = network.nodes[at].spawn(&mut command)?;
            agents.push(Agent {
                node: node.name.clone(),
                pin,
                log,
                child,
            });
        }
        Ok(Self {
            binary: binary.to_owned(),
            agents,
        })
    }

    /// Waits until every agent enforces exactly the policies of `snapshot` for exactly the pods of its node.
    ///
    /// # Errors
    /// One does not within a minute, or ends: with the end of its log.
    pub fn wait(
        &mut self,
        layout: &Layout,
        snapshot: &Snapshot,
        stop: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        let policies: BTreeSet<String> = snapshot.policies.keys().map(ToString::to_string).collect();
        for (at, agent) in self.agents.iter_mut().enumerate() {
            let pods = layout
                .pods
                .iter()
                .filter(|pod| pod.node == at && !pod.host_network);
            let pods: BTreeSet<String> = pods.map(|pod| pod.name.to_string()).collect();
            let mut last = Json::Null;
            let ready = wait_until(READY, || {
                stop()?;
                last = status(&self.binary, agent);
                if in_force(&last["agent"], &policies, &pods) {
                    return Ok(true);
                }
                match agent.child.inner().try_wait().context("wait for an agent")? {
                    Some(status) => bail!(
                        "the agent of {} ended ({status}):\n{}",
                        agent.node,
                        tail(&agent.log)
                    ),
                    None => Ok(false),
                }
            })?;
            ensure!(
                ready,
                "the agent of {} does not enforce everything after {READY:?}; it says {}; its log:\n{}",
                agent.node,
                last["agent"]["errors"],
                tail(&agent.log)
            );
        }
        Ok(())
    }

    /// `status` of every node's agent.
    #[must_use]
    pub fn status(&self) -> Vec<Json> {
        self.agents
            .iter()
            .map(|agent| status(&self.binary, agent))
            .collect()
    }

    /// Kills the agent of a node without warning; what it attached stays in force.
    ///
    /// # Errors
    /// It has ended already.
    pub fn kill(&mut self, node: usize) -> Result<()> {
        self.agents[node].child.signal(Signal::SIGKILL)
    }
}

fn status(binary: &Path, agent: &Agent) -> Json {
    let mut command = Command::new(binary);
    command
        .arg("status")
        .arg("--pin")
        .arg(&agent.pin)
        .args(["-o", "json"]);
    let output = command
        .stdin(Stdio::null())
        .output()
        .map(|done| done.stdout)
        .unwrap_or_default();
    serde_json::from_slice(&output).unwrap_or_default()
}

fn in_force(report: &Json, policies: &BTreeSet<String>, pods: &BTreeSet<String>) -> bool {
    let strings = |list: &Json, key: Option<&str>| -> BTreeSet<String> {
        let items = list.as_array().into_iter().flatten();
        items
            .filter_map(|item| key.map_or(item, |key| &item[key]).as_str())
            .map(str::to_owned)
            .collect()
    };
    let attached = |pod: &Json| {
        pod["devices"]
            .as_array()
            .is_some_and(|devices| !devices.is_empty())
    };
    let attached = report["pods"]
        .as_array()
        .is_some_and(|list| list.iter().all(attached));
    report["in_force"] == true
        && attached
        && strings(&report["policies"], None) == *policies
        && strings(&report["pods"], Some("name")) == *pods
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
