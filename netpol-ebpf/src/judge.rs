//! The verdict of the rules about one packet between two ends.

use netpol_common::{
    mark::OUTSIDE,
    pod::Pod,
    reason::{ALLOWED, DENIED_EGRESS, DENIED_INGRESS},
    tables::RULESET_NONE,
};

use crate::{classify, maps, packet::Packet};

/// The two ends of a packet: pods' indices, or [`OUTSIDE`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// Who sent it.
    pub sender: u32,
    /// Who gets it.
    pub receiver: u32,
}

impl Ends {
    /// The ends of the answer.
    #[inline(always)]
    #[must_use]
    pub fn reversed(self) -> Self {
        Self {
            sender: self.receiver,
            receiver: self.sender,
        }
    }
}

/// What the rules said, and which.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ruling {
    /// `ALLOWED`, `DENIED_INGRESS` or `DENIED_EGRESS`.
    pub reason: u8,
    /// The ruleset that decided (the last one asked, where all allow); 0 = no end is isolated.
    pub ruleset: u32,
    /// The peer's class under that ruleset.
    pub class: u32,
}

/// The ruleset for what comes to `pod`.
#[inline(always)]
#[must_use]
pub fn ingress(pod: &Pod) -> u32 {
    rulesets(pod) as u32
}

/// The ruleset for what `pod` sends.
#[inline(always)]
#[must_use]
pub fn egress(pod: &Pod) -> u32 {
    (rulesets(pod) >> 32) as u32
}

/// Both rulesets: user space changes them by one store, so they are read by one load.
#[inline(always)]
#[must_use]
pub fn rulesets(pod: &Pod) -> u64 {
    // SAFETY: a live, aligned word.
    unsafe { (&raw const pod.rulesets).read_volatile() }
}

/// Asks the sender's egress and the receiver's ingress about `packet`, or about its answer (`answer`), which then goes
/// between `ends`.
///
/// A local end is the pod that its device says: the sender whatever source address masquerade has left in the packet, the
/// receiver whatever its destination says (broadcast, multicast, a frame for its hardware address).
#[inline(never)]
pub fn judge(packet: &Packet, answer: bool, ends: &Ends, flags: u64, ruling: &mut Ruling) {
    let (src, dst, port) = if answer {
        (&packet.dst, &packet.src, packet.sport)
    } else {
        (&packet.src, &packet.dst, packet.dport)
    };
    ruling.reason = ALLOWED;
    ruling.ruleset = RULESET_NONE;
    ruling.class = 0;
    let receiver = if ends.receiver == OUTSIDE {
        None
    } else {
        maps::pod(ends.receiver)
    };
    let mut own = src;
    if ends.sender != OUTSIDE
        && let Some(sender) = maps::pod(ends.sender)
    {
        let ruleset = egress(sender);
        if ruleset != RULESET_NONE {
            let to = receiver.map_or(dst, |receiver| own_address(receiver, packet.family, dst));
            let class = classify::class(packet.family, to, flags);
            ruling.ruleset = ruleset;
            ruling.class = class;
            if !classify::allows(ruleset, class, packet.proto, port) {
                ruling.reason = DENIED_EGRESS;
                return;
            }
        }
        own = own_address(sender, packet.family, src);
    }
    if let Some(receiver) = receiver {
        let ruleset = ingress(receiver);
        if ruleset != RULESET_NONE {
            let class = classify::class(packet.family, own, flags);
            ruling.ruleset = ruleset;
            ruling.class = class;
            if !classify::allows(ruleset, class, packet.proto, port) {
                ruling.reason = DENIED_INGRESS;
            }
        }
    }
}

/// The pod's own address; what the packet says where none is published yet.
#[inline(always)]
fn own_address<'a>(pod: &'a Pod, family: u8, said: &'a [u32; 4]) -> &'a [u32; 4] {
    let own = if family == 4 { &pod.addr4 } else { &pod.addr6 };
    if *own == [0; 4] { said } else { own }
}
