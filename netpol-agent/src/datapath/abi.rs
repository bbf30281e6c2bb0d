//! Lets aya's typed maps carry the types of `netpol_common`.

use aya::maps::MapType;
use netpol_common::{
    event::{Count, DropKey, Event, maps, verdict},
    flow::{Flow, Frag, FragKey, Key4, Key6, Quota},
    pod::{Config, Pod, door, state},
    tables::{Cell, CellKey, PortsChunk, PortsKey},
};

/// A type of the map ABI: `repr(C)`, every bit pattern valid, no padding (asserted in `netpol_common`).
///
/// # Safety
/// Only for types for which all of this holds.
pub(crate) unsafe trait Abi: Copy + 'static {}

macro_rules! abi {
    ($($type:ty),+ $(,)?) => {
        $(
            // SAFETY: `repr(C)` integers and arrays of them, without padding: `netpol_common` asserts the sizes.
            unsafe impl Abi for $type {}
        )+
    };
}

abi!(
    Cell, CellKey, Config, Count, DropKey, Event, Flow, Frag, FragKey, Key4, Key6, Pod, PortsChunk, PortsKey,
    Quota
);

/// A value of the map ABI as aya wants it (its marker trait is foreign to us and to `netpol_common`).
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plain<T: Abi>(pub(crate) T);

// SAFETY: `repr(transparent)` over a type for which `Abi` promises exactly what `aya::Pod` asks.
unsafe impl<T: Abi> aya::Pod for Plain<T> {}

/// What one map of the ABI must look like. aya opens a pinned map without comparing; we compare.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// The map's name, also of its pin.
    pub(crate) name: &'static str,
    /// Its type; arrays and hashes are not interchangeable.
    pub(crate) kind: MapType,
    /// Size of a key in bytes.
    pub(crate) key: usize,
    /// Size of a value in bytes.
    pub(crate) value: usize,
    /// How many entries it has; `None`: the object's default, or what the administrator chose.
    pub(crate) entries: Option<u32>,
}

const fn fixed(name: &'static str, kind: MapType, key: usize, value: usize, entries: u32) -> Shape {
    Shape {
        entries: Some(entries),
        ..sized(name, kind, key, value)
    }
}

const fn sized(name: &'static str, kind: MapType, key: usize, value: usize) -> Shape {
    Shape {
        name,
        kind,
        key,
        value,
        entries: None,
    }
}

/// Size of the LPM key with `bytes` of address.
const fn lpm(bytes: usize) -> usize {
    size_of::<u32>() + bytes
}

const U32: usize = size_of::<u32>();
const V6: usize = size_of::<[u32; 4]>();

/// Every map of the ABI, in the order of `netpol_common::event::maps::ALL`.
pub(crate) const SHAPES: &[Shape] = &[
    fixed(maps::STATE, MapType::Array, U32, size_of::<u64>(), STATE_WORDS),
    fixed(maps::CONFIG, MapType::Array, U32, size_of::<Config>(), 1),
    fixed(maps::PODS, MapType::Array, U32, size_of::<Pod>(), POD_SLOTS),
    sized(maps::IFACES, MapType::Hash, U32, U32),
    fixed(maps::DOORS, MapType::Array, U32, size_of::<u64>(), door::SLOTS),
    sized(maps::LOCAL4, MapType::Hash, U32, U32),
    sized(maps::LOCAL6, MapType::Hash, V6, U32),
    sized(maps::HOSTS4, MapType::Hash, U32, U32),
    sized(maps::HOSTS6, MapType::Hash, V6, U32),
    sized(maps::NETS4, MapType::LpmTrie, lpm(4), U32),
    sized(maps::NETS6, MapType::LpmTrie, lpm(16), U32),
    sized(
        maps::CELLS,
        MapType::Hash,
        size_of::<CellKey>(),
        size_of::<Cell>(),
    ),
    sized(
        maps::PORTS,
        MapType::Hash,
        size_of::<PortsKey>(),
        size_of::<PortsChunk>(),
    ),
    sized(
        maps::FLOWS4,
        MapType::LruHash,
        size_of::<Key4>(),
        size_of::<Flow>(),
    ),
    sized(
        maps::FLOWS6,
        MapType::LruHash,
        size_of::<Key6>(),
        size_of::<Flow>(),
    ),
    sized(
        maps::OPENING4,
        MapType::LruHash,
        size_of::<Key4>(),
        size_of::<Flow>(),
    ),
    sized(
        maps::OPENING6,
        MapType::LruHash,
        size_of::<Key6>(),
        size_of::<Flow>(),
    ),
    sized(
        maps::FRAGS,
        MapType::LruHash,
        size_of::<FragKey>(),
        size_of::<Frag>(),
    ),
    fixed(maps::QUOTAS, MapType::Array, U32, size_of::<Quota>(), POD_SLOTS),
    sized(
        maps::DROPS,
        MapType::PerCpuHash,
        size_of::<DropKey>(),
        size_of::<Count>(),
    ),
    fixed(
        maps::VERDICTS,
        MapType::PerCpuArray,
        U32,
        size_of::<Count>(),
        verdict::SLOTS,
    ),
    sized(maps::EVENTS, MapType::RingBuf, 0, 0),
];

/// Entries of the arrays whose size is part of the ABI.
pub(crate) const STATE_WORDS: u32 = state::WORDS;
/// Slots of `pods`: index 0 is the outside.
pub(crate) const POD_SLOTS: u32 = netpol_common::mark::MAX_INDEX + 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_map_has_a_shape_in_the_abis_order() {
        let names: Vec<_> = SHAPES.iter().map(|shape| shape.name).collect();
        assert_eq!(names, maps::ALL);
    }
}
