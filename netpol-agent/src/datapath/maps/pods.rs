//! Local pods: their rulesets and lives, their devices and addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netpol_common::{
    event::maps,
    flow::Quota,
    pod::{Pod, door, rulesets},
};
use netpol_policy::tables::PodRules;

use super::{Maps, Plain, absent_is_fine, keys, put, read};
use crate::datapath::{
    error::{Error, Result},
    pods::Slot,
    settings::{address4, address6, word4, words6},
};

/// Words of [`Pod`], for whole-word stores.
mod pod_word {
    pub(super) const RULESETS: usize = 0;
    pub(super) const ADOPT_UNTIL: usize = 1;
    /// Incarnation in the low half, flags in the high half.
    pub(super) const LIFE: usize = 2;
    pub(super) const ADDR4: [usize; 2] = [3, 4];
    pub(super) const ADDR6: [usize; 2] = [5, 6];
}
const _: () = {
    assert!(std::mem::offset_of!(Pod, rulesets) == 8 * pod_word::RULESETS);
    assert!(std::mem::offset_of!(Pod, adopt_until) == 8 * pod_word::ADOPT_UNTIL);
    assert!(std::mem::offset_of!(Pod, incarnation) == 8 * pod_word::LIFE);
    assert!(std::mem::offset_of!(Pod, flags) == 8 * pod_word::LIFE + 4);
    assert!(std::mem::offset_of!(Pod, addr4) == 8 * pod_word::ADDR4[0]);
    assert!(std::mem::offset_of!(Pod, addr6) == 8 * pod_word::ADDR6[0]);
    assert!(
        cfg!(target_endian = "little"),
        "two halves of a word are packed low first"
    );
};

impl Maps {
    /// Both rulesets of a pod, in one store.
    pub(crate) fn set_rules(&mut self, index: u32, rules: PodRules) {
        self.pods
            .store(index, pod_word::RULESETS, rulesets(rules.ingress, rules.egress));
    }

    /// Both rulesets of a pod.
    pub(crate) fn rules(&self, index: u32) -> PodRules {
        let word = self.pods.load(index, pod_word::RULESETS);
        PodRules {
            ingress: word as u32,
            egress: (word >> 32) as u32,
        }
    }

    /// Which life of the index the kernel has; 0 = none.
    pub(crate) fn incarnation(&self, index: u32) -> u32 {
        self.pods.load(index, pod_word::LIFE) as u32
    }

    /// Writes a pod's addresses and flags, then its incarnation: from then on it lives.
    pub(crate) fn set_pod(&mut self, slot: Slot, flags: u32, addresses: &[IpAddr]) {
        let (mut v4, mut v6) = (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
        for address in addresses {
            match address {
                IpAddr::V4(address) => v4 = *address,
                IpAddr::V6(address) => v6 = *address,
            }
        }
        let v6 = words6(v6);
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let words = [
            (pod_word::ADDR4[0], word4(v4).into()),
            (pod_word::ADDR6[0], pair(v6[0], v6[1])),
            (pod_word::ADDR6[1], pair(v6[2], v6[3])),
            (pod_word::LIFE, pair(slot.incarnation, flags)),
        ];
        for (word, value) in words {
            if self.pods.load(slot.index, word) != value {
                self.pods.store(slot.index, word, value);
            }
        }
    }

    /// Ends a pod's life: its flows no longer count. Nothing may point at the index any more.
    pub(crate) fn free_pod(&mut self, index: u32) {
        let rest = pod_word::ADDR4.into_iter().chain(pod_word::ADDR6);
        for word in [pod_word::LIFE, pod_word::RULESETS, pod_word::ADOPT_UNTIL]
            .into_iter()
            .chain(rest)
        {
            self.pods.store(index, word, 0);
        }
    }

    /// Forgets what was counted for pods that are gone: their indices will be others'.
    pub(crate) fn forget_drops(&mut self, gone: &BTreeSet<u32>) -> Result<()> {
        let failed = |error| Error::map(maps::DROPS, "removing a counter", 0)(error);
        let keys: Vec<_> = self.drops.keys().collect::<Result<_, _>>().map_err(failed)?;
        for key in keys.iter().filter(|key| gone.contains(&key.0.pod)) {
            absent_is_fine(self.drops.remove(key)).map_err(failed)?;
        }
        gone.iter()
            .try_for_each(|index| self.quotas.set(*index, Plain(Quota::default()), 0))
            .map_err(Error::map(maps::QUOTAS, "writing", 0))
    }

    /// Until when a pod's connections may be adopted in mid-stream.
    pub(crate) fn set_adopt_until(&mut self, index: u32, jiffies: u64) {
        self.pods.store(index, pod_word::ADOPT_UNTIL, jiffies);
    }

    /// Device → pod index.
    pub(crate) fn ifaces(&self) -> Result<BTreeMap<u32, u32>> {
        Ok(keys(read(&self.ifaces, maps::IFACES)?, |index| index))
    }

    /// Whose a device is; `None`: nobody's.
    pub(crate) fn set_iface(&mut self, ifindex: u32, pod: Option<u32>) -> Result<()> {
        let map = self.named(maps::IFACES);
        let slot = door::slot(ifindex);
        // What is found first never says other than the hash, wherever this ends.
        if door::device(self.doors.load(slot, 0)) == ifindex {
            self.doors.store(slot, 0, 0);
        }
        put(&mut self.ifaces, map, ifindex, pod)?;
        if let Some(pod) = pod
            && self.doors.load(slot, 0) == 0
        {
            self.doors.store(slot, 0, door::word(ifindex, pod));
        }
        Ok(())
    }

    /// Local pods' addresses → index.
    pub(crate) fn local(&self) -> Result<BTreeMap<IpAddr, u32>> {
        let v4 = read(&self.local4, maps::LOCAL4)?
            .into_iter()
            .map(|(word, pod)| (address4(word).into(), pod));
        let v6 = read(&self.local6, maps::LOCAL6)?
            .into_iter()
            .map(|(words, pod)| (address6(words).into(), pod));
        Ok(v4.chain(v6).collect())
    }

    /// Whose an address is; `None`: no local pod's.
    pub(crate) fn set_local(&mut self, address: IpAddr, pod: Option<u32>) -> Result<()> {
        match address {
            IpAddr::V4(address) => {
                let map = self.named(maps::LOCAL4);
                put(&mut self.local4, map, word4(address), pod)
            }
            IpAddr::V6(address) => {
                let map = self.named(maps::LOCAL6);
                put(&mut self.local6, map, words6(address), pod)
            }
        }
    }
}
