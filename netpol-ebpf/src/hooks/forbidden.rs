//! What no pod may send, isolated or not.

use netpol_common::{
    pod::{POD_EXEMPT, Pod},
    proto::{ICMP, ICMPV6, SCTP, TCP, UDP},
    reason::{MALFORMED, ROUTER_MESSAGE, SPOOFED, SPOOFED_NEIGHBOUR, TUNNEL},
};

use crate::{
    maps,
    packet::{ETH_LEN, ETH_P_IP, ETH_P_IPV6, Kind, Packet, is_extension},
    skb::Skb,
};

const IPIP: u8 = 4;
const IPV6_IN_IP: u8 = 41;
const GRE: u8 = 47;

/// The reason to drop what the pod `index` sends, whatever the policies say; 0 = none.
#[inline(always)]
pub(super) fn forbidden<S: Skb>(skb: &S, packet: &Packet, pod: &Pod, index: u32) -> u8 {
    match packet.kind {
        Kind::BrokenIp => return MALFORMED,
        Kind::Router => return ROUTER_MESSAGE,
        _ => {}
    }
    if pod.flags & POD_EXEMPT != 0 {
        return 0;
    }
    match packet.kind {
        Kind::NotIp => 0,
        // A probe (RFC 5227) has no sender address yet.
        Kind::Arp if packet.src[0] == pod.addr4[0] || packet.src[0] == 0 => 0,
        Kind::Arp => SPOOFED_NEIGHBOUR,
        Kind::Advertisement => advertised(skb, packet, pod, index),
        _ if !owns_source(packet, pod, index) => SPOOFED,
        _ if to_tunnel(packet) => TUNNEL,
        _ => 0,
    }
}

#[inline(always)]
fn owns_source(packet: &Packet, pod: &Pod, index: u32) -> bool {
    if packet.family == 4 {
        return packet.src[0] == pod.addr4[0] && pod.addr4[0] != 0;
    }
    // The unspecified address: only duplicate address detection and MLD speak before they have one.
    owns6(&packet.src, pod, index) || (packet.src == [0; 4] && packet.kind == Kind::Neighbour)
}

/// The pod's own address, or a link-local one that nobody else on this node is known by.
#[inline(always)]
fn owns6(address: &[u32; 4], pod: &Pod, index: u32) -> bool {
    if *address == pod.addr6 && pod.addr6 != [0; 4] {
        return true;
    }
    u32::from_be(address[0]) & 0xffc0_0000 == 0xfe80_0000
        && maps::local6(address).is_none_or(|owner| owner == index)
}

#[inline(always)]
fn advertised<S: Skb>(skb: &S, packet: &Packet, pod: &Pod, index: u32) -> u8 {
    let Some(bytes) = skb.load::<16>(packet.l4 + 8) else {
        return MALFORMED;
    };
    let word = |i: usize| u32::from_ne_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
    let target = [word(0), word(4), word(8), word(12)];
    if owns6(&target, pod, index) && owns6(&packet.src, pod, index) {
        0
    } else {
        SPOOFED_NEIGHBOUR
    }
}

/// Whether the node's own tunnel devices would take this packet for one of theirs, or another node's with the same set-up: what
/// a pod puts inside would come out with any source. Behind more extension headers than are walked may be anything.
#[inline(always)]
pub(super) fn to_tunnel(packet: &Packet) -> bool {
    let hidden = packet.family == 6 && packet.kind == Kind::Broken && is_extension(packet.proto);
    let key = match packet.proto {
        UDP => u32::from(UDP) << 16 | u32::from(u16::from_be(packet.dport)),
        IPIP | IPV6_IN_IP | GRE => u32::from(packet.proto) << 16,
        _ if hidden => 0,
        _ => return false,
    };
    maps::config().is_some_and(|config| {
        let [a, b, c, d, e, f, g, h] = config.tunnels;
        if hidden {
            return a != 0;
        }
        key == a || key == b || key == c || key == d || key == e || key == f || key == g || key == h
    })
}

/// Whether [`to_tunnel`] has to be asked, by the protocol alone.
#[inline(always)]
pub(super) fn may_be_tunnel<S: Skb>(skb: &S) -> bool {
    let at = if skb.is_bare() { 0 } else { ETH_LEN };
    let proto = match skb.protocol() {
        ETH_P_IP => skb.load::<1>(at + 9),
        ETH_P_IPV6 => skb.load::<1>(at + 6),
        _ => None,
    };
    !matches!(proto, Some([ICMP | TCP | ICMPV6 | SCTP]))
}
