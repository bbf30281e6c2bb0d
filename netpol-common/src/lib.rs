//! The map ABI between netpol's agent and its eBPF programs.
//!
//! Everything here is shared with the kernel: plain old data, `repr(C)`, no `bool`, no enums, no implicit
//! padding (asserted below), names of maps at most 15 bytes. Addresses and ports of packets are kept in
//! **network byte order** in keys unless a field says otherwise; ids, counters and times are native.
//!
//! Any change of a size, a meaning or a map name needs a new [`ABI`]: the pin path contains it; and a new number in
//! [`layout`] for what has changed, so that everything else is taken over.
#![no_std]

pub mod event;
pub mod flow;
pub mod layout;
pub mod mark;
pub mod pod;
pub mod reason;
pub mod tables;

/// Version of everything in this crate; part of the pin path (`/sys/fs/bpf/netpol/v{ABI}`).
pub const ABI: u32 = if cfg!(feature = "abi-next") { 5 } else { 4 };

/// IP protocol numbers that have ports in a NetworkPolicy.
pub mod proto {
    /// TCP
    pub const TCP: u8 = 6;
    /// UDP
    pub const UDP: u8 = 17;
    /// SCTP
    pub const SCTP: u8 = 132;
    /// ICMP for IPv4
    pub const ICMP: u8 = 1;
    /// ICMP for IPv6
    pub const ICMPV6: u8 = 58;

    /// Whether NetworkPolicy can match this protocol by port.
    #[inline(always)]
    #[must_use]
    pub const fn has_ports(proto: u8) -> bool {
        matches!(proto, TCP | UDP | SCTP)
    }
}
