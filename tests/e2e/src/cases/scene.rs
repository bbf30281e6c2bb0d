//! A pod's first process and whom it tries: what the cases about lives of pods have in common.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::{
    asks::tcp_to,
    cluster::{Cluster, Placed, Space},
    kubectl::until,
    objects::{Pod, pods, policy, tcp, udp},
    witness::{self, Arrivals, CONTROL, DATAGRAMS, PORT},
};

/// On the other node: a server that only pods with `role: friend` may reach, by its own policy, and one that no policy
/// selects, which pods with `role: stranger` may not reach by theirs.
pub(super) struct Scene<'c> {
    pub(super) cluster: &'c Cluster,
    space: Space<'c>,
    pub(super) server: Placed,
    pub(super) plain: Placed,
}

impl<'c> Scene<'c> {
    pub(super) fn start(cluster: &'c Cluster, name: &str) -> Result<Self> {
        let space = cluster.space(&format!("e2e-{name}"), &[])?;
        let ns = space.name.clone();
        let (_, there) = cluster.two();
        let ports = json!([tcp(PORT), udp(DATAGRAMS)]);
        let from = json!([pods(&[("role", "friend")]), pods(&[("app", CONTROL)])]);
        let server = json!({"policyTypes": ["Ingress"], "ingress": [{"from": from, "ports": ports}]});
        let strangers = json!({"policyTypes": ["Egress"], "egress": [{"to": [pods(&[("app", "server")])]}]});
        cluster.kubectl.apply(&[
            policy(&ns, "server", &[("app", "server")], server),
            policy(&ns, "strangers", &[("role", "stranger")], strangers),
        ])?;
        cluster.start(&[
            witness::pod(&ns, "server", &there.name),
            witness::pod(&ns, "plain", &there.name),
            witness::control(&ns, &there.name),
        ])?;
        let server = cluster.pod(&ns, "server")?;
        let plain = cluster.pod(&ns, "plain")?;
        Ok(Self {
            cluster,
            space,
            server,
            plain,
        })
    }

    pub(super) fn ns(&self) -> &str {
        &self.space.name
    }

    /// A pod whose first process tries the servers at once: a friend may reach the one, a stranger neither.
    pub(super) fn first(&self, name: &str, role: &str) -> Pod {
        let mut words = vec!["first".to_owned()];
        if role == "friend" {
            for address in &self.server.addresses {
                words.extend(["--allow".into(), tcp_to(*address, PORT)]);
            }
        } else {
            words.extend(witness::denied(&self.server));
            words.extend(witness::denied(&self.plain));
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let (here, _) = self.cluster.two();
        Pod::new(self.ns(), name, &[("role", role)], &words)
            .on(&here.name)
            .with("restartPolicy", json!("Never"))
    }

    /// What has reached the two servers.
    fn arrivals(&self) -> Result<[Arrivals; 2]> {
        let of = |server: &Placed| witness::arrivals(self.cluster, self.ns(), &server.name);
        Ok([of(&self.server)?, of(&self.plain)?])
    }

    /// Does something meanwhile, of which nothing may reach the servers.
    pub(super) fn unseen<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let before = self.arrivals()?;
        let done = work()?;
        let after = self.arrivals()?;
        ensure!(
            before == after,
            "the servers received what is denied: {before:?} before, {after:?} after"
        );
        Ok(done)
    }

    /// Runs it to its end, and returns where it was.
    pub(super) fn run(&self, pod: &Pod) -> Result<Placed> {
        self.cluster.kubectl.apply(&[pod.object(&self.cluster.image)])?;
        run_to_its_end(self.cluster, self.ns(), &pod.name)
    }

    pub(super) fn delete(&self, name: &str) -> Result<()> {
        self.cluster
            .kubectl
            .run(&["delete", "pod", name, "-n", self.ns(), "--timeout=60s"])
            .map(drop)
    }
}

/// Waits until a pod's first process has ended well.
pub(super) fn run_to_its_end(cluster: &Cluster, ns: &str, name: &str) -> Result<Placed> {
    let object = until(Duration::from_secs(90), || {
        let object = cluster.kubectl.get(&["pod", name, "-n", ns])?;
        let phase = object["status"]["phase"].as_str().unwrap_or_default();
        ensure!(matches!(phase, "Succeeded" | "Failed"), "pod {name} is {phase}");
        Ok(object)
    })?;
    let said = &object["status"]["containerStatuses"][0]["state"]["terminated"]["message"];
    let line: Value = serde_json::from_str(said.as_str().unwrap_or_default()).unwrap_or_default();
    ensure!(
        line["fine"] == true,
        "the first process of {name} ({}): {said}",
        object["metadata"]["labels"]
    );
    let tried = line["deny"]
        .as_array()
        .into_iter()
        .flatten()
        .all(|one| one["tried"].as_u64() > Some(0));
    ensure!(tried, "the first process of {name} did not try: {said}");
    cluster.pod(ns, name)
}
