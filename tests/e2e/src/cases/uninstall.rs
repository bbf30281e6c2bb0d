//! Removing netpol, as deploy/cleanup.yaml says it, and installing it again; the same by Helm.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{Case, HELM, TWO, case};
use crate::{
    asks::{Asks, tcp_to},
    cluster::{Cluster, SYSTEM, Space},
    kubectl::until,
    objects::{Pod, policy},
};

/// The cases.
pub(super) fn cases() -> Vec<Case> {
    vec![
        case(
            "uninstall",
            "the agent gone, its policy stays; after the clean-up nothing is enforced and nothing is left; installed again, it is in force",
            TWO,
            uninstall,
        ),
        case(
            "helm",
            "by the chart: install, upgrade, clean up, uninstall; policy is in force until the clean-up, and nothing is left",
            HELM,
            helm,
        ),
    ]
}

/// A server that nobody may reach, who tries, and who looks at the nodes.
struct Scene<'c> {
    cluster: &'c Cluster,
    space: Space<'c>,
    /// With policy in force, and without.
    closed: Asks,
    open: Asks,
}

impl<'c> Scene<'c> {
    fn start(cluster: &'c Cluster, name: &str) -> Result<Self> {
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
        let (mut closed, mut open) = (Asks::default(), Asks::default());
        for address in cluster.pod(ns, "shut")?.addresses {
            closed.deny((ns, "asker"), tcp_to(address, 8080), "policy in force");
            open.allow((ns, "asker"), tcp_to(address, 8080), "shut", "netpol removed");
        }
        Ok(Self {
            cluster,
            space,
            closed,
            open,
        })
    }

    /// Once nodes are clean nothing is enforced, and nothing is left.
    fn is_clean(&self) -> Result<()> {
        self.cluster.kubectl.run(&[
            "rollout",
            "status",
            "daemonset/netpol-cleanup",
            "-n",
            SYSTEM,
            "--timeout=180s",
        ])?;
        self.open.settle(self.cluster)?;
        let mut left = left(self.cluster, &self.space.name)?;
        left.extend(attached(self.cluster)?);
        ensure!(left.is_empty(), "the clean-up left: {}", left.join(", "));
        Ok(())
    }

    /// Something is there to be removed, where that can be seen.
    fn is_attached(&self) -> Result<()> {
        ensure!(
            self.cluster.local.is_none() || !attached(self.cluster)?.is_empty(),
            "no program is attached before the clean-up: what is seen of them is wrong"
        );
        Ok(())
    }
}

/// Removes what the manifests made, and waits for it.
fn delete_manifests(cluster: &Cluster, files: &[&str]) -> Result<()> {
    let mut words = vec!["delete".to_owned()];
    for file in files {
        words.extend(["-f".to_owned(), cluster.deploy.join(file).display().to_string()]);
    }
    words.extend(["--ignore-not-found".to_owned(), "--timeout=120s".to_owned()]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    cluster.kubectl.run(&words).map(drop)
}

fn uninstall(cluster: &Cluster, name: &str) -> Result<String> {
    let scene = Scene::start(cluster, name)?;
    scene.closed.settle(cluster)?;
    scene.is_attached()?;
    cluster
        .kubectl
        .run(&["delete", "daemonset", "netpol-agent", "-n", SYSTEM, "--wait"])?;
    until(Duration::from_secs(60), || {
        ensure!(cluster.agents()?.is_empty(), "agents are still there");
        Ok(())
    })?;
    scene.closed.hold(cluster)?;
    cluster.apply_manifest("cleanup.yaml")?;
    scene.is_clean()?;
    delete_manifests(cluster, &["netpol.yaml", "cleanup.yaml"])?;
    cluster.deploy_agent()?;
    scene.closed.settle(cluster)?;
    Ok(looked_for(cluster))
}

/// What a run has looked for.
fn looked_for(cluster: &Cluster) -> String {
    match cluster.local {
        Some(_) => "pins, state, programs and qdiscs were looked for on every node".to_owned(),
        None => "pins and state were looked for on every node; programs only in a local cluster".to_owned(),
    }
}

fn helm(cluster: &Cluster, name: &str) -> Result<String> {
    let helm = cluster.helm.as_ref().context("no Helm")?;
    let scene = Scene::start(cluster, name)?;
    scene.closed.settle(cluster)?;
    // Helm takes over nothing that it has not made. What is in force stays meanwhile.
    delete_manifests(cluster, &["netpol.yaml"])?;
    scene.closed.hold(cluster)?;
    let chart = cluster.deploy.join("helm/netpol").display().to_string();
    let (repository, tag) = cluster
        .agent_image
        .rsplit_once(':')
        .context("the agent's image has no tag")?;
    let (repository, tag) = (
        format!("image.repository={repository}"),
        format!("image.tag={tag}"),
    );
    let of = |verb| [verb, "netpol", &chart, "--namespace", SYSTEM];
    let image = ["--create-namespace", "--set", &repository, "--set-string", &tag];
    helm.run(&[&of("install")[..], &image].concat())?;
    cluster.wait_for_agents()?;
    scene.closed.hold(cluster)?;
    helm.run(
        &[
            &of("upgrade")[..],
            &["--reuse-values", "--set", "log.level=debug"],
        ]
        .concat(),
    )?;
    cluster.wait_for_agents()?;
    scene.closed.hold(cluster)?;
    scene.is_attached()?;
    let cleanup = ["--reuse-values", "--set", "cleanup.enabled=true"];
    helm.run(&[&of("upgrade")[..], &cleanup].concat())?;
    scene.is_clean()?;
    helm.run(&["uninstall", "netpol", "--namespace", SYSTEM, "--wait"])?;
    // Helm leaves the namespace that it made.
    cluster.remove_namespace(SYSTEM)?;
    cluster.deploy_agent()?;
    scene.closed.settle(cluster)?;
    Ok(looked_for(cluster))
}

/// What is attached to the nodes' devices: programs by TCX, and the qdiscs of programs by classifier. Nothing else of a local
/// cluster attaches any; of others nobody can know that.
fn attached(cluster: &Cluster) -> Result<Vec<String>> {
    let (Some(local), Some(probe)) = (&cluster.local, &cluster.probe) else {
        return Ok(Vec::new());
    };
    let script = format!(
        "{} attached; tc qdisc show | grep clsact || true",
        probe.display()
    );
    let mut found = Vec::new();
    for node in &cluster.nodes {
        let text = local.in_node(&node.name, &script)?;
        found.extend(text.lines().map(|line| format!("{}: {line}", node.name)));
    }
    Ok(found)
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
