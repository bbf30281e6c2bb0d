//! Removes the start-up taint from our node once policy is in force, so that no pod lands on a fresh node before.

use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{Node, Taint};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};

/// The key of the taint that an administrator puts on new nodes (`kubelet --register-with-taints`).
pub const KEY: &str = "netpol.io/agent-not-ready";
/// Between attempts.
const PAUSE: Duration = Duration::from_secs(5);

/// Tries until it is done, or until the node is gone.
pub(super) async fn remove(client: Client, node: String) {
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
                         removeStartupTaint does), or remove it by hand; trying again"
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
    let node = nodes.get(name).await.context("reading the node")?;
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
