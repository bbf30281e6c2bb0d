//! The loaded object, its maps, and single packets through its programs.

use std::{collections::BTreeMap, env, path::PathBuf};

use anyhow::{Context, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuHashMap, PerCpuValues, RingBuf, lpm_trie},
    programs::{ProgramFd, SchedClassifier, TestRun, TestRunOptions},
    util::nr_cpus,
};
use netpol_common::event::{Count, DropKey, Event, maps, verdict};

use super::abi::{Abi, Plain};

/// One of the four programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    /// TC ingress of a pod's device.
    FromPod,
    /// TC egress of a pod's device.
    ToPod,
    /// TC ingress of an outside device.
    Arrive,
    /// TC egress of an outside device.
    Settle,
}

impl Hook {
    /// The program's name in the object.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::ToPod => "to_pod",
            Self::Arrive => "arrive",
            Self::Settle => "settle",
        }
    }

    /// `netpol_common::event::hook::*`
    #[must_use]
    pub const fn number(self) -> u8 {
        use netpol_common::event::hook;
        match self {
            Self::FromPod => hook::FROM_POD,
            Self::ToPod => hook::TO_POD,
            Self::Arrive => hook::ARRIVE,
            Self::Settle => hook::SETTLE,
        }
    }
}

/// What a program sees besides the frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Input {
    /// `skb->mark`
    pub mark: u32,
    /// The device; must exist in the calling thread's network namespace.
    pub ifindex: u32,
    /// Where the packet came in; 0 = made on this host.
    pub ingress_ifindex: u32,
}

/// What a program did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Whether it dropped the packet.
    pub dropped: bool,
    /// The mark afterwards.
    pub mark: u32,
    /// What it told, where it told anything.
    pub event: Option<Event>,
}

impl Run {
    /// The reason's name as people see it; `none` where there was no event.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        self.event
            .map_or("none", |event| netpol_common::reason::name(event.reason))
    }
}

/// The object, loaded without pins.
pub struct Machine {
    ebpf: Ebpf,
    events: RingBuf<MapData>,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").finish_non_exhaustive()
    }
}

/// Where the object is: `NETPOL_EBPF_OBJECT`, else what `cargo xtask ebpf` builds.
#[must_use]
pub fn object_path() -> PathBuf {
    env::var_os("NETPOL_EBPF_OBJECT").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bpf/netpol.o")),
        PathBuf::from,
    )
}

impl Machine {
    /// Loads the object; `capacities` by map name for the maps that should not have their default size.
    ///
    /// # Errors
    /// Where there is no object, or the kernel refuses it (with the verifier's words).
    pub fn load(capacities: &[(&str, u32)]) -> Result<Self> {
        let path = object_path();
        let object = std::fs::read(&path)
            .with_context(|| format!("read {}: build it with `cargo xtask ebpf`", path.display()))?;
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        for (name, entries) in capacities {
            loader.map_max_entries(name, *entries);
        }
        let mut ebpf = loader
            .load(&object)
            .with_context(|| format!("load {}", path.display()))?;
        for hook in [Hook::FromPod, Hook::ToPod, Hook::Arrive, Hook::Settle] {
            let name = hook.program();
            let program: &mut SchedClassifier = ebpf
                .program_mut(name)
                .with_context(|| format!("the object has no program {name}"))?
                .try_into()?;
            program
                .load()
                .with_context(|| format!("load the program {name}"))?;
        }
        let events = ebpf
            .take_map(maps::EVENTS)
            .context("the object has no map events")?;
        Ok(Self {
            ebpf,
            events: RingBuf::try_from(events)?,
        })
    }

    /// The program of `hook`, for another object to tail-call.
    ///
    /// # Errors
    /// Where its descriptor can not be duplicated.
    pub fn program(&self, hook: Hook) -> Result<ProgramFd> {
        let program: &SchedClassifier = self
            .ebpf
            .program(hook.program())
            .context("the object was loaded with its programs")?
            .try_into()?;
        Ok(program.fd()?.try_clone()?)
    }

    fn map(&mut self, name: &str) -> Result<&mut Map> {
        self.ebpf
            .map_mut(name)
            .with_context(|| format!("the object has no map {name}"))
    }

    /// Stores an element of an array.
    ///
    /// # Errors
    /// Where the map or the element does not exist.
    pub fn store<T: Abi>(&mut self, map: &str, index: u32, value: T) -> Result<()> {
        let mut array = Array::<_, Plain<T>>::try_from(self.map(map)?)?;
        array
            .set(index, Plain(value), 0)
            .with_context(|| format!("store {map}[{index}]"))
    }

    /// Reads an element of an array.
    ///
    /// # Errors
    /// Where the map or the element does not exist.
    pub fn read<T: Abi>(&mut self, map: &str, index: u32) -> Result<T> {
        let array = Array::<_, Plain<T>>::try_from(self.map(map)?)?;
        Ok(array
            .get(&index, 0)
            .with_context(|| format!("read {map}[{index}]"))?
            .0)
    }

    /// Stores an element of a hash.
    ///
    /// # Errors
    /// Where the map does not exist or is full.
    pub fn insert<K: Abi, V: Abi>(&mut self, map: &str, key: K, value: V) -> Result<()> {
        let mut hash = HashMap::<_, Plain<K>, Plain<V>>::try_from(self.map(map)?)?;
        hash.insert(Plain(key), Plain(value), 0)
            .with_context(|| format!("insert into {map}"))
    }

    /// Removes an element of a hash, where it is there.
    ///
    /// # Errors
    /// Where the map does not exist.
    pub fn remove<K: Abi, V: Abi>(&mut self, map: &str, key: K) -> Result<()> {
        let mut hash = HashMap::<_, Plain<K>, Plain<V>>::try_from(self.map(map)?)?;
        let _absent = hash.remove(&Plain(key));
        Ok(())
    }

    /// Everything in a hash.
    ///
    /// # Errors
    /// Where the map does not exist.
    pub fn entries<K: Abi, V: Abi>(&mut self, map: &str) -> Result<Vec<(K, V)>> {
        let hash = HashMap::<_, Plain<K>, Plain<V>>::try_from(self.map(map)?)?;
        hash.iter()
            .map(|entry| {
                entry
                    .map(|(key, value)| (key.0, value.0))
                    .with_context(|| format!("list {map}"))
            })
            .collect()
    }

    /// Removes everything from a hash.
    ///
    /// # Errors
    /// Where the map does not exist.
    pub fn clear<K: Abi, V: Abi>(&mut self, map: &str) -> Result<()> {
        for (key, _) in self.entries::<K, V>(map)? {
            self.remove::<K, V>(map, key)?;
        }
        Ok(())
    }

    /// Stores a prefix of `len` bits of `address` (network byte order).
    ///
    /// # Errors
    /// Where the map does not exist or is full.
    pub fn insert_net<K: Abi>(&mut self, map: &str, len: u8, address: K, class: u32) -> Result<()> {
        let mut trie = lpm_trie::LpmTrie::<_, Plain<K>, u32>::try_from(self.map(map)?)?;
        let key = lpm_trie::Key::new(len.into(), Plain(address));
        trie.insert(&key, class, 0)
            .with_context(|| format!("insert into {map}"))
    }

    /// Removes all prefixes.
    ///
    /// # Errors
    /// Where the map does not exist.
    pub fn clear_nets<K: Abi>(&mut self, map: &str) -> Result<()> {
        let mut trie = lpm_trie::LpmTrie::<_, Plain<K>, u32>::try_from(self.map(map)?)?;
        let keys: Vec<_> = trie.keys().collect::<Result<_, _>>()?;
        for key in keys {
            trie.remove(&key)?;
        }
        Ok(())
    }

    /// The drop counters, all CPUs together.
    ///
    /// # Errors
    /// Where they can not be read.
    pub fn drops(&mut self) -> Result<Vec<(DropKey, Count)>> {
        let hash = PerCpuHashMap::<_, Plain<DropKey>, Plain<Count>>::try_from(self.map(maps::DROPS)?)?;
        let mut drops = Vec::new();
        for entry in hash.iter() {
            let (key, counts) = entry?;
            let mut sum = Count::default();
            for count in counts.iter() {
                sum.packets += count.0.packets;
                sum.bytes += count.0.bytes;
            }
            drops.push((key.0, sum));
        }
        drops.sort_by_key(|(key, _)| *key);
        Ok(drops)
    }

    /// Sets all drop counters back.
    ///
    /// # Errors
    /// Where they can not be removed.
    pub fn clear_drops(&mut self) -> Result<()> {
        let mut hash = PerCpuHashMap::<_, Plain<DropKey>, Plain<Count>>::try_from(self.map(maps::DROPS)?)?;
        let keys: Vec<_> = hash.keys().collect::<Result<_, _>>()?;
        for key in keys {
            hash.remove(&key)?;
        }
        Ok(())
    }

    /// What was counted, all CPUs together, by slot; slots without a packet are left out.
    ///
    /// # Errors
    /// Where the map can not be read.
    pub fn verdicts(&mut self) -> Result<BTreeMap<u32, Count>> {
        let array = PerCpuArray::<_, Plain<Count>>::try_from(self.map(maps::VERDICTS)?)?;
        let mut found = BTreeMap::new();
        for slot in 0..verdict::SLOTS {
            let counts = array.get(&slot, 0)?;
            let sum = counts
                .iter()
                .fold(Count::default(), |sum, count| sum.plus(count.0));
            if sum != Count::default() {
                found.insert(slot, sum);
            }
        }
        Ok(found)
    }

    /// Sets all counters of verdicts back.
    ///
    /// # Errors
    /// Where they can not be written.
    pub fn clear_verdicts(&mut self) -> Result<()> {
        let mut array = PerCpuArray::<_, Plain<Count>>::try_from(self.map(maps::VERDICTS)?)?;
        let cpus = nr_cpus().map_err(|(path, error)| anyhow::anyhow!("{path}: {error}"))?;
        for slot in 0..verdict::SLOTS {
            let zeros = PerCpuValues::try_from(vec![Plain(Count::default()); cpus])?;
            array.set(slot, zeros, 0)?;
        }
        Ok(())
    }

    /// One packet through the program of `hook`.
    ///
    /// # Errors
    /// Where the kernel refuses the frame (shorter than an Ethernet header), the program answers with
    /// anything but *next* or *drop*, or more than one event comes.
    pub fn run(&mut self, hook: Hook, frame: &[u8], input: Input) -> Result<Run> {
        let before = context(input);
        let mut after = [0; CONTEXT];
        let program: &SchedClassifier = self
            .ebpf
            .program(hook.program())
            .context("the object was loaded with its programs")?
            .try_into()?;
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&before),
            ctx_out: Some(&mut after),
            ..TestRunOptions::default()
        };
        let result = program.test_run(options).with_context(|| {
            format!(
                "run {} on a frame of {} bytes with {input:?}",
                hook.program(),
                frame.len()
            )
        })?;
        let dropped = match result.return_value as i32 {
            -1 => false,
            2 => true,
            other => bail!("{} answered {other}", hook.program()),
        };
        let mut events = Vec::new();
        while let Some(item) = self.events.next() {
            ensure!(
                item.len() == size_of::<Event>(),
                "an event of {} bytes",
                item.len()
            );
            // SAFETY: the length was checked, and every bit pattern is an `Event`.
            events.push(unsafe { item.as_ptr().cast::<Event>().read_unaligned() });
        }
        ensure!(events.len() <= 1, "{} events for one packet", events.len());
        Ok(Run {
            dropped,
            mark: word(&after, MARK),
            event: events.pop(),
        })
    }
}

/// Set where the kernel's test run knows no `ingress_ifindex` and `NETPOL_EBPF_OBJECT` names the object that was
/// built to read it from `priority`.
const INGRESS_IN_PRIORITY: &str = "NETPOL_INGRESS_IN_PRIORITY";

/// At least as long as any kernel's `struct __sk_buff`; the kernel accepts a longer one that ends in zeros.
const CONTEXT: usize = 256;
// Offsets in `struct __sk_buff` (include/uapi/linux/bpf.h).
const MARK: usize = 8;
const PRIORITY: usize = 32;
const INGRESS_IFINDEX: usize = 36;
const IFINDEX: usize = 40;

pub(super) fn context(input: Input) -> [u8; CONTEXT] {
    let mut context = [0; CONTEXT];
    let ingress_at = if env::var_os(INGRESS_IN_PRIORITY).is_some() {
        PRIORITY
    } else {
        INGRESS_IFINDEX
    };
    for (at, value) in [
        (MARK, input.mark),
        (ingress_at, input.ingress_ifindex),
        (IFINDEX, input.ifindex),
    ] {
        context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    context
}

fn word(context: &[u8; CONTEXT], at: usize) -> u32 {
    u32::from_ne_bytes(context[at..at + 4].try_into().expect("four bytes"))
}
