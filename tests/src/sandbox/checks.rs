//! Every question that the sandbox asks: who, to whom, how; what the oracle answers and what really happens.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use netpol_policy::{
    model::{Peers, PortSpec, Ports, Protocol, Snapshot},
    oracle::{End, Flow},
};

use super::{layout::Layout, services::Virtual};
use crate::net::{Outcome, Probe, Transport};

/// Ports that outside hosts listen on, at most.
const MAX_OUTSIDE_PORTS: usize = 8;

/// Where something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Site {
    /// An index of [`Layout::pods`].
    Pod(usize),
    /// An index of [`Layout::nodes`].
    Node(usize),
    /// An index of [`Layout::outside`].
    Outside(usize),
}

/// By which address a Service is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Via {
    /// An index of the list of Services.
    pub service: usize,
    /// Its port on this node; its cluster address where `None`.
    pub node: Option<usize>,
}

/// One question.
#[derive(Clone, Debug)]
pub struct Check {
    /// Who asks.
    pub from: Site,
    /// Who is to answer.
    pub to: Site,
    /// Whether by a Service.
    pub via: Option<Via>,
    /// A container port, or what policies name: not the port that nobody declared.
    pub declared: bool,
    /// How.
    pub probe: Probe,
    /// What the policies see, one after the other where the packet changes on its way.
    pub flows: Vec<Flow>,
}

/// Question and answers.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What the oracle says.
    pub expected: bool,
    /// What happened.
    pub outcome: Outcome,
    /// Whether both agree, including who answered.
    pub same: bool,
    /// How often it was asked: more than once where the first outcome was not the expected one.
    pub tries: u32,
}

/// Everything that is asked about a layout.
#[derive(Debug)]
pub struct Questions<'a> {
    pub(super) layout: &'a Layout,
    pub(super) services: &'a [Virtual],
    /// TCP and UDP, declared by nobody.
    pub undeclared: u16,
    /// What outside hosts listen on.
    outside_ports: BTreeSet<(Protocol, u16)>,
    /// Whether nodes rewrite the source of what they send to other nodes' pods to their tunnel's address.
    pub(super) tunnel: bool,
}

impl<'a> Questions<'a> {
    /// `snapshot` with all policies, also those that are applied only later.
    #[must_use]
    pub fn new(layout: &'a Layout, services: &'a [Virtual], snapshot: &Snapshot, tunnel: bool) -> Self {
        let named = policy_ports(snapshot);
        let declared: BTreeSet<u16> = layout
            .pods
            .iter()
            .flat_map(|pod| pod.ports.iter().map(|port| port.number))
            .collect();
        let taken = |port: &u16| declared.contains(port) || named.iter().any(|(_, number)| number == port);
        let undeclared = (1..64_999).rev().find(|port| !taken(port)).unwrap_or(64_999);
        let egress = named
            .iter()
            .copied()
            .chain([(Protocol::Tcp, 80), (Protocol::Udp, 53)]);
        let outside_ports = egress.take(MAX_OUTSIDE_PORTS).collect();
        Self {
            layout,
            services,
            undeclared,
            outside_ports,
            tunnel,
        }
    }

    /// What a site listens on, and whether each was declared.
    #[must_use]
    pub fn listens(&self, site: Site) -> Vec<(Protocol, u16, bool)> {
        let nobody = [
            (Protocol::Tcp, self.undeclared, false),
            (Protocol::Udp, self.undeclared, false),
        ];
        match site {
            Site::Pod(at) => {
                let pod = &self.layout.pods[at];
                let own = pod.ports.iter().map(|port| (port.protocol, port.number, true));
                // The node itself listens where a pod of its network would.
                own.chain(nobody.into_iter().filter(|_| !pod.host_network))
                    .collect()
            }
            Site::Node(_) => nobody.to_vec(),
            Site::Outside(_) => self
                .outside_ports
                .iter()
                .map(|(protocol, port)| (*protocol, *port, true))
                .chain(nobody)
                .collect(),
        }
    }

    /// The address of a site, of one family.
    #[must_use]
    pub fn address(&self, site: Site, v4: bool) -> Option<IpAddr> {
        match site {
            Site::Pod(at) => self.layout.pods[at].address(v4),
            Site::Node(at) => self.layout.nodes[at].address(v4),
            Site::Outside(at) => Some(self.layout.outside[at]).filter(|address| address.is_ipv4() == v4),
        }
    }

    /// As `explain` and the answers call it.
    #[must_use]
    pub fn name(&self, site: Site) -> String {
        match site {
            Site::Pod(at) => self.layout.pods[at].name.to_string(),
            Site::Node(at) => format!("node/{}", self.layout.nodes[at].name),
            Site::Outside(at) => self.layout.outside[at].to_string(),
        }
    }

    /// Who answers at a site: a pod of its node's network is its node.
    pub fn host(&self, site: Site) -> Site {
        match site {
            Site::Pod(at) if self.layout.pods[at].host_network => Site::Node(self.layout.pods[at].node),
            own => own,
        }
    }

    pub(super) fn end(&self, site: Site, address: IpAddr) -> End {
        match site {
            Site::Pod(at) => End::Pod(self.layout.pods[at].name.clone(), address),
            Site::Node(at) => End::Node(self.layout.nodes[at].name.as_str().into(), address),
            Site::Outside(_) => End::Ip(address),
        }
    }

    /// Everyone who asks or answers: pods, nodes, outside addresses.
    pub fn sites(&self) -> impl Iterator<Item = Site> + use<> {
        let (pods, nodes, outside) = (
            self.layout.pods.len(),
            self.layout.nodes.len(),
            self.layout.outside.len(),
        );
        (0..pods)
            .map(Site::Pod)
            .chain((0..nodes).map(Site::Node))
            .chain((0..outside).map(Site::Outside))
    }

    fn asks(&self, site: Site) -> bool {
        !matches!(site, Site::Pod(at) if self.layout.pods[at].host_network)
    }

    /// Whether packets from `from` to `to` are a pod's at one end, and cross a network.
    fn concerns(&self, from: Site, to: Site) -> bool {
        let is_pod = |site| matches!(site, Site::Pod(at) if !self.layout.pods[at].host_network);
        self.asks(from) && from != to && (is_pod(from) || is_pod(to))
    }

    /// All of it, in a fixed order.
    #[must_use]
    pub fn all(&self) -> Vec<Check> {
        let mut checks = Vec::new();
        for from in self.sites() {
            for to in self.sites().filter(|to| self.concerns(from, *to)) {
                self.direct(from, to, &mut checks);
            }
        }
        for service in 0..self.services.len() {
            for from in self.sites().filter(|site| self.asks(*site)) {
                for v4 in [true, false] {
                    self.by_service(service, from, v4, &mut checks);
                }
            }
        }
        checks
    }

    fn direct(&self, from: Site, to: Site, checks: &mut Vec<Check>) {
        for v4 in [true, false] {
            let (Some(source), Some(target)) = (self.address(from, v4), self.address(to, v4)) else {
                continue;
            };
            for (protocol, port, declared) in self.listens(to) {
                let flow = self.flow(self.end(from, source), self.end(to, target), protocol, port);
                let probe = self.probe(source, SocketAddr::new(target, port), protocol, 0);
                checks.push(Check {
                    from,
                    to,
                    via: None,
                    declared,
                    probe,
                    flows: vec![flow],
                });
            }
        }
    }

    pub(super) fn flow(&self, from: End, to: End, protocol: Protocol, port: u16) -> Flow {
        Flow {
            from,
            to,
            protocol: protocol.number(),
            port,
        }
    }

    pub(super) fn probe(&self, from: IpAddr, to: SocketAddr, protocol: Protocol, from_port: u16) -> Probe {
        let transport = transport(protocol);
        Probe {
            from: Some(from),
            from_port,
            ..Probe::new(transport, to)
        }
    }
}

pub(super) fn transport(protocol: Protocol) -> Transport {
    match protocol {
        Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
        Protocol::Sctp => Transport::Sctp,
    }
}

/// Numbers that egress rules name, both ends of a range.
fn policy_ports(snapshot: &Snapshot) -> BTreeSet<(Protocol, u16)> {
    let rules = snapshot
        .policies
        .values()
        .flat_map(|policy| &policy.egress)
        .flatten();
    let outward = rules.filter(|rule| match &rule.peers {
        Peers::Any => true,
        Peers::Of(peers) => peers
            .iter()
            .any(|peer| matches!(peer, netpol_policy::model::Peer::IpBlock { .. })),
    });
    let ports = outward.filter_map(|rule| match &rule.ports {
        Ports::Any => None,
        Ports::Of(ports) => Some(ports),
    });
    let ends = ports.flatten().filter_map(|port| match port.port {
        PortSpec::Range(low, high) => Some([(port.protocol, low), (port.protocol, high)]),
        PortSpec::All | PortSpec::Named(_) => None,
    });
    ends.flatten().collect()
}
