//! What the ways in write into `skb->mark` and the ways out read.
//!
//! The mark says only *who*, or *reply to whom*, never a verdict about policy. The upper 16 bits carry a
//! kind (2 bits) and an index (14 bits); the lower 16 belong to others (kube-proxy uses 0x4000 and 0x8000).
//! It can not be forged by a pod: the kernel scrubs the mark when a packet crosses a veth into another
//! network namespace. A process of the node may set any mark, so it is ignored where
//! `ingress_ifindex == 0` (the packet is the node's own).

/// Bits of the mark that are netpol's.
pub const MASK: u32 = 0xffff_0000;
const SHIFT: u32 = 16;
const INDEX_BITS: u32 = 14;
/// The largest pod index; index 0 is the outside.
pub const MAX_INDEX: u32 = (1 << INDEX_BITS) - 1;

const KIND_NONE: u32 = 0;
const KIND_SENDER: u32 = 1;
const KIND_REPLY_FREE: u32 = 2;
const KIND_REPLY_HELD: u32 = 3;

/// The index of an end that is not a local pod.
pub const OUTSIDE: u32 = 0;

/// Nothing was written: no way in saw this packet, or something ate the mark.
pub const NONE: u32 = 0;
/// A settle program has let this packet out; further ones pass it (bond and slave, VLAN and parent). Many bits, as
/// others that set marks, perhaps without a mask, like to set one.
pub const JUDGED: u32 = encode(KIND_NONE, MAX_INDEX);

const fn encode(kind: u32, index: u32) -> u32 {
    ((kind << INDEX_BITS) | (index & MAX_INDEX)) << SHIFT
}

/// `index` sent this packet (a local pod, or [`OUTSIDE`]).
#[inline(always)]
#[must_use]
pub const fn sender(index: u32) -> u32 {
    encode(KIND_SENDER, index)
}

/// This packet is a reply to the initiator `index` of an allowed flow. `held`: the replying pod is isolated
/// for egress, so that no one else may receive this packet; otherwise a receiver that is not `index` judges
/// it as a packet of its own (a stale entry of a reused tuple must not cut somebody else's connection).
#[inline(always)]
#[must_use]
pub const fn reply(index: u32, held: bool) -> u32 {
    encode(if held { KIND_REPLY_HELD } else { KIND_REPLY_FREE }, index)
}

/// A decoded mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// See [`NONE`].
    None,
    /// See [`JUDGED`].
    Judged,
    /// See [`sender`].
    Sender(u32),
    /// See [`reply`].
    Reply {
        /// The initiator that the reply goes to.
        to: u32,
        /// The replying pod is isolated for egress.
        held: bool,
    },
}

/// Decodes the netpol bits of `skb->mark`. Values that no program writes decode as [`Mark::None`].
#[inline(always)]
#[must_use]
pub const fn decode(mark: u32) -> Mark {
    let value = (mark & MASK) >> SHIFT;
    let index = value & MAX_INDEX;
    match value >> INDEX_BITS {
        KIND_SENDER => Mark::Sender(index),
        KIND_REPLY_FREE => Mark::Reply {
            to: index,
            held: false,
        },
        KIND_REPLY_HELD => Mark::Reply {
            to: index,
            held: true,
        },
        _ if index == MAX_INDEX => Mark::Judged,
        _ => Mark::None,
    }
}

/// `mark` with its netpol bits replaced by `ours`.
#[inline(always)]
#[must_use]
pub const fn merge(mark: u32, ours: u32) -> u32 {
    (mark & !MASK) | ours
}
