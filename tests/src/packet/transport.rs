//! TCP, UDP, SCTP.

use super::{Ip, checksum, protocol};

/// TCP flags.
pub mod tcp {
    /// The sender has finished.
    pub const FIN: u8 = 0x01;
    /// Begins a connection.
    pub const SYN: u8 = 0x02;
    /// Resets it.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement is valid.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer is valid.
    pub const URG: u8 = 0x20;
}

/// SCTP chunk types and packets.
pub mod sctp {
    /// User data.
    pub const DATA: u8 = 0;
    /// Begins an association.
    pub const INIT: u8 = 1;
    /// Answers an INIT.
    pub const INIT_ACK: u8 = 2;
    /// Ends an association at once.
    pub const ABORT: u8 = 6;
    /// Ends an association in order.
    pub const SHUTDOWN: u8 = 7;
    /// The first packet of an established association.
    pub const COOKIE_ECHO: u8 = 10;

    /// A chunk of `kind` with `value`, padded.
    ///
    /// # Panics
    /// Where `value` is too long.
    #[must_use]
    pub fn chunk(kind: u8, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).expect("a chunk's length");
        let mut bytes = vec![kind, 0];
        bytes.extend(length.to_be_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// The value of an INIT or INIT ACK chunk: tag, window, streams, first sequence number, then parameters.
    #[must_use]
    pub fn init(tag: u32, parameters: &[u8]) -> Vec<u8> {
        let mut value = tag.to_be_bytes().to_vec();
        value.extend(65536_u32.to_be_bytes());
        value.extend([0, 1, 0, 1]);
        value.extend(1_u32.to_be_bytes());
        value.extend(parameters);
        value
    }

    /// The common header, `chunks`, and the CRC32c over both.
    #[must_use]
    pub fn segment(sport: u16, dport: u16, tag: u32, chunks: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(12 + chunks.len());
        bytes.extend(sport.to_be_bytes());
        bytes.extend(dport.to_be_bytes());
        bytes.extend(tag.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(chunks);
        let sum = super::checksum::crc32c(&bytes);
        bytes[8..12].copy_from_slice(&sum);
        bytes
    }
}

impl Ip {
    /// A TCP segment with sequence number 1000 (and acknowledgement 2000 where ACK is set).
    #[must_use]
    pub fn tcp(&self, sport: u16, dport: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
        let ack = if flags & tcp::ACK != 0 { 2000 } else { 0 };
        self.tcp_at(sport, dport, flags, 1000, ack, payload)
    }

    /// A TCP segment with its numbers.
    #[must_use]
    pub fn tcp_at(&self, sport: u16, dport: u16, flags: u8, seq: u32, ack: u32, payload: &[u8]) -> Vec<u8> {
        let mut segment = Vec::with_capacity(20 + payload.len());
        segment.extend(sport.to_be_bytes());
        segment.extend(dport.to_be_bytes());
        segment.extend(seq.to_be_bytes());
        segment.extend(ack.to_be_bytes());
        segment.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        segment.extend(payload);
        self.checked(protocol::TCP, segment, 16)
    }

    /// A UDP datagram.
    ///
    /// # Panics
    /// Where `payload` is too long.
    #[must_use]
    pub fn udp(&self, sport: u16, dport: u16, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len() + 8).expect("a UDP datagram's length");
        let mut segment = Vec::with_capacity(8 + payload.len());
        segment.extend(sport.to_be_bytes());
        segment.extend(dport.to_be_bytes());
        segment.extend(length.to_be_bytes());
        segment.extend([0, 0]);
        segment.extend(payload);
        self.checked(protocol::UDP, segment, 6)
    }

    /// An SCTP packet with verification tag `tag` (0 for an INIT) and one chunk.
    #[must_use]
    pub fn sctp(&self, sport: u16, dport: u16, tag: u32, kind: u8, value: &[u8]) -> Vec<u8> {
        let segment = sctp::segment(sport, dport, tag, &sctp::chunk(kind, value));
        self.payload(protocol::SCTP, &segment)
    }

    /// An SCTP INIT.
    #[must_use]
    pub fn sctp_init(&self, sport: u16, dport: u16) -> Vec<u8> {
        self.sctp(sport, dport, 0, sctp::INIT, &sctp::init(0x0bad_cafe, &[]))
    }
}
