//! ICMP errors: they belong to the conversation that they quote.
//!
//! An error quotes a packet as it is on that side of the NAT. One that travels with the replies (from the
//! responder's side or a router there) quotes a forward packet: it is looked up at its way in. One that travels
//! forward quotes a reply: it is looked up at its way out, reversed.

use netpol_common::reason::{DENIED_INGRESS, RELATED, is_drop};

use crate::{
    flows::{Lookup, Moment, course, look_up},
    judge::{Ends, Ruling, judge},
    packet::{Kind, Packet, parse_ip},
    skb::Skb,
};

/// The packet that the error at `packet` quotes; false where too little of it is there, or the error goes to
/// another than its sender.
#[inline(always)]
pub fn quoted<S: Skb>(skb: &S, packet: &Packet, quote: &mut Packet) -> bool {
    quoted_linear(skb, packet, quote) || (skb.pull() && quoted_linear(skb, packet, quote))
}

#[inline(never)]
fn quoted_linear<S: Skb>(skb: &S, packet: &Packet, quote: &mut Packet) -> bool {
    quote.clear();
    parse_ip::<S, true>(skb, packet.l4 + 8, packet.family, quote);
    // An error goes to whoever sent what it quotes, on either side of a NAT: to nobody else may it speak of an
    // allowed conversation. A quoted later fragment has no ports, and a quoted error no conversation.
    matches!(quote.kind, Kind::Open | Kind::Mid | Kind::Loose) && quote.src == packet.dst
}

/// At a way out: is the quoted conversation one that is known or allowed, in either direction?
#[inline(never)]
pub fn judge_quoted(quote: &Packet, ends: &Ends, moment: &Moment, ruling: &mut Ruling) {
    let mut of_flow = *ends;
    if look_up(quote, course::REVERSED | course::QUOTED, &mut of_flow, moment) == Lookup::Known {
        ruling.reason = RELATED;
        return;
    }
    // An answer is quoted: it belongs to what the error's sender may open.
    judge(quote, true, ends, moment.flags, ruling);
    // What the error's receiver opened is quoted: it would be known, had a pod isolated for egress answered it.
    if ruling.reason == DENIED_INGRESS {
        let mut opened = Ruling::default();
        judge(quote, false, &ends.reversed(), moment.flags, &mut opened);
        if !is_drop(opened.reason) {
            *ruling = opened;
        }
    }
    if !is_drop(ruling.reason) {
        ruling.reason = RELATED;
    }
}
