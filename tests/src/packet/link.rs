//! Ethernet, VLAN tags, ARP.

use std::net::Ipv4Addr;

/// A link-layer address.
pub type Mac = [u8; 6];

/// Ethernet types.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// 802.1Q customer tag.
    pub const VLAN: u16 = 0x8100;
    /// 802.1ad service tag.
    pub const QINQ: u16 = 0x88a8;
}

/// An Ethernet header to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ether {
    src: Mac,
    dst: Mac,
    tags: Vec<(u16, u16)>,
}

impl Default for Ether {
    /// Between two locally administered addresses.
    fn default() -> Self {
        Self::new([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
    }
}

impl Ether {
    /// Broadcast.
    pub const BROADCAST: Mac = [0xff; 6];

    /// From `src` to `dst`.
    #[must_use]
    pub fn new(src: Mac, dst: Mac) -> Self {
        Self {
            src,
            dst,
            tags: Vec::new(),
        }
    }

    /// With one more 802.1Q tag, inside the ones before.
    #[must_use]
    pub fn vlan(mut self, id: u16) -> Self {
        self.tags.push((ethertype::VLAN, id));
        self
    }

    /// With one more 802.1ad tag.
    #[must_use]
    pub fn qinq(mut self, id: u16) -> Self {
        self.tags.push((ethertype::QINQ, id));
        self
    }

    /// The frame of an IP packet; its version gives the type.
    ///
    /// # Panics
    /// Where `packet` is empty or neither IPv4 nor IPv6.
    #[must_use]
    pub fn frame(&self, packet: &[u8]) -> Vec<u8> {
        let kind = match packet[0] >> 4 {
            4 => ethertype::IPV4,
            6 => ethertype::IPV6,
            version => panic!("IP version {version}"),
        };
        self.with_type(kind, packet)
    }

    /// The frame of any payload.
    #[must_use]
    pub fn with_type(&self, kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = [self.dst, self.src].concat();
        for (tag, id) in &self.tags {
            frame.extend(tag.to_be_bytes());
            frame.extend(id.to_be_bytes());
        }
        frame.extend(kind.to_be_bytes());
        frame.extend(payload);
        frame
    }
}

/// An ARP message for IPv4 over Ethernet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arp {
    /// 1 = request, 2 = reply.
    pub operation: u16,
    /// Sender.
    pub sender: (Mac, Ipv4Addr),
    /// Target.
    pub target: (Mac, Ipv4Addr),
}

impl Arp {
    /// Who has `target`? asks `sender`.
    #[must_use]
    pub fn request(sender: (Mac, Ipv4Addr), target: Ipv4Addr) -> Self {
        Self {
            operation: 1,
            sender,
            target: ([0; 6], target),
        }
    }

    /// The sender answers the target.
    #[must_use]
    pub fn reply(sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Self {
        Self {
            operation: 2,
            sender,
            target,
        }
    }

    /// The frame: broadcast for a request.
    #[must_use]
    pub fn frame(&self) -> Vec<u8> {
        let dst = if self.operation == 1 {
            Ether::BROADCAST
        } else {
            self.target.0
        };
        let mut body = vec![0, 1, 8, 0, 6, 4];
        body.extend(self.operation.to_be_bytes());
        for (mac, address) in [self.sender, self.target] {
            body.extend(mac);
            body.extend(address.octets());
        }
        Ether::new(self.sender.0, dst).with_type(ethertype::ARP, &body)
    }
}
