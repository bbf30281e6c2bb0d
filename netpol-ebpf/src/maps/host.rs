//! Plain hash maps in place of the kernel's, one set a thread.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    ptr::NonNull,
};

use netpol_common::{
    event::{Count, DropKey, Event},
    flow::{Flow, Frag, FragKey, Key4, Key6, Quota},
    pod::{Config, Pod, state},
    tables::{Cell, CellKey, PortsChunk, PortsKey},
};

use crate::scratch::Slots;

/// Everything the programs read and write.
#[derive(Default)]
#[expect(
    missing_docs,
    reason = "each field is the map of its name in `netpol_common::event::maps`"
)]
pub struct World {
    pub state: [u64; state::WORDS as usize],
    pub config: Config,
    pub pods: HashMap<u32, &'static Pod>,
    pub ifaces: HashMap<u32, u32>,
    pub local4: HashMap<u32, u32>,
    pub local6: HashMap<[u32; 4], u32>,
    pub hosts4: HashMap<u32, u32>,
    pub hosts6: HashMap<[u32; 4], u32>,
    /// (prefix length, network) → class
    pub nets4: HashMap<(u32, u32), u32>,
    /// (prefix length, network) → class
    pub nets6: HashMap<(u32, u128), u32>,
    pub cells: HashMap<CellKey, &'static Cell>,
    pub ports: HashMap<PortsKey, &'static PortsChunk>,
    pub flows4: HashMap<Key4, Box<Flow>>,
    pub flows6: HashMap<Key6, Box<Flow>>,
    pub opening4: HashMap<Key4, Box<Flow>>,
    pub opening6: HashMap<Key6, Box<Flow>>,
    pub frags: HashMap<FragKey, Frag>,
    pub quotas: HashMap<u32, Box<Quota>>,
    pub drops: BTreeMap<DropKey, Count>,
    /// (hook, reason) → count
    pub verdicts: BTreeMap<(u8, u8), Count>,
    pub events: Vec<Event>,
    pub jiffies: u64,
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::default();
}

/// Reads or changes this thread's maps.
pub fn world<T>(body: impl FnOnce(&mut World) -> T) -> T {
    WORLD.with_borrow_mut(body)
}

/// See `kernel::scratch`. One a thread, as in the kernel one a CPU.
#[must_use]
pub fn scratch() -> Option<NonNull<Slots>> {
    thread_local!(static SCRATCH: NonNull<Slots> = NonNull::from(Box::leak(Box::default())));
    Some(SCRATCH.with(|slots| *slots))
}

/// See `kernel::jiffies`.
#[must_use]
pub fn jiffies() -> u64 {
    world(|w| w.jiffies)
}

/// See `kernel::state`.
#[must_use]
pub fn state(word: u32) -> u64 {
    world(|w| w.state[word as usize])
}

/// See `kernel::config`. Leaks a copy: tests are short.
#[must_use]
pub fn config() -> Option<&'static Config> {
    thread_local!(static LAST: RefCell<Option<&'static Config>> = const { RefCell::new(None) });
    let config = world(|w| w.config);
    LAST.with_borrow_mut(|last| {
        if last.is_none_or(|last| *last != config) {
            *last = Some(Box::leak(Box::new(config)));
        }
        *last
    })
}

/// See `kernel::pod`. A free slot is all zeros.
#[must_use]
pub fn pod(index: u32) -> Option<&'static Pod> {
    static FREE: Pod = Pod {
        rulesets: 0,
        adopt_until: 0,
        incarnation: 0,
        flags: 0,
        addr4: [0; 4],
        addr6: [0; 4],
    };
    Some(world(|w| w.pods.get(&index).copied()).unwrap_or(&FREE))
}

/// See `kernel::iface`.
#[must_use]
pub fn iface(key: &u32) -> Option<u32> {
    world(|w| w.ifaces.get(key).copied())
}

/// See `kernel::local4`.
#[must_use]
pub fn local4(key: &u32) -> Option<u32> {
    world(|w| w.local4.get(key).copied())
}

/// See `kernel::local6`.
#[must_use]
pub fn local6(key: &[u32; 4]) -> Option<u32> {
    world(|w| w.local6.get(key).copied())
}

/// See `kernel::host4`.
#[must_use]
pub fn host4(key: &u32) -> Option<u32> {
    world(|w| w.hosts4.get(key).copied())
}

/// See `kernel::host6`.
#[must_use]
pub fn host6(key: &[u32; 4]) -> Option<u32> {
    world(|w| w.hosts6.get(key).copied())
}

/// See `kernel::net4`.
#[must_use]
pub fn net4(address: u32) -> Option<u32> {
    let address = u32::from_be(address);
    world(|w| {
        (0..=32u32).rev().find_map(|len| {
            let mask = u32::MAX.checked_shl(32 - len).unwrap_or(0);
            w.nets4.get(&(len, address & mask)).copied()
        })
    })
}

/// See `kernel::net6`.
#[must_use]
pub fn net6(address: &[u32; 4]) -> Option<u32> {
    let address = address
        .iter()
        .fold(0u128, |all, word| all << 32 | u128::from(u32::from_be(*word)));
    world(|w| {
        (0..=128u32).rev().find_map(|len| {
            let mask = u128::MAX.checked_shl(128 - len).unwrap_or(0);
            w.nets6.get(&(len, address & mask)).copied()
        })
    })
}

/// See `kernel::cell`.
#[must_use]
pub fn cell(key: &CellKey) -> Option<&'static Cell> {
    world(|w| w.cells.get(key).copied())
}

/// See `kernel::ports`.
#[must_use]
pub fn ports(key: &PortsKey) -> Option<&'static PortsChunk> {
    world(|w| w.ports.get(key).copied())
}

macro_rules! flow_tables {
    ($($key:ty: $find:ident, $put:ident, $remove:ident, $map:ident;)+) => {
        $(
        /// The entry of a tuple.
        #[must_use]
        pub fn $find(key: &$key) -> Option<*mut Flow> {
            world(|w| w.$map.get_mut(key).map(|flow| &raw mut **flow))
        }

        /// Writes the entry of a tuple.
        pub fn $put(key: &$key, flow: &Flow) -> bool {
            world(|w| w.$map.insert(*key, Box::new(*flow)));
            true
        }

        /// Removes the entry of a tuple; false where there is none.
        pub fn $remove(key: &$key) -> bool {
            // Leaked, as the kernel keeps an element until the program has ended.
            world(|w| w.$map.remove(key).map(Box::leak)).is_some()
        }
        )+
    };
}

flow_tables! {
    Key4: answered4, put_answered4, remove_answered4, flows4;
    Key6: answered6, put_answered6, remove_answered6, flows6;
    Key4: opening4, put_opening4, remove_opening4, opening4;
    Key6: opening6, put_opening6, remove_opening6, opening6;
}

/// See `kernel::frag`.
#[must_use]
pub fn frag(key: &FragKey) -> Option<Frag> {
    world(|w| w.frags.get(key).copied())
}

/// See `kernel::put_frag`.
pub fn put_frag(key: &FragKey, frag: &Frag) {
    world(|w| w.frags.insert(*key, *frag));
}

/// See `kernel::quota`.
#[must_use]
pub fn quota(index: u32) -> Option<*mut Quota> {
    Some(world(|w| &raw mut **w.quotas.entry(index).or_default()))
}

/// See `kernel::count_drop`.
pub fn count_drop(key: &DropKey, bytes: u32) {
    world(|w| {
        let count = w.drops.entry(*key).or_default();
        count.packets += 1;
        count.bytes += u64::from(bytes);
    });
}

/// See `kernel::count_verdict`.
pub fn count_verdict(hook: u8, reason: u8, bytes: u32) {
    world(|w| {
        let count = w.verdicts.entry((hook, reason)).or_default();
        count.packets += 1;
        count.bytes += u64::from(bytes);
    });
}

/// See `kernel::send`.
pub fn send(event: &Event) {
    world(|w| w.events.push(*event));
}
