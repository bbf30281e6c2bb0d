//! Later fragments have no ports: they share those of the first, which is remembered at each hook that passed it.

use netpol_common::{
    flow::{Frag, FragKey, timeout},
    proto::UDP,
};

use crate::{
    maps,
    packet::{Kind, Packet},
    skb::Skb,
};

#[inline(always)]
fn key<S: Skb>(skb: &S, packet: &Packet) -> FragKey {
    let proto = if packet.family == 4 {
        u32::from(packet.proto)
    } else {
        0
    };
    FragKey {
        src: packet.src,
        dst: packet.dst,
        id: packet.id,
        kind: u32::from(packet.family) << 16 | proto,
        ifindex: skb.ifindex(),
    }
}

/// Remembers what a first fragment says.
#[inline(never)]
pub(super) fn remember<S: Skb>(skb: &S, packet: &Packet) {
    let frag = Frag {
        sport: packet.sport,
        dport: packet.dport,
        proto: packet.proto.into(),
        seen: maps::jiffies(),
    };
    maps::put_frag(&key(skb, packet), &frag);
}

/// Gives a later fragment the ports of its first; false where that was not seen, or not passed.
#[inline(never)]
pub(super) fn complete<S: Skb>(skb: &S, packet: &mut Packet) -> bool {
    let (Some(first), Some(config)) = (maps::frag(&key(skb, packet)), maps::config()) else {
        return false;
    };
    if maps::jiffies().saturating_sub(first.seen) > config.timeouts[timeout::FRAGMENT] {
        return false;
    }
    packet.sport = first.sport;
    packet.dport = first.dport;
    packet.proto = first.proto as u8;
    // Never the beginning of a conversation, except where there are no beginnings.
    packet.kind = if netpol_common::proto::has_ports(packet.proto) && packet.proto != UDP
        || packet.proto == netpol_common::proto::ICMP
        || packet.proto == netpol_common::proto::ICMPV6
    {
        Kind::Mid
    } else {
        Kind::Loose
    };
    true
}
