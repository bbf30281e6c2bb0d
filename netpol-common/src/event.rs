//! What the programs tell user space: events (ring buffer) and drop counters.

/// The hook that decided.
pub mod hook {
    /// TC ingress of a pod's veth: a packet comes from the pod.
    pub const FROM_POD: u8 = 1;
    /// TC egress of a pod's veth: a packet goes to the pod.
    pub const TO_POD: u8 = 2;
    /// TC ingress of an outside device.
    pub const ARRIVE: u8 = 3;
    /// TC egress of an outside device.
    pub const SETTLE: u8 = 4;
}

/// One verdict.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Source address as seen at the hook, network byte order; IPv4 is `[a, 0, 0, 0]`.
    pub src: [u32; 4],
    /// Destination address as seen at the hook.
    pub dst: [u32; 4],
    /// Source port, network byte order (ICMP: identifier).
    pub sport: u16,
    /// Destination port, network byte order (ICMP: identifier).
    pub dport: u16,
    /// IP protocol.
    pub proto: u8,
    /// 4, 6, or 0 where the packet is not IP.
    pub family: u8,
    /// `hook::*`
    pub hook: u8,
    /// `reason::*`
    pub reason: u8,
    /// The device.
    pub ifindex: u32,
    /// The sending pod's index (0: outside or unknown).
    pub sender: u32,
    /// The receiving pod's index (0: outside or unknown).
    pub receiver: u32,
    /// The ruleset that decided (0: none did).
    pub ruleset: u32,
    /// The peer's class under that ruleset.
    pub class: u32,
    /// Length of the packet in bytes, from the link layer on.
    pub len: u32,
}
const _: () = assert!(size_of::<Event>() == 64);

/// Key of a drop counter.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DropKey {
    /// The pod whose packet was dropped (the one whose rules decided): index, 0 = none.
    pub pod: u32,
    /// `hook::*`
    pub hook: DropWord,
    /// `reason::*`
    pub reason: DropWord,
}
const _: () = assert!(size_of::<DropKey>() == 4 + 2 * size_of::<DropWord>());

/// Half of a drop counter's key.
#[cfg(not(feature = "abi-next"))]
pub type DropWord = u16;
/// Half of a drop counter's key.
#[cfg(feature = "abi-next")]
pub type DropWord = u32;

/// Slots of the `verdicts` array: one for each hook and reason.
///
/// A packet is counted where its fate is decided: passed at a way out (the ways in only say who it is from), dropped
/// anywhere. One that crosses two ways out (a bond and its slave) is counted at both.
pub mod verdict {
    use super::hook;
    use crate::reason;

    const REASON_BITS: u32 = 7;
    const HOOKS: u32 = 4;
    /// Number of slots.
    pub const SLOTS: u32 = HOOKS << REASON_BITS;

    const _: () = {
        assert!(hook::FROM_POD == 1 && hook::SETTLE as u32 == HOOKS);
        let mut at = 0;
        while at < reason::ALL.len() {
            assert!((reason::ALL[at].0 as u32) < 1 << REASON_BITS);
            at += 1;
        }
    };

    /// The slot of a verdict.
    #[inline(always)]
    #[must_use]
    pub const fn slot(hook: u8, reason: u8) -> u32 {
        (hook as u32 - 1) << REASON_BITS | reason as u32 & ((1 << REASON_BITS) - 1)
    }

    /// Whether packets are counted at this hook for this reason.
    #[inline(always)]
    #[must_use]
    pub const fn is_counted(hook: u8, reason: u8) -> bool {
        reason::is_drop(reason) || matches!(hook, hook::TO_POD | hook::SETTLE)
    }

    /// Every hook and reason that is counted, in the order of their slots.
    pub fn all() -> impl Iterator<Item = (u8, u8)> {
        (hook::FROM_POD..=hook::SETTLE)
            .flat_map(|hook| reason::ALL.iter().map(move |(reason, _)| (hook, *reason)))
            .filter(|(hook, reason)| is_counted(*hook, *reason))
    }
}

/// A per-CPU counter.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes from the link layer on.
    pub bytes: u64,
}
const _: () = assert!(size_of::<Count>() == 16);

impl Count {
    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            bytes: self.bytes + other.bytes,
        }
    }
}

/// Names of the pinned maps.
pub mod maps {
    /// `u32` index → `u64`, mmapable: `pod::state` words.
    pub const STATE: &str = "state";
    /// `u32` 0 → `pod::Config`.
    pub const CONFIG: &str = "config";
    /// `u32` pod index → `pod::Pod`, mmapable.
    pub const PODS: &str = "pods";
    /// `u32` ifindex → `u32` pod index.
    pub const IFACES: &str = "ifaces";
    /// `u32` slot → `u64`, mmapable: `pod::door` words, what of `ifaces` is found without hashing.
    pub const DOORS: &str = "doors";
    /// Local pods' addresses: `u32` → pod index.
    pub const LOCAL4: &str = "local4";
    /// Local pods' addresses: `[u32; 4]` → pod index.
    pub const LOCAL6: &str = "local6";
    /// `u32` → class.
    pub const HOSTS4: &str = "hosts4";
    /// `[u32; 4]` → class.
    pub const HOSTS6: &str = "hosts6";
    /// LPM: `u32` → class.
    pub const NETS4: &str = "nets4";
    /// LPM: `[u32; 4]` → class.
    pub const NETS6: &str = "nets6";
    /// `tables::CellKey` → `tables::Cell`.
    pub const CELLS: &str = "cells";
    /// `tables::PortsKey` → `tables::PortsChunk`.
    pub const PORTS: &str = "ports";
    /// LRU: `flow::Key4` → `flow::Flow`, answered.
    pub const FLOWS4: &str = "flows4";
    /// LRU: `flow::Key6` → `flow::Flow`, answered.
    pub const FLOWS6: &str = "flows6";
    /// LRU: `flow::Key4` → `flow::Flow`, unanswered.
    pub const OPENING4: &str = "opening4";
    /// LRU: `flow::Key6` → `flow::Flow`, unanswered.
    pub const OPENING6: &str = "opening6";
    /// LRU: `flow::FragKey` → `flow::Frag`.
    pub const FRAGS: &str = "frags";
    /// `u32` pod index → `flow::Quota`.
    pub const QUOTAS: &str = "quotas";
    /// Per CPU: `event::DropKey` → `event::Count`.
    pub const DROPS: &str = "drops";
    /// Per CPU: `verdict::slot` → `event::Count`.
    pub const VERDICTS: &str = "verdicts";
    /// Ring buffer of `event::Event`.
    pub const EVENTS: &str = "events";

    /// Every pinned map.
    pub const ALL: &[&str] = &[
        STATE, CONFIG, PODS, IFACES, DOORS, LOCAL4, LOCAL6, HOSTS4, HOSTS6, NETS4, NETS6, CELLS, PORTS,
        FLOWS4, FLOWS6, OPENING4, OPENING6, FRAGS, QUOTAS, DROPS, VERDICTS, EVENTS,
    ];
}
