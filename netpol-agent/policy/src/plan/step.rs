//! One write after the other.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use netpol_common::{
    pod::state,
    tables::{Cell, CellKey, PortsChunk, PortsKey},
};

use crate::{
    model::ObjectName,
    tables::{PodRules, Tables},
};

/// Whose connections have to be taken over from conntrack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adoption {
    /// The pod.
    pub pod: ObjectName,
    /// Isolation for ingress begins.
    pub ingress: bool,
    /// Isolation for egress begins.
    pub egress: bool,
}

/// One step of a plan. Writes of one step may be done one by one, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The table bits of `state::FLAGS` (the others are not the plan's): [`flags`] of both tables before
    /// anything depends on them, of the new tables in the end.
    Flags(u64),
    /// Writes port sets.
    PutPorts(Vec<(PortsKey, PortsChunk)>),
    /// Writes cells.
    PutCells(Vec<(CellKey, Cell)>),
    /// Writes exact addresses.
    PutHosts(Vec<(IpAddr, u32)>),
    /// Writes prefixes, the most specific first.
    PutNets(Vec<(IpNet, u32)>),
    /// Writes pods' rulesets, both directions in one store.
    PutPods(Vec<(ObjectName, PodRules)>),
    /// The pods are not there any more.
    RemovePods(Vec<ObjectName>),
    /// From conntrack to the flow table; the pods record already, and nothing is dropped yet.
    Adopt(Vec<Adoption>),
    /// Moves the epoch: every flow is judged again.
    Epoch,
    /// Waits until no program runs that began before.
    Grace,
    /// Removes exact addresses.
    RemoveHosts(Vec<IpAddr>),
    /// Removes prefixes.
    RemoveNets(Vec<IpNet>),
    /// Removes cells.
    RemoveCells(Vec<CellKey>),
    /// Removes port sets.
    RemovePorts(Vec<PortsKey>),
}

impl Step {
    /// Whether the step does nothing.
    pub(super) fn is_void(&self) -> bool {
        match self {
            Self::Flags(_) | Self::Epoch | Self::Grace => false,
            Self::PutPorts(list) => list.is_empty(),
            Self::PutCells(list) => list.is_empty(),
            Self::PutHosts(list) => list.is_empty(),
            Self::PutNets(list) => list.is_empty(),
            Self::PutPods(list) => list.is_empty(),
            Self::RemovePods(list) => list.is_empty(),
            Self::Adopt(list) => list.is_empty(),
            Self::RemoveHosts(list) => list.is_empty(),
            Self::RemoveNets(list) => list.is_empty(),
            Self::RemoveCells(list) => list.is_empty(),
            Self::RemovePorts(list) => list.is_empty(),
        }
    }
}

/// The bits of `state::FLAGS` that follow from `tables`.
#[must_use]
pub fn flags(tables: &Tables) -> u64 {
    let ingress = tables.pods.values().any(|rules| rules.ingress != 0);
    let egress = tables.pods.values().any(|rules| rules.egress != 0);
    let bit = |on, bit| if on { bit } else { 0 };
    bit(ingress, state::FLAG_ANY_INGRESS)
        | bit(ingress || egress, state::FLAG_ANY_ISOLATED)
        | bit(!tables.nets4.is_empty(), state::FLAG_NETS4)
        | bit(!tables.nets6.is_empty(), state::FLAG_NETS6)
}

impl Tables {
    /// What is there after `step`, for one who keeps account of the kernel's tables.
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::PutPorts(list) => self.ports.extend(list.iter().copied()),
            Step::PutCells(list) => self.cells.extend(list.iter().copied()),
            Step::PutHosts(list) => list.iter().for_each(|(address, class)| match address {
                IpAddr::V4(a) => drop(self.hosts4.insert(*a, *class)),
                IpAddr::V6(a) => drop(self.hosts6.insert(*a, *class)),
            }),
            Step::PutNets(list) => list.iter().for_each(|(net, class)| match net {
                IpNet::V4(net) => drop(self.nets4.insert(*net, *class)),
                IpNet::V6(net) => drop(self.nets6.insert(*net, *class)),
            }),
            Step::PutPods(list) => self.pods.extend(list.iter().cloned()),
            Step::RemovePods(list) => remove(&mut self.pods, list),
            Step::RemoveHosts(list) => list.iter().for_each(|address| match address {
                IpAddr::V4(a) => drop(self.hosts4.remove(a)),
                IpAddr::V6(a) => drop(self.hosts6.remove(a)),
            }),
            Step::RemoveNets(list) => list.iter().for_each(|net| match net {
                IpNet::V4(net) => drop(self.nets4.remove(net)),
                IpNet::V6(net) => drop(self.nets6.remove(net)),
            }),
            Step::RemoveCells(list) => remove(&mut self.cells, list),
            Step::RemovePorts(list) => remove(&mut self.ports, list),
            Step::Flags(_) | Step::Adopt(_) | Step::Epoch | Step::Grace => {}
        }
    }
}

fn remove<K: Ord, V>(map: &mut BTreeMap<K, V>, keys: &[K]) {
    for key in keys {
        map.remove(key);
    }
}
