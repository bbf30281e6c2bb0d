//! A static pod in the pod network: kubelet runs it by itself, and the API server has a mirror of it with another UID.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::{Case, LOCAL, case};
use crate::{
    asks::{Asks, tcp_to, udp_to},
    cluster::Cluster,
    kubectl::until,
    local::Local,
    objects::{Pod, pods, policy},
};

const PORT: u16 = 8080;
const DATAGRAMS: u16 = 5353;
/// kubelet's `staticPodPath` in a local cluster.
const MANIFESTS: &str = "/etc/netpol-static-pods";

/// The case.
pub(super) fn cases() -> Vec<Case> {
    vec![case(
        "static-pod",
        "a static pod is judged by the labels of its mirror: both ways, kubelet's probes pass",
        LOCAL,
        static_pod,
    )]
}

/// The manifest; kubelet stops the pod when it is removed.
struct Manifest<'c> {
    local: &'c Local,
    node: &'c str,
    file: String,
}

impl Drop for Manifest<'_> {
    fn drop(&mut self) {
        let Self { local, node, file } = self;
        if let Err(error) = local.in_node(node, &format!("rm -f {file}")) {
            eprintln!("{file} of node {node} stays: {error:#}");
        }
    }
}

fn static_pod(cluster: &Cluster, name: &str) -> Result<String> {
    let local = cluster.machine()?;
    let space = cluster.space(&format!("e2e-{name}"), &[])?;
    let ns = space.name.as_str();
    let (here, there) = cluster.two();
    let server = |name: &str| {
        Pod::server(ns, name, &[("app", name)], &[PORT], &[DATAGRAMS]).container(
            "readinessProbe",
            json!({"tcpSocket": {"port": PORT}, "periodSeconds": 1}),
        )
    };
    let rules = json!({
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [pods(&[("app", "friend")])]}],
        "egress": [{"to": [pods(&[("app", "open")])]}],
    });
    cluster
        .kubectl
        .apply(&[policy(ns, "static", &[("app", "static")], rules)])?;
    cluster.start(&[
        server("open").on(&there.name),
        server("plain").on(&there.name),
        Pod::server(ns, "friend", &[("app", "friend")], &[], &[]).on(&there.name),
        Pod::server(ns, "stranger", &[("app", "stranger")], &[], &[]).on(&there.name),
    ])?;
    let text = server("static").object(&cluster.image).to_string();
    let file = format!("{MANIFESTS}/{ns}.json");
    // In one step: kubelet must not read half of it, and leaves out what begins with a dot.
    let part = format!("{MANIFESTS}/.{ns}");
    local.in_node(
        &here.name,
        &format!("cat >{part} <<'END'\n{text}\nEND\nmv {part} {file}"),
    )?;
    let _manifest = Manifest {
        local,
        node: &here.name,
        file,
    };
    let mirror = format!("static-{}", here.name);
    until(Duration::from_secs(90), || {
        let pod = cluster.kubectl.get(&["pod", &mirror, "-n", ns])?;
        let status = &pod["status"]["containerStatuses"][0];
        ensure!(
            status["ready"] == true,
            "kubelet's probe of {mirror} does not pass: {status}"
        );
        Ok(())
    })?;
    ask(cluster, ns, &mirror)
}

fn ask(cluster: &Cluster, ns: &str, mirror: &str) -> Result<String> {
    let mut asks = Asks::default();
    for address in cluster.pod(ns, mirror)?.addresses {
        for to in [tcp_to(address, PORT), udp_to(address, DATAGRAMS)] {
            asks.allow((ns, "friend"), &to, "static", "who may reach the static pod");
            asks.deny((ns, "stranger"), &to, "who may not reach the static pod");
        }
    }
    for (name, may) in [("open", true), ("plain", false)] {
        for address in cluster.pod(ns, name)?.addresses {
            for to in [tcp_to(address, PORT), udp_to(address, DATAGRAMS)] {
                match may {
                    true => asks.allow((ns, mirror), to, name, "where the static pod may go"),
                    false => asks.deny((ns, mirror), to, "where the static pod may not go"),
                }
            }
        }
    }
    asks.settle(cluster)?;
    Ok(format!("{} questions", asks.0.len()))
}
