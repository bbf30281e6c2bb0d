//! The Internet checksum (RFC 1071) and SCTP's CRC32c (RFC 9260 appendix A).

use std::net::IpAddr;

/// The Internet checksum over `parts` as if they were one byte string (only the last may have an odd length).
#[must_use]
pub fn internet(parts: &[&[u8]]) -> u16 {
    let mut sum: u64 = 0;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits")
}

/// The checksum of `segment` with the pseudo header of its addresses.
///
/// # Panics
/// Where the addresses are of two families.
pub(super) fn transport(src: IpAddr, dst: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    let length = u32::try_from(segment.len())
        .expect("a packet's length")
        .to_be_bytes();
    let tail = [0, 0, 0, protocol];
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            internet(&[&src.octets(), &dst.octets(), &tail, &length, segment])
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            internet(&[&src.octets(), &dst.octets(), &length, &tail, segment])
        }
        _ => panic!("{src} and {dst} are of two families"),
    }
}

/// CRC32c as SCTP writes it (the bytes in the packet, first byte first).
#[must_use]
pub fn crc32c(bytes: &[u8]) -> [u8; 4] {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    (!crc).to_le_bytes()
}
