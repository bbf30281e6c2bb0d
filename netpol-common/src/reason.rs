//! The closed list of what decides about a packet.

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $value:literal, $text:literal;)+) => {
        $($(#[doc = $doc])+ pub const $name: u8 = $value;)+

        /// Every reason with its name as shown to people and in metrics.
        pub const ALL: &[(u8, &str)] = &[$(($value, $text)),+];
    };
}

reasons! {
    /// Passed: no local end is isolated in the direction that counts.
    NOT_ISOLATED = 1, "not-isolated";
    /// Passed: the node's own packet (`ingress_ifindex == 0`).
    NODE = 2, "own-node";
    /// Passed: the pod talks to itself through its own Service.
    ITSELF = 3, "itself";
    /// Passed: a reply of an allowed flow.
    REPLY = 4, "reply";
    /// Passed: a known flow of this epoch.
    KNOWN_FLOW = 5, "known-flow";
    /// Passed: the rules allow it.
    ALLOWED = 6, "allowed";
    /// Passed: neither end is ours (outside to outside), or a settle has judged it before.
    NOT_OURS = 7, "not-ours";
    /// Passed: ARP, neighbour discovery, MLD, router solicitation.
    NEIGHBOUR = 8, "neighbour";
    /// Passed: an ICMP error about an allowed conversation.
    RELATED = 9, "related";
    /// Passed: in mid-stream, adopted in the first seconds of isolation.
    ADOPTED = 10, "adopted";

    /// Dropped: the receiver is isolated for ingress and no rule allows it.
    DENIED_INGRESS = 64, "denied-ingress";
    /// Dropped: the sender is isolated for egress and no rule allows it.
    DENIED_EGRESS = 65, "denied-egress";
    /// Dropped: a flow that was allowed once and no longer is.
    REVOKED = 66, "revoked";
    /// Dropped: a header is truncated or contradicts itself.
    MALFORMED = 67, "malformed";
    /// Dropped: the source address is not the pod's.
    SPOOFED = 68, "spoofed-address";
    /// Dropped: ARP or neighbour discovery for another's address.
    SPOOFED_NEIGHBOUR = 69, "spoofed-neighbour";
    /// Dropped: a router advertisement or a redirect from a pod.
    ROUTER_MESSAGE = 70, "router-message";
    /// Dropped: a pod speaks the node's tunnel protocol, or an arriving packet carries a pod's mark.
    TUNNEL = 71, "tunnel-injection";
    /// Dropped: the mark that says who sent this packet is gone.
    LOST_MARK = 72, "lost-mark";
    /// Dropped: a reply on its way to somebody else than the initiator.
    MISDIRECTED = 73, "misdirected-reply";
    /// Dropped: a later fragment whose first was not seen or was dropped.
    FRAGMENT = 74, "orphan-fragment";
    /// Dropped: neither IP nor ARP, to or from an isolated pod.
    NOT_IP = 75, "not-ip";
    /// Dropped: the device's pod is not known yet, or no longer.
    UNKNOWN_POD = 76, "unknown-pod";
    /// Dropped: a local pod's address as source of a packet from outside.
    SPOOFED_OUTSIDE = 77, "spoofed-from-outside";
}

/// Reasons from here on are drops.
pub const FIRST_DROP: u8 = 64;

/// Whether a packet with this reason was dropped.
#[must_use]
pub const fn is_drop(reason: u8) -> bool {
    reason >= FIRST_DROP
}

/// The name of a reason.
#[must_use]
pub fn name(reason: u8) -> &'static str {
    ALL.iter()
        .find(|(value, _)| *value == reason)
        .map_or("unknown", |(_, name)| name)
}
