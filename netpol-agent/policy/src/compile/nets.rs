//! ipBlocks, and the regions into which their borders cut the address space.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::prefix::Prefix;

/// An ipBlock: `cidr` less `except`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Block {
    cidr: IpNet,
    /// Sorted, disjoint, each within `cidr`: so one binary search finds the one that covers a prefix.
    except: Box<[IpNet]>,
}

impl Block {
    pub(super) fn new(cidr: IpNet, except: &[IpNet]) -> Self {
        let cidr = cidr.trunc();
        let mut kept: Vec<IpNet> = except
            .iter()
            .map(IpNet::trunc)
            .filter_map(|net| match () {
                () if cidr.covers(&net) => Some(net),
                () if net.covers(&cidr) => Some(cidr),
                () => None,
            })
            .collect();
        kept.sort_unstable();
        kept.dedup_by(|next, last| last.covers(next));
        Self {
            cidr,
            except: kept.into(),
        }
    }

    pub(super) fn cidr(&self) -> IpNet {
        self.cidr
    }

    /// Whether all of `net` is in the block; only for the part of `net` that no border of the block cuts off.
    pub(super) fn covers(&self, net: &IpNet) -> bool {
        let after = self.except.partition_point(|except| except <= net);
        let candidate = after.checked_sub(1).map(|at| &self.except[at]);
        self.cidr.covers(net) && !candidate.is_some_and(|except| except.covers(net))
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.covers(&IpNet::from(address))
    }

    /// The prefixes at which membership changes.
    pub(super) fn borders(&self) -> impl Iterator<Item = IpNet> + '_ {
        [self.cidr]
            .into_iter()
            .chain(self.except.iter().copied().filter(|except| *except != self.cidr))
    }
}

/// One prefix less its more specific ones.
pub(super) struct Region {
    /// How many live blocks have this border.
    pub(super) refs: u32,
    /// The class of its addresses.
    pub(super) class: u32,
}
