//! The node's devices: whose each is, and which programs it has.

use std::collections::{BTreeMap, BTreeSet};

use netpol_common::pod::{BARE_INDEX, BRIDGE_INDEX, OUTSIDE_INDEX, state};
use netpol_policy::model::ObjectName;

use super::Datapath;
use crate::datapath::{
    attach::{Hook, Target},
    devices::Role,
    error::{Error, Result},
    netlink,
};

/// What is in force on a pod's device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Guard {
    /// Nothing, or not all of it: its programs are not attached.
    None,
    /// What pods get that are not known.
    Unknown,
    /// Its pod's rules.
    Pod,
}

/// A program that is to be on a device.
struct Place {
    hook: Hook,
    index: u32,
    name: String,
    /// Whose the device is: of a pod that is known or not; `None` where it leads outside.
    known: Option<bool>,
}

/// In which order programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::datapath) enum Order {
    /// As always.
    InFirst,
    /// Where another version's programs are on all devices and do not ask our flows: see [`Datapath::take_over`].
    OutFirst,
}

impl Datapath {
    /// Looks at the devices of the calling thread's network namespace and at what names their pods; `closely`, also
    /// at whether somebody has removed what is attached.
    ///
    /// # Errors
    /// netlink or the CNI cache can not be read.
    pub fn look(&mut self, closely: bool) -> Result<()> {
        let failure = self.observe(closely)?;
        self.write_config()?;
        self.write_local()?;
        failure.map_or(Ok(()), Err)
    }

    /// As [`Self::look`], without telling the kernel; returns what could not be asked or understood.
    pub(super) fn observe(&mut self, closely: bool) -> Result<Option<Error>> {
        let seen = netlink::look()?;
        let earlier = match self.binder.cache_serves() {
            true => BTreeMap::new(),
            false => self.bound_earlier()?,
        };
        let before = &self.seen.devices;
        // Devices that are gone are tidied up.
        let same = |index| match (before.get(&index), seen.devices.get(&index)) {
            (Some(before), Some(now)) => before.is(now),
            _ => true,
        };
        self.attachments.verify(closely, same)?;
        let (roles, failure) = self
            .binder
            .roles(&seen, &self.pods, self.attachments.outside(), earlier);
        let unread = (!seen.unread.is_empty()).then(|| Error::Unread(seen.unread.clone()));
        self.roles = roles;
        self.seen = seen;
        self.unbound = self.count_unbound();
        Ok(unread.or(failure))
    }

    /// Whose the kernel says that devices are, as far as those pods live on.
    fn bound_earlier(&self) -> Result<BTreeMap<u32, ObjectName>> {
        let lives: BTreeMap<u32, &ObjectName> = self
            .pods
            .iter()
            .filter_map(|pod| Some((self.slots.of(&pod.name, &pod.uid)?.index, &pod.name)))
            .collect();
        let named = |(device, index)| Some((device, (*lives.get(&index)?).clone()));
        Ok(self.maps.ifaces()?.into_iter().filter_map(named).collect())
    }

    /// Whether nothing may be concluded from the absence of a device: nobody has looked yet, or it was not understood.
    fn may_be_there(&self, device: u32) -> bool {
        self.seen.devices.is_empty() || self.seen.unread.contains(&device)
    }

    /// What the kernel has to know of devices that are no pod's, by ifindex.
    fn doors(&self) -> BTreeMap<u32, u32> {
        let kind = |index: &u32, role: &Role| {
            let device = self.seen.devices.get(index)?;
            match role {
                Role::Outside if device.bare => Some(BARE_INDEX),
                Role::Outside => Some(OUTSIDE_INDEX),
                Role::None(_) if device.kind == "bridge" => Some(BRIDGE_INDEX),
                _ => None,
            }
        };
        let roles = self.roles.iter();
        roles
            .filter_map(|(index, role)| Some((*index, kind(index, role)?)))
            .collect()
    }

    /// Whether an outside device has no link layer.
    pub(super) fn has_bare(&self) -> bool {
        self.doors().values().any(|kind| *kind == BARE_INDEX)
    }

    /// Tells the kernel whose each device is, before a program runs on it: one would take a bare device's IP header for a link
    /// layer's. A pod whose rules are not in place is left out, so that its packets are
    /// dropped rather than passed without rules.
    ///
    /// # Errors
    /// A map can not be written.
    pub fn bind(&mut self) -> Result<()> {
        let doors = self.doors();
        let mut pods = BTreeMap::new();
        for (device, role) in &self.roles {
            let Role::Pod(pod) = role else { continue };
            let Some(pod) = pod.as_ref().filter(|pod| self.actual.pods.contains_key(*pod)) else {
                continue;
            };
            if let Some(slot) = self.slots.get(pod) {
                pods.insert(*device, slot.index);
            }
        }
        let actual = self.maps.ifaces()?;
        for (device, index) in doors.iter().chain(&pods) {
            if actual.get(device) != Some(index) {
                self.maps.set_iface(*device, Some(*index))?;
            }
        }
        for device in actual.into_keys() {
            let desired = doors.contains_key(&device) || pods.contains_key(&device);
            if !desired && !self.may_be_there(device) {
                self.maps.set_iface(device, None)?;
            }
        }
        self.bound = pods.into_keys().collect();
        Ok(())
    }

    /// How far each pod's device has come, by ifindex.
    pub fn pod_devices(&self) -> impl Iterator<Item = (u32, Guard)> {
        let pods = self.roles.iter().filter(|(_, role)| matches!(role, Role::Pod(_)));
        pods.map(|(index, _)| {
            let attached = self.attachments.on(*index);
            let guard = match attached.as_slice() {
                [_, _] if self.bound.contains(index) => Guard::Pod,
                [_, _] => Guard::Unknown,
                [Hook::ToPod] if self.drops_unmarked() => Guard::Unknown,
                _ => Guard::None,
            };
            (*index, guard)
        })
    }

    /// Takes note that pods on devices that no earlier run has attached to already run, and that nothing has judged them so
    /// far: their connections are adopted when their isolation begins. (A pod on another device without rules has lost
    /// them: it stays cut off until it has new ones.)
    pub fn admit_running(&mut self) {
        for (device, role) in &self.roles {
            let Role::Pod(Some(pod)) = role else { continue };
            if !self.watched.contains(device) && self.slots.get(pod).is_some() {
                self.actual.pods.entry(pod.clone()).or_default();
            }
        }
    }

    /// Puts the programs on all devices, ways in before ways out, and takes them off what needs none.
    /// Each failure is returned; the other devices are served all the same.
    pub fn attach(&mut self) -> Vec<Error> {
        self.attach_in(Order::InFirst)
    }

    pub(in crate::datapath) fn attach_in(&mut self, order: Order) -> Vec<Error> {
        let mut failures = Vec::new();
        for place in self.missing(order) {
            failures.extend(self.attach_to(&place).err());
        }
        failures.extend(self.tidy().err());
        failures
    }

    /// As [`Self::attach`]; but where only pods' devices are new, one program is attached, and it is told whether there are
    /// more. Each waits for an RCU grace period, and what is known of one pod by then need not wait for all others.
    pub fn attach_next(&mut self) -> (Vec<Error>, bool) {
        let missing = self.missing(Order::InFirst);
        // What another version holds stays missing until it is taken over.
        if self.takeover.is_some() || missing.iter().any(|place| place.known.is_none()) {
            return (self.attach(), false);
        }
        let mut failures = Vec::new();
        let mut left = missing.iter();
        for place in left.by_ref() {
            match self.attach_to(place) {
                Ok(()) => break,
                Err(error) => failures.push(error),
            }
        }
        let more = left.len() > 0;
        failures.extend(self.tidy().err());
        (failures, more)
    }

    /// Programs that are not on their devices, in the order in which they are to be attached.
    fn missing(&self, order: Order) -> Vec<Place> {
        let mut places: Vec<Place> = Vec::new();
        for (index, role) in &self.roles {
            let Some(device) = self.seen.devices.get(index) else {
                continue;
            };
            let (hooks, known) = match role {
                Role::Pod(pod) => ([Hook::FromPod, Hook::ToPod], Some(pod.is_some())),
                Role::Outside => ([Hook::Arrive, Hook::Settle], None),
                Role::None(_) => continue,
            };
            let there = self.attachments.on(*index);
            let missing = hooks.into_iter().filter(|hook| !there.contains(hook));
            places.extend(missing.map(|hook| Place {
                hook,
                index: *index,
                name: device.name.clone(),
                known,
            }));
        }
        // No way out enforces before every way in tells who sends. But where only pods' devices are new, those whose pods are known
        // come first, as these are about to start. Each is finished before the next is begun; or, where nobody takes what has no
        // mark anyway, what is sent to all of them is guarded first.
        let only_pods = places.iter().all(|place| place.known.is_some());
        match order {
            Order::InFirst if only_pods && self.drops_unmarked() => {
                places.sort_by_key(|place| (place.known != Some(true), place.hook.is_way_in(), place.index));
            }
            Order::InFirst if only_pods => {
                places.sort_by_key(|place| (place.known != Some(true), place.index, !place.hook.is_way_in()));
            }
            Order::InFirst => places.sort_by_key(|place| (!place.hook.is_way_in(), place.index)),
            Order::OutFirst => places.sort_by_key(|place| (place.hook.is_way_in(), place.index)),
        }
        places
    }

    /// Whether what a device without programs sends reaches nobody, as it has no mark: where any pod of the node is isolated.
    fn drops_unmarked(&self) -> bool {
        self.maps.flags() & state::FLAG_ANY_ISOLATED != 0
    }

    /// A device that went meanwhile is no failure: it will be announced.
    fn attach_to(&mut self, place: &Place) -> Result<()> {
        let (index, name) = (place.index, place.name.as_str());
        let attached = self
            .attachments
            .attach(&mut self.ebpf, Target { index, name }, place.hook);
        if attached.is_err() && nix::net::if_::if_nametoindex(name) != Ok(index) {
            return Ok(());
        }
        attached
    }

    /// Takes programs off devices that need none, and removes the pins of devices that are gone.
    fn tidy(&mut self) -> Result<()> {
        for index in self.attachments.pinned()? {
            if self.may_be_there(index) {
                continue;
            }
            let name = self.seen.devices.get(&index).map(|device| device.name.clone());
            if matches!(self.roles.get(&index), None | Some(Role::None(_))) {
                self.attachments.detach(index, name.as_deref())?;
            }
        }
        Ok(())
    }

    /// Devices with their roles and the programs that are on them, by ifindex.
    #[must_use]
    pub fn devices(&self) -> Vec<(&str, u32, &Role, Vec<Hook>)> {
        self.roles
            .iter()
            .filter_map(|(index, role)| {
                let device = self.seen.devices.get(index)?;
                Some((device.name.as_str(), *index, role, self.attachments.on(*index)))
            })
            .collect()
    }

    /// Local pods for which no device was found, and veths that no pod is known for.
    #[must_use]
    pub fn unbound(&self) -> (usize, usize) {
        self.unbound
    }

    /// Counted where pods or devices change: it is asked for at every wake.
    pub(super) fn count_unbound(&self) -> (usize, usize) {
        let bound: BTreeSet<&ObjectName> = self
            .roles
            .values()
            .filter_map(|role| match role {
                Role::Pod(pod) => pod.as_ref(),
                _ => None,
            })
            .collect();
        let pods = self.pods.iter().filter(|pod| !bound.contains(&pod.name)).count();
        let devices = self
            .roles
            .values()
            .filter(|role| **role == Role::Pod(None))
            .count();
        (pods, devices)
    }
}
