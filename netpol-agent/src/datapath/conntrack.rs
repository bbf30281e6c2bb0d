//! The kernel's connection tracking table, read over netlink (`linux/netfilter/nfnetlink_conntrack.h`).
//!
//! Attributes are nested; addresses and ports are in network byte order.

use std::net::IpAddr;

use netlink_packet_core::{DecodeError, NLM_F_DUMP, NLM_F_REQUEST, NlaBuffer, NlasIterator};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netpol_common::proto::{ICMP, ICMPV6, TCP};

use super::{error::Result, netlink::Requests};

const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_NEW: u16 = 0;
const IPCTNL_MSG_CT_GET: u16 = 1;
/// Netlink's header, then nfnetlink's: family, version, resource id.
const HEADER: usize = 16 + 4;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTO_ICMP_ID: u16 = 4;
const CTA_PROTO_ICMPV6_ID: u16 = 7;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
/// `IPS_SEEN_REPLY`
const SEEN_REPLY: u32 = 1 << 1;
/// From this state on a TCP connection is closed (`TCP_CONNTRACK_TIME_WAIT`, `CLOSE`, ...).
const TCP_TIME_WAIT: u8 = 7;

/// One direction of a tracked connection, as its packets look where conntrack sees them first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// IP protocol.
    pub proto: u8,
    /// Source port in host byte order; ICMP queries: the identifier.
    pub sport: u16,
    /// Destination port in host byte order; ICMP queries: the identifier.
    pub dport: u16,
}

/// A tracked connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// As the initiator sends it (before any NAT).
    pub original: Tuple,
    /// As the replying end sends it (its reverse is the original after NAT).
    pub reply: Tuple,
    /// A reply was seen.
    pub answered: bool,
    /// TCP that is over.
    pub closed: bool,
}

/// The whole table of the calling thread's network namespace, both families. Empty where the kernel tracks
/// nothing.
///
/// # Errors
/// The request fails: no CAP_NET_ADMIN, or a kernel without `nf_conntrack_netlink`.
pub fn dump() -> Result<Vec<Connection>> {
    let mut found = Vec::new();
    let mut requests = Requests::open(NETLINK_NETFILTER)?;
    // Connections that come and go while we read do not matter: nothing is wrong with an entry too many.
    requests.exchange("dump of conntrack", request(), |message| match parse(message) {
        Ok(Some(connection)) => found.push(connection),
        Ok(None) => {}
        Err(error) => tracing::debug!(%error, "a conntrack entry that could not be parsed"),
    })?;
    Ok(found)
}

fn request() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER);
    bytes.extend((HEADER as u32).to_ne_bytes());
    bytes.extend((NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET).to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    // Sequence number (filled in when sent) and port; then AF_UNSPEC, NFNETLINK_V0, resource 0.
    bytes.extend([0; 12]);
    bytes
}

/// One message of the dump; `None` if it is no connection with two tuples.
///
/// # Errors
/// An attribute is cut short.
pub fn parse(message: &[u8]) -> Result<Option<Connection>, DecodeError> {
    let kind = message
        .get(4..6)
        .and_then(|kind| kind.try_into().ok())
        .map(u16::from_ne_bytes);
    let (Some(kind), Some(attributes)) = (kind, message.get(HEADER..)) else {
        return Ok(None);
    };
    if kind != NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW {
        return Ok(None);
    }
    let (mut original, mut reply, mut answered, mut tcp_state) = (None, None, false, 0);
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        match attribute.kind() {
            CTA_TUPLE_ORIG => original = tuple(attribute.value())?,
            CTA_TUPLE_REPLY => reply = tuple(attribute.value())?,
            CTA_STATUS => answered = be32(attribute.value()) & SEEN_REPLY != 0,
            CTA_PROTOINFO => tcp_state = self::tcp_state(attribute.value())?,
            _ => {}
        }
    }
    Ok(original.zip(reply).map(|(original, reply)| Connection {
        original,
        reply,
        answered,
        closed: original.proto == TCP && tcp_state >= TCP_TIME_WAIT,
    }))
}

fn tuple(bytes: &[u8]) -> Result<Option<Tuple>, DecodeError> {
    let (mut src, mut dst, mut proto, mut sport, mut dport) = (None, None, 0, 0, 0);
    for attribute in NlasIterator::new(bytes) {
        let attribute = attribute?;
        match attribute.kind() {
            CTA_TUPLE_IP => each(attribute, |kind, value| match kind {
                CTA_IP_V4_SRC | CTA_IP_V6_SRC => src = address(value),
                CTA_IP_V4_DST | CTA_IP_V6_DST => dst = address(value),
                _ => {}
            })?,
            CTA_TUPLE_PROTO => each(attribute, |kind, value| match kind {
                CTA_PROTO_NUM => proto = value.first().copied().unwrap_or(0),
                CTA_PROTO_SRC_PORT => sport = be16(value),
                CTA_PROTO_DST_PORT => dport = be16(value),
                // Both of netpol's ports are the identifier.
                CTA_PROTO_ICMP_ID | CTA_PROTO_ICMPV6_ID => (sport, dport) = (be16(value), be16(value)),
                _ => {}
            })?,
            _ => {}
        }
    }
    Ok(src.zip(dst).map(|(src, dst)| Tuple {
        src,
        dst,
        proto,
        sport,
        dport,
    }))
}

fn tcp_state(bytes: &[u8]) -> Result<u8, DecodeError> {
    let mut state = 0;
    for attribute in NlasIterator::new(bytes) {
        let attribute = attribute?;
        if attribute.kind() == CTA_PROTOINFO_TCP {
            each(attribute, |kind, value| {
                if kind == CTA_PROTOINFO_TCP_STATE {
                    state = value.first().copied().unwrap_or(0);
                }
            })?;
        }
    }
    Ok(state)
}

fn each(nested: NlaBuffer<&[u8]>, mut found: impl FnMut(u16, &[u8])) -> Result<(), DecodeError> {
    for attribute in NlasIterator::new(nested.value()) {
        let attribute = attribute?;
        found(attribute.kind(), attribute.value());
    }
    Ok(())
}

fn be16(bytes: &[u8]) -> u16 {
    bytes.try_into().map_or(0, u16::from_be_bytes)
}

fn be32(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_be_bytes)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// Whether both of a flow's ports hold an ICMP identifier.
pub(crate) const fn is_icmp(proto: u8) -> bool {
    matches!(proto, ICMP | ICMPV6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((value.len() as u16 + 4).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn nest(kind: u16, parts: &[Vec<u8>]) -> Vec<u8> {
        attribute(kind | 0x8000, &parts.concat())
    }

    fn tuple4(kind: u16, src: [u8; 4], dst: [u8; 4], sport: u16, dport: u16) -> Vec<u8> {
        nest(
            kind,
            &[
                nest(
                    CTA_TUPLE_IP,
                    &[attribute(CTA_IP_V4_SRC, &src), attribute(CTA_IP_V4_DST, &dst)],
                ),
                nest(
                    CTA_TUPLE_PROTO,
                    &[
                        attribute(CTA_PROTO_NUM, &[6]),
                        attribute(CTA_PROTO_SRC_PORT, &sport.to_be_bytes()),
                        attribute(CTA_PROTO_DST_PORT, &dport.to_be_bytes()),
                    ],
                ),
            ],
        )
    }

    fn message(attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&(NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW).to_ne_bytes());
        bytes.extend(attributes.concat());
        bytes
    }

    fn tcp_state(state: u8) -> Vec<u8> {
        nest(
            CTA_PROTOINFO,
            &[nest(
                CTA_PROTOINFO_TCP,
                &[attribute(CTA_PROTOINFO_TCP_STATE, &[state])],
            )],
        )
    }

    #[test]
    fn connection_to_a_service() {
        let bytes = message(&[
            tuple4(CTA_TUPLE_ORIG, [10, 244, 0, 5], [10, 96, 0, 1], 40000, 80),
            tuple4(CTA_TUPLE_REPLY, [10, 244, 0, 9], [10, 244, 0, 5], 8080, 40000),
            attribute(CTA_STATUS, &0x18e_u32.to_be_bytes()),
            tcp_state(3),
        ]);
        let tuple = |src: [u8; 4], dst: [u8; 4], sport, dport| Tuple {
            src: src.into(),
            dst: dst.into(),
            proto: 6,
            sport,
            dport,
        };
        assert_eq!(
            parse(&bytes).unwrap(),
            Some(Connection {
                original: tuple([10, 244, 0, 5], [10, 96, 0, 1], 40000, 80),
                reply: tuple([10, 244, 0, 9], [10, 244, 0, 5], 8080, 40000),
                answered: true,
                closed: false,
            })
        );
    }

    #[test]
    fn unanswered_ping_over_ipv6() {
        let tuple6 = |kind, src: [u8; 16], dst: [u8; 16]| {
            nest(
                kind,
                &[
                    nest(
                        CTA_TUPLE_IP,
                        &[attribute(CTA_IP_V6_SRC, &src), attribute(CTA_IP_V6_DST, &dst)],
                    ),
                    nest(
                        CTA_TUPLE_PROTO,
                        &[
                            attribute(CTA_PROTO_NUM, &[58]),
                            attribute(CTA_PROTO_ICMPV6_ID, &[0x12, 0x34]),
                        ],
                    ),
                ],
            )
        };
        let bytes = message(&[
            tuple6(CTA_TUPLE_ORIG, [1; 16], [2; 16]),
            tuple6(CTA_TUPLE_REPLY, [2; 16], [1; 16]),
            attribute(CTA_STATUS, &8_u32.to_be_bytes()),
        ]);
        let tuple = |src: [u8; 16], dst: [u8; 16]| Tuple {
            src: src.into(),
            dst: dst.into(),
            proto: 58,
            sport: 0x1234,
            dport: 0x1234,
        };
        assert_eq!(
            parse(&bytes).unwrap(),
            Some(Connection {
                original: tuple([1; 16], [2; 16]),
                reply: tuple([2; 16], [1; 16]),
                answered: false,
                closed: false,
            })
        );
    }

    #[test]
    fn closed_and_foreign_messages() {
        let tuples = || [tuple4(1, [1; 4], [2; 4], 1, 2), tuple4(2, [2; 4], [1; 4], 2, 1)];
        let closed = |state| {
            parse(&message(&[&tuples()[..], &[tcp_state(state)]].concat()))
                .unwrap()
                .unwrap()
                .closed
        };
        assert_eq!([3, 6, 7, 8].map(closed), [false, false, true, true]);

        assert_eq!(parse(&[]).unwrap(), None);
        assert_eq!(parse(&message(&[tuple4(1, [1; 4], [2; 4], 1, 2)])).unwrap(), None);
        let mut other = message(&tuples());
        other[5] = 2;
        assert_eq!(parse(&other).unwrap(), None);
    }

    #[test]
    fn a_cut_message_is_an_error_or_nothing() {
        let bytes = message(&[tuple4(1, [1; 4], [2; 4], 1, 2), tuple4(2, [2; 4], [1; 4], 2, 1)]);
        assert!(parse(&bytes).unwrap().is_some());
        for length in 0..bytes.len() - 4 {
            assert!(!matches!(parse(&bytes[..length]), Ok(Some(_))), "{length}");
        }
    }
}
