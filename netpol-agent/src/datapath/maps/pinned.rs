//! What `status` reads of a pinned map, whether or not an agent runs.

use aya::{
    Pod as Plainly,
    maps::{Array, HashMap, LpmTrie, Map, MapData, PerCpuHashMap},
};
use netpol_common::{
    event::{Count, DropKey, maps},
    flow::{Flow, Frag, FragKey, Key4, Key6, Quota},
    pod::state,
    tables::{Cell, CellKey, PortsChunk, PortsKey},
};

use crate::datapath::{
    abi::{Plain, STATE_WORDS},
    error::{Error, Result},
};

/// The policy epoch.
pub(crate) fn epoch(map: Map) -> Result<u64> {
    let state = Array::<MapData, u64>::try_from(map);
    state
        .and_then(|state| state.get(&state::EPOCH, 0))
        .map_err(Error::map(maps::STATE, "reading", STATE_WORDS))
}

/// Openings that were not recorded because their pod had used up its quota: pod's index and how many, where there are any.
pub(crate) fn refused(map: Map) -> Result<Vec<(u32, u32)>> {
    let failed = |error| Error::map(maps::QUOTAS, "reading", 0)(error);
    let map: Array<MapData, Plain<Quota>> = map.try_into().map_err(failed)?;
    let mut found = Vec::new();
    for (index, quota) in (0..).zip(map.iter()) {
        match quota.map_err(failed)?.0.refused {
            0 => {}
            refused => found.push((index, refused)),
        }
    }
    Ok(found)
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
