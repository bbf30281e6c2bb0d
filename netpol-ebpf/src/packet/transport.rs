//! The transport layer: ports, and what a packet is to its conversation.

use netpol_common::proto::{ICMP, ICMPV6, SCTP, TCP, UDP};

use super::{FLAG_FAR, FLAG_FIN, FLAG_RESET, Kind, Packet};
use crate::skb::Skb;

const TCP_FIN: u8 = 0x01;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const TCP_ACK: u8 = 0x10;

const SCTP_INIT: u8 = 1;
const SCTP_ABORT: u8 = 6;
const SCTP_SHUTDOWN: u8 = 7;
const SCTP_SHUTDOWN_COMPLETE: u8 = 14;

/// Parses the transport header at `packet.l4`; `payload` bytes follow the IP header by its own account.
#[inline(always)]
pub(super) fn parse<S: Skb, const QUOTED: bool>(skb: &S, packet: &mut Packet, payload: u32, hops: u8) {
    packet.kind = Kind::Broken;
    match packet.proto {
        TCP if QUOTED => ports::<S, 8>(skb, packet, payload, 8),
        TCP => tcp(skb, packet, payload),
        UDP => ports::<S, 8>(skb, packet, payload, 8),
        SCTP if QUOTED => ports::<S, 8>(skb, packet, payload, 8),
        SCTP => sctp(skb, packet, payload),
        ICMP if packet.family == 4 => icmp::<S, QUOTED>(skb, packet, payload),
        ICMPV6 if packet.family == 6 => icmpv6::<S, QUOTED>(skb, packet, payload, hops),
        // No ports: rules without ports match, conversations are told by addresses and protocol.
        _ => packet.kind = Kind::Loose,
    }
}

/// Ports of a header of which `min` bytes must be there; UDP and quoted packets of any protocol.
#[inline(always)]
fn ports<S: Skb, const N: usize>(skb: &S, packet: &mut Packet, payload: u32, min: u32) {
    if payload < min {
        return;
    }
    let Some(header) = skb.load::<N>(packet.l4) else {
        return;
    };
    set_ports(packet, &header);
    packet.kind = Kind::Loose;
}

#[inline(always)]
fn set_ports<const N: usize>(packet: &mut Packet, header: &[u8; N]) {
    packet.sport = u16::from_ne_bytes([header[0], header[1]]);
    packet.dport = u16::from_ne_bytes([header[2], header[3]]);
}

#[inline(always)]
fn tcp<S: Skb>(skb: &S, packet: &mut Packet, payload: u32) {
    if payload < 20 {
        return;
    }
    let Some(header) = skb.load::<20>(packet.l4) else {
        return;
    };
    if header[12] >> 4 < 5 {
        return;
    }
    set_ports(packet, &header);
    let flags = header[13];
    packet.kind = if flags & (TCP_SYN | TCP_ACK | TCP_RST) == TCP_SYN {
        Kind::Open
    } else {
        Kind::Mid
    };
    packet.flags =
        if flags & TCP_FIN != 0 { FLAG_FIN } else { 0 } | if flags & TCP_RST != 0 { FLAG_RESET } else { 0 };
}

#[inline(always)]
fn sctp<S: Skb>(skb: &S, packet: &mut Packet, payload: u32) {
    if payload < 16 {
        return;
    }
    let Some(header) = skb.load::<16>(packet.l4) else {
        return;
    };
    set_ports(packet, &header);
    // An INIT is never bundled (RFC 9260 6.10), so the first chunk tells.
    packet.kind = if header[12] == SCTP_INIT {
        Kind::Open
    } else {
        Kind::Mid
    };
    packet.flags = match header[12] {
        SCTP_ABORT => FLAG_RESET,
        SCTP_SHUTDOWN | SCTP_SHUTDOWN_COMPLETE => FLAG_FIN,
        _ => 0,
    };
}

/// Queries and their answers carry an identifier, which stands for both ports.
#[inline(always)]
fn identifier(packet: &mut Packet, header: &[u8; 8], kind: Kind) {
    packet.sport = u16::from_ne_bytes([header[4], header[5]]);
    packet.dport = packet.sport;
    packet.kind = kind;
}

#[inline(always)]
fn icmp<S: Skb, const QUOTED: bool>(skb: &S, packet: &mut Packet, payload: u32) {
    if payload < 8 {
        return;
    }
    let Some(header) = skb.load::<8>(packet.l4) else {
        return;
    };
    match header[0] {
        // Echo, timestamp, information, address mask: request and answer.
        8 | 13 | 15 | 17 => identifier(packet, &header, Kind::Open),
        0 | 14 | 16 | 18 => identifier(packet, &header, Kind::Mid),
        // Redirect, router advertisement.
        5 | 9 => packet.kind = Kind::Router,
        // Unreachable, source quench, time exceeded, parameter problem.
        3 | 4 | 11 | 12 if !QUOTED => packet.kind = Kind::Error,
        _ => packet.kind = Kind::Loose,
    }
}

#[inline(always)]
fn icmpv6<S: Skb, const QUOTED: bool>(skb: &S, packet: &mut Packet, payload: u32, hops: u8) {
    // MLD messages and neighbour discovery are longer; four bytes are common to all.
    if payload < 8 {
        return;
    }
    let Some(header) = skb.load::<8>(packet.l4) else {
        return;
    };
    packet.kind = match header[0] {
        128 => return identifier(packet, &header, Kind::Open),
        129 => return identifier(packet, &header, Kind::Mid),
        // Unreachable, too big, time exceeded, parameter problem.
        1..=4 if !QUOTED => Kind::Error,
        134 | 137 => {
            packet.flags = if hops == 255 { 0 } else { FLAG_FAR };
            Kind::Router
        }
        // Neighbour discovery never crosses a router (RFC 4861 7.1: hop limit 255), MLD neither (RFC
        // 3810 5: hop limit 1): with any other hop limit it is ordinary traffic.
        133 | 135 if hops == 255 => Kind::Neighbour,
        136 if hops == 255 => Kind::Advertisement,
        130..=132 | 143 if hops == 1 => Kind::Neighbour,
        _ => Kind::Loose,
    };
}
