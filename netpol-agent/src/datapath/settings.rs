//! The kernel's settings: flow lifetimes, the pods' prefixes, the node's tunnels.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netpol_common::{flow::timeout, pod::Config};

/// Flow lifetimes in seconds: name for the command line, place, default. None is longer than conntrack's default
/// for the same state, as a flow that NAT has forgotten is not a flow; but for half-closed connections, which conntrack
/// picks up again where there is no NAT.
pub const TIMEOUTS: &[(&str, usize, u64)] = &[
    ("opening", timeout::OPENING, 60),
    ("established", timeout::ESTABLISHED, 5 * 24 * 3600),
    ("half-closed", timeout::HALF_CLOSED, 900),
    ("closing", timeout::CLOSING, 60),
    ("reset", timeout::RESET, 10),
    ("unanswered", timeout::UNANSWERED, 30),
    ("answered", timeout::ANSWERED, 120),
    ("fragment", timeout::FRAGMENT, 30),
];

/// How many unanswered flows a pod may have recorded in [`QUOTA_SECONDS`].
pub const QUOTA: u32 = 4096;
/// Length of the quota's window.
pub const QUOTA_SECONDS: u64 = 30;
/// Events a second and CPU.
const EVENTS_PER_SECOND: u32 = 1000;

/// The administrator's choices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Seconds, indexed as [`Config::timeouts`].
    pub timeouts: [u64; 8],
    /// Unanswered flows for each pod and window.
    pub quota: u32,
}

impl Default for Settings {
    fn default() -> Self {
        let mut timeouts = [0; 8];
        for (_, place, seconds) in TIMEOUTS {
            timeouts[*place] = *seconds;
        }
        Self {
            timeouts,
            quota: QUOTA,
        }
    }
}

/// What the kernel should be told.
#[must_use]
pub fn config(settings: &Settings, hz: u64, local: &[IpAddr], tunnels: &BTreeSet<(u8, u16)>) -> Config {
    let (local4, local4_mask) = prefix4(local);
    let (local6, local6_mask) = prefix6(local);
    let mut config = Config {
        timeouts: settings.timeouts.map(|seconds| seconds * hz),
        hz,
        local4,
        local4_mask,
        local6,
        local6_mask,
        quota: settings.quota,
        events_per_second: EVENTS_PER_SECOND,
        quota_window: QUOTA_SECONDS * hz,
        ..Config::default()
    };
    if tunnels.len() > config.tunnels.len() {
        tracing::warn!(
            tunnels = tunnels.len(),
            known = config.tunnels.len(),
            "more kinds of tunnels than the programs watch: pods may speak the last ones' protocol"
        );
    }
    for (place, (proto, port)) in config.tunnels.iter_mut().zip(tunnels) {
        *place = u32::from(*proto) << 16 | u32::from(*port);
    }
    config
}

/// The smallest prefix that holds all IPv4 addresses, in network byte order.
fn prefix4(local: &[IpAddr]) -> (u32, u32) {
    let mut addresses = local.iter().filter_map(|address| match address {
        IpAddr::V4(address) => Some(u32::from(*address)),
        IpAddr::V6(_) => None,
    });
    let Some(first) = addresses.next() else {
        return (0, u32::MAX);
    };
    let differ = addresses.fold(0, |differ, address| differ | (first ^ address));
    let mask = !u32::MAX.checked_shr(differ.leading_zeros()).unwrap_or(0);
    (word4((first & mask).into()), word4(mask.into()))
}

/// As [`prefix4`].
fn prefix6(local: &[IpAddr]) -> ([u32; 4], [u32; 4]) {
    let mut addresses = local.iter().filter_map(|address| match address {
        IpAddr::V6(address) => Some(u128::from(*address)),
        IpAddr::V4(_) => None,
    });
    let Some(first) = addresses.next() else {
        return ([0; 4], [u32::MAX; 4]);
    };
    let differ = addresses.fold(0, |differ, address| differ | (first ^ address));
    let mask = !u128::MAX.checked_shr(differ.leading_zeros()).unwrap_or(0);
    (words6((first & mask).into()), words6(mask.into()))
}

/// An address as the maps have it: its bytes in network order.
#[must_use]
pub(crate) fn word4(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

/// As [`word4`].
#[must_use]
pub(crate) fn words6(address: Ipv6Addr) -> [u32; 4] {
    let octets = address.octets();
    std::array::from_fn(|word| u32::from_ne_bytes(std::array::from_fn(|byte| octets[word * 4 + byte])))
}

/// The inverse of [`word4`].
#[must_use]
pub(crate) fn address4(word: u32) -> Ipv4Addr {
    word.to_ne_bytes().into()
}

/// The inverse of [`words6`].
#[must_use]
pub(crate) fn address6(words: [u32; 4]) -> Ipv6Addr {
    let mut octets = [0; 16];
    for (bytes, word) in octets.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    octets.into()
}

/// `CONFIG_HZ` from jiffies counted over a time in nanoseconds. The kernel offers four; others are kept as
/// measured.
#[must_use]
pub(crate) fn hz(jiffies: u64, nanoseconds: u64) -> u64 {
    let per_second = |ticks: u64| (ticks * 1_000_000_000).checked_div(nanoseconds).unwrap_or(0);
    let measured = per_second(jiffies).max(1);
    // The count may be off by one tick, the time by a little.
    [100, 250, 300, 1000]
        .into_iter()
        .find(|hz| measured.abs_diff(*hz) <= per_second(1) + hz / 50)
        .unwrap_or(measured)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn v4(text: &str) -> u32 {
        word4(text.parse().unwrap())
    }

    fn v6(text: &str) -> [u32; 4] {
        words6(text.parse().unwrap())
    }

    #[test]
    fn prefixes_hold_every_pod_and_no_more() {
        let dual = addresses(&["10.244.1.2", "fd00:1::2", "10.244.1.5", "fd00:1::9"]);
        assert_eq!(prefix4(&dual), (v4("10.244.1.0"), v4("255.255.255.248")));
        assert_eq!(
            prefix6(&dual),
            (v6("fd00:1::"), v6("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0"))
        );
        assert_eq!(prefix4(&addresses(&["10.244.1.2"])), (v4("10.244.1.2"), u32::MAX));
        assert_eq!(prefix4(&addresses(&["10.0.0.1", "192.0.2.1"])), (0, 0));
        assert_eq!(prefix4(&[]), (0, u32::MAX));
        assert_eq!(prefix6(&addresses(&["::1", "8000::1"])), ([0; 4], [0; 4]));
    }

    #[test]
    fn words_are_the_bytes_on_the_wire() {
        assert_eq!(v4("10.244.1.2").to_ne_bytes(), [10, 244, 1, 2]);
        assert_eq!(v6("102:304::a0b")[0].to_ne_bytes(), [1, 2, 3, 4]);
        assert_eq!(address4(v4("10.244.1.2")), Ipv4Addr::new(10, 244, 1, 2));
        assert_eq!(
            address6(v6("102:304::a0b")),
            "102:304::a0b".parse::<Ipv6Addr>().unwrap()
        );
    }

    #[test]
    fn jiffies_make_hertz() {
        let over = |jiffies| hz(jiffies, 120_000_000);
        assert_eq!(
            [11, 12, 13, 29, 31, 35, 37, 119, 121].map(over),
            [100, 100, 100, 250, 250, 300, 300, 1000, 1000]
        );
        assert_eq!(over(2400), 20_000);
        assert_eq!(over(0), 1);
    }

    #[test]
    fn times_are_jiffies_and_tunnels_are_packed() {
        let tunnels = BTreeSet::from([(4, 0), (17, 8472)]);
        let config = config(&Settings::default(), 250, &addresses(&["10.244.1.2"]), &tunnels);
        let expected = Config {
            timeouts: [15_000, 108_000_000, 15_000, 2_500, 7_500, 30_000, 7_500, 225_000],
            hz: 250,
            local4: v4("10.244.1.2"),
            local4_mask: u32::MAX,
            local6: [0; 4],
            local6_mask: [u32::MAX; 4],
            tunnels: [4 << 16, 17 << 16 | 8472, 0, 0, 0, 0, 0, 0],
            quota: 4096,
            events_per_second: 1000,
            quota_window: 7_500,
        };
        assert_eq!(config, expected);
    }
}
