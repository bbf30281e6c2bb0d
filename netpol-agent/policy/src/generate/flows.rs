//! The flows at the edges of a snapshot.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use netpol_common::proto;

use super::objects::landmarks;
use crate::{
    model::{Peer, Peers, Policy, PortSpec, Ports, Rule, Snapshot},
    oracle::{End, Flow},
};

fn rules(policy: &Policy) -> impl Iterator<Item = &Rule> {
    policy.ingress.iter().chain(&policy.egress).flatten()
}

/// First and last address of `net` and their neighbours outside.
fn edges(net: &IpNet) -> Vec<IpAddr> {
    let (first, last) = (net.network(), net.broadcast());
    let step = |address, up| match address {
        IpAddr::V4(a) => {
            let a = u32::from(a);
            IpAddr::V4(if up { a.wrapping_add(1) } else { a.wrapping_sub(1) }.into())
        }
        IpAddr::V6(a) => {
            let a = u128::from(a);
            IpAddr::V6(if up { a.wrapping_add(1) } else { a.wrapping_sub(1) }.into())
        }
    };
    vec![step(first, false), first, last, step(last, true)]
}

/// Every end that means something in `snapshot`: pods (also by addresses that are not theirs any more or not
/// yet), nodes, and the addresses at the edges of every block.
#[must_use]
pub fn ends(snapshot: &Snapshot) -> Vec<End> {
    let mut ends = Vec::new();
    for pod in snapshot.pods.values() {
        ends.extend(
            pod.addresses
                .iter()
                .map(|&address| End::Pod(pod.name.clone(), address)),
        );
        if pod.addresses.is_empty() {
            ends.push(End::Pod(pod.name.clone(), IpAddr::from([10, 0, 0, 99])));
        }
    }
    for node in snapshot.nodes.values() {
        ends.extend(
            node.addresses
                .iter()
                .map(|&address| End::Node(node.name.clone(), address)),
        );
    }
    let mut addresses: BTreeSet<_> = landmarks().into_iter().collect();
    let peers = snapshot
        .policies
        .values()
        .flat_map(rules)
        .flat_map(|rule| match &rule.peers {
            Peers::Any => &[][..],
            Peers::Of(peers) => peers,
        });
    for peer in peers {
        if let Peer::IpBlock { cidr, except } = peer {
            addresses.extend(except.iter().chain([cidr]).flat_map(edges));
        }
    }
    ends.extend(addresses.into_iter().map(End::Ip));
    ends
}

/// Every protocol and port at which a verdict may change: the edges of every range and their neighbours, the
/// numbers of named ports, and protocols without ports.
#[must_use]
pub fn ports(snapshot: &Snapshot) -> Vec<(u8, u16)> {
    let mut numbers = BTreeSet::from([0, 1, u16::MAX]);
    for port in snapshot
        .policies
        .values()
        .flat_map(rules)
        .flat_map(|rule| match &rule.ports {
            Ports::Any => &[][..],
            Ports::Of(ports) => ports,
        })
    {
        if let PortSpec::Range(first, last) = port.port {
            numbers.extend([first.wrapping_sub(1), first, last, last.wrapping_add(1)]);
        }
    }
    let declared = snapshot.pods.values().flat_map(|pod| &pod.ports);
    numbers.extend(declared.flat_map(|port| [port.number, port.number.wrapping_add(1)]));
    let with_ports = [proto::TCP, proto::UDP, proto::SCTP];
    let mut ports: Vec<_> = with_ports
        .into_iter()
        .flat_map(|protocol| numbers.iter().map(move |&number| (protocol, number)))
        .collect();
    // Protocol 0 (hop-by-hop options), 255 (reserved; the tables use it for "no range"), GRE.
    ports.extend([proto::ICMP, proto::ICMPV6, 0, 47, 255].map(|protocol| (protocol, 0)));
    ports
}

/// At most `count` flows between [`ends`] on [`ports`]: all of them where they are so few, else a sample that
/// `seed` decides, half of it aimed at rules: a pod of the policy's namespace, an address at the rule's edges, one
/// of its ports.
#[must_use]
pub fn flows(snapshot: &Snapshot, count: usize, seed: u64) -> Vec<Flow> {
    let (ends, ports) = (ends(snapshot), ports(snapshot));
    let flow = |from: &End, to: &End, (protocol, port)| Flow {
        from: from.clone(),
        to: to.clone(),
        protocol,
        port,
    };
    if ends.len() * ends.len() * ports.len() <= count {
        let pairs = ends.iter().flat_map(|from| ends.iter().map(move |to| (from, to)));
        return pairs
            .flat_map(|(from, to)| ports.iter().map(move |&port| flow(from, to, port)))
            .collect();
    }
    let mut random = SplitMix(seed);
    let any = |random: &mut SplitMix| {
        let (from, to) = (random.pick(&ends), random.pick(&ends));
        flow(from, to, *random.pick(&ports))
    };
    let aim = |random: &mut SplitMix| aimed(snapshot, &ends, &ports, random).unwrap_or_else(|| any(random));
    (0..count)
        .map(|n| {
            if n % 2 == 0 {
                any(&mut random)
            } else {
                aim(&mut random)
            }
        })
        .collect()
}

/// A flow that a random rule is about; `None` where there is none, or no pod that it could be asked for.
fn aimed(snapshot: &Snapshot, ends: &[End], ports: &[(u8, u16)], random: &mut SplitMix) -> Option<Flow> {
    let policy = random.pick_from(snapshot.policies.values())?;
    let ingress = random.below(2) == 0;
    let rules = if ingress { &policy.ingress } else { &policy.egress };
    let rule = random.pick_from(rules.iter().flatten())?;
    let here = |end: &&End| matches!(end, End::Pod(name, _) if name.namespace == policy.name.namespace);
    let local = random.pick_from(ends.iter().filter(here))?.clone();
    let peer = match &rule.peers {
        Peers::Any => None,
        Peers::Of(peers) => random.pick_from(peers.iter()),
    };
    let remote = match peer {
        Some(Peer::IpBlock { cidr, except }) => {
            let net = random.pick_from(except.iter().chain([cidr]))?;
            End::Ip(*random.pick(&edges(net)))
        }
        Some(Peer::Pods { .. }) => {
            let pods = ends.iter().filter(|end| matches!(end, End::Pod(..)));
            random.pick_from(pods)?.clone()
        }
        None => random.pick(ends).clone(),
    };
    let wanted = match &rule.ports {
        Ports::Any => None,
        Ports::Of(wanted) => random.pick_from(wanted.iter()),
    };
    let (protocol, port) = match wanted.map(|wanted| (wanted.protocol.number(), &wanted.port)) {
        Some((protocol, PortSpec::Range(first, last))) => {
            let edges = [first.wrapping_sub(1), *first, *last, last.wrapping_add(1)];
            (protocol, *random.pick(&edges))
        }
        Some((protocol, PortSpec::Named(name))) => {
            let declared = snapshot.pods.values().flat_map(|pod| &pod.ports);
            let port = random.pick_from(declared.filter(|port| port.name == *name))?;
            (protocol, port.number)
        }
        Some((protocol, PortSpec::All)) => (protocol, random.pick(ports).1),
        None => *random.pick(ports),
    };
    let (from, to) = if ingress { (remote, local) } else { (local, remote) };
    Some(Flow {
        from,
        to,
        protocol,
        port,
    })
}

/// Steele, Lea, Flood: Fast splittable pseudorandom number generators (2014). Enough to sample with.
struct SplitMix(u64);

impl SplitMix {
    fn pick<'a, T>(&mut self, among: &'a [T]) -> &'a T {
        &among[self.below(among.len())]
    }

    fn pick_from<T>(&mut self, mut among: impl Iterator<Item = T> + Clone) -> Option<T> {
        let count = among.clone().count();
        if count == 0 {
            return None;
        }
        among.nth(self.below(count))
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        usize::try_from(z % bound as u64).expect("below a usize")
    }
}
