//! TC ingress: who sends this, or to whom does it reply?

use netpol_common::{
    event::hook::{ARRIVE, FROM_POD},
    mark::{self, Mark, OUTSIDE},
    pod::{
        Config, NODE_INDEX,
        state::{FLAG_ANY_INGRESS, FLAG_ANY_ISOLATED},
    },
    reason::{NOT_OURS, REPLY, REVOKED, SPOOFED_OUTSIDE, TUNNEL},
    tables::RULESET_NONE,
};

use super::{forbidden::forbidden, fragments, note_link, unknown_pod};
use crate::{
    flows::{Lookup, Moment, course, look_up},
    icmp_error,
    judge::{Ends, egress},
    maps,
    packet::{Kind, Packet, parse},
    report::{Decision, conclude},
    skb::Skb,
};

/// A packet comes from a pod; true = drop it.
#[inline(always)]
pub fn from_pod<S: Skb>(skb: &mut S) -> bool {
    let moment = Moment::now();
    let index = maps::iface(&skb.ifindex());
    let Some((index, pod)) = index.and_then(|index| Some((index, maps::pod(index)?))) else {
        skb.set_mark(mark::merge(skb.mark(), mark::sender(OUTSIDE)));
        return unknown_pod(skb, FROM_POD, moment.flags);
    };
    let Some([packet, quote]) = maps::scratch() else {
        return true;
    };
    parse(skb, packet);
    let mut ends = Ends {
        sender: index,
        receiver: OUTSIDE,
    };
    let reason = forbidden(skb, packet, pod, index);
    if reason != 0 {
        return conclude(skb, FROM_POD, moment.flags, packet, &Decision::new(reason, ends));
    }
    let held = egress(pod) != RULESET_NONE;
    let wanted = if held { FLAG_ANY_ISOLATED } else { FLAG_ANY_INGRESS };
    let found = reply(skb, packet, quote, &mut ends, &moment, wanted);
    let (value, reason) = match found {
        Lookup::Known => (mark::reply(ends.receiver, held), REPLY),
        Lookup::Revoked => (mark::sender(index), REVOKED),
        Lookup::Unknown => (mark::sender(index), NOT_OURS),
    };
    skb.set_mark(mark::merge(skb.mark(), value));
    conclude(skb, FROM_POD, moment.flags, packet, &Decision::new(reason, ends))
}

/// A packet comes from outside; true = drop it.
#[inline(always)]
pub fn arrive<S: Skb>(skb: &mut S) -> bool {
    let moment = Moment::now();
    note_link(skb, moment.flags);
    let Some([packet, quote]) = maps::scratch() else {
        return true;
    };
    let mut ends = Ends::default();
    // The mark of a pod survives decapsulation: that pod has made the tunnel's packet. Another arrive (of a
    // bond's slave, a VLAN's parent) leaves *outside* or a reply to a pod, and is asked again here.
    match mark::decode(skb.mark()) {
        Mark::Sender(sender) if sender != OUTSIDE => {
            ends.sender = sender;
            parse(skb, packet);
            return conclude(skb, ARRIVE, moment.flags, packet, &Decision::new(TUNNEL, ends));
        }
        Mark::Reply { to: OUTSIDE, .. } => {
            parse(skb, packet);
            return conclude(skb, ARRIVE, moment.flags, packet, &Decision::new(TUNNEL, ends));
        }
        _ => {}
    }
    parse(skb, packet);
    if let Some(owner) = local_source(packet) {
        ends.sender = owner;
        return conclude(
            skb,
            ARRIVE,
            moment.flags,
            packet,
            &Decision::new(SPOOFED_OUTSIDE, ends),
        );
    }
    let found = reply(skb, packet, quote, &mut ends, &moment, FLAG_ANY_INGRESS);
    let (value, reason) = match found {
        Lookup::Known => (mark::reply(ends.receiver, false), REPLY),
        Lookup::Revoked => (mark::sender(OUTSIDE), REVOKED),
        Lookup::Unknown => (mark::sender(OUTSIDE), NOT_OURS),
    };
    skb.set_mark(mark::merge(skb.mark(), value));
    conclude(skb, ARRIVE, moment.flags, packet, &Decision::new(reason, ends))
}

/// Looks for the flow that this packet replies to. `wanted`: the flag without which no TCP flow can have an
/// entry whose replies come in here.
#[inline(always)]
fn reply<S: Skb>(
    skb: &S,
    packet: &mut Packet,
    quote: &mut Packet,
    ends: &mut Ends,
    moment: &Moment,
    wanted: u64,
) -> Lookup {
    if moment.flags & FLAG_ANY_ISOLATED == 0 {
        return Lookup::Unknown;
    }
    if packet.kind == Kind::Later {
        // Without its first it stays a sender's packet; the way out drops it if it has to be judged.
        fragments::complete(skb, packet);
    } else if packet.first != 0 {
        fragments::remember(skb, packet);
    }
    match packet.kind {
        Kind::Mid if moment.flags & wanted == 0 => Lookup::Unknown,
        Kind::Mid | Kind::Loose => {
            let how = course::REPLY | course::REVERSED | u32::from(packet.flags);
            look_up(packet, how, ends, moment)
        }
        Kind::Error => {
            if !icmp_error::quoted(skb, packet, quote) {
                return Lookup::Unknown;
            }
            look_up(quote, course::REPLY | course::QUOTED, ends, moment)
        }
        _ => Lookup::Unknown,
    }
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
