//! The compiled tables, exactly as the kernel reads them, and a walker that reads them as the kernel does.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netpol_common::{
    proto,
    tables::{
        CELL_ALL, CLASS_ANY, CLASS_OTHER, Cell, CellKey, PortsChunk, PortsKey, RULESET_HAS_ANY, RULESET_NONE,
    },
};

use crate::{
    model::ObjectName,
    prefix::{longest_match, prefix_of},
};

/// The rulesets of one local pod; [`RULESET_NONE`] = not isolated in that direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PodRules {
    /// Who may reach the pod.
    pub ingress: u32,
    /// Whom the pod may reach.
    pub egress: u32,
}

/// What the kernel should hold for one node (or what it does hold, read back).
///
/// Ids are never given a second meaning while the first is in the kernel: same id, same content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Exact IPv4 addresses → class.
    pub hosts4: BTreeMap<Ipv4Addr, u32>,
    /// Exact IPv6 addresses → class.
    pub hosts6: BTreeMap<Ipv6Addr, u32>,
    /// IPv4 prefixes → class, longest match.
    pub nets4: BTreeMap<Ipv4Net, u32>,
    /// IPv6 prefixes → class, longest match.
    pub nets6: BTreeMap<Ipv6Net, u32>,
    /// (ruleset, class) → what is allowed.
    pub cells: BTreeMap<CellKey, Cell>,
    /// Port sets too large for a cell.
    pub ports: BTreeMap<PortsKey, PortsChunk>,
    /// The local pods' rulesets.
    pub pods: BTreeMap<ObjectName, PodRules>,
}

impl Tables {
    /// The class of `address`.
    #[must_use]
    pub fn class(&self, address: IpAddr) -> u32 {
        let exact = match address {
            IpAddr::V4(a) => self.hosts4.get(&a),
            IpAddr::V6(a) => self.hosts6.get(&a),
        };
        exact.copied().unwrap_or_else(|| self.net_class(address, 128))
    }

    /// The class that the prefix tries give `address`, looking only at prefixes of at most `len` bits.
    #[must_use]
    pub fn net_class(&self, address: IpAddr, len: u8) -> u32 {
        let found = match prefix_of(address, len) {
            IpNet::V4(net) => longest_match(&self.nets4, &net).map(|(_, class)| class),
            IpNet::V6(net) => longest_match(&self.nets6, &net).map(|(_, class)| class),
        };
        found.copied().unwrap_or(CLASS_OTHER)
    }

    /// Whether `ruleset` allows `protocol` (an IP protocol number) and `port` (host byte order; ignored
    /// for protocols without ports) for peers of `class`.
    #[must_use]
    pub fn allows(&self, ruleset: u32, class: u32, protocol: u8, port: u16) -> bool {
        if ruleset == RULESET_NONE {
            return true;
        }
        let cell = self.cells.get(&CellKey { ruleset, class }).or_else(|| {
            let any = CellKey {
                ruleset,
                class: CLASS_ANY,
            };
            (ruleset & RULESET_HAS_ANY != 0)
                .then(|| self.cells.get(&any))
                .flatten()
        });
        cell.is_some_and(|cell| self.cell_allows(cell, protocol, port))
    }

    fn cell_allows(&self, cell: &Cell, protocol: u8, port: u16) -> bool {
        if cell.flags & CELL_ALL != 0 {
            return true;
        }
        if !proto::has_ports(protocol) {
            return false;
        }
        if cell.ports == 0 {
            return cell.ranges.iter().any(|range| range.contains(protocol, port));
        }
        let (chunk, word, bit) = PortsChunk::place(port);
        let key = PortsKey {
            set: cell.ports,
            chunk,
            proto: protocol.into(),
        };
        self.ports
            .get(&key)
            .is_some_and(|chunk| chunk.words[word] >> bit & 1 == 1)
    }
}
