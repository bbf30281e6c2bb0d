//! Parses a frame as far as a verdict needs it. Never trusts a length that the packet claims.

mod ip;
mod transport;

pub(crate) use ip::is_extension;
pub use ip::parse_ip;

use crate::skb::Skb;

/// Bytes of the Ethernet header.
pub const ETH_LEN: u32 = 14;
pub(crate) const ETH_P_IP: u16 = 0x0800;
pub(crate) const ETH_P_IPV6: u16 = 0x86dd;
const ETH_P_ARP: u16 = 0x0806;
const ETH_P_8021Q: u16 = 0x8100;
const ETH_P_8021AD: u16 = 0x88a8;

/// What a packet is to a verdict.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Neither IP nor ARP.
    #[default]
    NotIp,
    /// ARP for IPv4: `src` is the sender's protocol address.
    Arp,
    /// The IP header is truncated or contradicts itself: not even the addresses are known.
    BrokenIp,
    /// Addresses are known; what follows is truncated or contradicts itself.
    Broken,
    /// A fragment other than the first: addresses, protocol and identification, but no ports.
    Later,
    /// Begins a conversation: a SYN without ACK, an SCTP INIT, an echo request. Never a reply.
    Open,
    /// Belongs to a conversation that something else began: TCP, SCTP, echo replies.
    Mid,
    /// UDP and whatever shows no beginning.
    Loose,
    /// An ICMP error; what it quotes begins at `l4 + 8`.
    Error,
    /// Neighbour discovery (not advertisements of others), MLD, router solicitation.
    Neighbour,
    /// A neighbour advertisement; the target is at `l4 + 8`.
    Advertisement,
    /// Router advertisement or redirect.
    Router,
}

/// FIN or SHUTDOWN.
pub const FLAG_FIN: u8 = 1;
/// RST or ABORT.
pub const FLAG_RESET: u8 = 4;
/// A router message that no neighbour sent (RFC 4861 6.1.2, 8.1: hop limit 255).
pub const FLAG_FAR: u8 = 8;

/// A parsed packet (aligned so that clearing it takes whole words). Addresses and ports are in network byte order; an IPv4 address is `[a, 0, 0, 0]`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub src: [u32; 4],
    /// Destination address.
    pub dst: [u32; 4],
    /// Source port; ICMP queries: the identifier; without ports: 0.
    pub sport: u16,
    /// Destination port; ICMP queries: the identifier; without ports: 0.
    pub dport: u16,
    /// Where the transport header begins, from the link layer header on.
    pub l4: u32,
    /// IP identification of a fragment, network byte order.
    pub id: u32,
    /// 4, 6, or 0 where the frame is not IP.
    pub family: u8,
    /// IP protocol.
    pub proto: u8,
    /// What it is.
    pub kind: Kind,
    /// `FLAG_*` bits.
    pub flags: u8,
    /// 1 for the first fragment of several, else 0.
    pub first: u8,
    /// Zero.
    pub _pad: [u8; 7],
}

const PACKET_WORDS: usize = size_of::<Packet>() / size_of::<u64>();
const _: () = assert!(size_of::<Packet>() == PACKET_WORDS * size_of::<u64>());

impl Packet {
    /// Whether it goes to a group, or to everybody: no answer comes from there.
    #[inline(always)]
    pub(crate) fn is_to_many(&self) -> bool {
        let first = u32::from_be(self.dst[0]);
        if self.family == 4 {
            first >> 28 == 0xe || first == u32::MAX
        } else {
            first >> 24 == 0xff
        }
    }

    /// Zeroes the packet by words; assigning the default would be a call of a byte-wise `memset` in the kernel.
    #[inline(always)]
    pub(crate) fn clear(&mut self) {
        let words = (&raw mut *self).cast::<u64>();
        for at in 0..PACKET_WORDS {
            // SAFETY: within `self`, which is aligned to 8 bytes and has no byte for which 0 is invalid.
            unsafe { words.add(at).write_volatile(0) };
        }
    }
}

/// Parses the frame of `skb` into `packet`, which in the kernel is a slot of the `scratch` map: what is read from a
/// map is unknown to the verifier, so that the many ways through the parser join again behind it.
#[inline(always)]
pub fn parse<S: Skb>(skb: &S, packet: &mut Packet) {
    parse_linear(skb, packet);
    if matches!(packet.kind, Kind::BrokenIp | Kind::Broken) && skb.pull() {
        parse_linear(skb, packet);
    }
}

#[inline(never)]
fn parse_linear<S: Skb>(skb: &S, packet: &mut Packet) {
    packet.clear();
    let Some(kind) = link(skb, packet) else {
        packet.kind = Kind::BrokenIp;
        return;
    };
    match kind {
        ETH_P_IP => parse_ip::<S, false>(skb, 4, packet),
        ETH_P_IPV6 => parse_ip::<S, false>(skb, 6, packet),
        ETH_P_ARP if !skb.is_bare() => parse_arp(skb, packet),
        _ => {}
    }
}

/// The type of what follows the link layer header, and in `packet.l4` where that begins.
#[inline(always)]
fn link<S: Skb>(skb: &S, packet: &mut Packet) -> Option<u16> {
    if skb.is_bare() {
        return Some(skb.protocol());
    }
    let eth = skb.load::<14>(0)?;
    let mut kind = u16::from_be_bytes([eth[12], eth[13]]);
    packet.l4 = ETH_LEN;
    // At most two tags in the frame: the outermost is usually in the buffer's metadata already.
    let mut tags = 0;
    while tags < 2 && (kind == ETH_P_8021Q || kind == ETH_P_8021AD) {
        let tag = skb.load::<4>(packet.l4)?;
        kind = u16::from_be_bytes([tag[2], tag[3]]);
        packet.l4 += 4;
        tags += 1;
    }
    Some(kind)
}

#[inline(always)]
fn parse_arp<S: Skb>(skb: &S, packet: &mut Packet) {
    let Some(arp) = skb.load::<28>(packet.l4) else {
        packet.kind = Kind::BrokenIp;
        return;
    };
    // Ethernet (1), IPv4 (0x0800), lengths 6 and 4: anything else is not ARP for IPv4.
    if arp[0..6] != [0, 1, 8, 0, 6, 4] {
        packet.kind = Kind::BrokenIp;
        return;
    }
    packet.kind = Kind::Arp;
    packet.src[0] = u32::from_ne_bytes([arp[14], arp[15], arp[16], arp[17]]);
    packet.dst[0] = u32::from_ne_bytes([arp[24], arp[25], arp[26], arp[27]]);
}
