//! Removing netpol, as deploy/cleanup.yaml says it; and installing it again.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{Case, TWO, case};
use crate::{
    asks::{Asks, tcp_to},
    cluster::{Cluster, SYSTEM},
    kubectl::until,
    objects::{Pod, policy},
};

/// The case.
pub(super) fn cases() -> Vec<Case> {
    vec![case(
        "uninstall",
        "the agent gone, its policy stays; after the clean-up nothing is enforced and nothing is left; installed again, it is in force",
        TWO,
        uninstall,
    )]
}

fn uninstall(cluster: &Cluster, name: &str) -> Result<String> {
    let space = cluster.space(&format!("e2e-{name}"), &[])?;
    let ns = space.name.as_str();
    let (here, there) = cluster.two();
    let mut all = vec![
        Pod::server(ns, "shut", &[("app", "shut")], &[8080], &[]).on(&there.name),
        Pod::server(ns, "asker", &[("app", "asker")], &[], &[]).on(&here.name),
    ];
    all.extend(cluster.nodes.iter().map(|node| looker(ns, &node.name)));
    cluster.start(&all)?;
    cluster.kubectl.apply(&[policy(
        ns,
        "shut",
        &[("app", "shut")],
        json!({"policyTypes": ["Ingress"]}),
    )])?;
    let addresses = cluster.pod(ns, "shut")?.addresses;
    let (mut closed, mut open) = (Asks::default(), Asks::default());
    for address in &addresses {
        closed.deny((ns, "asker"), tcp_to(*address, 8080), "policy in force");
        open.allow((ns, "asker"), tcp_to(*address, 8080), "shut", "netpol removed");
    }
    closed.settle(cluster)?;
    let kubectl = &cluster.kubectl;
    kubectl.run(&["delete", "daemonset", "netpol-agent", "-n", SYSTEM, "--wait"])?;
    until(Duration::from_secs(60), || {
        ensure!(cluster.agents()?.is_empty(), "agents are still there");
        Ok(())
    })?;
    closed.hold(cluster)?;
    cluster.apply_manifest("cleanup.yaml")?;
    kubectl.run(&[
        "rollout",
        "status",
        "daemonset/netpol-cleanup",
        "-n",
        SYSTEM,
        "--timeout=180s",
    ])?;
    open.settle(cluster)?;
    let left = left(cluster, ns)?;
    ensure!(left.is_empty(), "the clean-up left: {}", left.join(", "));
    let cleanup = cluster.deploy.join("cleanup.yaml").display().to_string();
    let manifest = cluster.deploy.join("netpol.yaml").display().to_string();
    kubectl.run(&[
        "delete",
        "-f",
        &manifest,
        "-f",
        &cleanup,
        "--ignore-not-found",
        "--timeout=120s",
    ])?;
    cluster.deploy_agent()?;
    closed.settle(cluster)?;
    Ok("pins and state were looked for on every node".to_owned())
}

/// A pod that sees what netpol keeps on a node.
fn looker(ns: &str, node: &str) -> Pod {
    let volume = |name: &str, path: &str| json!({"name": name, "hostPath": {"path": path}});
    let mount = |name: &str, path: &str| json!({"name": name, "mountPath": path, "readOnly": true});
    Pod::server(ns, &format!("look-{node}"), &[("app", "look")], &[], &[])
        .on(node)
        .with(
            "volumes",
            json!([volume("bpf", "/sys/fs/bpf"), volume("run", "/run")]),
        )
        .container(
            "volumeMounts",
            json!([mount("bpf", "/node/bpf"), mount("run", "/node/run")]),
        )
        .container("securityContext", json!({"privileged": true}))
}

/// What netpol left in bpffs and /run of any node.
fn left(cluster: &Cluster, ns: &str) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for node in &cluster.nodes {
        let pod = format!("look-{}", node.name);
        let text = cluster.kubectl.exec(
            ns,
            &pod,
            &["/netpol-probe", "look", "/node/bpf/netpol", "/node/run/netpol"],
        )?;
        for line in text.lines() {
            let line: Value = serde_json::from_str(line)?;
            let path = line["path"].as_str().unwrap_or_default();
            let holds = line["holds"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str);
            // The clean-up's own pod makes both while it waits, one to be mounted, one to be locked; nothing may be in them.
            left.extend(holds.map(|name| format!("{}: {path}/{name}", node.name)));
        }
    }
    Ok(left)
}
