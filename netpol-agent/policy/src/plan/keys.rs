//! Where the two tables differ.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use netpol_common::tables::{Cell, CellKey, PortsChunk, PortsKey};

use super::Scope;
use crate::{model::ObjectName, tables::Tables};

/// The keys at which something has to be written, all sorted.
pub(super) struct Keys {
    /// Exact addresses, with their entries.
    pub(super) hosts: Vec<Difference<IpAddr, u32>>,
    /// Prefixes, with their entries.
    pub(super) nets: Vec<Difference<IpNet, u32>>,
    /// Local pods.
    pub(super) pods: Vec<ObjectName>,
    /// What is not there yet.
    pub(super) new_cells: Vec<(CellKey, Cell)>,
    pub(super) new_ports: Vec<(PortsKey, PortsChunk)>,
    /// What shall not be there any more.
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
        let pods = differing(&a.pods, &d.pods, dirty.map(|keys| keys.pods.iter().cloned()));
        Self {
            hosts: join(hosts4, hosts6),
            nets: join(nets4, nets6),
            pods: pods.into_iter().map(|(name, ..)| name).collect(),
            new_cells: cells
                .iter()
                .filter_map(|(key, _, new)| Some((*key, (*new)?)))
                .collect(),
            old_cells: cells
                .iter()
                .filter(|(.., new)| new.is_none())
                .map(|(key, ..)| *key)
                .collect(),
            new_ports: ports
                .iter()
                .filter_map(|(key, _, new)| Some((*key, (*new)?)))
                .collect(),
            old_ports: ports
                .iter()
                .filter(|(.., new)| new.is_none())
                .map(|(key, ..)| *key)
                .collect(),
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

/// A key with what the actual and the desired table have.
pub(super) type Difference<K, V> = (K, Option<V>, Option<V>);

/// The keys (all, or those of `among`) at which `a` and `b` differ, sorted.
fn differing<K: Ord + Clone, V: PartialEq + Copy>(
    a: &BTreeMap<K, V>,
    b: &BTreeMap<K, V>,
    among: Option<impl Iterator<Item = K>>,
) -> Vec<Difference<K, V>> {
    if let Some(among) = among {
        let entries = among.map(|key| {
            let (old, new) = (a.get(&key).copied(), b.get(&key).copied());
            (key, old, new)
        });
        return entries.filter(|(_, old, new)| old != new).collect();
    }
    let mut found = Vec::new();
    let (mut left, mut right) = (a.iter().peekable(), b.iter().peekable());
    loop {
        let order = match (left.peek(), right.peek()) {
            (None, None) => return found,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((a, _)), Some((b, _))) => a.cmp(b),
        };
        let old = if order.is_le() { left.next() } else { None };
        let new = if order.is_ge() { right.next() } else { None };
        if let Some((key, _)) = old.or(new)
            && old.map(|(_, value)| value) != new.map(|(_, value)| value)
        {
            found.push((
                key.clone(),
                old.map(|(_, value)| *value),
                new.map(|(_, value)| *value),
            ));
        }
    }
}

fn join<A: Into<C>, B: Into<C>, C>(
    a: Vec<Difference<A, u32>>,
    b: Vec<Difference<B, u32>>,
) -> Vec<Difference<C, u32>> {
    let a = a.into_iter().map(|(key, old, new)| (key.into(), old, new));
    let b = b.into_iter().map(|(key, old, new)| (key.into(), old, new));
    a.chain(b).collect()
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
