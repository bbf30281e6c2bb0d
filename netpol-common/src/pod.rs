//! Local pods, and the words and settings that every program reads.

/// One local pod; an array indexed by the pod's index (1..=[`crate::mark::MAX_INDEX`]). Slot 0 is the outside.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Both rulesets in one word, so that one aligned store changes both: ingress in the low half, egress in
    /// the high half; 0 = not isolated in that direction. See [`rulesets`].
    pub rulesets: u64,
    /// Until this `jiffies64` mid-stream TCP without an entry is adopted (isolation began a moment ago).
    pub adopt_until: u64,
    /// Which life of this index; 0 = the slot is free. An entry of another incarnation never counts.
    pub incarnation: u32,
    /// `POD_*` bits.
    pub flags: u32,
    /// The pod's IPv4 address in network byte order, as `[a, 0, 0, 0]`; all 0 = none.
    pub addr4: [u32; 4],
    /// The pod's IPv6 address in network byte order; all 0 = none.
    pub addr6: [u32; 4],
}
const _: () = assert!(size_of::<Pod>() == 56);

/// What `local4` and `local6` hold for an address of the node that pods see as a neighbour (the bridge's
/// link-local and gateway addresses): no pod may claim it.
pub const NODE_INDEX: u32 = u32::MAX;

/// What `ifaces` and `doors` hold for an outside device whose packets have no link layer header (`tun`, WireGuard, IPIP,
/// PPP): they begin with the IP header.
pub const BARE_INDEX: u32 = u32::MAX - 1;

/// What `ifaces` and `doors` hold for any other outside device.
pub const OUTSIDE_INDEX: u32 = u32::MAX - 2;

/// What `ifaces` and `doors` hold for a bridge: packets of several pods come in by it, and their mark says whose each is.
pub const BRIDGE_INDEX: u32 = u32::MAX - 3;

/// The administrator lets this pod send from addresses that are not its own, and to the node's tunnels.
pub const POD_EXEMPT: u32 = 1;

/// Words of the `doors` array: the pods behind devices (or one of the `*_INDEX`), found without a hash. A slot holds one device's, or 0; whoever is
/// not in its slot is in the hash `ifaces`, as everybody is.
pub mod door {
    /// Number of slots.
    pub const SLOTS: u32 = 1 << 16;

    /// The slot of a device.
    #[inline(always)]
    #[must_use]
    pub const fn slot(ifindex: u32) -> u32 {
        ifindex & (SLOTS - 1)
    }

    /// A word: this device is that pod's.
    #[inline(always)]
    #[must_use]
    pub const fn word(ifindex: u32, pod: u32) -> u64 {
        (ifindex as u64) << 32 | pod as u64
    }

    /// The device of a word; 0 = an empty slot.
    #[inline(always)]
    #[must_use]
    pub const fn device(word: u64) -> u32 {
        (word >> 32) as u32
    }

    /// The pod of a word.
    #[inline(always)]
    #[must_use]
    pub const fn pod(word: u64) -> u32 {
        word as u32
    }
}

/// Packs the two rulesets of a pod.
#[inline(always)]
#[must_use]
pub const fn rulesets(ingress: u32, egress: u32) -> u64 {
    ingress as u64 | (egress as u64) << 32
}

/// Words of the `state` array: each is changed by one aligned 8-byte store.
pub mod state {
    /// The policy epoch; moves when something may have been revoked.
    pub const EPOCH: u32 = 0;
    /// `FLAG_*` bits.
    pub const FLAGS: u32 = 1;
    /// One more than the epoch while the tables are whole, anything else while a plan is being written; for agents only. One
    /// that was killed then may have moved an address or a pod, and not yet the epoch.
    pub const SETTLED: u32 = 2;
    /// Number of words.
    pub const WORDS: u32 = 8;

    /// Some local pod is isolated for ingress: its replies come in anywhere and must be looked up.
    pub const FLAG_ANY_INGRESS: u64 = 1 << 0;
    /// Some local pod is isolated in some direction.
    pub const FLAG_ANY_ISOLATED: u64 = 1 << 1;
    /// The IPv4 prefix trie is not empty.
    pub const FLAG_NETS4: u64 = 1 << 2;
    /// The IPv6 prefix trie is not empty.
    pub const FLAG_NETS6: u64 = 1 << 3;
    /// Police the node's own packets to its pods too (off: the API always allows them).
    pub const FLAG_POLICE_NODE: u64 = 1 << 4;
    /// Somebody listens for drop events.
    pub const FLAG_EVENTS: u64 = 1 << 5;
    /// Events for passed packets too (tests, tracing).
    pub const FLAG_EVENTS_ALL: u64 = 1 << 6;
    /// A device that should be a pod's but whose pod is not known passes everything (`--unknown-pods=allow`).
    pub const FLAG_UNKNOWN_PASS: u64 = 1 << 7;
    /// Some outside device is a bare one ([`super::BARE_INDEX`]): each has to be looked up.
    pub const FLAG_BARE: u64 = 1 << 8;
}

/// Settings that change rarely; an array of one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Flow lifetimes in jiffies, indexed by `flow::timeout::*`.
    pub timeouts: [u64; 8],
    /// Jiffies in a second (`CONFIG_HZ`).
    pub hz: u64,
    /// The smallest prefixes that hold every local pod's address (network byte order): only a source within
    /// is looked up for "a local pod's address from outside". A mask of all ones with address 0 = no pods.
    pub local4: u32,
    /// Mask of `local4`.
    pub local4_mask: u32,
    /// As `local4`.
    pub local6: [u32; 4],
    /// Mask of `local6`.
    pub local6_mask: [u32; 4],
    /// What the node's tunnels listen on, as `proto << 16 | port` (host order; port 0 for IPIP, GRE); 0 = unused.
    pub tunnels: [u32; 8],
    /// How many unanswered flows one pod may have recorded in each window of `quota_window` jiffies.
    pub quota: u32,
    /// Events at most this many a second and CPU.
    pub events_per_second: u32,
    /// Length of the quota's window in jiffies.
    pub quota_window: u64,
}
const _: () = assert!(size_of::<Config>() == 64 + 8 + 8 + 32 + 32 + 8 + 8);
