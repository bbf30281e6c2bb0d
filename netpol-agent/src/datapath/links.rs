//! A device, as rtnetlink describes it.

use netlink_packet_core::{DecodeError, NetlinkBuffer, NlasIterator, ParseableParametrized as _};
use netlink_packet_route::link::{
    InfoData, InfoGeneve, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkHeader, LinkInfo, LinkLayerType,
};
use netpol_common::proto;

use super::devices::Device;

const RTM_NEWLINK: u16 = 16;

/// Length of `struct ifinfomsg`.
const HEADER: usize = 16;

/// Attributes (`linux/if_link.h`) that are read. Others may hold what they like.
mod attribute {
    pub(super) const ADDRESS: u16 = 1;
    pub(super) const IFNAME: u16 = 3;
    pub(super) const LINK: u16 = 5;
    pub(super) const MASTER: u16 = 10;
    pub(super) const LINKINFO: u16 = 18;
    pub(super) const IFALIAS: u16 = 20;
    pub(super) const LINK_NETNSID: u16 = 37;
}

/// IP protocols of tunnels without ports.
const IPPROTO_IPIP: u8 = 4;
const IPPROTO_IPV6: u8 = 41;
const IPPROTO_GRE: u8 = 47;

/// The device that an answer of a dump describes; of one that can't be understood its ifindex. `None`: it is about something else.
pub(super) fn read(message: &[u8]) -> Option<Result<Device, u32>> {
    let buffer = NetlinkBuffer::new_checked(message).ok()?;
    if buffer.message_type() != RTM_NEWLINK {
        return None;
    }
    let payload = buffer.payload();
    let index = u32::from_ne_bytes(payload.get(4..8)?.try_into().ok()?);
    Some(device(payload).map_err(|error| {
        tracing::debug!(%error, index, "a device that could not be parsed");
        index
    }))
}

fn device(message: &[u8]) -> Result<Device, DecodeError> {
    let header = LinkHeader::parse(message)?;
    let mut device = Device {
        index: header.index,
        bare: is_bare(header.link_layer_type),
        loopback: header.flags.contains(LinkFlags::Loopback),
        up: header.flags.contains(LinkFlags::Up),
        ..Device::default()
    };
    for attribute in NlasIterator::new(&message[HEADER..]) {
        let attribute = attribute?;
        let parsed = match attribute.kind() {
            // Any bytes may be written there: they are no reason not to see the device.
            attribute::IFALIAS => LinkAttribute::IfAlias(alias(attribute.value())),
            attribute::ADDRESS
            | attribute::IFNAME
            | attribute::LINK
            | attribute::MASTER
            | attribute::LINKINFO
            | attribute::LINK_NETNSID => {
                LinkAttribute::parse_with_param(&attribute, header.interface_family)?
            }
            _ => continue,
        };
        match parsed {
            LinkAttribute::IfName(name) => device.name = name,
            LinkAttribute::Address(address) => device.hardware = address,
            LinkAttribute::Controller(master) => device.master = Some(master),
            LinkAttribute::Link(peer) => device.lower = Some(peer),
            LinkAttribute::LinkNetNsId(id) => device.peer_namespace = Some(id),
            LinkAttribute::IfAlias(alias) => device.alias = Some(alias),
            LinkAttribute::LinkInfo(infos) => kind_and_tunnel(&infos, &mut device),
            _ => {}
        }
    }
    Ok(device)
}

fn alias(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

/// Types of devices without link layer (`linux/if_arp.h`). Those of GRE are none: what comes in by them still has the
/// outer headers before it.
fn is_bare(kind: LinkLayerType) -> bool {
    matches!(
        kind,
        LinkLayerType::None
            | LinkLayerType::Tunnel
            | LinkLayerType::Tunnel6
            | LinkLayerType::Sit
            | LinkLayerType::Ppp
            | LinkLayerType::Rawip
    )
}

fn kind_and_tunnel(infos: &[LinkInfo], device: &mut Device) {
    for info in infos {
        match info {
            LinkInfo::Kind(kind) => {
                device.kind = kind.to_string();
                device.tunnel = match kind {
                    InfoKind::IpIp => Some((IPPROTO_IPIP, 0)),
                    InfoKind::SitTun => Some((IPPROTO_IPV6, 0)),
                    InfoKind::GreTun | InfoKind::GreTap | InfoKind::GreTun6 | InfoKind::GreTap6 => {
                        Some((IPPROTO_GRE, 0))
                    }
                    _ => device.tunnel,
                };
            }
            LinkInfo::Data(InfoData::Vxlan(data)) => {
                let port = data.iter().find_map(|field| match field {
                    InfoVxlan::Port(port) => Some(*port),
                    _ => None,
                });
                device.tunnel = port.map(|port| (proto::UDP, port));
            }
            LinkInfo::Data(InfoData::Geneve(data)) => {
                let port = data.iter().find_map(|field| match field {
                    InfoGeneve::Port(port) => Some(*port),
                    _ => None,
                });
                device.tunnel = port.map(|port| (proto::UDP, port));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer about device 7 with these attributes.
    fn answer(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 16 + HEADER];
        bytes[20..24].copy_from_slice(&7_u32.to_ne_bytes());
        for (kind, value) in attributes {
            let length = 4 + value.len();
            bytes.extend((length as u16).to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(*value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let length = bytes.len() as u32;
        let mut buffer = NetlinkBuffer::new(&mut bytes);
        buffer.set_message_type(RTM_NEWLINK);
        buffer.set_length(length);
        bytes
    }

    #[test]
    fn what_nobody_asks_for_hides_no_device() {
        const PHYS_PORT_NAME: u16 = 38;
        const STATS64: u16 = 23;
        let bytes = answer(&[
            (attribute::IFNAME, b"vethX\0"),
            (attribute::IFALIAS, b"caf\xe9\0"),
            (PHYS_PORT_NAME, b"\xff\xfe\0"),
            (STATS64, b"1"),
            (attribute::MASTER, &9_u32.to_ne_bytes()),
        ]);
        let expected = Device {
            index: 7,
            name: "vethX".into(),
            alias: Some("caf\u{fffd}".into()),
            master: Some(9),
            bare: false,
            ..Device::default()
        };
        assert_eq!(read(&bytes), Some(Ok(expected)));
    }

    #[test]
    fn a_device_that_is_not_understood_is_named() {
        assert_eq!(read(&answer(&[(attribute::IFNAME, b"veth\xff\0")])), Some(Err(7)));
        assert_eq!(read(&answer(&[(attribute::MASTER, b"1")])), Some(Err(7)));
        let mut broken = answer(&[(attribute::IFNAME, b"veth0\0")]);
        broken[32] = 200;
        assert_eq!(read(&broken), Some(Err(7)));
    }
}
