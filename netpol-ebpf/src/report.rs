//! Counts verdicts and tells user space about verdicts, when somebody listens.

use netpol_common::{
    event::{DropKey, Event, verdict},
    pod::state::{FLAG_EVENTS, FLAG_EVENTS_ALL},
    reason::{self, is_drop},
};

use crate::{
    judge::{Ends, Ruling},
    maps,
    packet::parse,
    scratch::Scratch,
    skb::Skb,
};

/// What a decision was taken from, which is what an event can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// Marks and devices: the packet's headers have not been read.
    Unread,
    /// The packet in the scratch.
    Packet,
    /// The rules: their ruling lies in the scratch, too.
    Rules,
}

/// Why a packet was passed or dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// `reason::*`
    pub reason: u8,
    /// Between whom.
    pub ends: Ends,
    /// Taken from what.
    pub basis: Basis,
}

impl Decision {
    /// Decided without the packet's headers, which are read only if somebody wants to know.
    #[inline(always)]
    #[must_use]
    pub fn unread(reason: u8, ends: Ends) -> Self {
        Self {
            reason,
            ends,
            basis: Basis::Unread,
        }
    }

    /// Decided by what the packet is.
    #[inline(always)]
    #[must_use]
    pub fn of_packet(reason: u8, ends: Ends) -> Self {
        Self {
            reason,
            ends,
            basis: Basis::Packet,
        }
    }

    /// Decided by rules.
    #[inline(always)]
    #[must_use]
    pub fn by_rules(reason: u8, ends: Ends) -> Self {
        Self {
            reason,
            ends,
            basis: Basis::Rules,
        }
    }
}

/// Bits of what [`netpol_report`] is told, above the hook and the reason: send an event, and with the ruling.
const SEND: u32 = 1 << 16;
const RULED: u32 = 1 << 17;

/// Counts, reports and gives the program's answer: whether to drop. Called once a run.
#[inline(always)]
pub fn conclude<S: Skb>(skb: &S, hook: u8, flags: u64, decision: Decision) -> bool {
    let Decision { reason, ends, basis } = decision;
    let drop = is_drop(reason);
    if verdict::is_counted(hook, reason) {
        maps::count_verdict(hook, reason, skb.len());
    }
    if drop || flags & FLAG_EVENTS_ALL != 0 {
        let mut what = u32::from(hook) | u32::from(reason) << 8;
        if flags & (FLAG_EVENTS | FLAG_EVENTS_ALL) != 0 {
            what |= SEND;
            if basis == Basis::Unread
                && let Some(mut scratch) = Scratch::get()
            {
                parse(skb, scratch.packet_mut());
            }
        }
        if basis == Basis::Rules {
            what |= RULED;
        }
        netpol_report(what, ends.sender, ends.receiver, skb.ifindex(), skb.len());
    }
    drop
}

/// Verified on its own. (Such a function has to return a number.)
#[cfg_attr(target_arch = "bpf", unsafe(no_mangle))]
#[inline(never)]
extern "C" fn netpol_report(what: u32, sender: u32, receiver: u32, ifindex: u32, len: u32) -> u32 {
    let (hook, reason) = (what as u8, (what >> 8) as u8);
    if is_drop(reason) {
        let pod = match reason {
            // The pod whose rules decided; otherwise whoever of ours is nearest to the hook.
            reason::DENIED_EGRESS => sender,
            reason::DENIED_INGRESS => receiver,
            _ if sender != 0 => sender,
            _ => receiver,
        };
        maps::count_drop(
            &DropKey {
                pod,
                hook: hook.into(),
                reason: reason.into(),
            },
            len,
        );
    }
    if what & SEND != 0
        && let Some(scratch) = Scratch::get()
    {
        let packet = scratch.packet();
        let ruling = if what & RULED != 0 {
            scratch.ruling()
        } else {
            Ruling::default()
        };
        maps::send(&Event {
            src: packet.src,
            dst: packet.dst,
            sport: packet.sport,
            dport: packet.dport,
            proto: packet.proto,
            family: packet.family,
            hook,
            reason,
            ifindex,
            sender,
            receiver,
            ruleset: ruling.ruleset,
            class: ruling.class,
            len,
        });
    }
    0
}
