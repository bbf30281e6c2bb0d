//! What each map means: a number that moves with the layout or meaning of its keys or values.
//!
//! Two versions that number a map alike share it while one takes over from the other; the same shape alone proves nothing. Two
//! things must hold in every version: `state` is an array of 64-bit words of which `pod::state::EPOCH` is the epoch, and
//! a pod keeps its index. The numbers count from the first release on: what changes before it moves none.

use crate::event::maps;

/// The last ABI that did not note its layouts: all its maps had number 1.
pub const UNMARKED_ABI: u32 = 3;

/// The packet's mark: not a map, but read by the other version's programs, too.
pub const MARK: (&str, u16) = ("mark", 1);

/// Maps whose number is not 1.
#[cfg(not(feature = "abi-next"))]
const CHANGED: &[(&str, u16)] = &[];
#[cfg(feature = "abi-next")]
const CHANGED: &[(&str, u16)] = &[(maps::CELLS, 2), (maps::DROPS, 2)];

/// The number of a map.
#[must_use]
pub fn of(map: &str) -> u16 {
    CHANGED
        .iter()
        .find(|(name, _)| *name == map)
        .map_or(1, |(_, number)| *number)
}

/// The mark and every map with its number.
pub fn all() -> impl Iterator<Item = (&'static str, u16)> {
    core::iter::once(MARK).chain(maps::ALL.iter().map(|map| (*map, of(map))))
}
