//! TC egress: may this packet go on to where it really goes?

use netpol_common::{
    event::hook::{SETTLE, TO_POD},
    mark::{self, Mark, OUTSIDE},
    pod::{
        BARE_INDEX, BRIDGE_INDEX, OUTSIDE_INDEX, Pod,
        state::{FLAG_ANY_ISOLATED, FLAG_POLICE_NODE, FLAG_UNKNOWN_PASS},
    },
    proto::TCP,
    reason::{
        ADOPTED, DENIED_INGRESS, FRAGMENT, ITSELF, KNOWN_FLOW, LOST_MARK, MALFORMED, MISDIRECTED, NEIGHBOUR,
        NODE, NOT_IP, NOT_ISOLATED, NOT_OURS, REPLY, REVOKED, UNKNOWN_POD, is_drop,
    },
    tables::RULESET_NONE,
};

use super::{fragments, note_link, unknown_pod};
use crate::{
    flows::{self, Lookup, Moment, look_up},
    icmp_error,
    judge::{Ends, Ruling, judge, rulesets},
    maps,
    packet::{FLAG_FAR, Kind, Packet, parse},
    report::{Decision, conclude},
    skb::Skb,
};

/// What the isolation of the two ends asks of a packet.
#[derive(Clone, Copy)]
struct Isolation {
    /// The sender is isolated for egress or the receiver for ingress: rules decide.
    judged: bool,
    /// The sender is isolated for ingress or the receiver for egress: their replies need an entry.
    replies: bool,
}

impl Isolation {
    #[inline(always)]
    fn of(sender: u64, receiver: u64) -> Self {
        let (sender_in, sender_out) = (sender as u32, (sender >> 32) as u32);
        let (receiver_in, receiver_out) = (receiver as u32, (receiver >> 32) as u32);
        Self {
            judged: sender_out | receiver_in != RULESET_NONE,
            replies: sender_in | receiver_out != RULESET_NONE,
        }
    }

    #[inline(always)]
    fn none(self) -> bool {
        !self.judged && !self.replies
    }
}

/// A packet goes to a pod; true = drop it.
#[inline(always)]
pub fn to_pod<S: Skb>(skb: &mut S) -> bool {
    let moment = Moment::now();
    let flags = moment.flags;
    let index = maps::iface(&skb.ifindex());
    let Some((index, pod)) = index.and_then(|index| Some((index, maps::pod(index)?))) else {
        return unknown_pod(skb, TO_POD, flags);
    };
    let mut ends = Ends {
        sender: OUTSIDE,
        receiver: index,
    };
    let Some([packet, quote]) = maps::scratch() else {
        return true;
    };
    let reason = if skb.ingress_ifindex() == 0 {
        // A process of the node may set any mark: it says nothing here.
        if flags & FLAG_POLICE_NODE == 0 { NODE } else { 0 }
    } else {
        match mark::decode(skb.mark()) {
            Mark::Reply { to, .. } if to == index => REPLY,
            Mark::Sender(said) => match origin(skb, said) {
                sender if sender == index => ITSELF,
                sender => {
                    ends.sender = sender;
                    0
                }
            },
            // Someone else's: a stale entry of a tuple in use again. Its sender's egress is free, so the
            // receiver judges it like any packet; a held one may go to nobody else.
            Mark::Reply { held: false, .. } => 0,
            Mark::Reply { .. } => MISDIRECTED,
            Mark::None | Mark::Judged if flags & FLAG_ANY_ISOLATED == 0 => NOT_ISOLATED,
            // Who has no mark, or lost it, is known by a device of its own only: its source address may be anybody's.
            Mark::None | Mark::Judged => match origin(skb, OUTSIDE) {
                OUTSIDE => LOST_MARK,
                sender if sender == index => ITSELF,
                sender => {
                    ends.sender = sender;
                    0
                }
            },
        }
    };
    if reason != 0 {
        return undisputed(skb, TO_POD, flags, packet, reason, ends);
    }
    let Some(sender) = sender_rulesets(ends.sender, flags) else {
        return undisputed(skb, TO_POD, flags, packet, UNKNOWN_POD, ends);
    };
    let isolation = Isolation::of(sender, rulesets(pod));
    if isolation.none() {
        return undisputed(skb, TO_POD, flags, packet, NOT_ISOLATED, ends);
    }
    parse(skb, packet);
    let decision = decide(skb, packet, quote, ends, isolation, &moment);
    conclude(skb, TO_POD, flags, packet, &decision)
}

/// A packet leaves by an outside device; true = drop it.
#[inline(always)]
pub fn settle<S: Skb>(skb: &mut S) -> bool {
    let moment = Moment::now();
    let flags = moment.flags;
    note_link(skb, flags);
    let mut ends = Ends::default();
    let Some([packet, quote]) = maps::scratch() else {
        return true;
    };
    let reason = if skb.ingress_ifindex() == 0 {
        NODE
    } else {
        match mark::decode(skb.mark()) {
            Mark::Judged => NOT_OURS,
            Mark::Sender(said) => match origin(skb, said) {
                OUTSIDE => NOT_OURS,
                sender => {
                    ends.sender = sender;
                    0
                }
            },
            Mark::Reply { to: OUTSIDE, .. } => REPLY,
            // Its sender's egress is free.
            Mark::Reply { held: false, .. } => NOT_ISOLATED,
            Mark::Reply { .. } => MISDIRECTED,
            Mark::None if flags & FLAG_ANY_ISOLATED == 0 => NOT_ISOLATED,
            Mark::None => LOST_MARK,
        }
    };
    if reason != 0 {
        return undisputed(skb, SETTLE, flags, packet, reason, ends);
    }
    // Bond and slave, VLAN and parent: one packet crosses several.
    skb.set_mark(mark::merge(skb.mark(), mark::JUDGED));
    let Some(sender) = sender_rulesets(ends.sender, flags) else {
        return undisputed(skb, SETTLE, flags, packet, UNKNOWN_POD, ends);
    };
    let isolation = Isolation::of(sender, 0);
    if isolation.none() {
        return undisputed(skb, SETTLE, flags, packet, NOT_ISOLATED, ends);
    }
    parse(skb, packet);
    let decision = decide(skb, packet, quote, ends, isolation, &moment);
    conclude(skb, SETTLE, flags, packet, &decision)
}

/// Decided without the packet's headers, which are read only if somebody wants to know.
#[inline(always)]
fn undisputed<S: Skb>(skb: &S, hook: u8, flags: u64, packet: &mut Packet, reason: u8, ends: Ends) -> bool {
    use netpol_common::pod::state::{FLAG_EVENTS, FLAG_EVENTS_ALL};
    if flags & (FLAG_EVENTS | FLAG_EVENTS_ALL) != 0 {
        parse(skb, packet);
    }
    conclude(skb, hook, flags, packet, &Decision::new(reason, ends))
}

/// The sender's rulesets; `None` where that pod has gone since its packet came in and nobody knows its rules any more.
#[inline(always)]
fn sender_rulesets(sender: u32, flags: u64) -> Option<u64> {
    if sender == OUTSIDE {
        return Some(0);
    }
    match maps::pod(sender) {
        Some(pod) if pod.incarnation != 0 => Some(rulesets(pod)),
        _ if flags & FLAG_UNKNOWN_PASS != 0 => Some(0),
        _ => None,
    }
}

/// Who sent a packet of which the mark says that `said` did. Others may have changed bits of the mark (Tailscale writes some of
/// ours), but not by which device the packet came in. It came by a bridge where it was routed from there.
#[inline(always)]
fn origin<S: Skb>(skb: &S, said: u32) -> u32 {
    match maps::iface(&skb.ingress_ifindex()) {
        None | Some(BRIDGE_INDEX) => said,
        Some(OUTSIDE_INDEX | BARE_INDEX) => OUTSIDE,
        Some(pod) => pod,
    }
}

/// The verdict about a packet between two ends of which one is isolated.
#[inline(always)]
fn decide<S: Skb>(
    skb: &S,
    packet: &mut Packet,
    quote: &mut Packet,
    mut ends: Ends,
    isolation: Isolation,
    moment: &Moment,
) -> Decision {
    let unjudged = |reason| if isolation.judged { reason } else { NOT_ISOLATED };
    let orphan = packet.kind == Kind::Later && !fragments::complete(skb, packet);
    let settled = match packet.kind {
        _ if orphan => unjudged(FRAGMENT),
        Kind::Arp | Kind::Neighbour | Kind::Advertisement => NEIGHBOUR,
        // A real router on the pods' link; pods' own never get past from_pod.
        Kind::Router if packet.family == 6 && ends.sender == OUTSIDE && packet.flags & FLAG_FAR == 0 => {
            NEIGHBOUR
        }
        Kind::NotIp => unjudged(NOT_IP),
        Kind::BrokenIp | Kind::Broken => unjudged(MALFORMED),
        Kind::Error if !isolation.judged => NOT_ISOLATED,
        Kind::Error => {
            let mut ruling = Ruling::default();
            // An ICMP error passes with the conversation that it quotes.
            if icmp_error::quoted(skb, packet, quote) {
                icmp_error::judge_quoted(quote, &ends, moment, &mut ruling);
            } else {
                ruling.reason = MALFORMED;
            }
            return Decision { ruling, ends };
        }
        _ => 0,
    };
    if settled != 0 {
        return Decision::new(settled, ends);
    }
    let opens = packet.kind == Kind::Open;
    // Without beginnings every packet may be the first.
    let loose = packet.kind == Kind::Loose || packet.kind == Kind::Router;
    if !opens && (loose || isolation.replies) {
        match look_up(packet, u32::from(packet.flags), &mut ends, moment) {
            Lookup::Known => return remembered(skb, packet, Decision::new(KNOWN_FLOW, ends)),
            Lookup::Revoked => return Decision::new(REVOKED, ends),
            Lookup::Unknown => {}
        }
    }
    let mut ruling = Ruling::default();
    judge(packet, false, &ends, moment.flags, &mut ruling);
    if is_drop(ruling.reason) {
        if packet.kind == Kind::Mid && packet.proto == TCP && adopted(packet, &ends, &ruling, moment) {
            return Decision::new(ADOPTED, ends);
        }
        return Decision { ruling, ends };
    }
    if loose || (opens && isolation.replies) {
        flows::record(packet, &ends, moment);
    }
    if ruling.ruleset == RULESET_NONE {
        ruling.reason = NOT_ISOLATED;
    }
    remembered(skb, packet, Decision { ruling, ends })
}

/// Later fragments pass with their first.
#[inline(always)]
fn remembered<S: Skb>(skb: &S, packet: &Packet, decision: Decision) -> Decision {
    if packet.first != 0 {
        fragments::remember(skb, packet);
    }
    decision
}

/// In the first moments of a pod's isolation its live connections have no entry yet: a segment in
/// mid-stream passes, and is recorded, if the connection could have been opened from the other side.
#[inline(never)]
fn adopted(packet: &Packet, ends: &Ends, ruling: &Ruling, moment: &Moment) -> bool {
    let isolated = if ruling.reason == DENIED_INGRESS {
        ends.receiver
    } else {
        ends.sender
    };
    let Some(until) = maps::pod(isolated).map(|pod: &Pod| pod.adopt_until) else {
        return false;
    };
    if maps::jiffies() > until {
        return false;
    }
    let opened = ends.reversed();
    let mut ruling = Ruling::default();
    judge(packet, true, &opened, moment.flags, &mut ruling);
    if is_drop(ruling.reason) {
        return false;
    }
    flows::adopt(packet, &opened, moment);
    true
}
