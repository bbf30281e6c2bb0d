//! How many entries the tables need, also in passing.

use std::{collections::BTreeSet, fmt, hash::Hash, net::IpAddr};

use ipnet::IpNet;

use super::{Plan, Step};
use crate::{model::ObjectName, tables::Tables};

/// One of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Map {
    /// Exact IPv4 addresses.
    Hosts4,
    /// Exact IPv6 addresses.
    Hosts6,
    /// IPv4 prefixes.
    Nets4,
    /// IPv6 prefixes.
    Nets6,
    /// Cells.
    Cells,
    /// Chunks of port sets.
    Ports,
    /// Local pods.
    Pods,
}

impl Map {
    /// Every table.
    pub const ALL: [Self; 7] = [
        Self::Hosts4,
        Self::Hosts6,
        Self::Nets4,
        Self::Nets6,
        Self::Cells,
        Self::Ports,
        Self::Pods,
    ];

    /// The table's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hosts4 => "hosts4",
            Self::Hosts6 => "hosts6",
            Self::Nets4 => "nets4",
            Self::Nets6 => "nets6",
            Self::Cells => "cells",
            Self::Ports => "ports",
            Self::Pods => "pods",
        }
    }
}

/// Numbers of entries (needed, or possible).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes([usize; Map::ALL.len()]);

impl Sizes {
    /// As many as `of` says for each table.
    pub fn new(of: impl FnMut(Map) -> usize) -> Self {
        Self(Map::ALL.map(of))
    }

    /// The number of `map`.
    #[must_use]
    pub const fn of(&self, map: Map) -> usize {
        self.0[map as usize]
    }
}

/// A table would have to hold more than it can. What it holds stays in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapFull {
    /// Which.
    pub map: Map,
    /// How many entries the change needs at its peak.
    pub need: usize,
    /// How many there can be.
    pub limit: usize,
    /// The policies that need most of them (none for pods), largest first; the compiler fills this in.
    pub largest: Vec<(ObjectName, usize)>,
}

impl fmt::Display for MapFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { map, need, limit, .. } = self;
        let name = map.name();
        write!(
            f,
            "map {name} is too small: the change needs {need} entries, it holds {limit}; "
        )?;
        if !self.largest.is_empty() {
            write!(f, "most are for ")?;
            for (at, (policy, entries)) in self.largest.iter().enumerate() {
                let comma = if at == 0 { "" } else { ", " };
                write!(f, "{comma}policy {policy} ({entries})")?;
            }
            write!(f, "; ")?;
        }
        write!(
            f,
            "what was in force stays: raise the capacity of {name} or narrow the policies"
        )
    }
}

impl std::error::Error for MapFull {}

impl Tables {
    /// How many entries each table has.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        Sizes::new(|map| match map {
            Map::Hosts4 => self.hosts4.len(),
            Map::Hosts6 => self.hosts6.len(),
            Map::Nets4 => self.nets4.len(),
            Map::Nets6 => self.nets6.len(),
            Map::Cells => self.cells.len(),
            Map::Ports => self.ports.len(),
            Map::Pods => self.pods.len(),
        })
    }
}

impl Plan {
    /// Whether every step fits into tables of `limits`.
    ///
    /// # Errors
    /// The first table that is too small. Nothing must be written then.
    pub fn fits(&self, limits: &Sizes) -> Result<(), MapFull> {
        for map in Map::ALL {
            let (need, limit) = (self.peak.of(map), limits.of(map));
            if need > limit {
                return Err(MapFull {
                    map,
                    need,
                    limit,
                    largest: Vec::new(),
                });
            }
        }
        Ok(())
    }
}

/// The most entries at any moment of `steps`: all removals come last, but for the pods', which come first.
pub(super) fn peak(actual: &Tables, steps: &[Step]) -> Sizes {
    let mut hosts = BTreeSet::new();
    let mut nets = BTreeSet::new();
    let mut cells = BTreeSet::new();
    let mut ports = BTreeSet::new();
    let mut pods = BTreeSet::new();
    let mut gone = 0;
    for step in steps {
        match step {
            Step::PutHosts(list) => hosts.extend(list.iter().map(|(key, _)| *key)),
            Step::PutNets(list) => nets.extend(list.iter().map(|(key, _)| *key)),
            Step::PutCells(list) => cells.extend(list.iter().map(|(key, _)| *key)),
            Step::PutPorts(list) => ports.extend(list.iter().map(|(key, _)| *key)),
            Step::PutPods(list) => pods.extend(list.iter().map(|(key, _)| key)),
            Step::RemovePods(list) => gone = list.len(),
            _ => {}
        }
    }
    let now = actual.sizes();
    let added = |map| match map {
        Map::Hosts4 => added(
            &hosts,
            |key| matches!(key, IpAddr::V4(a) if !actual.hosts4.contains_key(a)),
        ),
        Map::Hosts6 => added(
            &hosts,
            |key| matches!(key, IpAddr::V6(a) if !actual.hosts6.contains_key(a)),
        ),
        Map::Nets4 => added(
            &nets,
            |key| matches!(key, IpNet::V4(net) if !actual.nets4.contains_key(net)),
        ),
        Map::Nets6 => added(
            &nets,
            |key| matches!(key, IpNet::V6(net) if !actual.nets6.contains_key(net)),
        ),
        Map::Cells => added(&cells, |key| !actual.cells.contains_key(key)),
        Map::Ports => added(&ports, |key| !actual.ports.contains_key(key)),
        Map::Pods => added(&pods, |key| !actual.pods.contains_key(*key)),
    };
    Sizes::new(|map| {
        let kept = if map == Map::Pods {
            now.of(map) - gone
        } else {
            now.of(map)
        };
        (kept + added(map)).max(now.of(map))
    })
}

fn added<K: Ord + Hash>(keys: &BTreeSet<K>, is_new: impl Fn(&K) -> bool) -> usize {
    keys.iter().filter(|key| is_new(key)).count()
}
