//! Counts verdicts and tells user space about verdicts, when somebody listens.

use netpol_common::{
    event::{DropKey, Event, verdict},
    pod::state::{FLAG_EVENTS, FLAG_EVENTS_ALL},
    reason::{self, is_drop},
};

use crate::{
    judge::{Ends, Ruling},
    maps,
    packet::Packet,
    skb::Skb,
};

/// Why a packet was passed or dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// The reason, and the ruleset that decided.
    pub ruling: Ruling,
    /// Between whom.
    pub ends: Ends,
}

impl Decision {
    /// A decision that no ruleset took part in.
    #[inline(always)]
    pub fn new(reason: u8, ends: Ends) -> Self {
        Self {
            ruling: Ruling {
                reason,
                ruleset: 0,
                class: 0,
            },
            ends,
        }
    }
}

/// Counts, reports and gives the program's answer: whether to drop. Called once a run.
#[inline(always)]
pub fn conclude<S: Skb>(skb: &S, hook: u8, flags: u64, packet: &Packet, decision: &Decision) -> bool {
    let reason = decision.ruling.reason;
    let drop = is_drop(reason);
    if verdict::is_counted(hook, reason) {
        maps::count_verdict(hook, reason, skb.len());
    }
    if drop || flags & FLAG_EVENTS_ALL != 0 {
        report(skb, hook, flags, packet, decision);
    }
    drop
}

#[inline(never)]
fn report<S: Skb>(skb: &S, hook: u8, flags: u64, packet: &Packet, decision: &Decision) {
    let Decision { ruling, ends } = decision;
    if is_drop(ruling.reason) {
        let pod = match ruling.reason {
            // The pod whose rules decided; otherwise whoever of ours is nearest to the hook.
            reason::DENIED_EGRESS => ends.sender,
            reason::DENIED_INGRESS => ends.receiver,
            _ if ends.sender != 0 => ends.sender,
            _ => ends.receiver,
        };
        maps::count_drop(
            &DropKey {
                pod,
                hook: hook.into(),
                reason: ruling.reason.into(),
            },
            skb.len(),
        );
    }
    if flags & (FLAG_EVENTS | FLAG_EVENTS_ALL) != 0 {
        maps::send(&Event {
            src: packet.src,
            dst: packet.dst,
            sport: packet.sport,
            dport: packet.dport,
            proto: packet.proto,
            family: packet.family,
            hook,
            reason: ruling.reason,
            ifindex: skb.ifindex(),
            sender: ends.sender,
            receiver: ends.receiver,
            ruleset: ruling.ruleset,
            class: ruling.class,
            len: skb.len(),
        });
    }
}
