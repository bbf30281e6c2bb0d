//! rtnetlink: what devices, addresses and routes there are, and when that changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, RawFd},
};

use super::{
    devices::{Route, Seen},
    error::{Error, Result},
    links,
};
use ipnet::IpNet;
use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::LinkMessage,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// Multicast groups of rtnetlink (`linux/rtnetlink.h`).
mod group {
    pub(super) const LINK: u32 = 1;
    pub(super) const IPV4_IFADDR: u32 = 5;
    pub(super) const IPV4_ROUTE: u32 = 7;
    pub(super) const IPV6_IFADDR: u32 = 9;
    pub(super) const IPV6_ROUTE: u32 = 11;
}

/// A dump that the kernel interrupted is asked for again this often.
const DUMP_TRIES: u32 = 8;

/// A netlink socket for requests and their answers.
#[derive(Debug)]
pub(crate) struct Requests {
    socket: Socket,
    sequence: u32,
}

impl Requests {
    /// Opens one in the calling thread's network namespace.
    pub(crate) fn open(protocol: isize) -> Result<Self> {
        let opened = Socket::new(protocol).and_then(|mut socket| {
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        });
        Ok(Self {
            socket: opened.map_err(Error::io("opening a netlink socket"))?,
            sequence: 0,
        })
    }

    /// Opens one for rtnetlink.
    pub(crate) fn route() -> Result<Self> {
        Self::open(NETLINK_ROUTE)
    }

    /// The answers of a dump, parsed.
    pub(crate) fn dump(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>> {
        self.dump_as(what, message, |bytes| match parse(bytes) {
            Ok(NetlinkPayload::InnerMessage(inner)) => Some(inner),
            Ok(_) => None,
            // What this library does not understand must not hide the others.
            Err(error) => {
                tracing::debug!(%error, what, "a netlink answer that could not be parsed");
                None
            }
        })
    }

    /// What `read` makes of the answers of a dump, headers included.
    fn dump_as<T>(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>> {
        let request = serialize(message, NLM_F_DUMP);
        for _ in 0..DUMP_TRIES {
            let mut answers = Vec::new();
            if self.exchange(what, request.clone(), |bytes| answers.extend(read(bytes)))? {
                return Ok(answers);
            }
        }
        Err(Error::io(format!("dump of {what}"))(io::Error::other(
            "changing all the time",
        )))
    }

    /// A request that is only acknowledged or answered with one message.
    pub(crate) fn ask(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>> {
        let mut answer = None;
        self.exchange(what, serialize(message, NLM_F_ACK), |bytes| {
            if let Ok(NetlinkPayload::InnerMessage(inner)) = parse(bytes) {
                answer = Some(inner);
            }
        })?;
        Ok(answer)
    }

    /// Sends `request` (its sequence number is filled in) and hands over each answer, header included, until
    /// the kernel says done. False: the dump was interrupted by a change and may be inconsistent.
    pub(crate) fn exchange(
        &mut self,
        what: &str,
        mut request: Vec<u8>,
        mut answer: impl FnMut(&[u8]),
    ) -> Result<bool> {
        self.sequence = self.sequence.wrapping_add(1);
        NetlinkBuffer::new(&mut request).set_sequence_number(self.sequence);
        let failed = |error| Error::io(format!("netlink: {what}"))(error);
        self.socket.send(&request, 0).map_err(failed)?;
        let mut whole = true;
        loop {
            let (datagram, _) = self.socket.recv_from_full().map_err(failed)?;
            let mut rest = &datagram[..];
            while let Ok(message) = NetlinkBuffer::new_checked(rest) {
                let length = message.length() as usize;
                if message.sequence_number() == self.sequence {
                    whole &= message.flags() & NLM_F_DUMP_INTR == 0;
                    match finished(&rest[..length]).map_err(failed)? {
                        true => return Ok(whole),
                        false => answer(&rest[..length]),
                    }
                }
                // The next message starts at a multiple of 4 (NLMSG_ALIGNTO).
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

/// Whether `message` ends an exchange. A dump that broke off says so in the message that ends it.
fn finished(message: &[u8]) -> io::Result<bool> {
    const NLMSG_ERROR: u16 = 2;
    const NLMSG_DONE: u16 = 3;
    if !matches!(
        NetlinkBuffer::new(message).message_type(),
        NLMSG_ERROR | NLMSG_DONE
    ) {
        return Ok(false);
    }
    let code = message
        .get(16..20)
        .and_then(|code| code.try_into().ok())
        .map_or(0, i32::from_ne_bytes);
    match code {
        0.. => Ok(true),
        _ => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
    }
}

fn serialize(message: RouteNetlinkMessage, flags: u16) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn parse(bytes: &[u8]) -> Result<NetlinkPayload<RouteNetlinkMessage>, DecodeError> {
    NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes).map(|message| message.payload)
}

/// Everything about devices, addresses and routes, in the calling thread's network namespace.
pub(crate) fn look() -> Result<Seen> {
    let mut requests = Requests::route()?;
    let all = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let mut devices = BTreeMap::new();
    let mut unread = BTreeSet::new();
    for device in requests.dump_as("devices", all, links::read)? {
        match device {
            Ok(device) => drop(devices.insert(device.index, device)),
            Err(index) => drop(unread.insert(index)),
        }
    }
    Ok(Seen {
        devices,
        unread,
        addresses: addresses(&mut requests)?,
        routes: routes(&mut requests)?,
    })
}

/// The addresses of each device.
pub(crate) fn addresses(requests: &mut Requests) -> Result<BTreeMap<u32, Vec<IpNet>>> {
    let answers = requests.dump(
        "addresses",
        RouteNetlinkMessage::GetAddress(AddressMessage::default()),
    )?;
    let mut found: BTreeMap<u32, Vec<IpNet>> = BTreeMap::new();
    for answer in &answers {
        if let RouteNetlinkMessage::NewAddress(message) = answer
            && let Some(net) = address(message)
        {
            found.entry(message.header.index).or_default().push(net);
        }
    }
    Ok(found)
}

fn routes(requests: &mut Requests) -> Result<Vec<Route>> {
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        let answers = requests.dump("routes", RouteNetlinkMessage::GetRoute(request))?;
        found.extend(
            answers
                .iter()
                .filter_map(|answer| match answer {
                    RouteNetlinkMessage::NewRoute(message) => Some(message),
                    _ => None,
                })
                .flat_map(route),
        );
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

fn address(message: &AddressMessage) -> Option<IpNet> {
    // IFA_LOCAL is the device's own address where IFA_ADDRESS is the far end's (point to point).
    let find = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    let address = find(true).or_else(|| find(false))?;
    IpNet::new(address, message.header.prefix_len).ok()
}

/// A route as one entry for each device it uses.
fn route(message: &RouteMessage) -> Vec<Route> {
    if message.header.kind != RouteType::Unicast {
        return Vec::new();
    }
    let mut to = match message.header.address_family {
        AddressFamily::Inet => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let mut gateway = false;
    let mut devices = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => to = (*address).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => to = (*address).into(),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => gateway = true,
            RouteAttribute::Oif(device) => devices.push(*device),
            RouteAttribute::MultiPath(hops) => {
                gateway = true;
                devices.extend(hops.iter().map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    let Ok(to) = IpNet::new(to, message.header.destination_prefix_length) else {
        return Vec::new();
    };
    devices
        .into_iter()
        .map(|device| Route { device, to, gateway })
        .collect()
}

/// Says when devices, addresses or routes change. What changed is looked up afresh ([`look`]): an
/// announcement may get lost when many come at once, the state can not.
#[derive(Debug)]
pub struct Announcements(Socket);

impl Announcements {
    /// Subscribes in the calling thread's network namespace.
    pub fn subscribe() -> Result<Self> {
        let subscribed = Socket::new(NETLINK_ROUTE).and_then(|mut socket| {
            socket.bind_auto()?;
            for group in [
                group::LINK,
                group::IPV4_IFADDR,
                group::IPV4_ROUTE,
                group::IPV6_IFADDR,
                group::IPV6_ROUTE,
            ] {
                socket.add_membership(group)?;
            }
            socket.set_non_blocking(true)?;
            Ok(socket)
        });
        subscribed
            .map(Self)
            .map_err(Error::io("subscribing to rtnetlink announcements"))
    }

    /// Reads everything that is waiting; true if there was anything, or if something was lost.
    pub fn drain(&self) -> Result<bool> {
        let mut any = false;
        let mut buffer = Vec::with_capacity(64 * 1024);
        loop {
            buffer.clear();
            match self.0.recv(&mut buffer, 0) {
                Ok(_) => any = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(any),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => any = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("reading rtnetlink announcements")(error)),
            }
        }
    }
}

impl AsRawFd for Announcements {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message of this type with this much behind its header.
    fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 16];
        bytes.extend(payload);
        let length = bytes.len() as u32;
        let mut buffer = NetlinkBuffer::new(&mut bytes);
        buffer.set_message_type(kind);
        buffer.set_length(length);
        bytes
    }

    #[test]
    fn a_dump_that_broke_off_is_no_whole_one() {
        let said = |kind, payload: &[u8]| {
            finished(&message(kind, payload)).map_err(|error| error.raw_os_error().unwrap())
        };
        let code = i32::to_ne_bytes;
        assert_eq!(said(3, &code(0)), Ok(true));
        assert_eq!(said(3, &[]), Ok(true));
        assert_eq!(said(3, &code(-libc::ENOMEM)), Err(libc::ENOMEM));
        assert_eq!(said(2, &code(0)), Ok(true));
        assert_eq!(said(2, &code(-libc::EPERM)), Err(libc::EPERM));
        assert_eq!(said(16, &code(-1)), Ok(false));
    }
}
