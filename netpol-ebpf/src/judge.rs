//! The verdict of the rules about one packet between two ends.

use netpol_common::{
    mark::OUTSIDE,
    pod::Pod,
    reason::{ALLOWED, DENIED_EGRESS, DENIED_INGRESS},
    tables::RULESET_NONE,
};

use crate::{classify, flows::course, maps, scratch::Scratch};

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

/// Which rules decided.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ruling {
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

/// Asks the sender's egress and the receiver's ingress about the packet, or about what it quotes (`course::QUOTED` in
/// `how`), or about the answer to either (`course::REVERSED`), which then goes between `ends`. Returns `ALLOWED`,
/// `DENIED_INGRESS` or `DENIED_EGRESS`; the ruling lies in the scratch.
///
/// A local end is the pod that its device says: the sender whatever source address masquerade has left in the packet, the
/// receiver whatever its destination says (broadcast, multicast, a frame for its hardware address).
#[inline(always)]
pub fn judge(_scratch: &mut Scratch, how: u32, ends: Ends, flags: u64) -> u8 {
    netpol_judge(how, ends.sender, ends.receiver, flags) as u8
}

/// [`judge`], verified on its own.
#[cfg_attr(target_arch = "bpf", unsafe(no_mangle))]
#[inline(never)]
extern "C" fn netpol_judge(how: u32, sender: u32, receiver: u32, flags: u64) -> u32 {
    let Some(mut scratch) = Scratch::get() else {
        return DENIED_EGRESS.into();
    };
    let (reason, ruling) = rule(&scratch, how, Ends { sender, receiver }, flags);
    scratch.set_ruling(ruling);
    reason.into()
}

#[inline(always)]
fn rule(scratch: &Scratch, how: u32, ends: Ends, flags: u64) -> (u8, Ruling) {
    let packet = scratch.tuple(how & course::QUOTED != 0);
    let (src, dst, port) = if how & course::REVERSED != 0 {
        (&packet.dst, &packet.src, packet.sport)
    } else {
        (&packet.src, &packet.dst, packet.dport)
    };
    let mut ruling = Ruling {
        ruleset: RULESET_NONE,
        class: 0,
    };
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
            ruling = Ruling { ruleset, class };
            if !classify::allows(ruleset, class, packet.proto, port) {
                return (DENIED_EGRESS, ruling);
            }
        }
        own = own_address(sender, packet.family, src);
    }
    if let Some(receiver) = receiver {
        let ruleset = ingress(receiver);
        if ruleset != RULESET_NONE {
            let class = classify::class(packet.family, own, flags);
            ruling = Ruling { ruleset, class };
            if !classify::allows(ruleset, class, packet.proto, port) {
                return (DENIED_INGRESS, ruling);
            }
        }
    }
    (ALLOWED, ruling)
}

/// The pod's own address; what the packet says where none is published yet.
#[inline(always)]
fn own_address<'a>(pod: &'a Pod, family: u8, said: &'a [u32; 4]) -> &'a [u32; 4] {
    let own = if family == 4 { &pod.addr4 } else { &pod.addr6 };
    if *own == [0; 4] { said } else { own }
}
