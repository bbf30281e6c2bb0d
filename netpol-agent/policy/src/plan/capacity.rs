//! How many entries the tables need, also in passing.

use std::{collections::BTreeSet, fmt};

use super::{Plan, Step, addresses::Moves};
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
    /// The policies that have a part in most of them, largest first: [`Compiler::blame`] knows.
    ///
    /// [`Compiler::blame`]: crate::compile::Compiler::blame
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
pub(super) fn peak(actual: &Tables, moves: &Moves, steps: &[Step]) -> Sizes {
    let [hosts4, hosts6, nets4, nets6] = moves.added();
    let (mut cells, mut ports, mut gone) = (0, 0, 0);
    let mut pods = BTreeSet::new();
    for step in steps {
        match step {
            Step::PutCells(list) => {
                cells += list
                    .iter()
                    .filter(|(key, _)| !actual.cells.contains_key(key))
                    .count();
            }
            Step::PutPorts(list) => {
                ports += list
                    .iter()
                    .filter(|(key, _)| !actual.ports.contains_key(key))
                    .count();
            }
            Step::PutPods(list) => {
                let born = list.iter().map(|(name, _)| name);
                pods.extend(born.filter(|name| !actual.pods.contains_key(*name)));
            }
            Step::RemovePods(list) => gone = list.len(),
            _ => {}
        }
    }
    let now = actual.sizes();
    Sizes::new(|map| match map {
        Map::Hosts4 => now.of(map) + hosts4,
        Map::Hosts6 => now.of(map) + hosts6,
        Map::Nets4 => now.of(map) + nets4,
        Map::Nets6 => now.of(map) + nets6,
        Map::Cells => now.of(map) + cells,
        Map::Ports => now.of(map) + ports,
        Map::Pods => now.of(map).max(now.of(map) - gone + pods.len()),
    })
}
