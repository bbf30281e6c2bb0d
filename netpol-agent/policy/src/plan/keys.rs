//! Where the two tables differ.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use netpol_common::tables::{Cell, CellKey, PortsChunk, PortsKey};

use super::Scope;
use crate::{model::ObjectName, tables::Tables};

/// The keys at which something has to be written, all sorted.
pub(super) struct Keys {
    /// Exact addresses.
    pub(super) hosts: Vec<IpAddr>,
    /// Prefixes.
    pub(super) nets: Vec<IpNet>,
    /// Local pods.
    pub(super) pods: Vec<ObjectName>,
    /// What is not there yet.
    pub(super) new_cells: Vec<(CellKey, Cell)>,
    pub(super) new_ports: Vec<(PortsKey, PortsChunk)>,
    /// What shall not be there any more.
    pub(super) old_hosts: Vec<IpAddr>,
    pub(super) old_nets: Vec<IpNet>,
    pub(super) old_cells: Vec<CellKey>,
    pub(super) old_ports: Vec<PortsKey>,
    /// Classes that only one of the tables knows.
    pub(super) one_sided_classes: BTreeSet<u32>,
}

impl Keys {
    pub(super) fn new(actual: &Tables, desired: &Tables, scope: Scope<'_>) -> Self {
        let (a, d) = (actual, desired);
        let dirty = match scope {
            Scope::Everything => None,
            Scope::Dirty(dirty) => Some(dirty),
        };
        let hosts = dirty.map(|dirty| &dirty.hosts);
        let nets = dirty.map(|dirty| &dirty.nets);
        let v4 = |address: &IpAddr| match address {
            IpAddr::V4(a) => Some(*a),
            IpAddr::V6(_) => None,
        };
        let v6 = |address: &IpAddr| match address {
            IpAddr::V6(a) => Some(*a),
            IpAddr::V4(_) => None,
        };
        let net4 = |net: &IpNet| match net {
            IpNet::V4(net) => Some(*net),
            IpNet::V6(_) => None,
        };
        let net6 = |net: &IpNet| match net {
            IpNet::V6(net) => Some(*net),
            IpNet::V4(_) => None,
        };
        let hosts4 = differing(&a.hosts4, &d.hosts4, hosts.map(|keys| keys.iter().filter_map(v4)));
        let hosts6 = differing(&a.hosts6, &d.hosts6, hosts.map(|keys| keys.iter().filter_map(v6)));
        let nets4 = differing(&a.nets4, &d.nets4, nets.map(|keys| keys.iter().filter_map(net4)));
        let nets6 = differing(&a.nets6, &d.nets6, nets.map(|keys| keys.iter().filter_map(net6)));
        let cells = differing(&a.cells, &d.cells, dirty.map(|keys| keys.cells.iter().copied()));
        let ports = differing(&a.ports, &d.ports, dirty.map(|keys| keys.ports.iter().copied()));
        Self {
            pods: differing(&a.pods, &d.pods, dirty.map(|keys| keys.pods.iter().cloned())),
            new_cells: present(&cells, &d.cells),
            old_cells: absent(cells, &d.cells),
            new_ports: present(&ports, &d.ports),
            old_ports: absent(ports, &d.ports),
            hosts: join(hosts4.clone(), hosts6.clone()),
            old_hosts: join(absent(hosts4, &d.hosts4), absent(hosts6, &d.hosts6)),
            nets: join(nets4.clone(), nets6.clone()),
            old_nets: join(absent(nets4, &d.nets4), absent(nets6, &d.nets6)),
            one_sided_classes: dirty.map_or_else(|| one_sided(a, d), |dirty| dirty.classes.clone()),
        }
    }

    /// Whether the tables are equal.
    pub(super) fn is_empty(&self) -> bool {
        self.hosts.is_empty()
            && self.nets.is_empty()
            && self.pods.is_empty()
            && self.new_cells.is_empty()
            && self.old_cells.is_empty()
            && self.new_ports.is_empty()
            && self.old_ports.is_empty()
    }
}

/// The keys (all, or those of `among`) at which `a` and `b` differ, sorted.
fn differing<K: Ord + Clone, V: PartialEq>(
    a: &BTreeMap<K, V>,
    b: &BTreeMap<K, V>,
    among: Option<impl Iterator<Item = K>>,
) -> Vec<K> {
    if let Some(among) = among {
        return among.filter(|key| a.get(key) != b.get(key)).collect();
    }
    let only_or_other = a.iter().filter(|(key, value)| b.get(key) != Some(value));
    let only_b = b.keys().filter(|key| !a.contains_key(key));
    let mut keys: Vec<K> = only_or_other.map(|(key, _)| key).chain(only_b).cloned().collect();
    keys.sort_unstable();
    keys
}

fn present<K: Ord + Clone, V: Copy>(keys: &[K], map: &BTreeMap<K, V>) -> Vec<(K, V)> {
    keys.iter()
        .filter_map(|key| Some((key.clone(), *map.get(key)?)))
        .collect()
}

fn absent<K: Ord, V>(keys: Vec<K>, map: &BTreeMap<K, V>) -> Vec<K> {
    keys.into_iter().filter(|key| !map.contains_key(key)).collect()
}

fn join<A: Into<C>, B: Into<C>, C>(a: Vec<A>, b: Vec<B>) -> Vec<C> {
    a.into_iter()
        .map(Into::into)
        .chain(b.into_iter().map(Into::into))
        .collect()
}

/// The classes to which addresses lead in one of the tables only.
fn one_sided(actual: &Tables, desired: &Tables) -> BTreeSet<u32> {
    let used = |tables: &Tables| -> BTreeSet<u32> {
        let hosts = tables.hosts4.values().chain(tables.hosts6.values());
        let nets = tables.nets4.values().chain(tables.nets6.values());
        hosts.chain(nets).copied().collect()
    };
    used(actual)
        .symmetric_difference(&used(desired))
        .copied()
        .collect()
}
