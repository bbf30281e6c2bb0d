//! ipBlocks, and the regions into which their borders cut the address space.

use std::{collections::BTreeMap, net::IpAddr, ops::RangeInclusive};

use ipnet::IpNet;

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
                () if within(&cidr, &net) => Some(net),
                () if within(&net, &cidr) => Some(cidr),
                () => None,
            })
            .collect();
        kept.sort_unstable();
        kept.dedup_by(|next, last| within(last, next));
        Self {
            cidr,
            except: kept.into(),
        }
    }

    pub(super) fn cidr(&self) -> IpNet {
        self.cidr
    }

    /// Whether all of `net` is in the block; only for a `net` that no border of the block cuts.
    pub(super) fn covers(&self, net: &IpNet) -> bool {
        let after = self.except.partition_point(|except| except <= net);
        within(&self.cidr, net)
            && !after
                .checked_sub(1)
                .is_some_and(|at| within(&self.except[at], net))
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

/// Whether `inner` lies in `outer`; both truncated. The families never mix.
fn within(outer: &IpNet, inner: &IpNet) -> bool {
    outer.prefix_len() <= inner.prefix_len() && outer.contains(&inner.network())
}

/// Every prefix within `net`, itself first, in the order of a sorted map of prefixes.
pub(super) fn inside(net: IpNet) -> RangeInclusive<IpNet> {
    net..=IpNet::from(net.broadcast())
}

/// One prefix less its more specific ones.
pub(super) struct Region {
    /// How many live blocks have this border.
    pub(super) refs: u32,
    /// The class of its addresses.
    pub(super) class: u32,
}

/// The most specific of `regions` that covers `net`.
///
/// Sorted by address and then by length, the prefixes that cover `net` come before it, the longest last. What
/// stands between that one and `net` is inside it too, so whatever is found first limits how long it can be.
pub(super) fn longest_match<'a, T>(
    regions: &'a BTreeMap<IpNet, T>,
    net: &IpNet,
) -> Option<(&'a IpNet, &'a T)> {
    let mut bound = *net;
    loop {
        let (found, value) = regions.range(..=bound).next_back()?;
        if within(found, net) {
            return Some((found, value));
        }
        bound = common(found, net)?;
    }
}

/// The longest prefix that holds both; `None` for different families.
fn common(a: &IpNet, b: &IpNet) -> Option<IpNet> {
    let same = match (a.network(), b.network()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        _ => return None,
    };
    let len = u8::try_from(same).ok()?.min(a.prefix_len()).min(b.prefix_len());
    Some(IpNet::new(b.network(), len).ok()?.trunc())
}
