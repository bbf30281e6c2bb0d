//! TC ingress: who sends this, or to whom does it reply?

use netpol_common::{
    event::hook::{ARRIVE, FROM_POD},
    mark::{self, Mark, OUTSIDE},
    pod::{
        Config, NODE_INDEX,
        state::{FLAG_ANY_INGRESS, FLAG_ANY_ISOLATED},
    },
    reason::{MALFORMED, NOT_OURS, REPLY, REVOKED, SPOOFED_OUTSIDE, TUNNEL},
    tables::RULESET_NONE,
};

use super::{forbidden::forbidden, fragments, note_link, unknown_pod};
use crate::{
    flows::{Lookup, Moment, course, look_up},
    icmp_error,
    judge::{Ends, egress},
    maps,
    packet::{Kind, Packet},
    report::{Decision, conclude},
    scratch::Scratch,
    skb::Skb,
};

/// A packet comes from a pod; true = drop it.
#[inline(always)]
pub fn from_pod<S: Skb>(skb: &mut S) -> bool {
    let moment = Moment::now();
    let decision = pod_sends(skb, &moment);
    conclude(skb, FROM_POD, moment.flags, decision)
}

#[inline(always)]
fn pod_sends<S: Skb>(skb: &mut S, moment: &Moment) -> Decision {
    let index = maps::iface(&skb.ifindex());
    let Some((index, pod)) = index.and_then(|index| Some((index, maps::pod(index)?))) else {
        skb.set_mark(mark::merge(skb.mark(), mark::sender(OUTSIDE)));
        return unknown_pod(moment.flags);
    };
    let mut ends = Ends {
        sender: index,
        receiver: OUTSIDE,
    };
    let Some(mut scratch) = Scratch::read(skb) else {
        return Decision::unread(MALFORMED, ends);
    };
    let reason = forbidden(skb, scratch.packet(), pod, index);
    if reason != 0 {
        return Decision::of_packet(reason, ends);
    }
    let held = egress(pod) != RULESET_NONE;
    let wanted = if held { FLAG_ANY_ISOLATED } else { FLAG_ANY_INGRESS };
    let found = reply(skb, &mut scratch, &mut ends, moment, wanted);
    let (value, reason) = match found {
        Lookup::Known => (mark::reply(ends.receiver, held), REPLY),
        Lookup::Revoked => (mark::sender(index), REVOKED),
        Lookup::Unknown => (mark::sender(index), NOT_OURS),
    };
    skb.set_mark(mark::merge(skb.mark(), value));
    Decision::of_packet(reason, ends)
}

/// A packet comes from outside; true = drop it.
#[inline(always)]
pub fn arrive<S: Skb>(skb: &mut S) -> bool {
    let moment = Moment::now();
    note_link(skb, moment.flags);
    let decision = outside_sends(skb, &moment);
    conclude(skb, ARRIVE, moment.flags, decision)
}

#[inline(always)]
fn outside_sends<S: Skb>(skb: &mut S, moment: &Moment) -> Decision {
    let mut ends = Ends::default();
    // The mark of a pod survives decapsulation: that pod has made the tunnel's packet. Another arrive (of a
    // bond's slave, a VLAN's parent) leaves *outside* or a reply to a pod, and is asked again here.
    match mark::decode(skb.mark()) {
        Mark::Sender(sender) if sender != OUTSIDE => {
            ends.sender = sender;
            return Decision::unread(TUNNEL, ends);
        }
        Mark::Reply { to: OUTSIDE, .. } => return Decision::unread(TUNNEL, ends),
        _ => {}
    }
    let Some(mut scratch) = Scratch::read(skb) else {
        return Decision::unread(MALFORMED, ends);
    };
    if let Some(owner) = local_source(scratch.packet()) {
        ends.sender = owner;
        return Decision::of_packet(SPOOFED_OUTSIDE, ends);
    }
    let found = reply(skb, &mut scratch, &mut ends, moment, FLAG_ANY_INGRESS);
    let (value, reason) = match found {
        Lookup::Known => (mark::reply(ends.receiver, false), REPLY),
        Lookup::Revoked => (mark::sender(OUTSIDE), REVOKED),
        Lookup::Unknown => (mark::sender(OUTSIDE), NOT_OURS),
    };
    skb.set_mark(mark::merge(skb.mark(), value));
    Decision::of_packet(reason, ends)
}

/// Looks for the flow that this packet replies to. `wanted`: the flag without which no TCP flow can have an
/// entry whose replies come in here.
#[inline(always)]
fn reply<S: Skb>(skb: &S, scratch: &mut Scratch, ends: &mut Ends, moment: &Moment, wanted: u64) -> Lookup {
    if moment.flags & FLAG_ANY_ISOLATED == 0 {
        return Lookup::Unknown;
    }
    if scratch.packet().kind == Kind::Later {
        // Without its first it stays a sender's packet; the way out drops it if it has to be judged.
        fragments::complete(skb, scratch);
    } else if scratch.packet().first != 0 {
        fragments::remember(skb, scratch);
    }
    let (kind, flags) = (scratch.packet().kind, scratch.packet().flags);
    let how = match kind {
        Kind::Mid if moment.flags & wanted == 0 => return Lookup::Unknown,
        Kind::Mid | Kind::Loose => course::REPLY | course::REVERSED | u32::from(flags),
        Kind::Error if icmp_error::quoted(skb, scratch) => course::REPLY | course::QUOTED,
        _ => return Lookup::Unknown,
    };
    look_up(scratch, how, ends, moment)
}

/// The local pod (or node) whose address a packet from outside claims as its source.
#[inline(always)]
fn local_source(packet: &Packet) -> Option<u32> {
    let config = maps::config()?;
    let owner = match packet.family {
        4 if packet.src[0] & config.local4_mask == config.local4 => maps::local4(&packet.src[0]),
        6 if within6(&packet.src, config) => maps::local6(&packet.src),
        _ => None,
    };
    owner.filter(|owner| *owner != NODE_INDEX)
}

#[inline(always)]
fn within6(address: &[u32; 4], config: &Config) -> bool {
    let Config {
        local6, local6_mask, ..
    } = config;
    address[0] & local6_mask[0] == local6[0]
        && address[1] & local6_mask[1] == local6[1]
        && address[2] & local6_mask[2] == local6[2]
        && address[3] & local6_mask[3] == local6[3]
}
