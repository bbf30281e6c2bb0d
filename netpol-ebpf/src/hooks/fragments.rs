//! Later fragments have no ports: they share those of the first, which is remembered at each hook that passed it.

use netpol_common::{
    flow::{Frag, FragKey, timeout},
    proto::{ICMP, ICMPV6, UDP, has_ports},
};

use crate::{
    maps,
    packet::{Kind, Packet},
    scratch::Scratch,
    skb::Skb,
};

#[inline(always)]
fn key(ifindex: u32, packet: &Packet) -> FragKey {
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
        ifindex,
    }
}

/// Remembers what a first fragment says.
#[inline(always)]
pub(super) fn remember<S: Skb>(skb: &S, _scratch: &Scratch) {
    netpol_remember_fragment(skb.ifindex());
}

/// [`remember`], verified on its own. (Such a function has to return a number.)
#[cfg_attr(target_arch = "bpf", unsafe(no_mangle))]
#[inline(never)]
extern "C" fn netpol_remember_fragment(ifindex: u32) -> u32 {
    let Some(scratch) = Scratch::get() else { return 0 };
    let packet = scratch.packet();
    let frag = Frag {
        sport: packet.sport,
        dport: packet.dport,
        proto: packet.proto.into(),
        seen: maps::jiffies(),
    };
    maps::put_frag(&key(ifindex, packet), &frag);
    0
}

/// Gives a later fragment the ports of its first; false where that was not seen, or not passed.
#[inline(always)]
pub(super) fn complete<S: Skb>(skb: &S, _scratch: &mut Scratch) -> bool {
    netpol_complete_fragment(skb.ifindex()) != 0
}

/// [`complete`], verified on its own.
#[cfg_attr(target_arch = "bpf", unsafe(no_mangle))]
#[inline(never)]
extern "C" fn netpol_complete_fragment(ifindex: u32) -> u32 {
    let (Some(mut scratch), Some(config)) = (Scratch::get(), maps::config()) else {
        return 0;
    };
    let Some(first) = maps::frag(&key(ifindex, scratch.packet())) else {
        return 0;
    };
    if maps::jiffies().saturating_sub(first.seen) > config.timeouts[timeout::FRAGMENT] {
        return 0;
    }
    let packet = scratch.packet_mut();
    packet.sport = first.sport;
    packet.dport = first.dport;
    packet.proto = first.proto as u8;
    // Never the beginning of a conversation, except where there are no beginnings.
    packet.kind =
        if has_ports(packet.proto) && packet.proto != UDP || packet.proto == ICMP || packet.proto == ICMPV6 {
            Kind::Mid
        } else {
            Kind::Loose
        };
    1
}
