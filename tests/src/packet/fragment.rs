//! Fragments of both families.

use super::{ip::seal_v4, protocol};

/// The bytes `from..to` of what `packet` can have fragmented, as one fragment with identification `id`; `from` must be a
/// multiple of eight. `more` is the flag.
///
/// IPv6: extension headers up to the last hop-by-hop or routing header stay in every fragment (RFC 8200, 4.5); the
/// rest is fragmentable, so a destination options header goes into the first fragment.
///
/// # Panics
/// Where the range is outside or `from` is not a multiple of eight.
#[must_use]
pub fn fragment(packet: &[u8], id: u32, from: usize, to: usize, more: bool) -> Vec<u8> {
    assert_eq!(from % 8, 0, "fragments begin at multiples of eight bytes");
    let offset = u16::try_from(from).expect("a fragment's offset");
    if packet[0] >> 4 == 4 {
        let header_len = usize::from(packet[0] & 15) * 4;
        let mut out = packet[..header_len].to_vec();
        out.extend(&packet[header_len..][from..to]);
        let total = u16::try_from(out.len()).expect("a fragment's length");
        out[2..4].copy_from_slice(&total.to_be_bytes());
        out[4..6].copy_from_slice(&(id as u16).to_be_bytes());
        out[6..8].copy_from_slice(&((offset >> 3) | if more { 0x2000 } else { 0 }).to_be_bytes());
        seal_v4(&mut out);
        return out;
    }
    let (header_len, link) = unfragmentable(packet);
    let next = packet[link];
    let mut out = packet[..header_len].to_vec();
    out[link] = protocol::FRAGMENT;
    out.extend([next, 0]);
    out.extend((offset | u16::from(more)).to_be_bytes());
    out.extend(id.to_be_bytes());
    out.extend(&packet[header_len..][from..to]);
    let length = u16::try_from(out.len() - 40).expect("a fragment's length");
    out[4..6].copy_from_slice(&length.to_be_bytes());
    out
}

/// All fragments of `packet`, each with at most `size` bytes (rounded down to a multiple of eight) of payload.
///
/// # Panics
/// Where `size` is below eight.
#[must_use]
pub fn fragments(packet: &[u8], id: u32, size: usize) -> Vec<Vec<u8>> {
    let size = size / 8 * 8;
    assert!(size > 0, "fragments hold at least eight bytes");
    let header_len = if packet[0] >> 4 == 4 {
        usize::from(packet[0] & 15) * 4
    } else {
        unfragmentable(packet).0
    };
    let len = packet.len() - header_len;
    (0..len)
        .step_by(size)
        .map(|from| {
            let to = (from + size).min(len);
            fragment(packet, id, from, to, to < len)
        })
        .collect()
}

/// The length of the headers that every fragment carries, and where the next-header byte after them is.
fn unfragmentable(packet: &[u8]) -> (usize, usize) {
    let (mut at, mut link) = (40, 6);
    while matches!(packet[link], protocol::HOP_BY_HOP | protocol::ROUTING) {
        link = at;
        at += (usize::from(packet[at + 1]) + 1) * 8;
    }
    (at, link)
}
