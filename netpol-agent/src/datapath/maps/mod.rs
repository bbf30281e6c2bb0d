//! The kernel's maps, typed: every read and write of the agent.

mod counters;
mod pinned;
mod pods;
mod tables;

use std::{collections::BTreeMap, os::fd::AsFd as _};

use aya::{
    Pod as Plainly,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuHashMap},
};
use netpol_common::{
    event::{Count, DropKey, maps},
    flow::{Flow, Key4, Key6, Quota},
    pod::{Config, Pod, door, state},
    tables::{Cell, CellKey, PortsChunk, PortsKey},
};
use netpol_policy::plan::{self, Sizes};

pub(crate) use self::{
    counters::{drops, verdicts},
    pinned::{epoch, fill, refused},
};
use super::{
    abi::{POD_SLOTS, Plain, STATE_WORDS},
    adopt,
    error::{Error, Result},
    words::Words,
};

type Hash<K, V> = HashMap<MapData, K, V>;
type Trie<K> = LpmTrie<MapData, K, u32>;

/// All of them.
pub(crate) struct Maps {
    hosts4: Hash<u32, u32>,
    hosts6: Hash<[u32; 4], u32>,
    nets4: Trie<u32>,
    nets6: Trie<[u32; 4]>,
    cells: Hash<Plain<CellKey>, Plain<Cell>>,
    ports: Hash<Plain<PortsKey>, Plain<PortsChunk>>,
    ifaces: Hash<u32, u32>,
    doors: Words,
    local4: Hash<u32, u32>,
    local6: Hash<[u32; 4], u32>,
    flows4: Hash<Plain<Key4>, Plain<Flow>>,
    flows6: Hash<Plain<Key6>, Plain<Flow>>,
    opening4: Hash<Plain<Key4>, Plain<Flow>>,
    opening6: Hash<Plain<Key6>, Plain<Flow>>,
    drops: PerCpuHashMap<MapData, Plain<DropKey>, Plain<Count>>,
    quotas: Array<MapData, Plain<Quota>>,
    config: Array<MapData, Plain<Config>>,
    state: Words,
    pods: Words,
    capacity: BTreeMap<&'static str, u32>,
}

fn typed<T>(found: &mut BTreeMap<&'static str, Map>, name: &'static str) -> Result<T>
where
    T: TryFrom<Map, Error = MapError>,
{
    let map = found.remove(name).ok_or(Error::Missing { kind: "map", name })?;
    T::try_from(map).map_err(Error::map(name, "opening", 0))
}

/// Writes `value`, or removes the key where there is none.
fn put<K: Plainly, V: Plainly>(
    map: &mut Hash<K, V>,
    (name, capacity): (&'static str, u32),
    key: K,
    value: Option<V>,
) -> Result<()> {
    match value {
        Some(value) => map
            .insert(key, value, 0)
            .map_err(Error::map(name, "writing an entry", capacity)),
        None => absent_is_fine(map.remove(&key)).map_err(Error::map(name, "removing an entry", capacity)),
    }
}

fn absent_is_fine(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
        Err(error) if super::error::os_error(&error) == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

fn read<K: Plainly + Ord, V: Plainly>(map: &Hash<K, V>, name: &'static str) -> Result<Vec<(K, V)>> {
    map.iter()
        .collect::<Result<_, _>>()
        .map_err(Error::map(name, "reading", 0))
}

impl Maps {
    /// Takes the maps apart.
    pub(crate) fn new(
        found: &mut BTreeMap<&'static str, Map>,
        capacity: BTreeMap<&'static str, u32>,
    ) -> Result<Self> {
        let state = words(found, maps::STATE, STATE_WORDS, size_of::<u64>())?;
        let pods = words(found, maps::PODS, POD_SLOTS, size_of::<Pod>())?;
        Ok(Self {
            hosts4: typed(found, maps::HOSTS4)?,
            hosts6: typed(found, maps::HOSTS6)?,
            nets4: typed(found, maps::NETS4)?,
            nets6: typed(found, maps::NETS6)?,
            cells: typed(found, maps::CELLS)?,
            ports: typed(found, maps::PORTS)?,
            ifaces: typed(found, maps::IFACES)?,
            doors: words(found, maps::DOORS, door::SLOTS, size_of::<u64>())?,
            local4: typed(found, maps::LOCAL4)?,
            local6: typed(found, maps::LOCAL6)?,
            flows4: typed(found, maps::FLOWS4)?,
            flows6: typed(found, maps::FLOWS6)?,
            opening4: typed(found, maps::OPENING4)?,
            opening6: typed(found, maps::OPENING6)?,
            drops: typed(found, maps::DROPS)?,
            quotas: typed(found, maps::QUOTAS)?,
            config: typed(found, maps::CONFIG)?,
            state,
            pods,
            capacity,
        })
    }

    /// How many entries the tables that a plan writes may have. Pods have a limit of their own: each that gets no
    /// index is refused by name, and the others are served.
    pub(crate) fn limits(&self) -> Sizes {
        Sizes::new(|map| match map {
            plan::Map::Pods => usize::MAX,
            map => self
                .capacity
                .get(map.name())
                .map_or(usize::MAX, |entries| *entries as usize),
        })
    }

    fn named(&self, name: &'static str) -> (&'static str, u32) {
        (name, self.capacity(name))
    }

    /// `max_entries` of a map.
    pub(crate) fn capacity(&self, name: &str) -> u32 {
        self.capacity.get(name).copied().unwrap_or(0)
    }

    /// The policy epoch.
    pub(crate) fn epoch(&self) -> u64 {
        self.state.load(state::EPOCH, 0)
    }

    /// Where the epoch goes on.
    pub(crate) fn set_epoch(&mut self, epoch: u64) {
        self.state.store(state::EPOCH, 0, epoch);
    }

    /// Everything that was allowed before is judged again.
    pub(crate) fn move_epoch(&mut self) {
        self.state.store(state::EPOCH, 0, self.epoch() + 1);
    }

    /// Whether every flow that was judged by what is no more is known to be judged again.
    pub(crate) fn is_settled(&self) -> bool {
        self.state.load(state::SETTLED, 0) == self.epoch() + 1
    }

    /// From now on verdicts may change before the epoch moves.
    pub(crate) fn unsettle(&mut self) {
        self.state.store(state::SETTLED, 0, 0);
    }

    /// Verdicts are those of this epoch, until [`Self::unsettle`].
    pub(crate) fn settle(&mut self) {
        self.state.store(state::SETTLED, 0, self.epoch() + 1);
    }

    /// `FLAG_*` bits.
    pub(crate) fn flags(&self) -> u64 {
        self.state.load(state::FLAGS, 0)
    }

    /// Writes the bits of `mask` only.
    pub(crate) fn set_flags(&mut self, mask: u64, flags: u64) {
        self.state
            .store(state::FLAGS, 0, self.flags() & !mask | flags & mask);
    }

    /// The settings in force.
    pub(crate) fn config(&self) -> Result<Config> {
        let config = self.config.get(&0, 0);
        config
            .map(|config| config.0)
            .map_err(Error::map(maps::CONFIG, "reading", 1))
    }

    /// Writes the settings.
    pub(crate) fn set_config(&mut self, config: &Config) -> Result<()> {
        self.config
            .set(0, Plain(*config), 0)
            .map_err(Error::map(maps::CONFIG, "writing", 1))
    }

    /// Writes an adopted flow unless the tuple has an entry already; true if it was written.
    pub(crate) fn adopt(&mut self, entry: &adopt::Entry) -> Result<bool> {
        let answered = entry.flow.state != 0;
        let flow = Plain(entry.flow);
        match (entry.key, answered) {
            (adopt::Key::V4(key), true) => put_new(&mut self.flows4, maps::FLOWS4, Plain(key), flow),
            (adopt::Key::V4(key), false) => put_new(&mut self.opening4, maps::OPENING4, Plain(key), flow),
            (adopt::Key::V6(key), true) => put_new(&mut self.flows6, maps::FLOWS6, Plain(key), flow),
            (adopt::Key::V6(key), false) => put_new(&mut self.opening6, maps::OPENING6, Plain(key), flow),
        }
    }
}

fn put_new<K: Plainly, V: Plainly>(
    map: &mut Hash<K, V>,
    name: &'static str,
    key: K,
    value: V,
) -> Result<bool> {
    const BPF_NOEXIST: u64 = 1;
    match map.insert(key, value, BPF_NOEXIST) {
        Ok(()) => Ok(true),
        Err(error) if super::error::os_error(&error) == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(Error::map(name, "adopting a flow", 0)(error)),
    }
}

fn keys<K, V, A: Ord>(entries: Vec<(K, V)>, name: impl Fn(K) -> A) -> BTreeMap<A, V> {
    entries
        .into_iter()
        .map(|(key, value)| (name(key), value))
        .collect()
}

fn words(
    found: &mut BTreeMap<&'static str, Map>,
    name: &'static str,
    len: u32,
    size: usize,
) -> Result<Words> {
    let Some(Map::Array(data)) = found.remove(name) else {
        return Err(Error::Missing { kind: "map", name });
    };
    // The mapping keeps the map alive, the descriptor is not needed further.
    Words::map(name, data.fd().as_fd(), len, size)
}
