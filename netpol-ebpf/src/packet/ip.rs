//! The network layer: IPv4 with options, IPv6 with extension headers, fragments of both.

use super::{Kind, Packet, transport};
use crate::skb::Skb;

/// How many IPv6 extension headers are walked; a packet with more can not be judged.
const MAX_EXTENSIONS: u32 = 8;

/// Where the transport header begins at the latest.
const MAX_HEADERS: u32 = 900;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

/// Parses the IP header at `packet.l4` and what follows. `QUOTED`: within an ICMP error, where the payload
/// ends after 8 bytes of transport header and lengths speak of the original packet.
///
/// The place comes in `packet`: one copy of the code serves every link layer.
#[inline(always)]
pub fn parse_ip<S: Skb, const QUOTED: bool>(skb: &S, family: u8, packet: &mut Packet) {
    packet.kind = Kind::BrokenIp;
    let offset = packet.l4;
    let found = if family == 4 {
        ipv4(skb, offset, packet)
    } else {
        ipv6(skb, offset, packet)
    };
    if let Some(Payload { length, hops }) = found {
        transport::parse::<S, QUOTED>(skb, packet, length, hops);
    }
}

/// What the transport header needs of the IP header.
struct Payload {
    /// Bytes after the IP headers by their account.
    length: u32,
    /// Time to live, or hop limit.
    hops: u8,
}

#[inline(always)]
fn ipv4<S: Skb>(skb: &S, offset: u32, packet: &mut Packet) -> Option<Payload> {
    let ip = skb.load::<20>(offset)?;
    let header = u32::from(ip[0] & 0xf) * 4;
    let total = u32::from(u16::from_be_bytes([ip[2], ip[3]]));
    // A total length of 0 is a GSO packet of more than 64 KiB.
    if ip[0] >> 4 != 4 || header < 20 || (total != 0 && total < header) {
        return None;
    }
    packet.family = 4;
    packet.proto = ip[9];
    packet.src[0] = u32::from_ne_bytes([ip[12], ip[13], ip[14], ip[15]]);
    packet.dst[0] = u32::from_ne_bytes([ip[16], ip[17], ip[18], ip[19]]);
    packet.l4 = offset + header;
    let fragment = u16::from_be_bytes([ip[6], ip[7]]);
    if fragment & 0x1fff != 0 {
        packet.id = u32::from(u16::from_ne_bytes([ip[4], ip[5]]));
        later(packet, u32::from(fragment & 0x1fff) * 8);
        return None;
    }
    if fragment & 0x2000 != 0 {
        packet.id = u32::from(u16::from_ne_bytes([ip[4], ip[5]]));
        packet.first = 1;
    }
    Some(Payload {
        length: if total == 0 { u32::MAX } else { total - header },
        hops: ip[8],
    })
}

/// A fragment that begins within the transport header could overwrite the ports of the first
/// (RFC 1858, 3128): it can not be judged.
#[inline(always)]
fn later(packet: &mut Packet, at: u32) {
    packet.kind = if at < 16 { Kind::Broken } else { Kind::Later };
}

#[inline(always)]
fn ipv6<S: Skb>(skb: &S, offset: u32, packet: &mut Packet) -> Option<Payload> {
    let ip = skb.load::<40>(offset)?;
    if ip[0] >> 4 != 6 {
        return None;
    }
    packet.family = 6;
    packet.src = address(&ip, 8);
    packet.dst = address(&ip, 24);
    packet.kind = Kind::Broken;
    let length = u32::from(u16::from_be_bytes([ip[4], ip[5]]));
    // A payload length of 0 is a jumbogram or a GSO packet of more than 64 KiB.
    let end = if length == 0 {
        u32::MAX
    } else {
        offset + 40 + length
    };
    packet.proto = ip[6];
    packet.l4 = offset + 40;
    let mut extensions = 0;
    while is_extension(packet.proto) {
        if extensions == MAX_EXTENSIONS || !extension(skb, packet) || packet.l4 > end {
            return None;
        }
        if packet.kind == Kind::Later {
            return None;
        }
        extensions += 1;
    }
    Some(Payload {
        length: end - packet.l4,
        hops: ip[7],
    })
}

#[inline(always)]
pub(crate) fn is_extension(next: u8) -> bool {
    matches!(
        next,
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION
    )
}

/// Walks over one extension header: `proto` and `l4` move on. False where it can not be walked.
///
/// A function of its own whose results go through `packet`: the verifier then sees any header in any round as the
/// same, instead of every sequence of headers as a path.
#[inline(never)]
fn extension<S: Skb>(skb: &S, packet: &mut Packet) -> bool {
    // Every extension header has at least 8 bytes.
    let Some(ext) = skb.load::<8>(packet.l4) else {
        return false;
    };
    let header = match packet.proto {
        AUTHENTICATION => (u32::from(ext[1]) + 2) * 4,
        FRAGMENT => 8,
        _ => (u32::from(ext[1]) + 1) * 8,
    };
    let at = packet.l4 + header;
    // Loads are bounded (`Skb::load`); no stack sends so many headers.
    if at > MAX_HEADERS {
        return false;
    }
    if packet.proto == FRAGMENT {
        let field = u16::from_be_bytes([ext[2], ext[3]]);
        // Offset 0 and no more to come is an atomic fragment (RFC 6946): a whole packet.
        if field & 0xfff9 != 0 {
            packet.id = u32::from_ne_bytes([ext[4], ext[5], ext[6], ext[7]]);
            packet.first = u8::from(field & 0xfff8 == 0);
        }
        if field & 0xfff8 != 0 {
            later(packet, u32::from(field & 0xfff8));
            if packet.kind == Kind::Broken {
                return false;
            }
        }
    }
    packet.proto = ext[0];
    packet.l4 = at;
    true
}

#[inline(always)]
fn address(ip: &[u8; 40], at: usize) -> [u32; 4] {
    let word = |i: usize| u32::from_ne_bytes([ip[at + i], ip[at + i + 1], ip[at + i + 2], ip[at + i + 3]]);
    [word(0), word(4), word(8), word(12)]
}
