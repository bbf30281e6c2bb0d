//! ICMP for both families, errors, and neighbour discovery.

use std::net::{IpAddr, Ipv6Addr};

use super::{Ip, Mac, checksum, protocol};

/// ICMPv4 types.
pub mod icmp4 {
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 0;
    /// Destination unreachable (code 3: port, 4: fragmentation needed).
    pub const UNREACHABLE: u8 = 3;
    /// Redirect.
    pub const REDIRECT: u8 = 5;
    /// Echo request.
    pub const ECHO: u8 = 8;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Parameter problem.
    pub const PARAMETER: u8 = 12;
    /// Timestamp request.
    pub const TIMESTAMP: u8 = 13;
}

/// ICMPv6 types.
pub mod icmp6 {
    /// Destination unreachable (code 4: port).
    pub const UNREACHABLE: u8 = 1;
    /// Packet too big.
    pub const TOO_BIG: u8 = 2;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 3;
    /// Echo request.
    pub const ECHO: u8 = 128;
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 129;
    /// Multicast listener report.
    pub const MLD_REPORT: u8 = 131;
    /// Multicast listener report, version 2.
    pub const MLD2_REPORT: u8 = 143;
    /// Router solicitation.
    pub const ROUTER_SOLICIT: u8 = 133;
    /// Router advertisement.
    pub const ROUTER_ADVERT: u8 = 134;
    /// Neighbour solicitation.
    pub const NEIGHBOUR_SOLICIT: u8 = 135;
    /// Neighbour advertisement.
    pub const NEIGHBOUR_ADVERT: u8 = 136;
    /// Redirect.
    pub const REDIRECT: u8 = 137;
}

impl Ip {
    /// An ICMP message of this family: type, code, the four bytes after the checksum, and the rest.
    #[must_use]
    pub fn icmp(&self, kind: u8, code: u8, word: [u8; 4], rest: &[u8]) -> Vec<u8> {
        let mut message = vec![kind, code, 0, 0];
        message.extend(word);
        message.extend(rest);
        if self.src().is_ipv6() {
            return self.checked(protocol::ICMPV6, message, 2);
        }
        let sum = checksum::internet(&[&message]);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        self.payload(protocol::ICMP, &message)
    }

    /// An echo request with identifier `id`.
    #[must_use]
    pub fn echo(&self, id: u16) -> Vec<u8> {
        let kind = if self.src().is_ipv6() {
            icmp6::ECHO
        } else {
            icmp4::ECHO
        };
        self.icmp(kind, 0, identifier(id), b"echo")
    }

    /// An echo reply with identifier `id`.
    #[must_use]
    pub fn echo_reply(&self, id: u16) -> Vec<u8> {
        let kind = if self.src().is_ipv6() {
            icmp6::ECHO_REPLY
        } else {
            icmp4::ECHO_REPLY
        };
        self.icmp(kind, 0, identifier(id), b"echo")
    }

    /// Port unreachable, quoting as much of `packet` as such an error carries at least.
    #[must_use]
    pub fn port_unreachable(&self, packet: &[u8]) -> Vec<u8> {
        let (kind, code) = if self.src().is_ipv6() {
            (icmp6::UNREACHABLE, 4)
        } else {
            (icmp4::UNREACHABLE, 3)
        };
        self.icmp(kind, code, [0; 4], quote(packet))
    }

    /// Fragmentation needed, or packet too big, for a path of `mtu` bytes.
    #[must_use]
    pub fn too_big(&self, mtu: u16, packet: &[u8]) -> Vec<u8> {
        let [high, low] = mtu.to_be_bytes();
        let (kind, code) = if self.src().is_ipv6() {
            (icmp6::TOO_BIG, 0)
        } else {
            (icmp4::UNREACHABLE, 4)
        };
        self.icmp(kind, code, [0, 0, high, low], quote(packet))
    }

    /// Time exceeded in transit.
    #[must_use]
    pub fn time_exceeded(&self, packet: &[u8]) -> Vec<u8> {
        let kind = if self.src().is_ipv6() {
            icmp6::TIME_EXCEEDED
        } else {
            icmp4::TIME_EXCEEDED
        };
        self.icmp(kind, 0, [0; 4], quote(packet))
    }
}

fn identifier(id: u16) -> [u8; 4] {
    let [high, low] = id.to_be_bytes();
    [high, low, 0, 1]
}

/// RFC 792: the header and eight bytes; RFC 4443: as much as fits.
fn quote(packet: &[u8]) -> &[u8] {
    let len = if packet[0] >> 4 == 4 {
        usize::from(packet[0] & 15) * 4 + 8
    } else {
        1232
    };
    &packet[..packet.len().min(len)]
}

/// Neighbour discovery (RFC 4861); hop limit 255.
pub mod nd {
    use super::{Ip, IpAddr, Ipv6Addr, Mac, icmp6};

    fn option(kind: u8, mac: Mac) -> Vec<u8> {
        let mut bytes = vec![kind, 1];
        bytes.extend(mac);
        bytes
    }

    fn message(src: Ipv6Addr, dst: Ipv6Addr, kind: u8, word: [u8; 4], rest: &[u8]) -> Vec<u8> {
        Ip::new(IpAddr::V6(src), IpAddr::V6(dst))
            .ttl(255)
            .icmp(kind, 0, word, rest)
    }

    /// Who has `target`? `src` says so of itself with `mac`.
    #[must_use]
    pub fn solicit(src: Ipv6Addr, target: Ipv6Addr, mac: Mac) -> Vec<u8> {
        let [.., a, b, c] = target.octets();
        let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
        let rest = [&target.octets()[..], &option(1, mac)].concat();
        message(src, group, icmp6::NEIGHBOUR_SOLICIT, [0; 4], &rest)
    }

    /// `target` is at `mac`.
    #[must_use]
    pub fn advert(src: Ipv6Addr, dst: Ipv6Addr, target: Ipv6Addr, mac: Mac) -> Vec<u8> {
        let rest = [&target.octets()[..], &option(2, mac)].concat();
        message(src, dst, icmp6::NEIGHBOUR_ADVERT, [0x60, 0, 0, 0], &rest)
    }

    /// Is there a router?
    #[must_use]
    pub fn router_solicit(src: Ipv6Addr, mac: Mac) -> Vec<u8> {
        let all_routers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
        message(src, all_routers, icmp6::ROUTER_SOLICIT, [0; 4], &option(1, mac))
    }

    /// I am a router.
    #[must_use]
    pub fn router_advert(src: Ipv6Addr, mac: Mac) -> Vec<u8> {
        let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        let rest = [&[0; 8][..], &option(1, mac)].concat();
        message(src, all_nodes, icmp6::ROUTER_ADVERT, [64, 0, 7, 8], &rest)
    }

    /// `target` is a better first hop to `destination`.
    #[must_use]
    pub fn redirect(src: Ipv6Addr, dst: Ipv6Addr, target: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
        let rest = [target.octets(), destination.octets()].concat();
        message(src, dst, icmp6::REDIRECT, [0; 4], &rest)
    }
}
