//! The tables under construction, and what changed in them.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use netpol_common::tables::{CELL_ALL, CLASS_ANY, Cell, CellKey, PortsKey, Range};

use super::{matching::Matches, ports::PortUnion};
use crate::{
    ids::IdSource,
    model::ObjectName,
    tables::{PodRules, Tables},
};

/// Keys of [`Tables`] that were written or removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Exact addresses.
    pub hosts: BTreeSet<IpAddr>,
    /// Prefixes.
    pub nets: BTreeSet<IpNet>,
    /// Cells.
    pub cells: BTreeSet<CellKey>,
    /// Chunks of port sets.
    pub ports: BTreeSet<PortsKey>,
    /// Local pods.
    pub pods: BTreeSet<ObjectName>,
    /// Classes that came or went.
    pub classes: BTreeSet<u32>,
}

impl Dirty {
    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes in what `other` names, too: for a plan that was refused or given up.
    pub fn merge(&mut self, mut other: Self) {
        self.hosts.append(&mut other.hosts);
        self.nets.append(&mut other.nets);
        self.cells.append(&mut other.cells);
        self.ports.append(&mut other.ports);
        self.pods.append(&mut other.pods);
        self.classes.append(&mut other.classes);
    }
}

/// What becomes a [`Dirty`]: written often, read seldom.
#[derive(Default)]
pub(super) struct Log {
    hosts: Vec<IpAddr>,
    nets: Vec<IpNet>,
    cells: Vec<CellKey>,
    ports: Vec<PortsKey>,
    pods: Vec<ObjectName>,
    pub(super) classes: Vec<u32>,
}

struct PortSet {
    id: u32,
    refs: u32,
}

/// The desired tables. Every write is noted in `log`.
#[derive(Default)]
pub(super) struct Desired {
    pub(super) tables: Tables,
    pub(super) log: Log,
    port_sets: HashMap<Arc<PortUnion>, PortSet>,
    by_id: HashMap<u32, Arc<PortUnion>>,
}

impl Desired {
    /// The keys that were written since this was asked last.
    pub(super) fn take_dirty(&mut self) -> Dirty {
        let log = std::mem::take(&mut self.log);
        Dirty {
            hosts: log.hosts.into_iter().collect(),
            nets: log.nets.into_iter().collect(),
            cells: log.cells.into_iter().collect(),
            ports: log.ports.into_iter().collect(),
            pods: log.pods.into_iter().collect(),
            classes: log.classes.into_iter().collect(),
        }
    }

    /// `class` 0 removes the entry: the prefixes decide.
    pub(super) fn host(&mut self, address: IpAddr, class: u32) {
        let class = (class != 0).then_some(class);
        match address {
            IpAddr::V4(a) => set(&mut self.tables.hosts4, a, class),
            IpAddr::V6(a) => set(&mut self.tables.hosts6, a, class),
        }
        self.log.hosts.push(address);
    }

    pub(super) fn net(&mut self, net: IpNet, class: Option<u32>) {
        match net {
            IpNet::V4(net) => set(&mut self.tables.nets4, net, class),
            IpNet::V6(net) => set(&mut self.tables.nets6, net, class),
        }
        self.log.nets.push(net);
    }

    pub(super) fn pod(&mut self, name: &ObjectName, rules: Option<PodRules>) {
        set(&mut self.tables.pods, name.clone(), rules);
        self.log.pods.push(name.clone());
    }

    /// Writes a cell; an empty `union` writes none. The cell must not be there yet.
    pub(super) fn add_cell(&mut self, key: CellKey, union: &PortUnion, ids: &IdSource) {
        if union.is_empty() {
            return;
        }
        let cell = self.encode(union, ids);
        let before = self.tables.cells.insert(key, cell);
        debug_assert!(before.is_none(), "a cell is written once");
        self.log.cells.push(key);
    }

    pub(super) fn remove_cell(&mut self, key: CellKey) {
        if let Some(cell) = self.tables.cells.remove(&key) {
            self.log.cells.push(key);
            self.release_ports(cell.ports);
        }
    }

    /// Removes all cells of a ruleset.
    pub(super) fn remove_ruleset(&mut self, ruleset: u32) {
        let first = CellKey { ruleset, class: 0 };
        let last = CellKey {
            ruleset,
            class: CLASS_ANY,
        };
        let keys: Vec<_> = self
            .tables
            .cells
            .range(first..=last)
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            self.remove_cell(key);
        }
    }

    /// Gives everything the id that `matches` says, and forgets what was dirty.
    pub(super) fn rename(&mut self, matches: &Matches) {
        self.log = Log::default();
        let tables = &mut self.tables;
        let hosts = tables.hosts4.values_mut().chain(tables.hosts6.values_mut());
        let nets = tables.nets4.values_mut().chain(tables.nets6.values_mut());
        for class in hosts.chain(nets) {
            *class = matches.class(*class);
        }
        for rules in tables.pods.values_mut() {
            rules.ingress = matches.ruleset(rules.ingress);
            rules.egress = matches.ruleset(rules.egress);
        }
        let cells = std::mem::take(&mut tables.cells).into_iter();
        let cells = cells.map(|(key, mut cell)| {
            cell.ports = matches.port_set(cell.ports);
            let ruleset = matches.ruleset(key.ruleset);
            let class = matches.class(key.class);
            (CellKey { ruleset, class }, cell)
        });
        tables.cells = cells.collect();
        let ports = std::mem::take(&mut tables.ports).into_iter();
        let ports = ports.map(|(mut key, chunk)| {
            key.set = matches.port_set(key.set);
            (key, chunk)
        });
        tables.ports = ports.collect();
        for set in self.port_sets.values_mut() {
            set.id = matches.port_set(set.id);
        }
        let by_id = std::mem::take(&mut self.by_id).into_iter();
        self.by_id = by_id.map(|(id, union)| (matches.port_set(id), union)).collect();
    }

    pub(super) fn port_sets(&self) -> usize {
        self.port_sets.len()
    }

    fn encode(&mut self, union: &PortUnion, ids: &IdSource) -> Cell {
        let mut cell = Cell::default();
        if union.all {
            cell.flags = CELL_ALL;
        } else if union.ranges.len() <= cell.ranges.len() {
            for (slot, range) in cell.ranges.iter_mut().zip(&union.ranges) {
                *slot = Range {
                    lo: range.lo,
                    hi: range.hi,
                    proto: range.proto.into(),
                };
            }
        } else {
            cell.ports = self.acquire_ports(union, ids);
        }
        cell
    }

    fn acquire_ports(&mut self, union: &PortUnion, ids: &IdSource) -> u32 {
        if let Some(set) = self.port_sets.get_mut(union) {
            set.refs += 1;
            return set.id;
        }
        let id = ids.take();
        for (key, chunk) in union.chunks(id) {
            self.tables.ports.insert(key, chunk);
            self.log.ports.push(key);
        }
        let union = Arc::new(union.clone());
        self.port_sets.insert(union.clone(), PortSet { id, refs: 1 });
        self.by_id.insert(id, union);
        id
    }

    fn release_ports(&mut self, id: u32) {
        let Some(set) = self
            .by_id
            .get(&id)
            .and_then(|union| self.port_sets.get_mut(union))
        else {
            return;
        };
        set.refs -= 1;
        if set.refs > 0 {
            return;
        }
        if let Some(union) = self.by_id.remove(&id) {
            self.port_sets.remove(&union);
            for (key, _) in union.chunks(id) {
                self.tables.ports.remove(&key);
                self.log.ports.push(key);
            }
        }
    }
}

fn set<K: Ord, V>(map: &mut std::collections::BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}
