//! What the kernel has counted, for the agent's metrics: read when somebody asks.

use std::collections::BTreeMap;

use netpol_common::event::{Count, maps};
use netpol_policy::model::ObjectName;

use super::{Datapath, error::Result};

/// Packets dropped for one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodDrops {
    /// The pod whose packets were dropped (the one whose rules decided); `None`: no pod of this node, or one that has gone.
    pub pod: Option<ObjectName>,
    /// `netpol_common::event::hook::*`
    pub hook: u8,
    /// `netpol_common::reason::*`
    pub reason: u8,
    /// How many. Begins anew with each life of a pod.
    pub count: Count,
}

/// How full one map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// The map's name.
    pub map: &'static str,
    /// Entries in use.
    pub entries: usize,
    /// Entries that there is room for.
    pub capacity: u32,
}

impl Datapath {
    /// Packets and bytes by hook (`event::hook`) and reason, summed over CPUs: passed ones at the ways out, dropped ones
    /// anywhere (see `event::verdict`). Every pair that can be counted is there, most with zeros. They never fall while the
    /// pins are there.
    ///
    /// # Errors
    /// The map can not be read.
    pub fn verdicts(&self) -> Result<BTreeMap<(u8, u8), Count>> {
        self.maps.verdicts()
    }

    /// Dropped packets by pod, hook and reason, sorted; those of pods that have gone, and those of no pod, together.
    ///
    /// # Errors
    /// The map can not be read.
    pub fn drops(&self) -> Result<Vec<PodDrops>> {
        let names: BTreeMap<u32, &ObjectName> =
            self.slots.iter().map(|(name, slot)| (slot.index, name)).collect();
        let mut sums: BTreeMap<(Option<&ObjectName>, u8, u8), Count> = BTreeMap::new();
        for (key, count) in self.maps.drops()? {
            let pod = names.get(&key.pod).copied();
            let sum = sums.entry((pod, key.hook as u8, key.reason as u8)).or_default();
            *sum = sum.plus(count);
        }
        Ok(sums
            .into_iter()
            .map(|((pod, hook, reason), count)| PodDrops {
                pod: pod.cloned(),
                hook,
                reason,
                count,
            })
            .collect())
    }

    /// How full each map with entries is, in the ABI's order. Tables of flows and fragments are counted by the sweeper, which
    /// has to walk them: they are as of its last round, and missing before its first.
    ///
    /// # Errors
    /// A map can not be read.
    pub fn fill(&self) -> Result<Vec<Fill>> {
        let counted = self.sweeper.fill();
        let mut found = Vec::new();
        for map in maps::ALL.iter().copied() {
            let entries = match map {
                maps::HOSTS4 => Some(self.actual.hosts4.len()),
                maps::HOSTS6 => Some(self.actual.hosts6.len()),
                maps::NETS4 => Some(self.actual.nets4.len()),
                maps::NETS6 => Some(self.actual.nets6.len()),
                maps::CELLS => Some(self.actual.cells.len()),
                maps::PORTS => Some(self.actual.ports.len()),
                map => self.maps.small_fill(map)?,
            };
            let known = entries.map(|entries| Fill {
                map,
                entries,
                capacity: self.maps.capacity(map),
            });
            found.extend(known.or_else(|| counted.iter().find(|fill| fill.map == map).copied()));
        }
        Ok(found)
    }
}
