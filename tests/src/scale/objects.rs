//! The cluster's objects, the same at every call: sizes, labels and policies as people have them.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

/// Pods of a namespace.
const PER_NAMESPACE: usize = 10;
/// Namespaces of a team: whoever lets a team in lets ten times ten pods in.
const PER_TEAM: usize = 10;
const APPS: [&str; 5] = ["web", "api", "worker", "cache", "db"];
/// The port of probes, which no policy of [`Size::policy`] names.
pub(super) const PROBED: u16 = 7777;

/// How large the cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Pods in all.
    pub pods: usize,
    /// Those of the node under test, which is the first.
    pub local: usize,
}

impl Size {
    /// # Errors
    /// There are too few or too many pods.
    pub fn new(pods: usize, local: usize) -> Result<Self> {
        ensure!(
            (4..=250).contains(&local),
            "pods of the node: from 4 to 250, as it has a /24"
        );
        ensure!(
            (2 * local..=1_000_000).contains(&pods) && pods.is_multiple_of(local),
            "pods: at least twice those of the node, and a multiple of them"
        );
        Ok(Self { pods, local })
    }

    /// Namespaces, each with one policy.
    #[must_use]
    pub const fn namespaces(self) -> usize {
        self.pods.div_ceil(PER_NAMESPACE)
    }

    /// Nodes.
    #[must_use]
    pub const fn nodes(self) -> usize {
        self.pods.div_ceil(10)
    }

    /// The pods of the node under test, spread over namespaces.
    pub fn local_pods(self) -> impl Iterator<Item = usize> {
        let stride = self.pods / self.local;
        (0..self.local).map(move |at| at * stride)
    }

    /// Where `pod` is among the pods of the node under test.
    #[must_use]
    pub const fn place(self, pod: usize) -> Option<usize> {
        let stride = self.pods / self.local;
        if pod.is_multiple_of(stride) && pod / stride < self.local {
            Some(pod / stride)
        } else {
            None
        }
    }

    /// Its node and its number there.
    const fn home(self, pod: usize) -> (usize, usize) {
        match self.place(pod) {
            Some(at) => (0, at),
            None => (1 + pod % (self.nodes() - 1), pod / (self.nodes() - 1)),
        }
    }

    /// The address of `pod`: a /24 a node, of which the first is the node's.
    #[must_use]
    pub const fn address(self, pod: usize) -> Ipv4Addr {
        let (node, nth) = self.home(pod);
        Ipv4Addr::from_bits((10 << 24) + (64 << 16) + (node as u32) * 256 + nth as u32 + 2)
    }

    /// A client and a server on the node under test, in namespaces of their own; the client's policy does not isolate it for egress.
    #[must_use]
    pub fn probes(self) -> Option<(usize, usize)> {
        let mut free = self
            .local_pods()
            .filter(|pod| !isolates_egress(namespace_of(*pod)));
        let client = free.next()?;
        let server = free.find(|pod| namespace_of(*pod) != namespace_of(client))?;
        Some((client, server))
    }

    /// Node `at`.
    #[must_use]
    pub fn node(self, at: usize) -> Value {
        let name = node_name(at);
        let address = Ipv4Addr::from_bits((10 << 24) + at as u32 + 10).to_string();
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {
                "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
                "topology.kubernetes.io/zone": format!("zone-{}", at % 3), "node.kubernetes.io/instance-type": "m5.xlarge"}},
            "status": {
                "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}],
                "capacity": {"cpu": "4", "memory": "16Gi", "pods": "110"}, "allocatable": {"cpu": "4", "memory": "15Gi", "pods": "110"},
                "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "kubelet is posting ready status"}]},
        })
    }

    /// Pod `pod` without its status; `life` counts how often it was made again.
    #[must_use]
    pub fn pod(self, pod: usize, life: usize) -> Value {
        let (app, space) = (app_of(pod), namespace_of(pod));
        let hash = format!("{:08x}", fnv(&format!("{app}{space}")));
        let env: Vec<Value> = ["DATABASE_URL", "QUEUE_URL"]
            .map(|name| json!({"name": name, "value": format!("{}://{app}.space-{space:05}.svc:5432/{hash}", name.to_lowercase())}))
            .into();
        let mut own =
            vec![json!({"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}})];
        own.extend(env);
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": pod_name(pod), "namespace": namespace_name(space),
                "labels": {
                    "app": app, "app.kubernetes.io/name": app, "app.kubernetes.io/instance": format!("{app}-{space}"),
                    "pod-template-hash": hash, "tier": format!("tier-{}", pod % 3), "version": format!("v{life}")},
                "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "9090"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{app}-{hash}"),
                    "uid": format!("00000000-0000-4000-8000-{space:012x}"), "controller": true, "blockOwnerDeletion": true}]},
            "spec": {
                "nodeName": node_name(self.home(pod).0), "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 30,
                "containers": [{
                    "name": app, "image": format!("registry.example/{app}@sha256:{}", hash.repeat(8)), "env": own,
                    "ports": [{"name": "http", "containerPort": 8080}, {"name": "metrics", "containerPort": 9090}],
                    "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                    "readinessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 10},
                    "volumeMounts": [{"name": "config", "mountPath": "/etc/app"}, {"name": "tmp", "mountPath": "/tmp"}]}],
                "volumes": [{"name": "config", "configMap": {"name": format!("{app}-config")}}, {"name": "tmp", "emptyDir": {}}]},
        })
    }

    /// A patch of its status, as kubelet writes it; what changes most is whether it is ready and how often it was started again.
    #[must_use]
    pub fn status(self, pod: usize, ready: bool, restarts: u64) -> Value {
        let (address, since) = (self.address(pod).to_string(), "2026-01-01T00:00:00Z");
        let state = if ready { "True" } else { "False" };
        let conditions: Vec<Value> = [
            ("Initialized", "True"),
            ("Ready", state),
            ("ContainersReady", state),
            ("PodScheduled", "True"),
        ]
        .map(|(kind, status)| json!({"type": kind, "status": status, "lastTransitionTime": since}))
        .into();
        json!({"status": {
            "phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "hostIP": "10.0.0.10", "startTime": since, "conditions": conditions,
            "containerStatuses": [{"name": app_of(pod), "ready": ready, "started": true, "restartCount": restarts,
                "image": "registry.example/app", "imageID": "registry.example/app@sha256:0", "containerID": format!("containerd://{pod:064x}"),
                "state": {"running": {"startedAt": since}}}]}})
    }

    /// The policy of namespace `space`; with `extra` the probing client may send to the port of probes.
    #[must_use]
    pub fn policy(self, space: usize, extra: Option<usize>) -> Value {
        let selector = if space % 3 == 2 {
            json!({"matchLabels": {"app": "web"}})
        } else {
            json!({})
        };
        let team = json!({"namespaceSelector": {"matchLabels": {"team": team(space)}}});
        let mut from = vec![
            json!({"podSelector": {"matchLabels": {"app": "api"}}}),
            team.clone(),
        ];
        if space.is_multiple_of(2) {
            let (block, except) = (space / 256 % 64, space % 256);
            from.push(
                json!({"ipBlock": {"cidr": format!("172.{}.{except}.0/24", 16 + block % 16),
                "except": [format!("172.{}.{except}.128/26", 16 + block % 16)]}}),
            );
        }
        let mut ingress = vec![
            json!({"from": from, "ports": [{"port": 8080, "protocol": "TCP"}, {"port": "metrics", "protocol": "TCP"}]}),
        ];
        if let Some(client) = extra {
            let space = namespace_name(namespace_of(client));
            ingress.push(json!({
                "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": space}}, "podSelector": {"matchLabels": {"app": "web"}}}],
                "ports": [{"port": PROBED, "protocol": "UDP"}]}));
        }
        let mut spec = json!({"podSelector": selector, "policyTypes": ["Ingress"], "ingress": ingress});
        if isolates_egress(space) {
            let world = json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]}});
            spec["policyTypes"] = json!(["Ingress", "Egress"]);
            spec["egress"] = json!([
                {"to": [team], "ports": [{"port": 8080, "protocol": "TCP"}, {"port": 5432, "protocol": "TCP"}]},
                {"to": [world], "ports": [{"port": 443, "protocol": "TCP"}]}]);
        }
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": POLICY, "namespace": namespace_name(space), "labels": {"app.kubernetes.io/managed-by": "gitops"}},
            "spec": spec,
        })
    }
}

/// The name of the one policy of each namespace.
pub(super) const POLICY: &str = "default";

fn isolates_egress(space: usize) -> bool {
    space.is_multiple_of(4)
}

/// Namespace `space`.
#[must_use]
pub(super) fn namespace(space: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace_name(space), "labels": {
        "team": team(space), "environment": if space.is_multiple_of(3) { "prod" } else { "staging" }, "pod-security.kubernetes.io/enforce": "baseline"}}})
}

fn team(space: usize) -> String {
    format!("team-{:04}", space / PER_TEAM)
}

/// Which namespace `pod` is in.
#[must_use]
pub(super) const fn namespace_of(pod: usize) -> usize {
    pod / PER_NAMESPACE
}

fn app_of(pod: usize) -> &'static str {
    APPS[pod % PER_NAMESPACE % APPS.len()]
}

/// `space-00042`
#[must_use]
pub(super) fn namespace_name(space: usize) -> String {
    format!("space-{space:05}")
}

/// `web-00042-0`
#[must_use]
pub(super) fn pod_name(pod: usize) -> String {
    format!("{}-{:05}-{}", app_of(pod), namespace_of(pod), pod % PER_NAMESPACE)
}

/// `node-0001` is the first.
#[must_use]
pub(super) fn node_name(at: usize) -> String {
    format!("node-{:04}", at + 1)
}

/// FNV-1a.
fn fnv(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_pod_has_its_own_address_and_name() {
        for pods in [500, 50_000] {
            let size = Size::new(pods, 100).expect("a size");
            let addresses: BTreeSet<_> = (0..pods).map(|pod| size.address(pod)).collect();
            let names: BTreeSet<_> = (0..pods).map(|pod| (namespace_of(pod), pod_name(pod))).collect();
            assert_eq!((addresses.len(), names.len()), (pods, pods));
            let local = (0..pods).filter(|pod| size.pod(*pod, 0)["spec"]["nodeName"] == "node-0001");
            assert!(local.eq(size.local_pods()));
        }
    }

    #[test]
    fn probes_are_between_namespaces_that_let_nothing_through() {
        for pods in [500, 50_000] {
            let size = Size::new(pods, 100).expect("a size");
            let (client, server) = size.probes().expect("two");
            assert!(size.place(client).is_some() && size.place(server).is_some());
            let policy = size.policy(namespace_of(server), None).to_string();
            assert!(!policy.contains(&PROBED.to_string()));
            assert!(
                size.policy(namespace_of(server), Some(client))
                    .to_string()
                    .contains(&PROBED.to_string())
            );
        }
    }
}
