//! ICMP errors: they belong to the conversation that they quote.
//!
//! An error quotes a packet as it is on that side of the NAT. One that travels with the replies (from the
//! responder's side or a router there) quotes a forward packet: it is looked up at its way in. One that travels
//! forward quotes a reply: it is looked up at its way out, reversed.

use netpol_common::reason::{DENIED_INGRESS, MALFORMED, RELATED, is_drop};

use crate::{
    flows::{Lookup, Moment, course, look_up},
    judge::{Ends, Ruling, judge},
    packet::{Kind, Packet, parse_ip},
    scratch::Scratch,
    skb::Skb,
};

/// Parses the packet that the error quotes; false where too little of it is there, or the error goes to another than its sender.
#[inline(always)]
pub fn quoted<S: Skb>(skb: &S, scratch: &mut Scratch) -> bool {
    let (packet, quote) = scratch.packet_and_quote();
    quoted_linear(skb, packet, quote) || (skb.pull() && quoted_linear(skb, packet, quote))
}

#[inline(never)]
fn quoted_linear<S: Skb>(skb: &S, packet: &Packet, quote: &mut Packet) -> bool {
    quote.clear();
    quote.l4 = packet.l4 + 8;
    parse_ip::<S, true>(skb, packet.family, quote);
    // An error goes to whoever sent what it quotes, on either side of a NAT: to nobody else may it speak of an
    // allowed conversation. A quoted later fragment has no ports, and a quoted error no conversation.
    matches!(quote.kind, Kind::Open | Kind::Mid | Kind::Loose) && quote.src == packet.dst
}

/// At a way out: is the quoted conversation one that is known or allowed, in either direction? Returns the reason.
#[inline(always)]
pub fn judge_quoted(_scratch: &mut Scratch, ends: Ends, moment: &Moment) -> u8 {
    netpol_judge_quoted(ends.sender, ends.receiver, moment.epoch, moment.flags) as u8
}

/// [`judge_quoted`], verified on its own.
#[cfg_attr(target_arch = "bpf", unsafe(no_mangle))]
#[inline(never)]
extern "C" fn netpol_judge_quoted(sender: u32, receiver: u32, epoch: u32, flags: u64) -> u32 {
    let Some(mut scratch) = Scratch::get() else {
        return MALFORMED.into();
    };
    let (ends, moment) = (Ends { sender, receiver }, Moment { epoch, flags });
    rule_on_quote(&mut scratch, ends, &moment).into()
}

#[inline(always)]
fn rule_on_quote(scratch: &mut Scratch, ends: Ends, moment: &Moment) -> u8 {
    let mut of_flow = ends;
    if look_up(scratch, course::REVERSED | course::QUOTED, &mut of_flow, moment) == Lookup::Known {
        scratch.set_ruling(Ruling::default());
        return RELATED;
    }
    // An answer is quoted: it belongs to what the error's sender may open.
    let mut reason = judge(scratch, course::REVERSED | course::QUOTED, ends, moment.flags);
    // What the error's receiver opened is quoted: it would be known, had a pod isolated for egress answered it.
    if reason == DENIED_INGRESS {
        let denied = scratch.ruling();
        if is_drop(judge(scratch, course::QUOTED, ends.reversed(), moment.flags)) {
            scratch.set_ruling(denied);
        } else {
            reason = RELATED;
        }
    }
    if is_drop(reason) { reason } else { RELATED }
}
