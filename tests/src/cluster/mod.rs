//! Nodes, pods and real agents, for tests of single situations: what a test does not say is as Flannel
//! (host-gw) would make it.
//!
//! ```text
//! outside ─┐            ┌─ node-1: eth0, cni0 ─ pods 10.244.1.0/24, fd00:244:1::/64
//!          ├─ switch br0 ┤
//!          │            └─ node-2: eth0, cni0 ─ pods 10.244.2.0/24, fd00:244:2::/64
//! ```
//!
//! Nodes are 172.18.0.N and fd00:18::N, the outside host is 172.18.0.100 and fd00:18::100. The uplink of a node is
//! itself a veth into another namespace. `bridge-nf-call-iptables` is on, as kube-proxy wants it.

mod agent;
mod cast;
mod drops;
mod ipvs;
mod nat;
mod node;
mod policy;
mod traffic;

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use netpol_policy::model::{ObjectName, Pod};

pub use agent::{Agent, binary, next_binary};
pub use cast::{manifests, pod};
pub use drops::Drops;
pub use ipvs::{Virtual, lacks_ipvs};
pub use node::{Node, PodPlace};
pub use policy::Policy;
pub use traffic::{Counter, Talk, count};

use crate::net::{Namespace, Outcome, Probe, Rig, probe, wait_until};

/// How long an edit may take until it is in force.
const IN_FORCE: Duration = Duration::from_secs(120);
/// Nothing listens to this policy; its name tells which edit is in force.
const MARKER: &str = "nptest";

/// What carries a node's address. Under each is a veth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uplink {
    /// The veth itself, `eth0`.
    Plain,
    /// A bridge `up0` with the port `eth0`.
    Bridge,
    /// A bond `up0` with the slave `eth0`.
    Bond,
    /// A VLAN `up0` on `eth0`; the outside host has one, too.
    Vlan,
}

impl Uplink {
    /// The device with the address.
    #[must_use]
    pub const fn device(self) -> &'static str {
        match self {
            Self::Plain => "eth0",
            _ => "up0",
        }
    }

    /// Puts the device above `eth0`.
    ///
    /// # Errors
    /// Where the kernel has no such device.
    fn build(self, namespace: &Namespace) -> Result<()> {
        let lines: &[&str] = match self {
            Self::Plain => &[],
            Self::Bridge => &[
                "link add up0 type bridge stp_state 0 forward_delay 0",
                "link set eth0 master up0",
            ],
            Self::Bond => &[
                "link add up0 type bond mode active-backup miimon 10",
                "link set eth0 down master up0",
            ],
            Self::Vlan => &["link add link eth0 name up0 type vlan id 5"],
        };
        namespace.ip_batch(lines)?;
        namespace.ip("link set eth0 up")?;
        namespace.ip(&format!("link set {} up", self.device())).map(drop)
    }
}

/// What differs from the usual.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// How nodes are joined to the others.
    pub uplink: Uplink,
    /// `net.bridge.bridge-nf-call-iptables` and `-ip6tables`.
    pub bridge_nf: bool,
    /// More arguments for `netpol-agent run`.
    pub arguments: Vec<String>,
    /// Another agent than [`binary`].
    pub binary: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            uplink: Uplink::Plain,
            bridge_nf: true,
            arguments: Vec::new(),
            binary: None,
        }
    }
}

/// Nodes, an outside host, and one directory of manifests that all agents watch.
#[derive(Debug)]
pub struct Cluster {
    // In the order in which they are dropped: agents with their nodes, then pods, then the rest.
    nodes: Vec<Node>,
    pods: BTreeMap<ObjectName, PodPlace>,
    /// The host outside.
    pub outside: Namespace,
    /// The bridge that joins everything: `br0`, with a port `pN` for node N.
    pub switch: Namespace,
    /// What agents are started with may be changed at any time.
    pub options: Options,
    manifests: PathBuf,
    edits: u32,
    /// For more namespaces of the test's own.
    pub rig: Rig,
}

impl Cluster {
    /// `nodes` nodes (`node-1`, ...) without pods and agents.
    ///
    /// # Errors
    /// Where the network can not be built.
    pub fn new(nodes: u8, options: Options) -> Result<Self> {
        let rig = Rig::new("nptest")?;
        let switch = rig.namespace("switch")?;
        switch.ip_batch([
            "link add br0 type bridge stp_state 0 forward_delay 0",
            "link set br0 up",
        ])?;
        let outside = rig.namespace("outside")?;
        switch.veth("out", &outside, "eth0")?;
        switch.ip("link set out master br0 up")?;
        let uplink = match options.uplink {
            Uplink::Vlan => Uplink::Vlan,
            _ => Uplink::Plain,
        };
        uplink.build(&outside)?;
        outside.address(uplink.device(), "172.18.0.100".parse()?, 24)?;
        outside.address(uplink.device(), "fd00:18::100".parse()?, 64)?;
        let manifests = rig.directory().join("manifests");
        fs::create_dir_all(&manifests).with_context(|| format!("create {}", manifests.display()))?;
        let built = (1..=nodes)
            .map(|number| Node::build(&rig, &switch, number, &options))
            .collect::<Result<Vec<_>>>()?;
        let this = Self {
            nodes: built,
            pods: BTreeMap::new(),
            outside,
            switch,
            options,
            manifests,
            edits: 0,
            rig,
        };
        this.route_pods(nodes)?;
        Ok(this)
    }

    fn route_pods(&self, nodes: u8) -> Result<()> {
        for other in 1..=nodes {
            let lines = [
                format!("route add 10.244.{other}.0/24 via 172.18.0.{other}"),
                format!("route add fd00:244:{other}::/64 via fd00:18::{other}"),
            ];
            self.outside.ip_batch(&lines)?;
            for node in self.nodes.iter().filter(|node| node.number != other) {
                node.namespace.ip_batch(&lines)?;
            }
        }
        Ok(())
    }

    /// Node `number`, from 1.
    ///
    /// # Panics
    /// Where there is none.
    #[must_use]
    pub fn node(&self, number: usize) -> &Node {
        &self.nodes[number - 1]
    }

    /// Node `number`, from 1.
    ///
    /// # Panics
    /// Where there is none.
    pub fn node_mut(&mut self, number: usize) -> &mut Node {
        &mut self.nodes[number - 1]
    }

    /// The directory of manifests.
    #[must_use]
    pub fn manifests(&self) -> &Path {
        &self.manifests
    }

    /// Makes the network of `pod` on the node that it names, as a container runtime does before the pod's first
    /// process starts. Its manifest is another matter ([`Self::apply`]).
    ///
    /// # Errors
    /// Where it names no node of the cluster, or a command fails.
    pub fn add_pod(&mut self, pod: &Pod) -> Result<()> {
        let node = self
            .nodes
            .iter()
            .find(|node| pod.node.as_deref() == Some(&node.name));
        let node = node.with_context(|| format!("pod {} is on no node of the cluster", pod.name))?;
        let place = PodPlace::build(&self.rig, node, pod)?;
        self.pods.insert(pod.name.clone(), place);
        Ok(())
    }

    /// Removes a pod's network; its manifest is another matter.
    pub fn remove_pod(&mut self, name: &str) {
        if let Some(place) = self.pods.remove(&parse(name)) {
            if let Some(node) = self.nodes.iter().find(|node| node.name == place.node) {
                // With its namespace it would go later.
                let _gone = node.namespace.ip(&format!("link del {}", place.host));
            }
            place.forget();
        }
    }

    /// The namespace of the pod `namespace/name`.
    ///
    /// # Panics
    /// Where it was not added.
    #[must_use]
    pub fn pod(&self, name: &str) -> &PodPlace {
        self.pods
            .get(&parse(name))
            .unwrap_or_else(|| panic!("no pod {name} was added"))
    }

    /// The namespace of the end `name`: `outside`, `node-N`, or a pod of `namespace`.
    ///
    /// # Panics
    /// Where there is none of that name.
    #[must_use]
    pub fn end(&self, namespace: &str, name: &str) -> &Namespace {
        match name.strip_prefix("node-") {
            _ if name == "outside" => &self.outside,
            Some(number) => &self.node(number.parse().expect("a number")).namespace,
            None => &self.pod(&format!("{namespace}/{name}")).namespace,
        }
    }

    /// Whether `to`, a TCP server, answers the pod `namespace/name` within `limit`.
    ///
    /// # Panics
    /// Where the pod was not added, or gets anything but an answer or silence.
    #[must_use]
    pub fn reaches(&self, name: &str, to: SocketAddr, limit: Duration) -> bool {
        match probe(&self.pod(name).namespace, Probe::tcp(to), limit) {
            Outcome::Answered(_) => true,
            Outcome::Silent => false,
            outcome => panic!("{name}: {outcome:?}"),
        }
    }

    /// [`Self::add_pod`] for each.
    ///
    /// # Errors
    /// As there.
    pub fn add_pods<'a>(&mut self, pods: impl IntoIterator<Item = &'a Pod>) -> Result<()> {
        pods.into_iter().try_for_each(|pod| self.add_pod(pod))
    }

    /// Replaces the manifests by `yaml` and waits until all running agents enforce them.
    ///
    /// # Errors
    /// Where that takes too long, or an agent ended.
    pub fn apply(&mut self, yaml: &str) -> Result<()> {
        self.write(yaml)?;
        self.wait()
    }

    /// [`Self::apply`] with `pods` and `policies`, and no others.
    ///
    /// # Errors
    /// As there.
    pub fn enforce(&mut self, pods: &[Pod], policies: &[Policy]) -> Result<()> {
        let policies: String = policies.iter().map(ToString::to_string).collect();
        self.apply(&(manifests(pods) + &policies))
    }

    /// Replaces the manifests by `yaml` in one step.
    ///
    /// # Errors
    /// Where the file can not be written.
    pub fn write(&mut self, yaml: &str) -> Result<()> {
        self.edits += 1;
        let marker = format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: edit-{}, namespace: {MARKER}}}\n\
             spec: {{podSelector: {{}}, policyTypes: [Ingress]}}\n",
            self.edits
        );
        let text = format!("{yaml}\n---\n{marker}");
        let (half, file) = (self.rig.directory().join("half"), self.manifests.join("all.yaml"));
        fs::write(&half, text).with_context(|| format!("write {}", half.display()))?;
        fs::rename(&half, &file).with_context(|| format!("write {}", file.display()))
    }

    /// Starts the agents that do not run, and waits until the manifests are in force.
    ///
    /// # Errors
    /// Where there is no agent to start, or it does not enforce in time.
    pub fn start(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.start(&self.manifests, &self.options)?;
        }
        self.wait()
    }

    /// Waits until every running agent says that the last edit is in force for all pods that have a network.
    ///
    /// # Errors
    /// Where one does not in time, or ends.
    pub fn wait(&mut self) -> Result<()> {
        let marker = format!("{MARKER}/edit-{}", self.edits);
        for node in &mut self.nodes {
            let Some(agent) = &mut node.agent else { continue };
            let local: Vec<_> = self
                .pods
                .iter()
                .filter(|(_, place)| place.node == node.name)
                .map(|(name, _)| name)
                .collect();
            if !wait_until(IN_FORCE, || agent.enforces(&marker, &local))? {
                bail!(
                    "the agent of {} does not enforce {marker} after {IN_FORCE:?}: {:#}\n{}",
                    node.name,
                    agent.status(),
                    agent.log()
                );
            }
        }
        Ok(())
    }
}

fn parse(name: &str) -> ObjectName {
    let (namespace, name) = name
        .split_once('/')
        .unwrap_or_else(|| panic!("not namespace/name: {name}"));
    ObjectName::new(namespace, name)
}

/// The address of pod number `host` on node `node`, of this family.
#[must_use]
pub fn pod_address(node: u8, host: u8, v4: bool) -> IpAddr {
    if v4 {
        [10, 244, node, host].into()
    } else {
        [0xfd00, 0x244, u16::from(node), 0, 0, 0, 0, u16::from(host)].into()
    }
}
