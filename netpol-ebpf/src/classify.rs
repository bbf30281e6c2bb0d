//! Address → class, and (ruleset, class, protocol, port) → allowed.

use netpol_common::{
    pod::state::{FLAG_NETS4, FLAG_NETS6},
    proto::has_ports,
    tables::{CELL_ALL, CLASS_ANY, CLASS_OTHER, Cell, CellKey, PortsChunk, PortsKey, RULESET_HAS_ANY},
};

use crate::maps;

/// The class of an address (network byte order). Exact addresses first, prefixes only on a miss.
#[inline(always)]
pub fn class(family: u8, address: &[u32; 4], flags: u64) -> u32 {
    let found = if family == 4 {
        match maps::host4(&address[0]) {
            None if flags & FLAG_NETS4 != 0 => maps::net4(address[0]),
            exact => exact,
        }
    } else {
        match maps::host6(address) {
            None if flags & FLAG_NETS6 != 0 => maps::net6(address),
            exact => exact,
        }
    };
    found.unwrap_or(CLASS_OTHER)
}

/// Whether `ruleset` (not 0) allows this protocol and port (network byte order) for peers of `class`.
#[inline(always)]
pub fn allows(ruleset: u32, class: u32, proto: u8, port: u16) -> bool {
    match maps::cell(&CellKey { ruleset, class }) {
        Some(cell) => cell_allows(cell, proto, port),
        None if ruleset & RULESET_HAS_ANY == 0 => false,
        None => maps::cell(&CellKey {
            ruleset,
            class: CLASS_ANY,
        })
        .is_some_and(|cell| cell_allows(cell, proto, port)),
    }
}

#[inline(always)]
fn cell_allows(cell: &Cell, proto: u8, port: u16) -> bool {
    if cell.flags & CELL_ALL != 0 {
        return true;
    }
    if !has_ports(proto) {
        return false;
    }
    let port = u16::from_be(port);
    if cell.ports == 0 {
        let [a, b, c] = &cell.ranges;
        return a.contains(proto, port) || b.contains(proto, port) || c.contains(proto, port);
    }
    let (chunk, word, bit) = PortsChunk::place(port);
    let key = PortsKey {
        set: cell.ports,
        chunk,
        proto: proto.into(),
    };
    maps::ports(&key).is_some_and(|chunk| chunk.words[word & 7] >> bit & 1 == 1)
}
