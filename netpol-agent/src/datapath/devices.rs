//! Which device is a pod's, which leads outside, which carries neither.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use netpol_policy::model::ObjectName;

/// A network device, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its ifindex.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// `IFLA_INFO_KIND`: `veth`, `bridge`, `vxlan`, ...; empty for hardware.
    pub kind: String,
    /// Its link-layer address.
    pub hardware: Vec<u8>,
    /// Its packets begin with the IP header: it has no link layer (`tun`, WireGuard, IPIP, PPP).
    pub bare: bool,
    /// `IFF_LOOPBACK`
    pub loopback: bool,
    /// `IFF_UP`
    pub up: bool,
    /// `IFLA_LINK`: a veth's peer (an ifindex in the peer's namespace), a VLAN's parent.
    pub lower: Option<u32>,
    /// `IFLA_LINK_NETNSID`: set where the peer is in another network namespace.
    pub peer_namespace: Option<i32>,
    /// The bridge or bond that it is a port of.
    pub master: Option<u32>,
    /// `ip link set alias`
    pub alias: Option<String>,
    /// What a tunnel device listens on: IP protocol and port (0 where the protocol has none).
    pub tunnel: Option<(u8, u16)>,
}

impl Device {
    /// Whether `other`, of the same index, is this device: not renamed, not another one that got the number.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        let identity = |device: &Self| {
            (
                device.name.clone(),
                device.kind.clone(),
                device.lower,
                device.hardware.clone(),
            )
        };
        identity(self) == identity(other)
    }
}

/// A route over one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The device's ifindex.
    pub device: u32,
    /// Where it leads.
    pub to: IpNet,
    /// Over a router (else the destination is on the link).
    pub gateway: bool,
}

/// All of it at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// By ifindex.
    pub devices: BTreeMap<u32, Device>,
    /// Devices (by ifindex) that are there and of which the kernel's description was not understood.
    pub unread: BTreeSet<u32>,
    /// By ifindex.
    pub addresses: BTreeMap<u32, Vec<IpNet>>,
    /// Unicast routes of all tables.
    pub routes: Vec<Route>,
}

/// What a device is to netpol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// The host side of a pod's veth. `None`: nobody has said yet which pod's.
    Pod(Option<ObjectName>),
    /// It leads outside.
    Outside,
    /// It gets no programs; the text says why.
    None(&'static str),
}

/// The alias that names a veth's pod in set-ups without CNI: `netpol:NAMESPACE/NAME`.
const ALIAS: &str = "netpol:";

/// What is known from elsewhere about devices and pods.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// Host veth (by ifindex) → pod: CNI results, the peer's addresses, or an earlier look.
    pub bound: BTreeMap<u32, ObjectName>,
    /// The local pods' addresses.
    pub addresses: BTreeMap<IpAddr, ObjectName>,
    /// Device names (a trailing `*` matches any rest) that the administrator calls outside.
    pub outside: Vec<String>,
    /// Devices (by ifindex) that have led outside so far.
    pub were_outside: BTreeSet<u32>,
}

/// The role of every device.
#[must_use]
pub fn classify(seen: &Seen, evidence: &Evidence) -> BTreeMap<u32, Role> {
    let bridges = Bridges::new(seen, evidence);
    seen.devices
        .values()
        .map(|device| (device.index, role(device, seen, evidence, &bridges)))
        .collect()
}

fn role(device: &Device, seen: &Seen, evidence: &Evidence, bridges: &Bridges) -> Role {
    if device.loopback {
        return Role::None("the loopback device");
    }
    if evidence
        .outside
        .iter()
        .any(|pattern| matches_name(pattern, &device.name))
    {
        return Role::Outside;
    }
    if device.kind == "bridge" {
        // Every packet over a bridge crosses one of its ports, and a program at the bridge itself would
        // overwrite the mark that the port of the sending pod has written.
        return Role::None("a bridge: its ports are watched");
    }
    if device.kind == "ifb" {
        // What a pod sends is led over it to be shaped (CNI's `bandwidth`), and then goes on from the pod's device: neither its
        // destination nor its way out is settled.
        return Role::None("an intermediate device: what it shapes goes on from where it came");
    }
    if device.kind != "veth" || device.peer_namespace.is_none() {
        return Role::Outside;
    }
    if let Some(pod) = pod_of(device, seen, evidence) {
        return Role::Pod(Some(pod));
    }
    if is_uplink(device, seen) || is_below_uplink(device, seen) {
        return Role::Outside;
    }
    // An uplink that has lost its address (a lease that ran out) must be able to get another: as an unknown pod's it never would.
    if device.master.is_none() && evidence.were_outside.contains(&device.index) {
        return Role::Outside;
    }
    match device.master {
        Some(master) if bridges.outside.contains(&master) => Role::Outside,
        _ => Role::Pod(None),
    }
}

/// The pod behind a veth, by the first evidence there is.
fn pod_of(device: &Device, seen: &Seen, evidence: &Evidence) -> Option<ObjectName> {
    if let Some(pod) = evidence.bound.get(&device.index) {
        return Some(pod.clone());
    }
    if let Some(pod) = device
        .alias
        .as_deref()
        .and_then(|alias| alias.strip_prefix(ALIAS))
    {
        let (namespace, name) = pod.split_once('/')?;
        return Some(ObjectName::new(namespace, name));
    }
    seen.routes
        .iter()
        .filter(|route| route.device == device.index && !route.gateway && is_host(&route.to))
        .find_map(|route| evidence.addresses.get(&route.to.addr()))
        .cloned()
}

/// A device over which the node itself reaches others: it has an address of the node's with its link's prefix, or a route
/// over a router. The host side of a ptp veth has the gateway's address, too, but alone (/32, /128), and before anybody
/// says whose it is; a real uplink that has only such an address has a route over a router.
fn is_uplink(device: &Device, seen: &Seen) -> bool {
    let addresses = seen.addresses.get(&device.index).map_or(&[][..], Vec::as_slice);
    addresses
        .iter()
        .any(|net| !is_link_local(net.addr()) && !is_host(net))
        || seen
            .routes
            .iter()
            .any(|route| route.device == device.index && (route.gateway || route.to.prefix_len() == 0))
}

/// A bond's slave, or what a VLAN (or a tunnel) of the node's stands on.
fn is_below_uplink(device: &Device, seen: &Seen) -> bool {
    seen.devices.values().any(|above| {
        let bonded = device.master == Some(above.index) && matches!(&*above.kind, "bond" | "team");
        // A veth's `lower` is its peer, and that of a device from another namespace an index there.
        let stacked =
            above.lower == Some(device.index) && above.kind != "veth" && above.peer_namespace.is_none();
        bonded || stacked && is_uplink(above, seen)
    })
}

fn is_host(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

fn matches_name(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => pattern == name,
    }
}

/// Bridges whose unknown ports lead outside rather than to pods.
struct Bridges {
    outside: BTreeSet<u32>,
}

impl Bridges {
    fn new(seen: &Seen, evidence: &Evidence) -> Self {
        let outside = seen
            .devices
            .values()
            .filter(|device| device.kind == "bridge")
            .filter(|bridge| !carries_pods(bridge, seen, evidence) && leads_outside(bridge, seen, evidence))
            .map(|bridge| bridge.index)
            .collect();
        Self { outside }
    }
}

fn carries_pods(bridge: &Device, seen: &Seen, evidence: &Evidence) -> bool {
    let own = seen.addresses.get(&bridge.index).map_or(&[][..], Vec::as_slice);
    let subnet = |address: &IpAddr| {
        own.iter()
            .any(|net| !is_link_local(net.addr()) && net.contains(address))
    };
    evidence.addresses.keys().any(subnet)
        || evidence
            .bound
            .keys()
            .filter_map(|index| seen.devices.get(index))
            .any(|port| port.master == Some(bridge.index))
}

/// The node's way out runs over the bridge, or a port of it is no veth, or the pods are known to be elsewhere.
fn leads_outside(bridge: &Device, seen: &Seen, evidence: &Evidence) -> bool {
    let routed = seen
        .routes
        .iter()
        .any(|route| route.device == bridge.index && (route.gateway || route.to.prefix_len() == 0));
    let uplink = seen
        .devices
        .values()
        .any(|port| port.master == Some(bridge.index) && port.kind != "veth");
    routed || uplink || !evidence.bound.is_empty()
}

/// What the node's tunnels listen on, for [`netpol_common::pod::Config::tunnels`].
#[must_use]
pub fn tunnels(seen: &Seen) -> BTreeSet<(u8, u16)> {
    seen.devices
        .values()
        .filter(|device| device.up)
        .filter_map(|device| device.tunnel)
        .collect()
}

#[cfg(test)]
#[path = "devices_tests.rs"]
mod tests;
