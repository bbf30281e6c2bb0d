//! TC egress: may this packet go on to where it really goes?

use netpol_common::{
    event::hook::{SETTLE, TO_POD},
    mark::{self, Mark, OUTSIDE},
    pod::{
        BARE_INDEX, BRIDGE_INDEX, OUTSIDE_INDEX, POD_EXEMPT,
        state::{FLAG_ANY_ISOLATED, FLAG_POLICE_NODE, FLAG_UNKNOWN_PASS},
    },
    proto::TCP,
    reason::{
        ADOPTED, DENIED_INGRESS, FRAGMENT, ITSELF, KNOWN_FLOW, LOST_MARK, MALFORMED, MISDIRECTED, NEIGHBOUR,
        NODE, NOT_IP, NOT_ISOLATED, NOT_OURS, REPLY, REVOKED, TUNNEL, UNKNOWN_POD, is_drop,
    },
    tables::RULESET_NONE,
};

use super::{
    forbidden::{may_be_tunnel, to_tunnel},
    fragments, note_link, unknown_pod,
};
use crate::{
    flows::{self, Lookup, Moment, course, look_up},
    icmp_error,
    judge::{Ends, judge, rulesets},
    maps,
    packet::{FLAG_FAR, Kind},
    report::{Decision, conclude},
    scratch::Scratch,
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
    let decision = pod_receives(skb, &moment);
    conclude(skb, TO_POD, moment.flags, decision)
}

#[inline(always)]
fn pod_receives<S: Skb>(skb: &S, moment: &Moment) -> Decision {
    let flags = moment.flags;
    let index = maps::iface(&skb.ifindex());
    let Some((index, pod)) = index.and_then(|index| Some((index, maps::pod(index)?))) else {
        return unknown_pod(flags);
    };
    let mut ends = Ends {
        sender: OUTSIDE,
        receiver: index,
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
        return Decision::unread(reason, ends);
    }
    let Some(sender) = sender_rulesets(ends.sender, flags) else {
        return Decision::unread(UNKNOWN_POD, ends);
    };
    let isolation = Isolation::of(sender, rulesets(pod));
    if isolation.none() {
        return Decision::unread(NOT_ISOLATED, ends);
    }
    let Some(mut scratch) = Scratch::read(skb) else {
        return Decision::unread(MALFORMED, ends);
    };
    decide(skb, &mut scratch, ends, isolation, moment)
}

/// A packet leaves by an outside device; true = drop it.
#[inline(always)]
pub fn settle<S: Skb>(skb: &mut S) -> bool {
    let moment = Moment::now();
    note_link(skb, moment.flags);
    let decision = outside_receives(skb, &moment);
    conclude(skb, SETTLE, moment.flags, decision)
}

#[inline(always)]
fn outside_receives<S: Skb>(skb: &mut S, moment: &Moment) -> Decision {
    let flags = moment.flags;
    let mut ends = Ends::default();
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
        return Decision::unread(reason, ends);
    }
    // Bond and slave, VLAN and parent: one packet crosses several.
    skb.set_mark(mark::merge(skb.mark(), mark::JUDGED));
    let Some(sender) = sender_rulesets(ends.sender, flags) else {
        return Decision::unread(UNKNOWN_POD, ends);
    };
    let isolation = Isolation::of(sender, 0);
    if isolation.none() && !may_be_tunnel(skb) {
        return Decision::unread(NOT_ISOLATED, ends);
    }
    let Some(mut scratch) = Scratch::read(skb) else {
        return Decision::unread(MALFORMED, ends);
    };
    // Asked at the way in, too; but NAT may have led it to another port, and to another node's tunnel.
    if to_tunnel(scratch.packet()) && maps::pod(ends.sender).is_none_or(|pod| pod.flags & POD_EXEMPT == 0) {
        return Decision::of_packet(TUNNEL, ends);
    }
    decide(skb, &mut scratch, ends, isolation, moment)
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

/// The verdict about the packet in the scratch, between two ends.
#[inline(always)]
fn decide<S: Skb>(
    skb: &S,
    scratch: &mut Scratch,
    mut ends: Ends,
    isolation: Isolation,
    moment: &Moment,
) -> Decision {
    if isolation.none() {
        return Decision::of_packet(NOT_ISOLATED, ends);
    }
    let settled = undisputed(skb, scratch, &ends, isolation);
    if settled != 0 {
        return Decision::of_packet(settled, ends);
    }
    let packet = scratch.packet();
    let (kind, is_tcp, how) = (packet.kind, packet.proto == TCP, u32::from(packet.flags));
    if kind == Kind::Error {
        // An ICMP error passes with the conversation that it quotes.
        return if icmp_error::quoted(skb, scratch) {
            let reason = icmp_error::judge_quoted(scratch, ends, moment);
            Decision::by_rules(reason, ends)
        } else {
            Decision::of_packet(MALFORMED, ends)
        };
    }
    let opens = kind == Kind::Open;
    // Without beginnings every packet may be the first.
    let loose = kind == Kind::Loose || kind == Kind::Router;
    if !opens && (loose || isolation.replies) {
        match look_up(scratch, how, &mut ends, moment) {
            Lookup::Known => return remembered(skb, scratch, Decision::of_packet(KNOWN_FLOW, ends)),
            Lookup::Revoked => return Decision::of_packet(REVOKED, ends),
            Lookup::Unknown => {}
        }
    }
    let reason = judge(scratch, 0, ends, moment.flags);
    if is_drop(reason) {
        if kind == Kind::Mid && is_tcp && adopted(scratch, reason, ends, moment) {
            return Decision::of_packet(ADOPTED, ends);
        }
        return Decision::by_rules(reason, ends);
    }
    if (loose || (opens && isolation.replies)) && !scratch.packet().is_to_many() {
        flows::record(scratch, ends, moment);
    }
    let decision = if scratch.ruling().ruleset == RULESET_NONE {
        Decision::of_packet(NOT_ISOLATED, ends)
    } else {
        Decision::by_rules(reason, ends)
    };
    remembered(skb, scratch, decision)
}

/// What needs no rules: the reason, or 0. Completes a later fragment.
#[inline(always)]
fn undisputed<S: Skb>(skb: &S, scratch: &mut Scratch, ends: &Ends, isolation: Isolation) -> u8 {
    let unjudged = |reason| if isolation.judged { reason } else { NOT_ISOLATED };
    if scratch.packet().kind == Kind::Later && !fragments::complete(skb, scratch) {
        return unjudged(FRAGMENT);
    }
    let packet = scratch.packet();
    match packet.kind {
        Kind::Arp | Kind::Neighbour | Kind::Advertisement => NEIGHBOUR,
        // A real router on the pods' link; pods' own never get past from_pod.
        Kind::Router if packet.family == 6 && ends.sender == OUTSIDE && packet.flags & FLAG_FAR == 0 => {
            NEIGHBOUR
        }
        Kind::NotIp => unjudged(NOT_IP),
        Kind::BrokenIp | Kind::Broken => unjudged(MALFORMED),
        Kind::Error if !isolation.judged => NOT_ISOLATED,
        _ => 0,
    }
}

/// Later fragments pass with their first.
#[inline(always)]
fn remembered<S: Skb>(skb: &S, scratch: &Scratch, decision: Decision) -> Decision {
    if scratch.packet().first != 0 {
        fragments::remember(skb, scratch);
    }
    decision
}

/// In the first moments of a pod's isolation its live connections have no entry yet: a segment in
/// mid-stream passes, and is recorded, if the connection could have been opened from the other side. `reason`: of its denial.
#[inline(always)]
fn adopted(_scratch: &mut Scratch, reason: u8, ends: Ends, moment: &Moment) -> bool {
    netpol_adopted(
        reason.into(),
        ends.sender,
        ends.receiver,
        moment.epoch,
        moment.flags,
    ) != 0
}

/// [`adopted`], verified on its own.
#[cfg_attr(target_arch = "bpf", unsafe(no_mangle))]
#[inline(never)]
extern "C" fn netpol_adopted(reason: u32, sender: u32, receiver: u32, epoch: u32, flags: u64) -> u32 {
    let ends = Ends { sender, receiver };
    let isolated = if reason == u32::from(DENIED_INGRESS) {
        receiver
    } else {
        sender
    };
    let (Some(pod), Some(mut scratch)) = (maps::pod(isolated), Scratch::get()) else {
        return 0;
    };
    if maps::jiffies() > pod.adopt_until {
        return 0;
    }
    let (denied, opened) = (scratch.ruling(), ends.reversed());
    if is_drop(judge(&mut scratch, course::REVERSED, opened, flags)) {
        scratch.set_ruling(denied);
        return 0;
    }
    flows::adopt(scratch.packet(), opened, epoch);
    1
}
