//! The local pods' slots and addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use netpol_common::{
    mark::MAX_INDEX,
    pod::{NODE_INDEX, POD_EXEMPT},
};

use super::Datapath;
use crate::datapath::{
    binder::{LocalPod, owners},
    devices::{Role, Seen},
    error::{Error, Result},
    object::slots_file,
    pods::Changes,
};

impl Datapath {
    /// Gives each of `pods` its slot, addresses and settings. Their rules come by the plan, their devices by
    /// [`Self::bind`].
    ///
    /// # Errors
    /// A map can not be written, or there are more pods than indices: those are named, all others are in place.
    pub fn set_pods(&mut self, pods: Vec<LocalPod>) -> Result<()> {
        self.pods = pods;
        self.unbound = self.count_unbound();
        if self.seen.devices.is_empty() {
            // The settings also tell of devices: what an earlier run has written must not be taken back meanwhile.
            self.observe(false)?;
        }
        let changes = self
            .slots
            .assign(self.pods.iter().map(|pod| (&pod.name, &pod.uid)));
        self.unsaved |= changes != Changes::default();
        let saved = if self.unsaved {
            // Before the kernel knows: a slot that is noted and not in the kernel is no slot after a restart.
            self.slots.save(&slots_file(&self.options.files))
        } else {
            Ok(())
        };
        self.unsaved = saved.is_err();
        self.free(&changes)?;
        self.write_config()?;
        self.write_pods();
        self.write_local()?;
        // A file that can not be written must not keep a pod without its rules; only a restart would miss it.
        saved?;
        match changes.refused.first() {
            Some(pod) => Err(Error::TooManyPods(MAX_INDEX, pod.to_string())),
            None => Ok(()),
        }
    }

    /// Ends the lives of slots that are nobody's: those freed now, and those that no file accounts for.
    fn free(&mut self, changes: &Changes) -> Result<()> {
        let held: BTreeSet<u32> = self.slots.iter().map(|(_, slot)| slot.index).collect();
        let mut ended: BTreeSet<u32> = changes.freed.iter().map(|slot| slot.index).collect();
        ended.extend(
            (1..=MAX_INDEX).filter(|index| !held.contains(index) && self.maps.incarnation(*index) != 0),
        );
        if ended.is_empty() {
            return Ok(());
        }
        // First, and whatever fails then: who has new rules to come must not pass for one who has them.
        let slots = &self.slots;
        self.actual.pods.retain(|name, _| slots.get(name).is_some());
        // A new life of a name starts without rules.
        for (name, _) in &changes.taken {
            self.actual.pods.remove(name);
        }
        for (device, index) in self.maps.ifaces()? {
            if ended.contains(&index) {
                self.maps.set_iface(device, None)?;
            }
        }
        for (address, index) in self.maps.local()? {
            if ended.contains(&index) {
                self.maps.set_local(address, None)?;
            }
        }
        ended.iter().for_each(|index| self.maps.free_pod(*index));
        self.maps.forget_drops(&ended)
    }

    fn write_pods(&mut self) {
        for pod in &self.pods {
            if let Some(slot) = self.slots.get(&pod.name) {
                let flags = if pod.exempt { POD_EXEMPT } else { 0 };
                self.maps.set_pod(slot, flags, &pod.addresses);
            }
        }
    }

    /// Whose each address is that somebody else must not send from: a pod's, or the node's own as pods see it.
    pub(super) fn write_local(&mut self) -> Result<()> {
        let mut desired: BTreeMap<IpAddr, u32> = gateways(&self.seen, &self.roles)
            .into_iter()
            .map(|address| (address, NODE_INDEX))
            .collect();
        let pods = owners(&self.pods).into_iter();
        desired.extend(pods.filter_map(|(address, name)| Some((address, self.slots.get(&name)?.index))));
        let actual = self.maps.local()?;
        for (address, index) in &desired {
            if actual.get(address) != Some(index) {
                self.maps.set_local(*address, Some(*index))?;
            }
        }
        for address in actual.keys().filter(|address| !desired.contains_key(address)) {
            self.maps.set_local(*address, None)?;
        }
        Ok(())
    }
}

/// The node's addresses that pods have as neighbours: those of the bridges that pods are ports of, and of the host
/// sides of their veths.
fn gateways(seen: &Seen, roles: &BTreeMap<u32, Role>) -> BTreeSet<IpAddr> {
    let veths = roles
        .iter()
        .filter(|(_, role)| matches!(role, Role::Pod(_)))
        .map(|(index, _)| *index);
    let masters = veths.clone().filter_map(|index| seen.devices.get(&index)?.master);
    veths
        .chain(masters)
        .filter_map(|index| seen.addresses.get(&index))
        .flatten()
        .map(ipnet::IpNet::addr)
        .collect()
}
