//! Every question that the sandbox asks: who, to whom, how; what the oracle answers and what really happens.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Mutex,
    time::Duration,
};

use anyhow::Result;
use netpol_policy::{
    model::{Peers, PortSpec, Ports, Protocol, Snapshot},
    oracle::{End, Flow, Oracle},
};

use super::{
    build::Network,
    layout::Layout,
    services::{Backend, CHOICES, Virtual},
};
use crate::net::{Namespace, Outcome, Probe, Responder, Transport, patience, probe_all};

/// How long the first answer may take: most probes that are never answered cost this.
const PATIENCE: Duration = Duration::from_millis(700);
/// How long, when a probe that should have been answered is tried again.
const MORE_PATIENCE: Duration = Duration::from_secs(2);
/// Namespaces that probe at one time, 256 probes each: within the usual limit of open files.
const AT_ONCE: usize = 16;
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
    layout: &'a Layout,
    services: &'a [Virtual],
    /// TCP and UDP, declared by nobody.
    pub undeclared: u16,
    /// What outside hosts listen on.
    outside_ports: BTreeSet<(Protocol, u16)>,
    /// Whether nodes rewrite the source of what they send to other nodes' pods to their tunnel's address.
    tunnel: bool,
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

    fn end(&self, site: Site, address: IpAddr) -> End {
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

    fn flow(&self, from: End, to: End, protocol: Protocol, port: u16) -> Flow {
        Flow {
            from,
            to,
            protocol: protocol.number(),
            port,
        }
    }

    fn probe(&self, from: IpAddr, to: SocketAddr, protocol: Protocol, from_port: u16) -> Probe {
        let transport = transport(protocol);
        Probe {
            from: Some(from),
            from_port,
            ..Probe::new(transport, to)
        }
    }

    fn by_service(&self, number: usize, from: Site, v4: bool, checks: &mut Vec<Check>) {
        let service = &self.services[number];
        let Some(source) = self.address(from, v4) else {
            return;
        };
        let cluster = service
            .addresses
            .iter()
            .filter(|address| address.is_ipv4() == v4 && !matches!(from, Site::Outside(_)));
        for address in cluster {
            let choices = service
                .choices(self.layout, v4, None)
                .enumerate()
                .take(CHOICES.into());
            for (slot, backend) in choices {
                let to = self.behind(backend);
                let flow = self.flow(
                    self.end(from, source),
                    self.end(to, backend.address),
                    service.protocol,
                    backend.port,
                );
                let probe = self.probe(
                    source,
                    SocketAddr::new(*address, service.port),
                    service.protocol,
                    slot_port(checks.len(), slot),
                );
                let via = Some(Via {
                    service: number,
                    node: None,
                });
                checks.push(Check {
                    from,
                    to,
                    via,
                    declared: true,
                    probe,
                    flows: vec![flow],
                });
            }
        }
        let Some(port) = service.node_port.filter(|_| !matches!(from, Site::Node(_))) else {
            return;
        };
        for (node, place) in self.layout.nodes.iter().enumerate() {
            let Some(address) = place.address(v4) else {
                continue;
            };
            let only = service.local_only.then_some(node);
            for (slot, backend) in service
                .choices(self.layout, v4, only)
                .enumerate()
                .take(CHOICES.into())
            {
                let to = self.behind(backend);
                let flows = self.node_port_flows(service, port, from, source, (node, address), (to, backend));
                let probe = self.probe(
                    source,
                    SocketAddr::new(address, port),
                    service.protocol,
                    slot_port(checks.len(), slot),
                );
                let via = Some(Via {
                    service: number,
                    node: Some(node),
                });
                checks.push(Check {
                    from,
                    to,
                    via,
                    declared: true,
                    probe,
                    flows,
                });
            }
        }
    }

    /// A pod's packet to its own node's port meets the DNAT there and is known as the pod's to the end. To another
    /// node it leaves as a packet to that node's port and, masqueraded, comes there as its own node's.
    fn node_port_flows(
        &self,
        service: &Virtual,
        port: u16,
        from: Site,
        source: IpAddr,
        (node, address): (usize, IpAddr),
        (to, backend): (Site, &Backend),
    ) -> Vec<Flow> {
        let target = self.end(to, backend.address);
        let second = |sender: End| self.flow(sender, target.clone(), service.protocol, backend.port);
        let own = match from {
            Site::Pod(at) => Some(self.layout.pods[at].node),
            Site::Node(at) => Some(at),
            Site::Outside(_) => None,
        };
        if own == Some(node) {
            return vec![second(self.end(from, source))];
        }
        let masqueraded = if service.local_only {
            // Only what the sender's own node did to it.
            own.and_then(|own| self.layout.nodes[own].address(source.is_ipv4()))
                .unwrap_or(source)
        } else {
            self.masquerade(node, backend, to)
        };
        let first = own.map(|_| {
            self.flow(
                self.end(from, source),
                self.end(Site::Node(node), address),
                service.protocol,
                port,
            )
        });
        first.into_iter().chain([second(End::Ip(masqueraded))]).collect()
    }

    /// The address with which `node` masquerades what it sends to `backend`: that of the device it leaves by.
    fn masquerade(&self, node: usize, backend: &Backend, to: Site) -> IpAddr {
        let (place, v4) = (&self.layout.nodes[node], backend.address.is_ipv4());
        match to {
            Site::Pod(at) if self.layout.pods[at].node == node && !self.layout.pods[at].host_network => {
                place.bridge(v4)
            }
            Site::Pod(at) if self.tunnel && !self.layout.pods[at].host_network => {
                place.pods[usize::from(!v4)].network()
            }
            _ => place.address(v4).unwrap_or(backend.address),
        }
    }

    fn behind(&self, backend: &Backend) -> Site {
        let node = || {
            self.layout
                .nodes
                .iter()
                .position(|node| node.addresses.contains(&backend.address))
        };
        let outside = || {
            self.layout
                .outside
                .iter()
                .position(|address| *address == backend.address)
        };
        match backend.pod {
            Some(pod) => Site::Pod(pod),
            None => node()
                .map(Site::Node)
                .or_else(|| outside().map(Site::Outside))
                .unwrap_or(Site::Outside(0)),
        }
    }
}

/// A source port that makes the DNAT rules choose endpoint number `slot`; checks that are near to each other get different ones.
fn slot_port(check: usize, slot: usize) -> u16 {
    let turn = u16::try_from(check % 319).unwrap_or_default();
    12_288 + turn * CHOICES + u16::try_from(slot).unwrap_or_default()
}

fn transport(protocol: Protocol) -> Transport {
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

/// Listeners of every site, until dropped.
///
/// # Errors
/// A port can not be listened on.
pub fn listen(network: &Network, questions: &Questions<'_>) -> Result<Vec<Responder>> {
    let outside: Vec<IpAddr> = questions.layout.outside.clone();
    let mut responders = Vec::new();
    // Several pods of a node's network may give the same port: one process has it.
    let mut endpoints: BTreeMap<Site, BTreeSet<(Transport, SocketAddr)>> = BTreeMap::new();
    for site in questions.sites() {
        let addresses: Vec<IpAddr> = match site {
            Site::Outside(at) => vec![outside[at]],
            _ => [true, false]
                .into_iter()
                .filter_map(|v4| questions.address(site, v4))
                .collect(),
        };
        let ports = questions.listens(site);
        let own = addresses.iter().flat_map(|address| {
            ports
                .iter()
                .map(move |(protocol, port, _)| (transport(*protocol), SocketAddr::new(*address, *port)))
        });
        endpoints.entry(questions.host(site)).or_default().extend(own);
    }
    for (host, endpoints) in endpoints {
        let namespace = namespace(network, questions.layout, host);
        responders.push(Responder::start(namespace, &questions.name(host), endpoints)?);
    }
    Ok(responders)
}

fn namespace<'n>(network: &'n Network, layout: &Layout, site: Site) -> &'n Namespace {
    match site {
        Site::Pod(at) => network.pods[at]
            .as_ref()
            .unwrap_or(&network.nodes[layout.pods[at].node]),
        Site::Node(at) => &network.nodes[at],
        Site::Outside(_) => &network.outside,
    }
}

/// Asks everything. What should be answered and is not is asked up to three times (a busy machine is slow); what gets
/// through and should not is never excused.
///
/// # Errors
/// `stop` says so.
pub fn ask(
    network: &Network,
    questions: &Questions<'_>,
    checks: &[Check],
    snapshot: &Snapshot,
    stop: &(dyn Fn() -> Result<()> + Sync),
) -> Result<Vec<Answer>> {
    let oracle = Oracle::new(snapshot);
    let expected: Vec<bool> = checks
        .iter()
        .map(|check| check.flows.iter().all(|flow| oracle.evaluate(flow).allowed()))
        .collect();
    let mut outcomes: Vec<Outcome> = vec![Outcome::Silent; checks.len()];
    let mut tries = vec![0; checks.len()];
    let mut open: Vec<usize> = (0..checks.len()).collect();
    for limit in [PATIENCE, patience(MORE_PATIENCE), patience(MORE_PATIENCE)] {
        for (at, outcome) in round(network, questions, checks, &open, limit, stop)? {
            outcomes[at] = outcome;
            tries[at] += 1;
        }
        open.retain(|at| {
            let again = expected[*at] || matches!(outcomes[*at], Outcome::Failed(_));
            again && !same(questions, &checks[*at], expected[*at], &outcomes[*at])
        });
        if open.is_empty() {
            break;
        }
    }
    let answers = checks.iter().zip(expected).zip(outcomes).zip(tries);
    Ok(answers
        .map(|(((check, expected), outcome), tries)| Answer {
            same: same(questions, check, expected, &outcome),
            expected,
            outcome,
            tries,
        })
        .collect())
}

fn same(questions: &Questions<'_>, check: &Check, expected: bool, outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Answered(name) => expected && *name == questions.name(questions.host(check.to)),
        Outcome::Silent => !expected,
        // Somebody listens on everything that is asked, and a policy never answers.
        Outcome::Refused | Outcome::Failed(_) => false,
    }
}

/// Each namespace probes on a thread of its own.
fn round(
    network: &Network,
    questions: &Questions<'_>,
    checks: &[Check],
    open: &[usize],
    patience: Duration,
    stop: &(dyn Fn() -> Result<()> + Sync),
) -> Result<Vec<(usize, Outcome)>> {
    let mut work: BTreeMap<&str, (&Namespace, Vec<usize>)> = BTreeMap::new();
    for at in open {
        let namespace = namespace(network, questions.layout, checks[*at].from);
        work.entry(namespace.name())
            .or_insert((namespace, Vec::new()))
            .1
            .push(*at);
    }
    let queue = Mutex::new(work.into_values());
    let results = Mutex::new(Vec::new());
    let next = || {
        queue
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .next()
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((namespace, indices)) = next().filter(|_| stop().is_ok()) {
                    let probes: Vec<Probe> = indices.iter().map(|at| checks[*at].probe).collect();
                    let outcomes = probe_all(namespace, &probes, patience);
                    let mut results = results.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    results.extend(indices.into_iter().zip(outcomes));
                }
            });
        }
    });
    stop()?;
    Ok(results
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner))
}
