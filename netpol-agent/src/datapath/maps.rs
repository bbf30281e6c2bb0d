//! The kernel's maps, typed: every read and write of the agent.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd as _,
};

use aya::{
    Pod as Plainly,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuHashMap, lpm_trie::Key},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netpol_common::{
    event::{Count, DropKey, maps},
    flow::{Flow, Frag, FragKey, Key4, Key6},
    pod::{Config, Pod, rulesets, state},
    tables::{Cell, CellKey, PortsChunk, PortsKey},
};
use netpol_policy::{
    plan::{self, Sizes},
    tables::{PodRules, Tables},
};

use super::{
    abi::{POD_SLOTS, Plain, STATE_WORDS},
    adopt,
    error::{Error, Result},
    pods::Slot,
    settings::{address4, address6, word4, words6},
    words::Words,
};

type Hash<K, V> = HashMap<MapData, K, V>;
type Trie<K> = LpmTrie<MapData, K, u32>;

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

/// All of them.
pub(crate) struct Maps {
    hosts4: Hash<u32, u32>,
    hosts6: Hash<[u32; 4], u32>,
    nets4: Trie<u32>,
    nets6: Trie<[u32; 4]>,
    cells: Hash<Plain<CellKey>, Plain<Cell>>,
    ports: Hash<Plain<PortsKey>, Plain<PortsChunk>>,
    ifaces: Hash<u32, u32>,
    local4: Hash<u32, u32>,
    local6: Hash<[u32; 4], u32>,
    flows4: Hash<Plain<Key4>, Plain<Flow>>,
    flows6: Hash<Plain<Key6>, Plain<Flow>>,
    opening4: Hash<Plain<Key4>, Plain<Flow>>,
    opening6: Hash<Plain<Key6>, Plain<Flow>>,
    drops: PerCpuHashMap<MapData, Plain<DropKey>, Plain<Count>>,
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

fn put_net<K: Plainly>(
    map: &mut Trie<K>,
    (name, capacity): (&'static str, u32),
    key: &Key<K>,
    value: Option<u32>,
) -> Result<()> {
    match value {
        Some(value) => map
            .insert(key, value, 0)
            .map_err(Error::map(name, "writing a prefix", capacity)),
        None => absent_is_fine(map.remove(key)).map_err(Error::map(name, "removing a prefix", capacity)),
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

fn read_plain<K, V>(map: &Hash<Plain<K>, Plain<V>>, name: &'static str) -> Result<BTreeMap<K, V>>
where
    K: super::abi::Abi + Ord,
    V: super::abi::Abi,
{
    map.iter()
        .map(|entry| entry.map(|(key, value)| (key.0, value.0)))
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
            local4: typed(found, maps::LOCAL4)?,
            local6: typed(found, maps::LOCAL6)?,
            flows4: typed(found, maps::FLOWS4)?,
            flows6: typed(found, maps::FLOWS6)?,
            opening4: typed(found, maps::OPENING4)?,
            opening6: typed(found, maps::OPENING6)?,
            drops: typed(found, maps::DROPS)?,
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
        (name, self.capacity.get(name).copied().unwrap_or(0))
    }

    /// The class of an exact address; `None` removes it.
    pub(crate) fn set_host(&mut self, address: IpAddr, class: Option<u32>) -> Result<()> {
        match address {
            IpAddr::V4(address) => {
                let map = self.named(maps::HOSTS4);
                put(&mut self.hosts4, map, word4(address), class)
            }
            IpAddr::V6(address) => {
                let map = self.named(maps::HOSTS6);
                put(&mut self.hosts6, map, words6(address), class)
            }
        }
    }

    /// The class of a prefix; `None` removes it.
    pub(crate) fn set_net(&mut self, net: IpNet, class: Option<u32>) -> Result<()> {
        match net {
            IpNet::V4(net) => {
                let key = Key::new(net.prefix_len().into(), word4(net.addr()));
                let map = self.named(maps::NETS4);
                put_net(&mut self.nets4, map, &key, class)
            }
            IpNet::V6(net) => {
                let key = Key::new(net.prefix_len().into(), words6(net.addr()));
                let map = self.named(maps::NETS6);
                put_net(&mut self.nets6, map, &key, class)
            }
        }
    }

    /// What a ruleset allows for a class; `None` removes the cell.
    pub(crate) fn set_cell(&mut self, key: CellKey, cell: Option<Cell>) -> Result<()> {
        let map = self.named(maps::CELLS);
        put(&mut self.cells, map, Plain(key), cell.map(Plain))
    }

    /// 512 ports of a port set; `None` removes them.
    pub(crate) fn set_ports(&mut self, key: PortsKey, chunk: Option<PortsChunk>) -> Result<()> {
        let map = self.named(maps::PORTS);
        put(&mut self.ports, map, Plain(key), chunk.map(Plain))
    }

    /// Everything that a plan writes, except pods.
    pub(crate) fn read_tables(&self) -> Result<Tables> {
        let nets4 = self.nets4.iter().map(|entry| {
            entry.map(|(key, class)| {
                (
                    Ipv4Net::new_assert(address4(key.data()), key.prefix_len() as u8),
                    class,
                )
            })
        });
        let nets6 = self.nets6.iter().map(|entry| {
            entry.map(|(key, class)| {
                (
                    Ipv6Net::new_assert(address6(key.data()), key.prefix_len() as u8),
                    class,
                )
            })
        });
        Ok(Tables {
            hosts4: keys(read(&self.hosts4, maps::HOSTS4)?, address4),
            hosts6: keys(read(&self.hosts6, maps::HOSTS6)?, address6),
            nets4: nets4
                .collect::<Result<_, _>>()
                .map_err(Error::map(maps::NETS4, "reading", 0))?,
            nets6: nets6
                .collect::<Result<_, _>>()
                .map_err(Error::map(maps::NETS6, "reading", 0))?,
            cells: read_plain(&self.cells, maps::CELLS)?,
            ports: read_plain(&self.ports, maps::PORTS)?,
            pods: BTreeMap::new(),
        })
    }

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
        Ok(())
    }

    /// Until when a pod's connections may be adopted in mid-stream.
    pub(crate) fn set_adopt_until(&mut self, index: u32, jiffies: u64) {
        self.pods.store(index, pod_word::ADOPT_UNTIL, jiffies);
    }

    /// The policy epoch.
    pub(crate) fn epoch(&self) -> u64 {
        self.state.load(state::EPOCH, 0)
    }

    /// Everything that was allowed before is judged again.
    pub(crate) fn move_epoch(&mut self) {
        self.state.store(state::EPOCH, 0, self.epoch() + 1);
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

    /// Device → pod index.
    pub(crate) fn ifaces(&self) -> Result<BTreeMap<u32, u32>> {
        Ok(keys(read(&self.ifaces, maps::IFACES)?, |index| index))
    }

    /// Whose a device is; `None`: nobody's.
    pub(crate) fn set_iface(&mut self, ifindex: u32, pod: Option<u32>) -> Result<()> {
        let map = self.named(maps::IFACES);
        put(&mut self.ifaces, map, ifindex, pod)
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

/// The policy epoch.
pub(crate) fn epoch(map: Map) -> Result<u64> {
    let state = Array::<MapData, u64>::try_from(map);
    state
        .and_then(|state| state.get(&state::EPOCH, 0))
        .map_err(Error::map(maps::STATE, "reading", STATE_WORDS))
}

/// Drop counters, summed over CPUs.
pub(crate) fn drops(map: Map) -> Result<BTreeMap<DropKey, Count>> {
    let failed = |error| Error::map(maps::DROPS, "reading", 0)(error);
    let map: PerCpuHashMap<MapData, Plain<DropKey>, Plain<Count>> = map.try_into().map_err(failed)?;
    map.iter()
        .map(|entry| {
            entry.map(|(key, counts)| {
                let sum = counts.iter().fold(Count::default(), |sum, count| Count {
                    packets: sum.packets + count.0.packets,
                    bytes: sum.bytes + count.0.bytes,
                });
                (key.0, sum)
            })
        })
        .collect::<Result<_, _>>()
        .map_err(failed)
}

/// How many entries a map has; `None` where it is always full (arrays) or has no entries (rings). The kernel
/// keeps no count: this walks the keys.
pub(crate) fn fill(map: &Map, name: &'static str) -> Option<usize> {
    fn hash<K: Plainly, V: Plainly>(map: &Map) -> Option<usize> {
        Some(
            HashMap::<&MapData, K, V>::try_from(map)
                .ok()?
                .keys()
                .flatten()
                .count(),
        )
    }
    fn trie<K: Plainly>(map: &Map) -> Option<usize> {
        Some(
            LpmTrie::<&MapData, K, u32>::try_from(map)
                .ok()?
                .keys()
                .flatten()
                .count(),
        )
    }
    match name {
        maps::IFACES | maps::LOCAL4 | maps::HOSTS4 => hash::<u32, u32>(map),
        maps::LOCAL6 | maps::HOSTS6 => hash::<[u32; 4], u32>(map),
        maps::NETS4 => trie::<u32>(map),
        maps::NETS6 => trie::<[u32; 4]>(map),
        maps::CELLS => hash::<Plain<CellKey>, Plain<Cell>>(map),
        maps::PORTS => hash::<Plain<PortsKey>, Plain<PortsChunk>>(map),
        maps::FLOWS4 | maps::OPENING4 => hash::<Plain<Key4>, Plain<Flow>>(map),
        maps::FLOWS6 | maps::OPENING6 => hash::<Plain<Key6>, Plain<Flow>>(map),
        maps::FRAGS => hash::<Plain<FragKey>, Plain<Frag>>(map),
        maps::DROPS => {
            let drops = PerCpuHashMap::<&MapData, Plain<DropKey>, Plain<Count>>::try_from(map).ok()?;
            Some(drops.keys().flatten().count())
        }
        _ => None,
    }
}
