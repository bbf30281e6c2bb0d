//! Packets as bytes, with right lengths and checksums unless a test asks for wrong ones.
//!
//! ```
//! use netpol_tests::packet::{Ether, Ip};
//! let syn = Ip::new("10.0.0.1", "10.0.0.2").tcp(40000, 80, netpol_tests::packet::tcp::SYN, b"");
//! let frame = Ether::default().vlan(7).frame(&syn);
//! assert_eq!(frame.len(), 14 + 4 + 20 + 20);
//! ```

mod checksum;
mod fragment;
mod icmp;
mod ip;
mod link;
mod transport;

pub use checksum::{crc32c, internet};
pub use fragment::{fragment, fragments};
pub use icmp::{icmp4, icmp6, nd};
pub use ip::{Extension, Ip};
pub use link::{Arp, Ether, Mac, ethertype};
pub use transport::{sctp, tcp};

/// IP protocol numbers and IPv6 extension headers.
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// IGMP.
    pub const IGMP: u8 = 2;
    /// IPv4 in IP.
    pub const IPIP: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 in IP.
    pub const IPV6: u8 = 41;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// GRE.
    pub const GRE: u8 = 47;
    /// Encapsulating security payload.
    pub const ESP: u8 = 50;
    /// Authentication header.
    pub const AH: u8 = 51;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6: no next header.
    pub const NONE: u8 = 59;
    /// IPv6 destination options.
    pub const DESTINATION: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite: has ports, but NetworkPolicy does not know it.
    pub const UDPLITE: u8 = 136;
}

#[cfg(test)]
mod tests;
