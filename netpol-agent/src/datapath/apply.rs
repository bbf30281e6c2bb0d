//! Carries out a plan on the kernel's maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use netpol_common::pod::state;
use netpol_policy::{
    model::ObjectName,
    plan::{Adoption, Plan, Step},
    tables::Tables,
};

use super::{
    Datapath, adopt,
    binder::owners,
    conntrack,
    devices::Role,
    error::{Error, Result},
    grace, kernel,
    node::{jiffies, read_back},
};

/// The bits of `state::FLAGS` that a plan writes.
const TABLE_FLAGS: u64 =
    state::FLAG_ANY_INGRESS | state::FLAG_ANY_ISOLATED | state::FLAG_NETS4 | state::FLAG_NETS6;
/// Whether netfilter, and so conntrack, sees bridged packets; absent without the module br_netfilter.
const BRIDGE_HOOK4: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";
/// As above, for IPv6.
const BRIDGE_HOOK6: &str = "/proc/sys/net/bridge/bridge-nf-call-ip6tables";
/// For so many seconds after a pod's isolation began, mid-stream TCP that conntrack did not know may be adopted.
const ADOPTION: u64 = 5;

impl Datapath {
    /// Carries out `plan`, which leads from [`Self::actual`] to `desired`.
    ///
    /// # Errors
    /// [`Error::TooSmall`] before anything is written; else a map can not be written. The steps before stand: their order is such that the policy in force is
    /// still the old one, or the new one. [`Self::actual`] is then read from the kernel again, so that the next plan (of
    /// [`netpol_policy::plan::Scope::Everything`]) starts from what is there.
    pub fn execute(&mut self, plan: &Plan, desired: &Tables) -> Result<()> {
        plan.fits(&self.maps.limits())
            .map_err(|full| Error::TooSmall(Box::new(full)))?;
        self.end_grace(plan);
        self.maps.unsettle();
        let done = self.steps(plan, desired);
        if done.is_err() {
            // What stands may be all that is wanted next, and then no plan moves it.
            self.maps.move_epoch();
        }
        self.maps.settle();
        if done.is_err() {
            self.actual = read_back(&self.maps, &self.slots)?;
        }
        done
    }

    fn steps(&mut self, plan: &Plan, desired: &Tables) -> Result<()> {
        for step in &plan.steps {
            self.step(step, desired)?;
            self.actual.apply(step);
        }
        Ok(())
    }

    /// Before the first write, so that nothing which the plan takes away is adopted.
    fn end_grace(&mut self, plan: &Plan) {
        for name in grace::ends(&self.graced, plan, &self.actual) {
            if let Some(slot) = self.slots.get(&name) {
                self.maps.set_adopt_until(slot.index, 0);
            }
            self.graced.remove(&name);
        }
        self.graced.retain(|name| self.slots.get(name).is_some());
    }

    fn step(&mut self, step: &Step, desired: &Tables) -> Result<()> {
        let maps = &mut self.maps;
        match step {
            Step::Flags(flags) => maps.set_flags(TABLE_FLAGS, *flags),
            Step::PutPorts(list) => list
                .iter()
                .try_for_each(|(key, chunk)| maps.set_ports(*key, Some(*chunk)))?,
            Step::PutCells(list) => list
                .iter()
                .try_for_each(|(key, cell)| maps.set_cell(*key, Some(*cell)))?,
            Step::PutHosts(list) => list
                .iter()
                .try_for_each(|(address, class)| maps.set_host(*address, Some(*class)))?,
            Step::PutNets(list) => list
                .iter()
                .try_for_each(|(net, class)| maps.set_net(*net, Some(*class)))?,
            Step::PutPods(list) => {
                for (name, rules) in list {
                    // A pod for which no index was free has no device in the kernel either: it is cut off.
                    if let Some(slot) = self.slots.get(name) {
                        maps.set_rules(slot.index, *rules);
                    }
                }
            }
            // Their slots were freed when they left the set of local pods.
            Step::RemovePods(_) => {}
            Step::Adopt(list) => self.adopt(list, desired),
            Step::Epoch => maps.move_epoch(),
            Step::Grace => kernel::grace(),
            Step::RemoveHosts(list) => list
                .iter()
                .try_for_each(|address| maps.set_host(*address, None))?,
            Step::RemoveNets(list) => list.iter().try_for_each(|net| maps.set_net(*net, None))?,
            Step::RemoveCells(list) => list.iter().try_for_each(|key| maps.set_cell(*key, None))?,
            Step::RemovePorts(list) => list.iter().try_for_each(|key| maps.set_ports(*key, None))?,
        }
        Ok(())
    }

    /// Takes over again what conntrack knows of all isolated pods.
    pub(super) fn adopt_isolated(&mut self) {
        let actual = std::mem::take(&mut self.actual);
        let isolated: Vec<Adoption> = actual
            .pods
            .iter()
            .filter(|(_, rules)| rules.ingress != 0 || rules.egress != 0)
            .map(|(pod, rules)| Adoption {
                pod: pod.clone(),
                ingress: rules.ingress != 0,
                egress: rules.egress != 0,
            })
            .collect();
        self.adopt(&isolated, &actual);
        self.actual = actual;
    }

    /// Takes over the connections of pods whose isolation begins. Where conntrack is blind (no netfilter, bridged packets
    /// that it never sees) there is the grace for mid-stream TCP instead: enforcement does not wait for it.
    fn adopt(&mut self, list: &[Adoption], desired: &Tables) {
        match self.try_adopt(list, desired) {
            Ok(flows) => tracing::info!(
                pods = list.len(),
                flows,
                "adopted the connections of newly isolated pods"
            ),
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "connections of newly isolated pods could not be adopted from conntrack"
            ),
        }
    }

    fn try_adopt(&mut self, list: &[Adoption], desired: &Tables) -> Result<usize> {
        let now = jiffies(&mut self.ebpf)?;
        let begins: BTreeSet<_> = list.iter().map(|adoption| &adoption.pod).collect();
        let mut ends = BTreeMap::new();
        for (address, name) in owners(&self.pods) {
            let Some(slot) = self.slots.get(&name) else {
                continue;
            };
            let rules = desired.pods.get(&name).copied().unwrap_or_default();
            ends.insert(
                address,
                adopt::End {
                    slot,
                    ingress: rules.ingress != 0,
                    egress: rules.egress != 0,
                    begins: begins.contains(&name),
                },
            );
        }
        let node: BTreeSet<IpAddr> = self
            .seen
            .addresses
            .values()
            .flatten()
            .map(ipnet::IpNet::addr)
            .collect();
        // One before the current: each is judged at its next packet.
        let epoch = self.maps.epoch().wrapping_sub(1) as u32;
        let connections = conntrack::dump();
        // Until our programs are in force, others record what begins after this.
        let moving = self
            .takeover
            .as_ref()
            .is_some_and(|takeover| !takeover.shares_flows);
        let known = connections.as_deref().unwrap_or_default();
        let mut graced = BTreeSet::new();
        for (address, end) in ends.iter().filter(|(_, end)| end.begins) {
            let hook = if address.is_ipv6() {
                BRIDGE_HOOK6
            } else {
                BRIDGE_HOOK4
            };
            let hooked = std::fs::read_to_string(hook).is_ok_and(|value| value.trim() == "1");
            if moving || !adopt::knows_all(known, &ends, address.is_ipv6(), self.pods_are_bridged(), hooked) {
                self.maps
                    .set_adopt_until(end.slot.index, now + ADOPTION * self.hz);
                graced.insert(end.slot.index);
            }
        }
        let names = list.iter().map(|adoption| &adoption.pod);
        let given = |name: &&ObjectName| {
            self.slots
                .get(name)
                .is_some_and(|slot| graced.contains(&slot.index))
        };
        self.graced.extend(names.filter(given).cloned());
        let mut written = 0;
        for entry in adopt::entries(&connections?, &ends, &node, epoch, now) {
            written += usize::from(self.maps.adopt(&entry)?);
        }
        Ok(written)
    }

    fn pods_are_bridged(&self) -> bool {
        let is_pod = |index: &u32| matches!(self.roles.get(index), Some(Role::Pod(_)));
        self.seen
            .devices
            .values()
            .any(|device| device.master.is_some() && is_pod(&device.index))
    }
}
