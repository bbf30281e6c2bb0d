//! Flows: what was allowed at a way out and whose replies need to be recognised.

use crate::proto::{SCTP, TCP};

/// A tuple as seen at the way out, IPv4. ICMP queries: both ports are the identifier. Without ports: zeros.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key4 {
    /// Source address, network byte order.
    pub src: u32,
    /// Destination address, network byte order.
    pub dst: u32,
    /// Source port, network byte order.
    pub sport: u16,
    /// Destination port, network byte order.
    pub dport: u16,
    /// IP protocol.
    pub proto: u32,
}
const _: () = assert!(size_of::<Key4>() == 16);

/// A tuple as seen at the way out, IPv6.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key6 {
    /// Source address, network byte order.
    pub src: [u32; 4],
    /// Destination address, network byte order.
    pub dst: [u32; 4],
    /// Source port, network byte order.
    pub sport: u16,
    /// Destination port, network byte order.
    pub dport: u16,
    /// IP protocol.
    pub proto: u32,
}
const _: () = assert!(size_of::<Key6>() == 40);

/// One flow. It names pods, never rulesets: ids of rulesets are reused, so they are resolved when used.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// The initiator: a pod's index or `mark::OUTSIDE`.
    pub from: u32,
    /// The initiator's incarnation (0 for the outside).
    pub from_inc: u32,
    /// The replying end: a pod's index or `mark::OUTSIDE`.
    pub to: u32,
    /// The replying end's incarnation (0 for the outside).
    pub to_inc: u32,
    /// `jiffies64` of the last packet, stored at most once a second.
    pub seen: u64,
    /// Under which epoch it was judged last, and how: [`verdict`]. One word, so that neither is ever seen, or
    /// overwritten, without the other.
    pub verdict: u32,
    /// `STATE_*` bits.
    pub state: u32,
}
const _: () = assert!(size_of::<Flow>() == 32);

/// [`Flow::verdict`]: denied, a tombstone. Packets of it are dropped and never tried as new in this epoch.
pub const DENIED: u32 = 1;

/// The [`Flow::verdict`] of an epoch, of which the low 31 bits count.
#[inline(always)]
#[must_use]
pub const fn verdict(epoch: u32, denied: bool) -> u32 {
    epoch << 1 | if denied { DENIED } else { 0 }
}

/// The initiator has sent a FIN (TCP) or SHUTDOWN (SCTP).
pub const STATE_FIN_FORWARD: u32 = 1 << 1;
/// The replying end has sent a FIN or SHUTDOWN.
pub const STATE_FIN_REPLY: u32 = 1 << 2;
/// A reset or ABORT passed: the entry lives on, shortly (the reset may be blind).
pub const STATE_RESET: u32 = 1 << 3;
/// A reply passed (of TCP and SCTP: one that is no reset).
pub const STATE_ANSWERED: u32 = 1 << 4;

/// Indices into `Config::timeouts`.
pub mod timeout {
    /// TCP and SCTP until the opener goes on after an answer.
    pub const OPENING: usize = 0;
    /// TCP and SCTP, established.
    pub const ESTABLISHED: usize = 1;
    /// TCP, both ends have closed; SCTP, one has.
    pub const CLOSING: usize = 2;
    /// TCP and SCTP after a reset.
    pub const RESET: usize = 3;
    /// UDP and everything else, no reply yet.
    pub const UNANSWERED: usize = 4;
    /// UDP and everything else, answered.
    pub const ANSWERED: usize = 5;
    /// Later fragments after the first.
    pub const FRAGMENT: usize = 6;
    /// TCP, one end has closed: the other may still have much to say.
    pub const HALF_CLOSED: usize = 7;
}

/// TCP and SCTP: the opener confirms what the answerer says before anything else happens.
#[inline(always)]
#[must_use]
pub const fn has_handshake(proto: u8) -> bool {
    proto == TCP || proto == SCTP
}

/// Which of `Config::timeouts` bounds the silence of a flow in this state; `opening`: it is not among the answered ones.
/// None is longer than conntrack's default but that of a half-closed connection.
#[inline(always)]
#[must_use]
pub const fn lifetime(state: u32, opening: bool, proto: u8) -> usize {
    if !has_handshake(proto) {
        if opening {
            timeout::UNANSWERED
        } else {
            timeout::ANSWERED
        }
    } else if state & STATE_RESET != 0 {
        timeout::RESET
    } else if opening {
        timeout::OPENING
    } else {
        match state & (STATE_FIN_FORWARD | STATE_FIN_REPLY) {
            0 => timeout::ESTABLISHED,
            STATE_FIN_FORWARD | STATE_FIN_REPLY if proto == TCP => timeout::HALF_CLOSED,
            _ => timeout::CLOSING,
        }
    }
}

/// Which packet a fragment belongs to (addresses as seen at that hook). IPv4 addresses are `[a, 0, 0, 0]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FragKey {
    /// Source address, network byte order.
    pub src: [u32; 4],
    /// Destination address, network byte order.
    pub dst: [u32; 4],
    /// Identification, network byte order (16 bits for IPv4).
    pub id: u32,
    /// `4 << 16 | proto`, or `6 << 16`: IPv6 tells fragments apart without the protocol (RFC 8200 4.5), which
    /// only the first of them states.
    pub kind: u32,
    /// The device, so that one hook's packets never speak for another's.
    pub ifindex: u32,
}
const _: () = assert!(size_of::<FragKey>() == 44);

/// What the first fragment said.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frag {
    /// Source port, network byte order.
    pub sport: u16,
    /// Destination port, network byte order.
    pub dport: u16,
    /// IP protocol.
    pub proto: u32,
    /// `jiffies64` of the first fragment.
    pub seen: u64,
}
const _: () = assert!(size_of::<Frag>() == 16);

/// How many unanswered flows a pod has opened in the current window.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// `jiffies64` at which the window began.
    pub since: u64,
    /// Flows recorded less flows that moved to the answered ones.
    pub open: u32,
    /// Flows that were not recorded because the quota was used up.
    pub refused: u32,
}
const _: () = assert!(size_of::<Quota>() == 16);
