//! Longest-prefix match in a sorted map.

use std::{collections::BTreeMap, net::IpAddr, ops::RangeInclusive};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A truncated prefix, ordered by address and then by length.
pub(crate) trait Prefix: Copy + Ord {
    /// Whether `inner` lies in `self`. The families never mix.
    fn covers(&self, inner: &Self) -> bool;

    /// The longest prefix that holds `self` and `other`; `None` for different families.
    fn common(&self, other: &Self) -> Option<Self>;
}

macro_rules! prefix {
    ($($net:ty),+) => {$(
        impl Prefix for $net {
            fn covers(&self, inner: &Self) -> bool {
                self.prefix_len() <= inner.prefix_len() && self.contains(&inner.addr())
            }

            fn common(&self, other: &Self) -> Option<Self> {
                let same = (self.addr().to_bits() ^ other.addr().to_bits()).leading_zeros();
                let len = u8::try_from(same).ok()?;
                let len = len.min(self.prefix_len()).min(other.prefix_len());
                Some(Self::new(self.addr(), len).ok()?.trunc())
            }
        }
    )+};
}

prefix!(Ipv4Net, Ipv6Net);

impl Prefix for IpNet {
    fn covers(&self, inner: &Self) -> bool {
        match (self, inner) {
            (Self::V4(a), Self::V4(b)) => a.covers(b),
            (Self::V6(a), Self::V6(b)) => a.covers(b),
            _ => false,
        }
    }

    fn common(&self, other: &Self) -> Option<Self> {
        match (self, other) {
            (Self::V4(a), Self::V4(b)) => a.common(b).map(Self::V4),
            (Self::V6(a), Self::V6(b)) => a.common(b).map(Self::V6),
            _ => None,
        }
    }
}

/// The most specific prefix in `map` that covers `net`.
///
/// In the map's order, the prefixes that cover `net` come before it, the longest last. What stands between that
/// one and `net` is inside it too, so whatever is found first limits how long it can be: few steps in practice.
pub(crate) fn longest_match<'a, N: Prefix, T>(map: &'a BTreeMap<N, T>, net: &N) -> Option<(&'a N, &'a T)> {
    let mut bound = *net;
    loop {
        let (found, value) = map.range(..=bound).next_back()?;
        if found.covers(net) {
            return Some((found, value));
        }
        bound = found.common(net)?;
    }
}

/// Every prefix within `net`, itself first, in the order of a sorted map.
pub(crate) fn inside(net: IpNet) -> RangeInclusive<IpNet> {
    net..=IpNet::from(net.broadcast())
}

/// The first `len` bits of `address`.
pub(crate) fn prefix_of(address: IpAddr, len: u8) -> IpNet {
    let net = IpNet::from(address);
    let len = len.min(net.max_prefix_len());
    IpNet::new(address, len).map_or(net, |net| net.trunc())
}

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_set, prelude::*};

    use super::*;

    fn nets() -> impl Strategy<Value = Ipv4Net> {
        // Few addresses at every length, so that most prefixes are nested.
        (
            prop_oneof![0..4_u32, (u32::MAX - 4)..=u32::MAX, Just(0x0a00_0001)],
            0..=32_u8,
        )
            .prop_map(|(bits, len)| Ipv4Net::new(bits.into(), len).expect("at most 32").trunc())
    }

    proptest! {
        #[test]
        fn longest_match_is_the_longest_that_covers(map in btree_set(nets(), 0..20), net in nets()) {
            let map: BTreeMap<Ipv4Net, ()> = map.into_iter().map(|net| (net, ())).collect();
            let expected = map.keys().filter(|prefix| prefix.contains(&net)).max_by_key(|prefix| prefix.prefix_len());
            prop_assert_eq!(longest_match(&map, &net).map(|(net, ())| net), expected);
        }
    }
}
