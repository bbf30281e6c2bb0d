//! Who is where: nodes, addresses and networks for everything that the manifests leave open. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::{Result, bail, ensure};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netpol_policy::model::{ObjectName, Peer, Peers, Snapshot};

use super::manifest::{ContainerPort, Raw};

/// Private /16 networks for pods and for the wire between nodes; the first that no manifest uses is taken.
const POD_BASES: [(u8, u8); 4] = [(10, 244), (10, 42), (10, 233), (10, 199)];
const WIRE_BASES: [(u8, u8); 4] = [(172, 18), (172, 19), (172, 20), (172, 21)];

/// The address of an outside host that no policy means (documentation networks).
const STRANGER: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 7)),
];

/// Outside addresses, at most: each is probed from and to.
const MAX_OUTSIDE: usize = 8;

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePlace {
    /// Its name.
    pub name: String,
    /// Its addresses on the wire between nodes: what its object says, and one for each family that it lacks.
    pub addresses: Vec<IpAddr>,
    /// Its part of the pod network; the bridge has the first address.
    pub pods: [IpNet; 2],
}

/// A pod that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPlace {
    /// Namespace and name.
    pub name: ObjectName,
    /// Index of its node.
    pub node: usize,
    /// `spec.hostNetwork`: it has its node's addresses.
    pub host_network: bool,
    /// One or two addresses.
    pub addresses: Vec<IpAddr>,
    /// What its containers listen on.
    pub ports: Vec<ContainerPort>,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// At least one.
    pub nodes: Vec<NodePlace>,
    /// By name.
    pub pods: Vec<PodPlace>,
    /// Addresses of the outside host: one that no ipBlock singles out, and one in each cell that ipBlocks cut.
    pub outside: Vec<IpAddr>,
    /// The outside host's address on the wire, IPv4 and IPv6.
    pub gateway: [IpAddr; 2],
}

impl NodePlace {
    /// The address of one family.
    #[must_use]
    pub fn address(&self, v4: bool) -> Option<IpAddr> {
        self.addresses
            .iter()
            .copied()
            .find(|address| address.is_ipv4() == v4)
    }

    /// The bridge's address of one family.
    #[must_use]
    pub fn bridge(&self, v4: bool) -> IpAddr {
        self.pods[usize::from(!v4)]
            .hosts()
            .next()
            .unwrap_or(self.pods[usize::from(!v4)].addr())
    }
}

impl PodPlace {
    /// The address of one family.
    #[must_use]
    pub fn address(&self, v4: bool) -> Option<IpAddr> {
        self.addresses
            .iter()
            .copied()
            .find(|address| address.is_ipv4() == v4)
    }
}

impl Layout {
    /// Places what `snapshot` holds on at least `nodes` nodes.
    ///
    /// # Errors
    /// Two running pods or nodes have one address, or the addresses leave no network free.
    pub fn new(snapshot: &Snapshot, raw: &Raw, nodes: usize) -> Result<Self> {
        let given = given_addresses(snapshot)?;
        let (Some(pod_base), Some(wire_base)) =
            (free_base(&POD_BASES, &given), free_base(&WIRE_BASES, &given))
        else {
            bail!("the addresses in the manifests leave no private network free for the sandbox");
        };
        let nodes = place_nodes(snapshot, nodes, pod_base, wire_base);
        ensure!(
            nodes.len() <= 200,
            "{} nodes are more than a sandbox has room for",
            nodes.len()
        );
        let pods = place_pods(snapshot, raw, &nodes);
        let gateway = [wire4(wire_base, 250), wire6(wire_base, 250)];
        let used: BTreeSet<IpAddr> = given.iter().copied().chain(gateway).collect();
        let outside = outside(snapshot, &used, &nodes);
        Ok(Self {
            nodes,
            pods,
            outside,
            gateway,
        })
    }

    /// The index of the node called `name`.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.name == name)
    }
}

fn given_addresses(snapshot: &Snapshot) -> Result<BTreeSet<IpAddr>> {
    let mut owners: BTreeMap<IpAddr, String> = BTreeMap::new();
    let pods = snapshot.pods.values().filter(|pod| pod.is_endpoint());
    let pods = pods.flat_map(|pod| {
        pod.addresses
            .iter()
            .map(move |at| (*at, format!("pod {}", pod.name)))
    });
    let nodes = snapshot.nodes.values();
    let nodes = nodes.flat_map(|node| {
        node.addresses
            .iter()
            .map(move |at| (*at, format!("node {}", node.name)))
    });
    for (address, owner) in pods.chain(nodes) {
        if let Some(other) = owners.get(&address) {
            bail!(
                "{other} and {owner} both have {address}: give each its own, or leave it out and the sandbox chooses"
            );
        }
        owners.insert(address, owner);
    }
    Ok(owners.into_keys().collect())
}

fn free_base(bases: &[(u8, u8)], given: &BTreeSet<IpAddr>) -> Option<(u8, u8)> {
    let taken = |base: &(u8, u8)| {
        given.iter().any(|address| match address {
            IpAddr::V4(a) => a.octets()[..2] == [base.0, base.1],
            IpAddr::V6(a) => a.segments()[..3] == prefix6(*base),
        })
    };
    bases.iter().copied().find(|base| !taken(base))
}

/// `fd00:10:244` for 10.244: readable beside its IPv4 sister.
fn prefix6(base: (u8, u8)) -> [u16; 3] {
    let digits = |n: u8| u16::from_str_radix(&n.to_string(), 16).unwrap_or_default();
    [0xfd00, digits(base.0), digits(base.1)]
}

fn wire4(base: (u8, u8), host: u8) -> IpAddr {
    Ipv4Addr::new(base.0, base.1, 0, host).into()
}

fn wire6(base: (u8, u8), host: u8) -> IpAddr {
    let [a, b, c] = prefix6(base);
    Ipv6Addr::new(a, b, c, 0, 0, 0, 0, host.into()).into()
}

fn place_nodes(snapshot: &Snapshot, wanted: usize, pods: (u8, u8), wire: (u8, u8)) -> Vec<NodePlace> {
    let mut names: BTreeSet<String> = snapshot.nodes.keys().map(|name| name.to_string()).collect();
    let of_pods = snapshot
        .pods
        .values()
        .filter(|pod| !pod.completed)
        .filter_map(|pod| pod.node.as_ref());
    names.extend(of_pods.map(|name| name.to_string()));
    for number in 1.. {
        if names.len() >= wanted.max(1) {
            break;
        }
        names.insert(format!("node-{number}"));
    }
    let place = |(at, name): (usize, String)| {
        let number = u8::try_from(at + 1).unwrap_or(u8::MAX);
        let mut addresses = snapshot
            .nodes
            .get(&*name)
            .map(|node| node.addresses.clone())
            .unwrap_or_default();
        for spare in [wire4(wire, number), wire6(wire, number)] {
            if !addresses
                .iter()
                .any(|address| address.is_ipv4() == spare.is_ipv4())
            {
                addresses.push(spare);
            }
        }
        let [a, b, c] = prefix6(pods);
        let v4 = Ipv4Net::new_assert(Ipv4Addr::new(pods.0, pods.1, number, 0), 24);
        let v6 = Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, number.into(), 0, 0, 0, 0), 64);
        NodePlace {
            name,
            addresses,
            pods: [v4.into(), v6.into()],
        }
    };
    names.into_iter().enumerate().map(place).collect()
}

/// Pods without node go where the fewest are; pods without address get the next two of their node.
fn place_pods(snapshot: &Snapshot, raw: &Raw, nodes: &[NodePlace]) -> Vec<PodPlace> {
    let mut load = vec![0_usize; nodes.len()];
    let named = |name: &str| nodes.iter().position(|node| node.name == name);
    let running: Vec<_> = snapshot.pods.values().filter(|pod| !pod.completed).collect();
    for at in running.iter().filter_map(|pod| named(pod.node.as_deref()?)) {
        load[at] += 1;
    }
    let mut next = vec![1_u128; nodes.len()];
    let mut places = Vec::new();
    for pod in running {
        let node = pod.node.as_deref().and_then(named).unwrap_or_else(|| {
            let least = (0..nodes.len()).min_by_key(|at| load[*at]).unwrap_or_default();
            load[least] += 1;
            least
        });
        let addresses = if pod.host_network {
            nodes[node].addresses.clone()
        } else if pod.addresses.is_empty() {
            next[node] += 1;
            nodes[node]
                .pods
                .iter()
                .map(|net| host(*net, next[node]))
                .collect()
        } else {
            pod.addresses.clone()
        };
        let ports = raw.ports.get(&pod.name).cloned().unwrap_or_default();
        places.push(PodPlace {
            name: pod.name.clone(),
            node,
            host_network: pod.host_network,
            addresses,
            ports,
        });
    }
    places
}

/// The address `number` of `net`.
fn host(net: IpNet, number: u128) -> IpAddr {
    match net {
        IpNet::V4(net) => {
            Ipv4Addr::from_bits(net.network().to_bits() + u32::try_from(number).unwrap_or_default()).into()
        }
        IpNet::V6(net) => Ipv6Addr::from_bits(net.network().to_bits() + number).into(),
    }
}

/// One address for every combination of ipBlocks (and excepts) that an address outside the cluster can be in.
fn outside(snapshot: &Snapshot, used: &BTreeSet<IpAddr>, nodes: &[NodePlace]) -> Vec<IpAddr> {
    let blocks = blocks(snapshot);
    let mut candidates: Vec<IpAddr> = STRANGER.to_vec();
    candidates.extend(blocks.iter().flat_map(|block| [first(*block), last(*block)]));
    let free = |address: &IpAddr| {
        let cluster = nodes.iter().any(|node| {
            node.addresses.contains(address) || node.pods.iter().any(|net| net.contains(address))
        });
        !used.contains(address) && !cluster && is_host(*address)
    };
    let mut seen = BTreeSet::new();
    let mut chosen: Vec<IpAddr> = Vec::new();
    for address in candidates.into_iter().filter(free) {
        let cell: Vec<bool> = blocks.iter().map(|block| block.contains(&address)).collect();
        if seen.insert((address.is_ipv4(), cell)) && chosen.len() < MAX_OUTSIDE {
            chosen.push(address);
        }
    }
    chosen
}

/// Every `cidr` and `except`, sorted.
fn blocks(snapshot: &Snapshot) -> Vec<IpNet> {
    let rules = snapshot
        .policies
        .values()
        .flat_map(|policy| policy.ingress.iter().chain(&policy.egress))
        .flatten();
    let peers = rules.filter_map(|rule| match &rule.peers {
        Peers::Any => None,
        Peers::Of(peers) => Some(peers),
    });
    let blocks: BTreeSet<IpNet> = peers
        .flatten()
        .flat_map(|peer| match peer {
            Peer::IpBlock { cidr, except } => std::iter::once(*cidr).chain(except.iter().copied()).collect(),
            Peer::Pods { .. } => Vec::new(),
        })
        .collect();
    blocks.into_iter().collect()
}

fn first(net: IpNet) -> IpAddr {
    host(net, u128::from(net.prefix_len() + 1 < net.max_prefix_len()))
}

fn last(net: IpNet) -> IpAddr {
    match (net.broadcast(), net.prefix_len() + 1 < net.max_prefix_len()) {
        (IpAddr::V4(at), true) => Ipv4Addr::from_bits(at.to_bits() - 1).into(),
        (IpAddr::V6(at), true) => Ipv6Addr::from_bits(at.to_bits() - 1).into(),
        (at, false) => at,
    }
}

/// An address that a host can have and that is routed.
fn is_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => {
            let [first, ..] = a.octets();
            (1..224).contains(&first) && !a.is_loopback() && !a.is_link_local()
        }
        IpAddr::V6(a) => {
            let mapped = a.to_ipv4_mapped().is_some() || a.segments()[..6] == [0; 6];
            !mapped
                && !a.is_multicast()
                && !a.is_loopback()
                && !a.is_unspecified()
                && !a.is_unicast_link_local()
        }
    }
}

#[cfg(test)]
mod tests {
    use netpol_policy::model::{Labels, Node, Pod};

    use super::*;

    fn pod(name: &str, node: Option<&str>, addresses: &[&str]) -> Pod {
        Pod {
            name: ObjectName::new("default", name),
            uid: "".into(),
            labels: Labels::default(),
            node: node.map(Into::into),
            host_network: false,
            completed: false,
            terminating: false,
            addresses: addresses.iter().map(|at| at.parse().unwrap()).collect(),
            ports: Vec::new(),
        }
    }

    fn snapshot(pods: Vec<Pod>) -> Snapshot {
        Snapshot {
            pods: pods.into_iter().map(|pod| (pod.name.clone(), pod)).collect(),
            ..Snapshot::default()
        }
    }

    fn places(layout: &Layout) -> Vec<(String, usize, Vec<String>)> {
        let text = |pod: &PodPlace| pod.addresses.iter().map(ToString::to_string).collect();
        layout
            .pods
            .iter()
            .map(|pod| (pod.name.name.to_string(), pod.node, text(pod)))
            .collect()
    }

    #[test]
    fn what_is_open_is_spread_and_what_is_given_stays() {
        let given = snapshot(vec![
            pod("a", None, &[]),
            pod("b", None, &[]),
            pod("c", Some("worker"), &["10.244.0.9"]),
            pod("d", None, &[]),
        ]);
        let layout = Layout::new(&given, &Raw::default(), 2).unwrap();
        assert_eq!(
            layout.nodes.iter().map(|node| &*node.name).collect::<Vec<_>>(),
            ["node-1", "worker"]
        );
        // 10.244 is taken by a manifest, so the sandbox keeps out of it.
        let at = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
        assert_eq!(
            places(&layout),
            [
                ("a".to_owned(), 0, at("10.42.1.2", "fd00:10:42:1::2")),
                ("b".to_owned(), 0, at("10.42.1.3", "fd00:10:42:1::3")),
                ("c".to_owned(), 1, vec!["10.244.0.9".to_owned()]),
                ("d".to_owned(), 1, at("10.42.2.2", "fd00:10:42:2::2")),
            ]
        );
    }

    #[test]
    fn one_address_for_two_is_refused() {
        let mut given = snapshot(vec![pod("a", None, &["10.0.0.1"])]);
        let node = Node {
            name: "n".into(),
            addresses: vec!["10.0.0.1".parse().unwrap()],
        };
        given.nodes.insert("n".into(), node);
        let error = Layout::new(&given, &Raw::default(), 1).unwrap_err().to_string();
        assert!(
            error.starts_with("pod default/a and node n both have 10.0.0.1"),
            "{error}"
        );
    }

    #[test]
    fn outside_addresses_cover_every_cell() {
        let blocks: Vec<IpNet> = ["203.0.113.0/24", "203.0.113.128/25", "203.0.113.9/32"]
            .iter()
            .map(|net| net.parse().unwrap())
            .collect();
        assert_eq!(
            blocks
                .iter()
                .map(|net| (first(*net), last(*net)))
                .map(|(a, b)| format!("{a} {b}"))
                .collect::<Vec<_>>(),
            [
                "203.0.113.1 203.0.113.254",
                "203.0.113.129 203.0.113.254",
                "203.0.113.9 203.0.113.9",
            ]
        );
    }
}
