//! Removes the start-up taint from our node once policy is in force, so that no pod lands on a fresh node before.

use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{Node, Taint};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use tokio::{task::JoinHandle, time::Instant};

use super::Agent;

/// The key of the taint that an administrator puts on new nodes (`kubelet --register-with-taints`).
pub const KEY: &str = "netpol.io/agent-not-ready";
/// Between attempts.
const PAUSE: Duration = Duration::from_secs(5);
/// Without a word from the watch we look so often whether the taint came again: the node may have been made anew while the
/// watch was broken.
const AGAIN: Duration = Duration::from_secs(300);

/// When to look for the taint.
#[derive(Debug, Default)]
pub(super) struct Removal {
    /// Not looked for since our Node came, or came anew.
    due: Due,
    looked: Option<Instant>,
    task: Option<JoinHandle<()>>,
}

/// As it begins: a node that is there has the taint, for all we know.
#[derive(Debug, Default, PartialEq, Eq)]
enum Due {
    #[default]
    Now,
    /// As above, and it was said that something fails.
    Held,
    NotBefore,
}

impl Removal {
    /// The watch has said something of our Node.
    pub(super) fn node_came(&mut self) {
        if self.due == Due::NotBefore {
            self.due = Due::Now;
        }
    }

    /// After a round: whether to look for the taint at this moment.
    fn is_time(&mut self, in_force: bool) -> bool {
        if self.due == Due::NotBefore && self.looked.is_some_and(|then| then.elapsed() >= AGAIN) {
            self.due = Due::Now;
        }
        match (&self.due, in_force) {
            (Due::NotBefore, _) => false,
            // It looks again by itself until there is none.
            (_, true) if self.task.as_ref().is_some_and(|task| !task.is_finished()) => false,
            (_, true) => {
                self.due = Due::NotBefore;
                self.looked = Some(Instant::now());
                true
            }
            (due, false) => {
                if *due == Due::Now {
                    tracing::warn!(
                        taint = KEY,
                        "not everything is in force: the start-up taint stays until it is"
                    );
                }
                self.due = Due::Held;
                false
            }
        }
    }
}

impl Agent {
    /// Removes the taint once nothing fails, and again when our Node came anew.
    pub(super) fn remove_taint(&mut self) {
        let Some(watcher) = self.source.kubernetes().filter(|_| self.config.remove_taint) else {
            return;
        };
        if self.taint.is_time(self.failures.is_empty()) {
            let (client, runtime) = watcher.client();
            self.taint.task = Some(runtime.spawn(remove(client, self.config.node.clone())));
        }
    }
}

/// Tries until it is done, or until the node is gone.
async fn remove(client: Client, node: String) {
    let mut said = String::new();
    loop {
        match attempt(&client, &node).await {
            Ok(true) => return tracing::info!(node, taint = KEY, "removed the start-up taint"),
            Ok(false) => return,
            Err(error) => {
                let text = format!("{error:#}");
                if text != said {
                    tracing::error!(
                        "removing the taint {KEY} from node {node}: {text}; help: grant patch on nodes (the Helm value \
                         startUpTaint.remove does), or remove it by hand; trying again"
                    );
                    said = text;
                }
            }
        }
        tokio::time::sleep(PAUSE.mul_f64(0.5 + fastrand::f64())).await;
    }
}

/// Whether there was one to remove.
async fn attempt(client: &Client, name: &str) -> Result<bool> {
    let nodes: Api<Node> = Api::all(client.clone());
    let Some(node) = nodes.get_opt(name).await.context("reading the node")? else {
        return Ok(false);
    };
    let Some(taints) = node.spec.as_ref().and_then(|spec| spec.taints.as_ref()) else {
        return Ok(false);
    };
    let kept: Vec<&Taint> = taints.iter().filter(|taint| taint.key != KEY).collect();
    if kept.len() == taints.len() {
        return Ok(false);
    }
    // With its version: a list of taints is replaced as a whole, and somebody else's change must not be lost.
    let patch = serde_json::json!({
        "metadata": { "resourceVersion": node.metadata.resource_version },
        "spec": { "taints": kept },
    });
    nodes
        .patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .context("patching the node")?;
    Ok(true)
}

#[cfg(test)]
#[path = "taint_tests.rs"]
mod tests;
