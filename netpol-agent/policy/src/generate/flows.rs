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
/// `seed` decides, half of whose ends are pods.
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
    let pods = ends.iter().take_while(|end| matches!(end, End::Pod(..))).count();
    let mut random = SplitMix(seed);
    let pick = |random: &mut SplitMix| {
        let among = if pods > 0 && random.below(2) == 0 {
            pods
        } else {
            ends.len()
        };
        &ends[random.below(among)]
    };
    (0..count)
        .map(|_| {
            let (from, to) = (pick(&mut random), pick(&mut random));
            flow(from, to, ports[random.below(ports.len())])
        })
        .collect()
}

/// Steele, Lea, Flood: Fast splittable pseudorandom number generators (2014). Enough to sample with.
struct SplitMix(u64);

impl SplitMix {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        usize::try_from(z % bound as u64).expect("below a usize")
    }
}
