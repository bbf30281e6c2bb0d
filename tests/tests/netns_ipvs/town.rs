//! Pods and hosts behind virtual servers, and questions to them.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result};
use netpol_policy::model::Pod;
use netpol_tests::{
    cluster::{Cluster, Drops, Options, Policy, Virtual, manifests, pod},
    net::{Namespace, Outcome, Probe, Responder, Transport, kernel_has_sctp, patience, probe_all},
};

/// How long an answer may take before there is none.
const PATIENCE: Duration = Duration::from_secs(1);
/// Where pods answer; the Services are on another port.
pub(crate) const TARGET: u16 = 8080;
/// Where nodes answer, as pods of the host's network.
pub(crate) const HOST: u16 = 9000;
/// Both families.
pub(crate) const FAMILIES: [bool; 2] = [true, false];
/// Of `near`; of `far`; of `near` on its own node only, with the client's address kept.
pub(crate) const NODE_PORTS: [u16; 3] = [30_001, 30_002, 30_003];

/// Services, by the last part of their address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum To {
    /// The pod `near`.
    Near = 10,
    /// The pod `far`.
    Far,
    /// Both in turn.
    Both,
    /// Both, but always the same for a client.
    Sticky,
    /// The host outside.
    Outside,
    /// A process of node 1.
    Node1,
    /// A process of node 2.
    Node2,
    /// The pod `client`.
    Client,
    /// `near` on [`NODE_PORTS`]'s last.
    Local,
    /// Where a test says.
    Moves,
}

impl To {
    const ALL: [Self; 10] = [
        Self::Near,
        Self::Far,
        Self::Both,
        Self::Sticky,
        Self::Outside,
        Self::Node1,
        Self::Node2,
        Self::Client,
        Self::Local,
        Self::Moves,
    ];

    /// Its cluster address and port.
    pub(crate) fn front(self, v4: bool) -> SocketAddr {
        let last = self as u8;
        let ip: IpAddr = if v4 {
            [10, 96, 0, last].into()
        } else {
            [0xfd00, 0x10, 0x96, 0, 0, 0, 0, u16::from(last)].into()
        };
        SocketAddr::new(ip, 80)
    }

    fn server(self, v4: bool) -> Virtual {
        let backends: &[SocketAddr] = match self {
            Self::Near | Self::Local => &[at("near", v4, TARGET)],
            Self::Far => &[at("far", v4, TARGET)],
            Self::Both | Self::Sticky => &[at("near", v4, TARGET), at("far", v4, TARGET)],
            Self::Outside => &[at("outside", v4, 80)],
            Self::Node1 => &[at("node-1", v4, HOST)],
            Self::Node2 => &[at("node-2", v4, HOST)],
            Self::Client => &[at("client", v4, TARGET)],
            Self::Moves => &[at("near", v4, 53)],
        };
        Virtual {
            sticky: self == Self::Sticky,
            local: self == Self::Local,
            node_port: match self {
                Self::Near => Some(NODE_PORTS[0]),
                Self::Far => Some(NODE_PORTS[1]),
                Self::Local => Some(NODE_PORTS[2]),
                _ => None,
            },
            ..Virtual::new(self.front(v4), backends)
        }
    }
}

/// Who is there: name, node, last part of the addresses.
const PODS: [(&str, u8, u8); 4] = [
    ("client", 1, 11),
    ("other", 1, 12),
    ("near", 1, 13),
    ("far", 2, 14),
];

/// `port` of a pod, a node or the host outside.
pub(crate) fn at(name: &str, v4: bool, port: u16) -> SocketAddr {
    let pod = PODS.iter().find(|(known, ..)| *known == name);
    let ip = match (pod, name.strip_prefix("node-")) {
        (Some((_, node, host)), _) => netpol_tests::cluster::pod_address(*node, *host, v4),
        (None, number) => {
            let last = number.map_or("100", |number| number);
            let net = if v4 { "172.18.0." } else { "fd00:18::" };
            format!("{net}{last}").parse().expect("an address")
        }
    };
    SocketAddr::new(ip, port)
}

/// Two nodes that balance with IPVS, their pods and the host outside, all of which answer.
pub(crate) struct Town {
    // Dropped first: they are in the cluster's namespaces.
    _responders: Vec<Responder>,
    pub(crate) cluster: Cluster,
    pods: Vec<Pod>,
}

impl Town {
    pub(crate) fn new() -> Result<Self> {
        let mut cluster = Cluster::new(2, Options::default())?;
        let pods =
            PODS.map(|(name, node, host)| pod(&format!("t/{name}"), node, host, &format!("app={name}")));
        cluster.add_pods(&pods)?;
        let services: Vec<_> = FAMILIES
            .iter()
            .flat_map(|v4| To::ALL.map(|to| to.server(*v4)))
            .collect();
        for number in [1, 2] {
            let node = cluster.node(number);
            node.masquerade()?;
            let addresses = FAMILIES.map(|v4| at(&node.name, v4, 0).ip());
            // `Local` has no backend on the other node.
            let mut services = services.clone();
            services.retain(|service| number == 1 || !service.local);
            node.ipvs(&services, &addresses)?;
        }
        let mut town = Self {
            _responders: Vec::new(),
            cluster,
            pods: pods.to_vec(),
        };
        let answer = |name: &str, port| {
            let endpoints = FAMILIES
                .iter()
                .flat_map(|v4| transports().map(|transport| (transport, at(name, *v4, port))));
            Responder::start(town.namespace(name), name, endpoints)
                .with_context(|| format!("answer as {name}"))
        };
        town._responders = [
            ("client", TARGET),
            ("near", TARGET),
            ("far", TARGET),
            ("outside", 80),
            ("node-1", HOST),
            ("node-2", HOST),
        ]
        .into_iter()
        .map(|(name, port)| answer(name, port))
        .collect::<Result<_>>()?;
        town.cluster.write(&manifests(&town.pods))?;
        town.cluster.start()?;
        Ok(town)
    }

    /// Puts `policies` in force, and no others.
    pub(crate) fn enforce(&mut self, policies: &[Policy]) -> Result<()> {
        self.cluster.enforce(&self.pods, policies)
    }

    /// The end's namespace.
    pub(crate) fn namespace(&self, name: &str) -> &Namespace {
        self.cluster.end("t", name)
    }

    /// Who answers `from` at each of the Services, by every protocol and both families: one row for each `from`.
    pub(crate) fn table(&self, rows: &[(&str, &[To])]) -> Vec<Vec<String>> {
        self.rows(rows, &transports().collect::<Vec<_>>(), |to| {
            FAMILIES.map(|v4| to.front(v4))
        })
    }

    /// [`Self::table`] of node ports, by TCP and UDP.
    pub(crate) fn node_ports(&self, from: &[&str], ports: &[(&str, u16)]) -> Vec<Vec<String>> {
        let rows: Vec<_> = from.iter().map(|from| (*from, ports)).collect();
        self.rows(&rows, &[Transport::Tcp, Transport::Udp], |(node, port)| {
            FAMILIES.map(|v4| at(node, v4, port))
        })
    }

    fn rows<T: Copy + Sync>(
        &self,
        rows: &[(&str, &[T])],
        transports: &[Transport],
        addresses: impl Fn(T) -> [SocketAddr; 2] + Sync,
    ) -> Vec<Vec<String>> {
        let ask = |from: &str, to: &[T]| {
            // An SCTP socket of a node offers all the node's addresses, the Services' among them, and now and then
            // one does not come about: 1 of 36, counted on 6.1 with no program of ours on any device.
            let usable =
                |transport: &&Transport| !from.starts_with("node-") || **transport != Transport::Sctp;
            let transports: Vec<_> = transports.iter().filter(usable).copied().collect();
            let probes: Vec<_> = to
                .iter()
                .flat_map(|to| addresses(*to))
                .flat_map(|at| transports.iter().map(move |transport| Probe::new(*transport, at)))
                .collect();
            let outcomes = probe_all(self.namespace(from), &probes, patience(PATIENCE));
            outcomes
                .chunks(2 * transports.len())
                .map(agreed)
                .collect::<Vec<_>>()
        };
        std::thread::scope(|scope| {
            let rows: Vec<_> = rows
                .iter()
                .map(|(from, to)| scope.spawn(|| ask(from, to)))
                .collect();
            rows.into_iter()
                .map(|row| row.join().expect("a question does not panic"))
                .collect()
        })
    }

    /// Who answers each of `times` connections, all at once.
    pub(crate) fn connections(&self, from: &str, to: SocketAddr, times: usize) -> Vec<String> {
        let outcomes = probe_all(
            self.namespace(from),
            &vec![Probe::tcp(to); times],
            patience(PATIENCE),
        );
        outcomes.iter().map(said).collect()
    }

    /// What the programs of node `number` have dropped so far.
    pub(crate) fn drops(&self, number: usize) -> Drops {
        self.cluster.node(number).drops()
    }
}

fn transports() -> impl Iterator<Item = Transport> {
    let sctp = kernel_has_sctp().then_some(Transport::Sctp);
    [Transport::Tcp, Transport::Udp].into_iter().chain(sctp)
}

fn said(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Answered(name) => name.clone(),
        Outcome::Silent => "nobody".to_owned(),
        other => format!("{other:?}"),
    }
}

/// What all said, or all of it.
fn agreed(outcomes: &[Outcome]) -> String {
    let answers: Vec<_> = outcomes.iter().map(said).collect();
    if answers.iter().all(|answer| *answer == answers[0]) {
        answers[0].clone()
    } else {
        answers.join("; ")
    }
}
