//! Lets aya's maps carry the types of `netpol_common`.

use netpol_common::{
    event::{Count, DropKey},
    flow::{Flow, Frag, FragKey, Key4, Key6, Quota},
    pod::{Config, Pod},
    tables::{Cell, CellKey, PortsChunk, PortsKey},
};

/// A type of the map ABI.
///
/// # Safety
/// Only for `repr(C)` types without padding for which every bit pattern is valid.
pub unsafe trait Abi: Copy + 'static {}

macro_rules! abi {
    ($($type:ty),+ $(,)?) => {
        $(
            // SAFETY: integers, or `repr(C)` structs of them whose sizes `netpol_common` asserts to hold no padding.
            unsafe impl Abi for $type {}
        )+
    };
}

abi!(
    u32, u64, [u32; 2], [u32; 4], Cell, CellKey, Config, Count, DropKey, Flow, Frag, FragKey, Key4, Key6,
    Pod, PortsChunk, PortsKey, Quota,
);

/// A value of the map ABI as aya wants it (its marker trait is foreign to us and to `netpol_common`).
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Plain<T>(pub(super) T);

// SAFETY: `repr(transparent)` over a type for which `Abi` promises exactly what `aya::Pod` asks.
unsafe impl<T: Abi> aya::Pod for Plain<T> {}
