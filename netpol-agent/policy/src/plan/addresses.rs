//! Which addresses change their class, and the order in which that is written.

use std::{cmp::Reverse, collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use super::{Plan, Step, keys::Keys};
use crate::tables::Tables;

/// The class of a region in the actual and in the desired tables.
pub(super) type Pair = (u32, u32);

struct Region<P> {
    place: P,
    pair: Pair,
    /// Whether the actual tables have an entry; else what is around it decides.
    present: bool,
}

/// Every region whose class or entry changes. A prefix stands for what is in it less the more specific ones.
pub(super) struct Moves {
    hosts: Vec<Region<IpAddr>>,
    /// Most specific first: a prefix is written when what is inside it no longer depends on it.
    nets: Vec<Region<IpNet>>,
}

impl Moves {
    pub(super) fn new(actual: &Tables, desired: &Tables, keys: &Keys) -> Self {
        let host = |&address: &IpAddr| Region {
            place: address,
            pair: (actual.class(address), desired.class(address)),
            present: match address {
                IpAddr::V4(a) => actual.hosts4.contains_key(&a),
                IpAddr::V6(a) => actual.hosts6.contains_key(&a),
            },
        };
        let class = |tables: &Tables, net: &IpNet| tables.net_class(net.network(), net.prefix_len());
        let net = |&net: &IpNet| Region {
            place: net,
            pair: (class(actual, &net), class(desired, &net)),
            present: match net {
                IpNet::V4(net) => actual.nets4.contains_key(&net),
                IpNet::V6(net) => actual.nets6.contains_key(&net),
            },
        };
        let mut nets: Vec<_> = keys.nets.iter().map(net).collect();
        nets.sort_by_key(|region| Reverse(region.place.prefix_len()));
        Self {
            hosts: keys.hosts.iter().map(host).collect(),
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
