//! What the compiler writes: address → class, (ruleset, class) → cell, port sets.
//!
//! An address is looked up in the hash of exact addresses first and in the prefix trie only on a miss; in
//! neither, its class is [`CLASS_OTHER`]. A ruleset (one direction of one pod; replicas share one) says for each class
//! which ports are allowed: its [`Cell`]. A class without a cell gets the ruleset's default cell (class
//! [`CLASS_ANY`]), which holds the rules without peers; [`RULESET_HAS_ANY`] in the ruleset's id says
//! whether there is one. Every allowed port of the union of all matching rules is in that one cell, so a
//! verdict costs the same with one rule and with ten thousand.

/// Class of an address that no peer of a live ruleset names.
pub const CLASS_OTHER: u32 = 0;
/// The key of a ruleset's default cell.
pub const CLASS_ANY: u32 = u32::MAX;

/// Not isolated.
pub const RULESET_NONE: u32 = 0;
/// Bit of a ruleset's id: it has a default cell.
pub const RULESET_HAS_ANY: u32 = 1 << 31;

/// Key of a cell.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CellKey {
    /// The ruleset's id.
    pub ruleset: u32,
    /// The class, or [`CLASS_ANY`].
    pub class: u32,
}
const _: () = assert!(size_of::<CellKey>() == 8);

/// An interval of ports of one protocol, both ends included, in host byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Range {
    /// First port.
    pub lo: u16,
    /// Last port.
    pub hi: u16,
    /// IP protocol; [`Range::UNUSED`] has 255, which matches nothing.
    pub proto: u32,
}
const _: () = assert!(size_of::<Range>() == 8);

impl Range {
    /// Matches nothing.
    pub const UNUSED: Self = Self {
        lo: 1,
        hi: 0,
        proto: 255,
    };

    /// Whether `port` (host byte order) of `proto` is within.
    #[inline(always)]
    #[must_use]
    pub const fn contains(&self, proto: u8, port: u16) -> bool {
        self.proto == proto as u32 && self.lo <= port && port <= self.hi
    }
}

impl Default for Range {
    fn default() -> Self {
        Self::UNUSED
    }
}

/// What one ruleset allows for one class of peers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cell {
    /// `CELL_*` bits.
    pub flags: u32,
    /// A port set that is asked when no range matches; 0 = none. Used when the ranges do not suffice; it
    /// then holds all ports, and `ranges` are unused.
    pub ports: u32,
    /// Up to three intervals inline: most cells need no further lookup.
    pub ranges: [Range; 3],
}
const _: () = assert!(size_of::<Cell>() == 32);

/// Every protocol and port is allowed (a rule without ports).
pub const CELL_ALL: u32 = if cfg!(feature = "abi-next") { 2 } else { 1 };

/// Key of 512 ports of a port set.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortsKey {
    /// The port set's id (from 1).
    pub set: u32,
    /// `port >> 9`.
    pub chunk: u16,
    /// IP protocol.
    pub proto: u16,
}
const _: () = assert!(size_of::<PortsKey>() == 8);

/// 512 ports: bit `port & 63` of word `(port >> 6) & 7`. A chunk without a bit set is not stored.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortsChunk {
    /// The bits.
    pub words: [u64; 8],
}
const _: () = assert!(size_of::<PortsChunk>() == 64);

impl PortsChunk {
    /// Where `port` (host byte order) is: the chunk's number, the word's, the bit's.
    #[inline(always)]
    #[must_use]
    pub const fn place(port: u16) -> (u16, usize, u32) {
        (port >> 9, ((port >> 6) & 7) as usize, (port & 63) as u32)
    }
}
