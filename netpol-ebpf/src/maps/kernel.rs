//! The kernel's maps.

use core::ptr::NonNull;

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    helpers::generated::bpf_jiffies64,
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf, lpm_trie::Key},
};
use netpol_common::{
    event::{Count, DropKey, Event, verdict},
    flow::{Flow, Frag, FragKey, Key4, Key6, Quota},
    pod::{self, Config, Pod, door},
    tables::{Cell, CellKey, PortsChunk, PortsKey},
};

use super::capacity;
use crate::scratch::Slots;

#[map(name = "state")]
static STATE: Array<u64> = Array::with_max_entries(pod::state::WORDS, BPF_F_MMAPABLE);
#[map(name = "config")]
static CONFIG: Array<Config> = Array::with_max_entries(1, 0);
#[map(name = "pods")]
static PODS: Array<Pod> = Array::with_max_entries(capacity::PODS, BPF_F_MMAPABLE);
#[map(name = "ifaces")]
static IFACES: HashMap<u32, u32> = HashMap::with_max_entries(capacity::PODS, BPF_F_NO_PREALLOC);
#[map(name = "doors")]
static DOORS: Array<u64> = Array::with_max_entries(door::SLOTS, BPF_F_MMAPABLE);
#[map(name = "local4")]
static LOCAL4: HashMap<u32, u32> = HashMap::with_max_entries(capacity::PODS, BPF_F_NO_PREALLOC);
#[map(name = "local6")]
static LOCAL6: HashMap<[u32; 4], u32> = HashMap::with_max_entries(2 * capacity::PODS, BPF_F_NO_PREALLOC);
#[map(name = "hosts4")]
static HOSTS4: HashMap<u32, u32> = HashMap::with_max_entries(capacity::HOSTS, BPF_F_NO_PREALLOC);
#[map(name = "hosts6")]
static HOSTS6: HashMap<[u32; 4], u32> = HashMap::with_max_entries(capacity::HOSTS, BPF_F_NO_PREALLOC);
#[map(name = "nets4")]
static NETS4: LpmTrie<u32, u32> = LpmTrie::with_max_entries(capacity::NETS, 0);
#[map(name = "nets6")]
static NETS6: LpmTrie<[u32; 4], u32> = LpmTrie::with_max_entries(capacity::NETS, 0);
#[map(name = "cells")]
static CELLS: HashMap<CellKey, Cell> = HashMap::with_max_entries(capacity::CELLS, BPF_F_NO_PREALLOC);
#[map(name = "ports")]
static PORTS: HashMap<PortsKey, PortsChunk> = HashMap::with_max_entries(capacity::PORTS, BPF_F_NO_PREALLOC);
#[map(name = "flows4")]
static FLOWS4: LruHashMap<Key4, Flow> = LruHashMap::with_max_entries(capacity::FLOWS, 0);
#[map(name = "flows6")]
static FLOWS6: LruHashMap<Key6, Flow> = LruHashMap::with_max_entries(capacity::FLOWS, 0);
#[map(name = "opening4")]
static OPENING4: LruHashMap<Key4, Flow> = LruHashMap::with_max_entries(capacity::OPENING, 0);
#[map(name = "opening6")]
static OPENING6: LruHashMap<Key6, Flow> = LruHashMap::with_max_entries(capacity::OPENING, 0);
#[map(name = "frags")]
static FRAGS: LruHashMap<FragKey, Frag> = LruHashMap::with_max_entries(capacity::FRAGS, 0);
#[map(name = "quotas")]
static QUOTAS: Array<Quota> = Array::with_max_entries(capacity::PODS, 0);
#[map(name = "drops")]
static DROPS: PerCpuHashMap<DropKey, Count> =
    PerCpuHashMap::with_max_entries(capacity::DROPS, BPF_F_NO_PREALLOC);
#[map(name = "verdicts")]
static VERDICTS: PerCpuArray<Count> = PerCpuArray::with_max_entries(verdict::SLOTS, 0);
#[map(name = "events")]
static EVENTS: RingBuf = RingBuf::with_byte_size(capacity::EVENTS, 0);
/// The event budget of this CPU: second and events sent in it. Not pinned: it means nothing to a successor.
#[map(name = "event_budget")]
static EVENT_BUDGET: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(1, 0);

/// What a run works on. It can not be interrupted by another on its CPU (TC hooks run with bottom halves disabled).
#[map(name = "scratch")]
static SCRATCH: PerCpuArray<Slots> = PerCpuArray::with_max_entries(1, 0);

/// This CPU's slots.
#[inline(always)]
#[must_use]
pub fn scratch() -> Option<NonNull<Slots>> {
    SCRATCH.get_ptr_mut(0).and_then(NonNull::new)
}

/// The kernel's `jiffies64`.
#[inline(always)]
#[must_use]
pub fn jiffies() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_jiffies64() }
}

/// A word of the `state` array.
#[inline(always)]
#[must_use]
pub fn state(word: u32) -> u64 {
    // SAFETY: a live map value; volatile, as user space stores to it at any time.
    STATE.get_ptr(word).map_or(0, |at| unsafe { at.read_volatile() })
}

/// The settings.
#[inline(always)]
#[must_use]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// A slot of the `pods` array.
#[inline(always)]
#[must_use]
pub fn pod(index: u32) -> Option<&'static Pod> {
    PODS.get(index)
}

/// The index of the pod behind a device.
#[inline(always)]
#[must_use]
pub fn iface(ifindex: &u32) -> Option<u32> {
    // SAFETY: a live map value; volatile, as user space stores to it at any time.
    let word = DOORS
        .get_ptr(door::slot(*ifindex))
        .map_or(0, |at| unsafe { at.read_volatile() });
    if door::device(word) == *ifindex {
        return Some(door::pod(word));
    }
    // SAFETY: a word of a live element.
    unsafe { IFACES.get(ifindex).copied() }
}

macro_rules! lookups {
    ($($(#[doc = $doc:literal])+ $name:ident: $map:ident, $key:ty => $value:ty;)+) => {
        $($(#[doc = $doc])+
        #[inline(always)]
        #[must_use]
        pub fn $name(key: &$key) -> Option<$value> {
            // SAFETY: a word of a live element.
            unsafe { $map.get(key).copied() }
        })+
    };
}

lookups! {
    /// Whose address this is.
    local4: LOCAL4, u32 => u32;
    /// Whose address this is.
    local6: LOCAL6, [u32; 4] => u32;
    /// The class of an exact address.
    host4: HOSTS4, u32 => u32;
    /// The class of an exact address.
    host6: HOSTS6, [u32; 4] => u32;
}

/// The class of the longest prefix that holds `address`.
#[inline(always)]
#[must_use]
pub fn net4(address: u32) -> Option<u32> {
    NETS4.get(Key::new(32, address)).copied()
}

/// The class of the longest prefix that holds `address`.
#[inline(always)]
#[must_use]
pub fn net6(address: &[u32; 4]) -> Option<u32> {
    NETS6.get(Key::new(128, *address)).copied()
}

/// What a ruleset allows for a class.
#[inline(always)]
#[must_use]
pub fn cell(key: &CellKey) -> Option<&'static Cell> {
    // SAFETY: cells are replaced as a whole, never written in place.
    unsafe { CELLS.get_ptr(key).map(|cell| &*cell) }
}

/// 512 ports of a port set.
#[inline(always)]
#[must_use]
pub fn ports(key: &PortsKey) -> Option<&'static PortsChunk> {
    // SAFETY: as for cells.
    unsafe { PORTS.get_ptr(key).map(|chunk| &*chunk) }
}

macro_rules! flow_tables {
    ($($key:ty: $find:ident, $put:ident, $remove:ident, $map:ident;)+) => {
        $(
        /// The entry of a tuple.
        #[inline(always)]
        #[must_use]
        pub fn $find(key: &$key) -> Option<*mut Flow> {
            $map.get_ptr_mut(key)
        }

        /// Writes the entry of a tuple; false where the kernel refused.
        #[inline(always)]
        pub fn $put(key: &$key, flow: &Flow) -> bool {
            $map.insert(key, flow, 0).is_ok()
        }

        /// Removes the entry of a tuple; false where there is none.
        #[inline(always)]
        pub fn $remove(key: &$key) -> bool {
            $map.remove(key).is_ok()
        }
        )+
    };
}

flow_tables! {
    Key4: answered4, put_answered4, remove_answered4, FLOWS4;
    Key6: answered6, put_answered6, remove_answered6, FLOWS6;
    Key4: opening4, put_opening4, remove_opening4, OPENING4;
    Key6: opening6, put_opening6, remove_opening6, OPENING6;
}

/// What the first fragment said.
#[inline(always)]
#[must_use]
pub fn frag(key: &FragKey) -> Option<Frag> {
    // SAFETY: a copy of a live element; a torn copy pairs ports of two packets of the same sender, receiver
    // and identification, which no receiver reassembles.
    unsafe { FRAGS.get(key).copied() }
}

/// Remembers what the first fragment says.
#[inline(always)]
pub fn put_frag(key: &FragKey, frag: &Frag) {
    let _full_is_orphaned = FRAGS.insert(key, frag, 0);
}

/// The quota of a pod.
#[inline(always)]
#[must_use]
pub fn quota(index: u32) -> Option<*mut Quota> {
    QUOTAS.get_ptr_mut(index)
}

/// Counts a drop.
#[inline(always)]
pub fn count_drop(key: &DropKey, bytes: u32) {
    match DROPS.get_ptr_mut(key) {
        // SAFETY: this CPU's own value.
        Some(count) => unsafe {
            (*count).packets += 1;
            (*count).bytes += u64::from(bytes);
        },
        None => {
            let first = Count {
                packets: 1,
                bytes: bytes.into(),
            };
            let _full_is_uncounted = DROPS.insert(key, first, 0);
        }
    }
}

/// Counts a verdict.
#[inline(always)]
pub fn count_verdict(hook: u8, reason: u8, bytes: u32) {
    if let Some(count) = VERDICTS.get_ptr_mut(verdict::slot(hook, reason)) {
        // SAFETY: this CPU's own value.
        unsafe {
            (*count).packets += 1;
            (*count).bytes += u64::from(bytes);
        }
    }
}

/// Sends an event, unless this CPU has sent its share of this second or the ring is full.
#[inline(always)]
pub fn send(event: &Event) {
    let (Some(config), Some(budget)) = (config(), EVENT_BUDGET.get_ptr_mut(0)) else {
        return;
    };
    let second = jiffies() / config.hz.max(1);
    // SAFETY: this CPU's own value.
    unsafe {
        if (*budget)[0] != second {
            *budget = [second, 0];
        }
        (*budget)[1] += 1;
        if (*budget)[1] > u64::from(config.events_per_second) {
            return;
        }
    }
    let _full_is_unsent = EVENTS.output::<Event>(event, 0);
}
