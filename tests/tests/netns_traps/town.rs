//! A cluster with pods that answer, and questions to them.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result};
use netpol_policy::model::Pod;
use netpol_tests::{
    cluster::{Cluster, Drops, Options, Policy, manifests, pod},
    net::{Namespace, Outcome, Probe, Responder, Transport, Wire, probe_all},
    packet::Ether,
};

/// How long an answer may take before there is none.
pub(crate) const PATIENCE: Duration = Duration::from_millis(500);
/// The port on which every pod and the outside host answer, TCP and UDP.
pub(crate) const PORT: u16 = 80;
/// Both families.
pub(crate) const FAMILIES: [bool; 2] = [true, false];
/// The host outside, by family.
pub(crate) const OUTSIDE: [&str; 2] = ["172.18.0.100", "fd00:18::100"];

/// A cluster whose pods and outside host answer on [`PORT`], under no policy at first.
pub(crate) struct Town {
    // Dropped first: they are in the cluster's namespaces.
    responders: Vec<Responder>,
    pub(crate) cluster: Cluster,
    pods: Vec<Pod>,
}

impl Town {
    /// Pods as name (in the namespace `t`; its label is `app=NAME`) and node; the last part of the address is 11
    /// for the first, 12 for the second, and so on.
    pub(crate) fn new(nodes: u8, pods: &[(&str, u8)], options: Options) -> Result<Self> {
        let mut cluster = Cluster::new(nodes, options)?;
        let pods: Vec<Pod> = (11..)
            .zip(pods)
            .map(|(host, (name, node))| pod(&format!("t/{name}"), *node, host, &format!("app={name}")))
            .collect();
        cluster.add_pods(&pods)?;
        let mut responders = Vec::new();
        for pod in &pods {
            let place = cluster.pod(&pod.name.to_string());
            responders.push(answer(&place.namespace, &pod.name.name, &pod.addresses)?);
        }
        let outside = OUTSIDE.map(|address| address.parse().expect("an address"));
        responders.push(answer(&cluster.outside, "outside", &outside)?);
        cluster.write(&manifests(&pods))?;
        cluster.start()?;
        Ok(Self {
            responders,
            cluster,
            pods,
        })
    }

    /// Two nodes, the usual options.
    pub(crate) fn usual(pods: &[(&str, u8)]) -> Result<Self> {
        Self::new(2, pods, Options::default())
    }

    /// Puts `policies` in force, and no others.
    pub(crate) fn enforce(&mut self, policies: &[Policy]) -> Result<()> {
        self.cluster.enforce(&self.pods, policies)
    }

    /// The pod's namespace; `outside` is the host outside, `node-N` a node.
    pub(crate) fn namespace(&self, name: &str) -> &Namespace {
        self.cluster.end("t", name)
    }

    /// The end's address of a family.
    pub(crate) fn ip(&self, name: &str, v4: bool) -> IpAddr {
        let text = match name.strip_prefix("node-") {
            _ if name == "outside" => OUTSIDE[usize::from(!v4)].to_owned(),
            Some(number) if v4 => format!("172.18.0.{number}"),
            Some(number) => format!("fd00:18::{number}"),
            None => return self.cluster.pod(&format!("t/{name}")).at(v4, 0).ip(),
        };
        text.parse().expect("an address")
    }

    /// `port` at the end's address of a family.
    pub(crate) fn at(&self, name: &str, v4: bool, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(name, v4), port)
    }

    /// Asks each of `to` by TCP and UDP from `from`, all at once: the answer's author where both agree.
    pub(crate) fn ask_all(&self, from: &str, to: &[SocketAddr]) -> Vec<String> {
        let probes: Vec<Probe> = to
            .iter()
            .flat_map(|to| [Transport::Tcp, Transport::Udp].map(|transport| Probe::new(transport, *to)))
            .collect();
        probe_all(self.namespace(from), &probes, PATIENCE)
            .chunks(2)
            .map(|outcomes| match outcomes {
                [Outcome::Answered(a), Outcome::Answered(b)] if a == b => a.clone(),
                [Outcome::Silent, Outcome::Silent] => "nobody".to_owned(),
                other => format!("{other:?}"),
            })
            .collect()
    }

    /// [`Self::ask_all`] of one address.
    pub(crate) fn ask(&self, from: &str, to: SocketAddr) -> String {
        self.ask_all(from, &[to]).swap_remove(0)
    }

    /// Asks each end on [`PORT`] in both families: its name where all answer, `nobody` where none does.
    pub(crate) fn talk_all(&self, from: &str, to: &[&str]) -> Vec<String> {
        let addresses: Vec<SocketAddr> = to
            .iter()
            .flat_map(|to| FAMILIES.map(|v4| self.at(to, v4, PORT)))
            .collect();
        self.ask_all(from, &addresses).chunks(2).map(agreed).collect()
    }

    /// [`Self::talk_all`] with one end.
    pub(crate) fn talk(&self, from: &str, to: &str) -> String {
        self.talk_all(from, &[to]).swap_remove(0)
    }

    /// [`Self::talk_all`] from several ends at once: one row each.
    pub(crate) fn table(&self, rows: &[(&str, &[&str])]) -> Vec<Vec<String>> {
        std::thread::scope(|scope| {
            let rows: Vec<_> = rows
                .iter()
                .map(|(from, to)| scope.spawn(|| self.talk_all(from, to)))
                .collect();
            rows.into_iter()
                .map(|row| row.join().expect("a question does not panic"))
                .collect()
        })
    }

    /// What the programs of node `number` have dropped so far.
    pub(crate) fn drops(&self, number: usize) -> Drops {
        self.cluster.node(number).drops()
    }

    /// A packet socket on the end's `eth0`.
    pub(crate) fn wire(&self, name: &str) -> Result<Wire> {
        Wire::open(self.namespace(name), "eth0")
    }

    /// The Ethernet header from a pod to another of its node.
    pub(crate) fn ether(&self, from: &str, to: &str) -> Result<Ether> {
        let mac = |name: &str| self.namespace(name).mac("eth0");
        Ok(Ether::new(mac(from)?, mac(to)?))
    }

    /// The Ethernet header from a pod to its node, which routes what is inside.
    pub(crate) fn to_node(&self, from: &str, number: usize) -> Result<Ether> {
        let node = &self.cluster.node(number).namespace;
        Ok(Ether::new(self.namespace(from).mac("eth0")?, node.mac("cni0")?))
    }

    /// The Ethernet header from the outside host to a node.
    pub(crate) fn inward(&self, number: usize) -> Result<Ether> {
        let node = &self.cluster.node(number).namespace;
        Ok(Ether::new(self.cluster.outside.mac("eth0")?, node.mac("eth0")?))
    }

    /// Removes a pod, network and manifest; the manifests are not applied.
    pub(crate) fn remove(&mut self, name: &str) {
        let full = format!("t/{name}");
        self.pods.retain(|pod| pod.name.to_string() != full);
        self.cluster.remove_pod(&full);
    }

    /// Adds a pod without a responder; the manifests are not applied.
    pub(crate) fn add(&mut self, new: Pod) -> Result<()> {
        self.cluster.add_pod(&new)?;
        self.pods.push(new);
        Ok(())
    }

    /// Answers on `port`, too.
    pub(crate) fn listen(&mut self, name: &str, addresses: &[SocketAddr]) -> Result<()> {
        let endpoints = addresses
            .iter()
            .flat_map(|at| [Transport::Tcp, Transport::Udp].map(|transport| (transport, *at)));
        let responder = Responder::start(self.namespace(name), name, endpoints)?;
        self.responders.push(responder);
        Ok(())
    }
}

fn answer(namespace: &Namespace, name: &str, addresses: &[IpAddr]) -> Result<Responder> {
    let endpoints = addresses.iter().flat_map(|address| {
        [Transport::Tcp, Transport::Udp].map(|transport| (transport, SocketAddr::new(*address, PORT)))
    });
    Responder::start(namespace, name, endpoints).with_context(|| format!("answer as {name}"))
}

/// What both families said.
pub(crate) fn agreed(answers: &[String]) -> String {
    if answers.iter().all(|answer| *answer == answers[0]) {
        answers[0].clone()
    } else {
        answers.join("; ")
    }
}

/// No rule at all: isolated both ways.
pub(crate) fn deny_all(name: &str) -> Policy {
    Policy::new(&format!("t/deny-{name}"), &format!("app={name}"))
        .ingress(&[])
        .egress(&[])
}

/// Isolates the pod `name` both ways, with these peers.
pub(crate) fn only(name: &str, ingress: &[&str], egress: &[&str]) -> Policy {
    Policy::new(&format!("t/{name}"), &format!("app={name}"))
        .ingress(ingress)
        .egress(egress)
}
