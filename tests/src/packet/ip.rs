//! IPv4 with options and IPv6 with extension headers.

use std::net::{IpAddr, Ipv6Addr};

use super::{checksum, protocol};

/// An IPv6 extension header: its type and its body, whose length with the two leading bytes is padded to a
/// multiple of eight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// `protocol::*`
    pub kind: u8,
    /// What follows the next header and length bytes.
    pub body: Vec<u8>,
}

impl Extension {
    /// Hop-by-hop options that are all padding.
    #[must_use]
    pub fn hop_by_hop() -> Self {
        Self::padding(protocol::HOP_BY_HOP, 6)
    }

    /// A header of type `kind` with a PadN option of `len` bytes.
    ///
    /// # Panics
    /// Where `len` is below 2 or above 257.
    #[must_use]
    pub fn padding(kind: u8, len: usize) -> Self {
        let mut body = vec![1, u8::try_from(len - 2).expect("a PadN option")];
        body.resize(len, 0);
        Self { kind, body }
    }

    /// The header with `next` as its next header.
    fn bytes(&self, next: u8) -> Vec<u8> {
        let len = (self.body.len() + 2).next_multiple_of(8);
        // The authentication header counts in words of four bytes less two, the others in eights less one.
        let coded = if self.kind == protocol::AH {
            len / 4 - 2
        } else {
            len / 8 - 1
        };
        let coded = if self.kind == protocol::FRAGMENT { 0 } else { coded };
        let mut bytes = vec![next, u8::try_from(coded).expect("an extension header's length")];
        bytes.extend(&self.body);
        bytes.resize(len, 0);
        bytes
    }
}

/// An IP header to be; the last call gives the packet.
#[derive(Clone, Debug)]
pub struct Ip {
    src: IpAddr,
    dst: IpAddr,
    ttl: u8,
    tos: u8,
    id: u16,
    dont_fragment: bool,
    options: Vec<u8>,
    extensions: Vec<Extension>,
}

impl Ip {
    /// From `src` to `dst` (addresses, or text for tests).
    ///
    /// # Panics
    /// Where one is not an address or they are of two families.
    pub fn new(src: impl ToString, dst: impl ToString) -> Self {
        let parse =
            |text: String| -> IpAddr { text.parse().unwrap_or_else(|_| panic!("not an address: {text}")) };
        let (src, dst) = (parse(src.to_string()), parse(dst.to_string()));
        assert_eq!(
            src.is_ipv4(),
            dst.is_ipv4(),
            "{src} and {dst} are of two families"
        );
        Self {
            src,
            dst,
            ttl: 64,
            tos: 0,
            id: 0x1234,
            dont_fragment: false,
            options: Vec::new(),
            extensions: Vec::new(),
        }
    }

    /// The source.
    #[must_use]
    pub fn src(&self) -> IpAddr {
        self.src
    }

    /// The destination.
    #[must_use]
    pub fn dst(&self) -> IpAddr {
        self.dst
    }

    /// With another time to live (hop limit).
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// With another identification (IPv4).
    #[must_use]
    pub fn id(mut self, id: u16) -> Self {
        self.id = id;
        self
    }

    /// Sets the don't-fragment bit (IPv4).
    #[must_use]
    pub fn dont_fragment(mut self) -> Self {
        self.dont_fragment = true;
        self
    }

    /// With IPv4 options, padded to a multiple of four bytes.
    ///
    /// # Panics
    /// Where they are longer than 40 bytes or the packet is IPv6.
    #[must_use]
    pub fn options(mut self, options: &[u8]) -> Self {
        assert!(self.src.is_ipv4() && options.len() <= 40);
        self.options = options.to_vec();
        self.options.resize(options.len().next_multiple_of(4), 0);
        self
    }

    /// With one more IPv6 extension header.
    ///
    /// # Panics
    /// Where the packet is IPv4.
    #[must_use]
    pub fn extension(mut self, extension: Extension) -> Self {
        assert!(self.src.is_ipv6());
        self.extensions.push(extension);
        self
    }

    /// The packet with `payload` of `protocol`, taken as it is.
    ///
    /// # Panics
    /// Where it is too long for an IP packet.
    #[must_use]
    pub fn payload(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        match (self.src, self.dst) {
            (IpAddr::V6(src), IpAddr::V6(dst)) => self.v6(src, dst, protocol, payload),
            _ => self.v4(protocol, payload),
        }
    }

    fn v4(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let (IpAddr::V4(src), IpAddr::V4(dst)) = (self.src, self.dst) else {
            unreachable!("`new` has compared the families")
        };
        let header_len = 20 + self.options.len();
        let total = u16::try_from(header_len + payload.len()).expect("an IPv4 packet's length");
        let words = u8::try_from(header_len / 4).expect("at most 15");
        let flags: u16 = if self.dont_fragment { 0x4000 } else { 0 };
        let mut packet = vec![0x40 | words, self.tos];
        packet.extend(total.to_be_bytes());
        packet.extend(self.id.to_be_bytes());
        packet.extend(flags.to_be_bytes());
        packet.extend([self.ttl, protocol, 0, 0]);
        packet.extend(src.octets());
        packet.extend(dst.octets());
        packet.extend(&self.options);
        seal_v4(&mut packet);
        packet.extend(payload);
        packet
    }

    fn v6(&self, src: Ipv6Addr, dst: Ipv6Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut next = protocol;
        let mut rest = payload.to_vec();
        for extension in self.extensions.iter().rev() {
            let mut bytes = extension.bytes(next);
            bytes.append(&mut rest);
            rest = bytes;
            next = extension.kind;
        }
        let length = u16::try_from(rest.len()).expect("an IPv6 packet's length");
        let mut packet = vec![0x60 | self.tos >> 4, self.tos << 4, 0, 0];
        packet.extend(length.to_be_bytes());
        packet.extend([next, self.ttl]);
        packet.extend(src.octets());
        packet.extend(dst.octets());
        packet.append(&mut rest);
        packet
    }

    /// The packet with `segment` of `protocol`, after writing its checksum (with the pseudo header) at `at`.
    pub(super) fn checked(&self, proto: u8, mut segment: Vec<u8>, at: usize) -> Vec<u8> {
        let sum = checksum::transport(self.src, self.dst, proto, &segment);
        // RFC 768: a UDP checksum of zero would mean that there is none.
        let sum = if proto == protocol::UDP && sum == 0 {
            0xffff
        } else {
            sum
        };
        segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        self.payload(proto, &segment)
    }
}

/// Writes the header checksum of the IPv4 packet that begins `packet`.
pub(super) fn seal_v4(packet: &mut [u8]) {
    let header_len = usize::from(packet[0] & 15) * 4;
    packet[10..12].fill(0);
    let sum = checksum::internet(&[&packet[..header_len]]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}
