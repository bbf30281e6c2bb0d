//! Which addresses change their class, and the order in which that is written.

use std::{cmp::Reverse, collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use super::{
    Plan, Step,
    keys::{Difference, Keys},
};
use crate::tables::Tables;

/// The class of a region in the actual and in the desired tables.
pub(super) type Pair = (u32, u32);

struct Region<P> {
    place: P,
    pair: Pair,
    /// Whether the actual tables have an entry; else what is around it decides.
    present: bool,
    /// Whether the desired tables have one.
    stays: bool,
}

impl<P: Copy> Region<P> {
    /// `around` gives the class of a place without an entry.
    fn new(&(place, old, new): &Difference<P, u32>, around: [impl Fn(P) -> u32; 2]) -> Self {
        let [actual, desired] = around;
        Self {
            place,
            pair: (
                old.unwrap_or_else(|| actual(place)),
                new.unwrap_or_else(|| desired(place)),
            ),
            present: old.is_some(),
            stays: new.is_some(),
        }
    }
}

/// Every region whose class or entry changes. A prefix stands for what is in it less the more specific ones.
pub(super) struct Moves {
    hosts: Vec<Region<IpAddr>>,
    /// Most specific first: a prefix is written when what is inside it no longer depends on it.
    nets: Vec<Region<IpNet>>,
}

impl Moves {
    pub(super) fn new(actual: &Tables, desired: &Tables, keys: &Keys) -> Self {
        let tables = [actual, desired];
        let of_host = tables.map(|tables| |address| tables.net_class(address, u8::MAX));
        let of_net = tables.map(|tables| |net: IpNet| tables.net_class(net.network(), net.prefix_len()));
        let mut nets: Vec<_> = keys.nets.iter().map(|entry| Region::new(entry, of_net)).collect();
        nets.sort_by_key(|region| Reverse(region.place.prefix_len()));
        Self {
            hosts: keys
                .hosts
                .iter()
                .map(|entry| Region::new(entry, of_host))
                .collect(),
            nets,
        }
    }

    /// The classes that change, with the number of regions.
    pub(super) fn pairs(&self) -> BTreeMap<Pair, usize> {
        let hosts = self.hosts.iter().map(|region| region.pair);
        let nets = self.nets.iter().map(|region| region.pair);
        let mut pairs = BTreeMap::new();
        for pair in hosts.chain(nets).filter(|(a, d)| a != d) {
            *pairs.entry(pair).or_default() += 1;
        }
        pairs
    }

    /// Every region to its intermediate class, and new entries beside the old. False: nothing to write.
    pub(super) fn push_first(&self, plan: &mut Plan, class: impl Fn(Pair) -> u32) -> bool {
        let hosts = first(&self.hosts, &class);
        let nets = first(&self.nets, &class);
        let writes = !hosts.is_empty() || !nets.is_empty();
        let inserts = self.hosts.iter().any(|region| !region.present);
        plan.push(Step::PutHosts(hosts));
        if inserts && !nets.is_empty() {
            // Who has missed a new address in the hash must find in the trie what was there then.
            plan.grace();
        }
        plan.push(Step::PutNets(nets));
        writes
    }

    /// The entries that shall not be there any more.
    pub(super) fn removals(&self) -> [Step; 2] {
        [
            Step::RemoveHosts(removed(&self.hosts)),
            Step::RemoveNets(removed(&self.nets)),
        ]
    }

    /// How many entries come: exact addresses, then prefixes; IPv4, then IPv6.
    pub(super) fn added(&self) -> [usize; 4] {
        let hosts = self.hosts.iter().filter(|region| !region.present);
        let (hosts4, hosts6): (Vec<_>, Vec<_>) = hosts.partition(|region| region.place.is_ipv4());
        let nets = self.nets.iter().filter(|region| !region.present);
        let (nets4, nets6): (Vec<_>, Vec<_>) = nets.partition(|region| region.place.addr().is_ipv4());
        [hosts4.len(), hosts6.len(), nets4.len(), nets6.len()]
    }

    /// Every region from its intermediate class to the new one.
    pub(super) fn second(&self, class: impl Fn(Pair) -> u32) -> Vec<Step> {
        let steps = [
            Step::PutHosts(second(&self.hosts, &class)),
            Step::PutNets(second(&self.nets, &class)),
        ];
        steps.into_iter().filter(|step| !step.is_void()).collect()
    }
}

fn first<P: Copy>(regions: &[Region<P>], class: impl Fn(Pair) -> u32) -> Vec<(P, u32)> {
    let target = |region: &Region<P>| {
        let to = class(region.pair);
        (!region.present || to != region.pair.0).then_some((region.place, to))
    };
    regions.iter().filter_map(target).collect()
}

fn second<P: Copy>(regions: &[Region<P>], class: impl Fn(Pair) -> u32) -> Vec<(P, u32)> {
    let target = |region: &Region<P>| {
        let to = region.pair.1;
        (class(region.pair) != to).then_some((region.place, to))
    };
    regions.iter().filter_map(target).collect()
}

fn removed<P: Copy>(regions: &[Region<P>]) -> Vec<P> {
    regions
        .iter()
        .filter(|region| !region.stays)
        .map(|region| region.place)
        .collect()
}
