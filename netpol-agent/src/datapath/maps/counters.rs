//! Per-CPU counters, summed.

use std::collections::BTreeMap;

use aya::maps::{Map, MapData, PerCpuArray, PerCpuHashMap, PerCpuValues};
use netpol_common::event::{Count, DropKey, maps, verdict};

use crate::datapath::{
    abi::Plain,
    error::{Error, Result},
};

type Drops = PerCpuHashMap<MapData, Plain<DropKey>, Plain<Count>>;

fn sum(counts: &PerCpuValues<Plain<Count>>) -> Count {
    counts
        .iter()
        .fold(Count::default(), |sum, count| sum.plus(count.0))
}

/// Drop counters of a map that status has opened.
pub(crate) fn drops(map: Map) -> Result<BTreeMap<DropKey, Count>> {
    read(&map.try_into().map_err(Error::map(maps::DROPS, "reading", 0))?)
}

/// Verdict counters of a map that status has opened, by hook and reason.
pub(crate) fn verdicts(map: Map) -> Result<BTreeMap<(u8, u8), Count>> {
    let failed = |error| Error::map(maps::VERDICTS, "reading", verdict::SLOTS)(error);
    let map: PerCpuArray<MapData, Plain<Count>> = map.try_into().map_err(failed)?;
    read_verdicts(&map)
}

fn read_verdicts(map: &PerCpuArray<MapData, Plain<Count>>) -> Result<BTreeMap<(u8, u8), Count>> {
    verdict::all()
        .map(|(hook, reason)| {
            let counts = map.get(&verdict::slot(hook, reason), 0)?;
            Ok(((hook, reason), sum(&counts)))
        })
        .collect::<Result<_, _>>()
        .map_err(Error::map(maps::VERDICTS, "reading", verdict::SLOTS))
}

fn read(map: &Drops) -> Result<BTreeMap<DropKey, Count>> {
    map.iter()
        .map(|entry| entry.map(|(key, counts)| (key.0, sum(&counts))))
        .collect::<Result<_, _>>()
        .map_err(Error::map(maps::DROPS, "reading", 0))
}
