//! The builders against bytes taken from the standards and from the kernel's own packets.

use super::*;

#[test]
fn the_internet_checksum_is_that_of_rfc_1071() {
    let sum = internet(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]);
    assert_eq!(sum, !0xddf2);
}

#[test]
fn crc32c_gives_its_check_value() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283_u32.to_le_bytes());
}

#[test]
fn an_ipv4_header_with_options_has_its_length_and_checksum() {
    let packet = Ip::new("10.0.0.1", "10.0.0.2")
        .options(&[7, 3, 4])
        .udp(1, 2, b"x");
    assert_eq!(packet[0], 0x46);
    assert_eq!(packet.len(), 24 + 8 + 1);
    assert_eq!(
        internet(&[&packet[..24]]),
        0,
        "a header with its checksum sums to zero"
    );
}

#[test]
fn extension_headers_are_chained() {
    let packet = Ip::new("fd00::1", "fd00::2")
        .extension(Extension::hop_by_hop())
        .extension(Extension::padding(protocol::DESTINATION, 14))
        .tcp(1, 2, tcp::SYN, b"");
    let chain = (packet[6], packet[40], packet[41], packet[48], packet[49]);
    assert_eq!(
        chain,
        (protocol::HOP_BY_HOP, protocol::DESTINATION, 0, protocol::TCP, 1)
    );
    assert_eq!(packet.len(), 40 + 8 + 16 + 20);
}

#[test]
fn fragments_hold_the_packet_in_order() {
    for packet in [
        Ip::new("10.0.0.1", "10.0.0.2").udp(1, 2, &[9; 100]),
        Ip::new("fd00::1", "fd00::2")
            .extension(Extension::hop_by_hop())
            .udp(1, 2, &[9; 100]),
    ] {
        let (plain, headers) = if packet[0] >> 4 == 4 { (20, 20) } else { (48, 56) };
        let parts = fragments(&packet, 77, 48);
        let joined: Vec<u8> = parts.iter().flat_map(|part| part[headers..].to_vec()).collect();
        assert_eq!(joined, packet[plain..]);
        assert_eq!(parts.len(), 3);
    }
}

#[test]
fn tags_are_nested_and_the_version_gives_the_type() {
    let frame = Ether::default()
        .qinq(5)
        .vlan(6)
        .frame(&Ip::new("::1", "::2").payload(protocol::NONE, &[]));
    assert_eq!(frame[12..22], [0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 0x86, 0xdd]);
}
