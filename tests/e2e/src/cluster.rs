//! The cluster under test: its nodes, the agent on it, and what the tests make there.

use std::{net::IpAddr, path::PathBuf, sync::OnceLock, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{
    kubectl::{Kubectl, until},
    local::{Local, Outside},
    objects::{LABEL, Pod, namespace},
    stop,
};

/// Where the agent is.
pub(crate) const SYSTEM: &str = "netpol-system";
/// What its pods are selected by.
pub(crate) const AGENTS: &str = "app.kubernetes.io/component=agent";

/// A node on which pods can run.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    /// `InternalIP`
    pub(crate) addresses: Vec<IpAddr>,
}

/// Everything that a case may use.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) kubectl: Kubectl,
    pub(crate) nodes: Vec<Node>,
    /// Of the probe.
    pub(crate) image: String,
    /// `netpol/netpol-agent:0.1.0`, or whatever is to be tested in its place.
    pub(crate) agent_image: String,
    /// The directory `deploy`.
    pub(crate) deploy: PathBuf,
    /// The probe as a program of this machine, static.
    pub(crate) probe: Option<PathBuf>,
    /// The same for Helm; its chart is in `deploy`.
    pub(crate) helm: Option<Kubectl>,
    /// Powers over a cluster on this machine.
    pub(crate) local: Option<Local>,
    /// As long as promised, not as long as a check of every commit may take.
    pub(crate) whole: bool,
    outside: OnceLock<Outside>,
}

/// What of a pod concerns packets.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) addresses: Vec<IpAddr>,
}

impl Cluster {
    /// Looks at the cluster.
    ///
    /// # Errors
    /// It can't be reached, or has no node.
    pub(crate) fn new(kubectl: Kubectl, image: String, agent_image: String, deploy: PathBuf) -> Result<Self> {
        let all = settled(&kubectl)?;
        let mut nodes: Vec<Node> = all.iter().filter(|node| can_run(node)).map(node).collect();
        nodes.sort_by(|one, other| one.name.cmp(&other.name));
        if nodes.is_empty() {
            bail!("the cluster has no node that is ready and runs ordinary pods");
        }
        Ok(Self {
            kubectl,
            nodes,
            image,
            agent_image,
            deploy,
            probe: None,
            helm: None,
            local: None,
            whole: false,
            outside: OnceLock::new(),
        })
    }

    /// Whether pods have addresses of both families.
    ///
    /// # Errors
    /// The cluster can't be asked.
    pub(crate) fn is_dual_stack(&self) -> Result<bool> {
        let service = self.kubectl.get(&["service", "kubernetes", "-n", "default"])?;
        let nodes = self.kubectl.list(&["nodes"])?;
        let of = |list: &Value| list.as_array().map_or(0, Vec::len);
        Ok(nodes.iter().all(|node| of(&node["spec"]["podCIDRs"]) > 1)
            || of(&service["spec"]["clusterIPs"]) > 1)
    }

    /// The node on which most of a case happens, and another one.
    pub(crate) fn two(&self) -> (&Node, &Node) {
        (&self.nodes[0], self.nodes.get(1).unwrap_or(&self.nodes[0]))
    }

    /// Makes a namespace of this name, anew.
    ///
    /// # Errors
    /// kubectl's.
    pub(crate) fn space(&self, name: &str, labels: &[(&str, &str)]) -> Result<Space<'_>> {
        self.remove_namespace(name)?;
        self.kubectl.apply(&[namespace(name, labels)])?;
        // Pods of a namespace whose service account is not there yet are refused. After an outage of the API server the
        // controllers that make it have lost their lease, and are long in coming back.
        until(Duration::from_secs(120), || {
            self.kubectl
                .run(&["get", "serviceaccount", "default", "-n", name])
        })?;
        Ok(Space {
            cluster: self,
            name: name.to_owned(),
        })
    }

    /// Deletes a namespace, and waits until it is gone.
    ///
    /// # Errors
    /// It stays.
    pub(crate) fn remove_namespace(&self, name: &str) -> Result<()> {
        self.kubectl
            .run(&[
                "delete",
                "namespace",
                name,
                "--ignore-not-found",
                "--timeout=120s",
            ])
            .map(drop)
    }

    /// Removes what a run left that was killed.
    ///
    /// # Errors
    /// kubectl's.
    pub(crate) fn remove_leftovers(&self) -> Result<()> {
        let label = format!("{LABEL}=true");
        self.kubectl
            .run(&["delete", "namespaces", "-l", &label, "--timeout=180s"])
            .map(drop)
    }

    /// Makes pods and waits until they are ready.
    ///
    /// # Errors
    /// kubectl's, or one does not become ready.
    pub(crate) fn start(&self, pods: &[Pod]) -> Result<()> {
        let objects: Vec<Value> = pods.iter().map(|pod| pod.object(&self.image)).collect();
        self.kubectl.apply(&objects)?;
        match pods.first() {
            Some(pod) => self.kubectl.wait_for_pods(&pod.namespace),
            None => Ok(()),
        }
    }

    /// The pods of a namespace that have addresses.
    ///
    /// # Errors
    /// kubectl's.
    pub(crate) fn placed(&self, namespace: &str) -> Result<Vec<Placed>> {
        Ok(self
            .kubectl
            .list(&["pods", "-n", namespace])?
            .iter()
            .map(placed)
            .collect())
    }

    /// The one pod of a name.
    ///
    /// # Errors
    /// It is not there, or has no address yet.
    pub(crate) fn pod(&self, namespace: &str, name: &str) -> Result<Placed> {
        let pod = placed(&self.kubectl.get(&["pod", name, "-n", namespace])?);
        if pod.addresses.is_empty() {
            bail!("pod {namespace}/{name} has no address yet");
        }
        Ok(pod)
    }

    /// The addresses of a Service, and of each its own ports.
    ///
    /// # Errors
    /// It is not there.
    pub(crate) fn cluster_ips(&self, namespace: &str, service: &str) -> Result<Vec<IpAddr>> {
        let service = self.kubectl.get(&["service", service, "-n", namespace])?;
        Ok(addresses(&service["spec"]["clusterIPs"]))
    }

    /// The number that a `NodePort` got.
    ///
    /// # Errors
    /// It has none.
    pub(crate) fn node_port(&self, namespace: &str, service: &str) -> Result<u16> {
        let object = self.kubectl.get(&["service", service, "-n", namespace])?;
        let port = object["spec"]["ports"][0]["nodePort"]
            .as_u64()
            .and_then(|port| port.try_into().ok());
        port.with_context(|| format!("Service {namespace}/{service} has no nodePort"))
    }

    /// The pods of the agent.
    ///
    /// # Errors
    /// kubectl's.
    pub(crate) fn agents(&self) -> Result<Vec<Value>> {
        self.kubectl.list(&["pods", "-n", SYSTEM, "-l", AGENTS])
    }

    /// How often the agents' containers were started again, in all.
    ///
    /// # Errors
    /// kubectl's.
    pub(crate) fn agent_restarts(&self) -> Result<u64> {
        let count = |pod: &Value| {
            pod["status"]["containerStatuses"][0]["restartCount"]
                .as_u64()
                .unwrap_or(0)
        };
        Ok(self.agents()?.iter().map(count).sum())
    }

    /// Waits until an agent is ready on every node.
    ///
    /// # Errors
    /// One is not.
    pub(crate) fn wait_for_agents(&self) -> Result<()> {
        let args = [
            "rollout",
            "status",
            "daemonset/netpol-agent",
            "-n",
            SYSTEM,
            "--timeout=180s",
        ];
        self.kubectl
            .run(&args)
            .map(drop)
            .map_err(|error| error.context(self.agent_state()))
    }

    /// What the agents are doing, for an error.
    pub(crate) fn agent_state(&self) -> String {
        let shown = self.kubectl.run(&["get", "pods", "-n", SYSTEM, "-o", "wide"]);
        let logs = self
            .kubectl
            .run(&["logs", "-n", SYSTEM, "-l", AGENTS, "--prefix", "--tail=15"]);
        format!("{}\n{}", shown.unwrap_or_default(), logs.unwrap_or_default())
    }

    /// Applies the manifest, with the image that is tested.
    ///
    /// # Errors
    /// kubectl's, or an agent does not become ready.
    pub(crate) fn deploy_agent(&self) -> Result<()> {
        // A clean-up of a run that was killed lets no agent onto its nodes.
        self.kubectl.run(&[
            "delete",
            "daemonset/netpol-cleanup",
            "-n",
            SYSTEM,
            "--ignore-not-found",
            "--timeout=60s",
        ])?;
        self.apply_manifest("netpol.yaml")?;
        self.wait_for_agents()
    }

    /// Applies a file of `deploy`, with the image that is tested.
    ///
    /// # Errors
    /// kubectl's.
    pub(crate) fn apply_manifest(&self, file: &str) -> Result<()> {
        let path = self.deploy.join(file);
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let lines = text
            .lines()
            .map(|line| match line.split_once("image: netpol/netpol-agent:") {
                Some((before, _)) => format!("{before}image: {}\n", self.agent_image),
                None => format!("{line}\n"),
            });
        self.kubectl
            .run_with(&["apply", "-f", "-"], &lines.collect::<String>())
            .map(drop)
    }

    /// The local cluster's machine, for what only that can do.
    ///
    /// # Errors
    /// The cluster is elsewhere.
    pub(crate) fn machine(&self) -> Result<&Local> {
        self.local.as_ref().context("the cluster is not on this machine")
    }

    /// The pods of a label, once all `count` of them have ended.
    ///
    /// # Errors
    /// They have not.
    pub(crate) fn ended(&self, namespace: &str, label: &str, count: usize) -> Result<Vec<Value>> {
        let mut pods = self.kubectl.list(&["pods", "-n", namespace, "-l", label])?;
        pods.retain(|pod| matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")));
        ensure!(pods.len() == count, "{} of {count} pods have ended", pods.len());
        Ok(pods)
    }

    /// Removes the pods of a label at once.
    ///
    /// # Errors
    /// kubectl's.
    pub(crate) fn remove_pods(&self, namespace: &str, label: &str) -> Result<()> {
        let words = ["delete", "pods", "-n", namespace, "-l", label];
        self.kubectl
            .run(&[&words[..], &["--grace-period=0", "--force"]].concat())
            .map(drop)
    }

    /// The host outside of the cluster; made when it is first asked for.
    ///
    /// # Errors
    /// The cluster is not on this machine, or the host can't be made.
    pub(crate) fn outside(&self) -> Result<&Outside> {
        if let Some(outside) = self.outside.get() {
            return Ok(outside);
        }
        let local = self.machine()?;
        let probe = self
            .probe
            .as_ref()
            .context("an outside host needs --probe-binary")?;
        let nodes = self.kubectl.list(&["nodes"])?;
        let outside = Outside::start(local, probe, &nodes)?;
        Ok(self.outside.get_or_init(|| outside))
    }
}

/// All nodes, once none has just begun: a node that is about to be ready would be missed by cases that need it.
fn settled(kubectl: &Kubectl) -> Result<Vec<Value>> {
    let begins = |node: &Value| {
        let taints = node["spec"]["taints"].as_array().into_iter().flatten();
        let mut keys = taints.filter_map(|taint| taint["key"].as_str());
        // A node that is cordoned, or broken for longer, is not waited for.
        keys.any(|key| {
            key == "node.kubernetes.io/not-ready" || key == "node.cloudprovider.kubernetes.io/uninitialized"
        })
    };
    let all = kubectl.list(&["nodes"])?;
    if !all.iter().any(begins) {
        return Ok(all);
    }
    let settled = until(Duration::from_secs(60), || {
        let all = kubectl.list(&["nodes"])?;
        ensure!(!all.iter().any(begins), "a node has just begun");
        Ok(all)
    });
    stop::check()?;
    // One that takes longer is not counted on.
    settled.or_else(|_| kubectl.list(&["nodes"]))
}

fn can_run(node: &Value) -> bool {
    let taints = node["spec"]["taints"].as_array();
    let repelled = taints.is_some_and(|all| all.iter().any(|taint| taint["effect"] != "PreferNoSchedule"));
    let conditions = node["status"]["conditions"].as_array();
    let ready = conditions.is_some_and(|all| {
        all.iter()
            .any(|one| one["type"] == "Ready" && one["status"] == "True")
    });
    ready && !repelled
}

fn node(node: &Value) -> Node {
    let internal = node["status"]["addresses"].as_array().into_iter().flatten();
    let internal = internal.filter(|address| address["type"] == "InternalIP");
    Node {
        name: node["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
        addresses: internal
            .filter_map(|one| one["address"].as_str()?.parse().ok())
            .collect(),
    }
}

fn placed(pod: &Value) -> Placed {
    let ips = pod["status"]["podIPs"].as_array().into_iter().flatten();
    Placed {
        name: pod["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
        node: pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned(),
        addresses: ips.filter_map(|one| one["ip"].as_str()?.parse().ok()).collect(),
    }
}

fn addresses(list: &Value) -> Vec<IpAddr> {
    let list = list.as_array().into_iter().flatten();
    list.filter_map(|one| one.as_str()?.parse().ok()).collect()
}

/// A namespace of a case; it is deleted at the end, whatever the end.
#[derive(Debug)]
pub(crate) struct Space<'c> {
    cluster: &'c Cluster,
    pub(crate) name: String,
}

impl Drop for Space<'_> {
    fn drop(&mut self) {
        let args = [
            "delete",
            "namespace",
            &self.name,
            "--ignore-not-found",
            "--wait=false",
        ];
        if let Err(error) = self.cluster.kubectl.run(&args) {
            eprintln!("namespace {} stays: {error:#}", self.name);
        }
    }
}
