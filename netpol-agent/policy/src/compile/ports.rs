//! What one cell allows: a normalised union of ports.

use netpol_common::tables::{PortsChunk, PortsKey};

use crate::model::{NamedPort, PortMatch, PortSpec, Ports, Protocol};

/// Ports of one protocol (its IP number), both ends included. Ordered by protocol, then by port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct PortRange {
    pub(super) proto: u8,
    pub(super) lo: u16,
    pub(super) hi: u16,
}

/// A union of ports; equal unions are equal values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct PortUnion {
    /// Every protocol and port; `ranges` is empty then.
    pub(super) all: bool,
    /// Sorted, disjoint, not adjacent.
    pub(super) ranges: Vec<PortRange>,
}

impl PortUnion {
    /// The fixed part of a rule's ports: all but names.
    pub(super) fn of_rule(ports: &Ports) -> Self {
        let mut union = Self::default();
        match ports {
            Ports::Any => union.all = true,
            Ports::Of(list) => union.ranges.extend(list.iter().filter_map(fixed)),
        }
        union.normalise();
        union
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.all && self.ranges.is_empty()
    }

    /// Adds without keeping the order: [`Self::normalise`] after the last one.
    pub(super) fn add(&mut self, other: &Self) {
        self.all |= other.all;
        self.ranges.extend_from_slice(&other.ranges);
    }

    /// As [`Self::add`], for one port.
    pub(super) fn add_port(&mut self, protocol: Protocol, number: u16) {
        self.ranges.push(PortRange {
            proto: protocol.number(),
            lo: number,
            hi: number,
        });
    }

    pub(super) fn normalise(&mut self) {
        if self.all {
            self.ranges.clear();
            return;
        }
        self.ranges.sort_unstable();
        self.ranges.dedup_by(|next, last| {
            let joins = next.proto == last.proto && u32::from(next.lo) <= u32::from(last.hi) + 1;
            if joins {
                last.hi = last.hi.max(next.hi);
            }
            joins
        });
    }

    /// The bitmaps of this union as port set `set`, in order of keys.
    pub(super) fn chunks(&self, set: u32) -> Vec<(PortsKey, PortsChunk)> {
        let mut chunks: Vec<(PortsKey, PortsChunk)> = Vec::new();
        for range in &self.ranges {
            for word in range.lo >> 6..=range.hi >> 6 {
                let first = word << 6;
                let (chunk, at, _) = PortsChunk::place(first);
                let key = PortsKey {
                    set,
                    chunk,
                    proto: range.proto.into(),
                };
                if chunks.last().is_none_or(|(last, _)| *last != key) {
                    chunks.push((key, PortsChunk::default()));
                }
                let (lo, hi) = (range.lo.max(first) & 63, range.hi.min(first | 63) & 63);
                if let Some((_, last)) = chunks.last_mut() {
                    last.words[at] |= u64::MAX << lo & u64::MAX >> (63 - hi);
                }
            }
        }
        chunks
    }
}

fn fixed(port: &PortMatch) -> Option<PortRange> {
    let (lo, hi) = match port.port {
        PortSpec::All => (0, u16::MAX),
        PortSpec::Range(lo, hi) => (lo, hi),
        PortSpec::Named(_) => return None,
    };
    (lo <= hi).then_some(PortRange {
        proto: port.protocol.number(),
        lo,
        hi,
    })
}

/// The numbers that `name` has among a pod's ports.
pub(super) fn numbers<'a>(
    ports: &'a [NamedPort],
    name: &'a str,
    protocol: Protocol,
) -> impl Iterator<Item = u16> + 'a {
    ports
        .iter()
        .filter(move |port| port.protocol == protocol && &*port.name == name)
        .map(|port| port.number)
}
