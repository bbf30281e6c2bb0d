//! The network of a [`Layout`], as kubelet, Flannel and its plugins would make it.
//!
//! A switch namespace joins the nodes and the outside host. Every node has `eth0` to the switch, the bridge
//! `cni0` and one veth a pod; nodes route to each other's pods directly (*host-gw*) or through `flannel.1` (*vxlan*).
//! Pods reach the outside by masquerade.

use std::net::IpAddr;

use anyhow::{Context as _, Result};

use super::{
    layout::{Layout, NodePlace},
    pod,
};
use crate::net::{Namespace, Rig};

/// How packets go from node to node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Backend {
    /// A route to the other node.
    HostGw,
    /// A VXLAN device.
    Vxlan,
}

/// What was built; dropping it removes it.
#[derive(Debug)]
pub struct Network {
    /// As [`Layout::nodes`].
    pub nodes: Vec<Namespace>,
    /// As [`Layout::pods`]; `None` for pods that are their node.
    pub pods: Vec<Option<Namespace>>,
    /// The host outside the cluster.
    pub outside: Namespace,
    _switch: Namespace,
}

impl Network {
    /// Builds it; `stop` is asked between the parts.
    ///
    /// # Errors
    /// A command fails, or `stop` says so.
    pub fn build(
        rig: &Rig,
        layout: &Layout,
        backend: Backend,
        stop: &dyn Fn() -> Result<()>,
    ) -> Result<Self> {
        let switch = rig.namespace("switch")?;
        switch.ip_batch([
            "link add br0 type bridge stp_state 0 forward_delay 0",
            "link set br0 up",
        ])?;
        let outside = rig.namespace("outside")?;
        let mut nodes = Vec::new();
        for (at, place) in layout.nodes.iter().enumerate() {
            stop()?;
            let node = rig.namespace(&format!("n{at}"))?;
            prepare_node(&node, place)?;
            connect(&switch, &node, at)?;
            nodes.push(node);
        }
        connect(&switch, &outside, layout.nodes.len())?;
        for (at, node) in nodes.iter().enumerate() {
            node.ip_batch(wire_lines(layout, at))
                .context("the wire of a node")?;
            node.ip_batch(overlay_lines(layout, at, backend))
                .context("the routes to other nodes' pods")?;
        }
        outside.ip_batch(outside_lines(layout))?;
        let mut pods = Vec::new();
        for (at, place) in layout.pods.iter().enumerate() {
            stop()?;
            let built = (!place.host_network)
                .then(|| pod::build(rig, layout, at, &nodes[place.node]))
                .transpose()?;
            pods.push(built);
        }
        Ok(Self {
            nodes,
            pods,
            outside,
            _switch: switch,
        })
    }
}

fn prepare_node(node: &Namespace, place: &NodePlace) -> Result<()> {
    for (key, value) in [
        ("net.ipv4.ip_forward", "1"),
        ("net.ipv6.conf.all.forwarding", "1"),
        ("net.ipv4.conf.all.rp_filter", "0"),
        ("net.ipv4.conf.default.rp_filter", "0"),
        ("net.ipv4.conf.all.send_redirects", "0"),
        ("net.ipv4.conf.default.send_redirects", "0"),
    ] {
        node.sysctl(key, value)?;
    }
    let mut lines = vec![
        "link add cni0 type bridge stp_state 0 forward_delay 0".to_owned(),
        "link set cni0 up".to_owned(),
    ];
    lines.extend(place.pods.iter().enumerate().map(|(at, net)| {
        let nodad = if at == 1 { " nodad" } else { "" };
        format!(
            "addr add {}/{} dev cni0{nodad}",
            place.bridge(at == 0),
            net.prefix_len()
        )
    }));
    node.ip_batch(lines)?;
    // Same-node answers are bridged; kube-proxy needs to see them to undo its DNAT. A kernel without
    // br_netfilter has no such key.
    for family in ["iptables", "ip6tables"] {
        let _ = node.sysctl(&format!("net.bridge.bridge-nf-call-{family}"), "1");
    }
    Ok(())
}

fn connect(switch: &Namespace, other: &Namespace, at: usize) -> Result<()> {
    switch.veth(&format!("p{at}"), other, "eth0")?;
    switch.ip_batch([format!("link set p{at} master br0 up")])?;
    other.ip_batch(["link set eth0 up"])
}

pub(super) fn full(address: IpAddr) -> String {
    if address.is_ipv4() {
        format!("{address}/32")
    } else {
        format!("{address}/128")
    }
}

pub(super) fn nodad(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "" } else { " nodad" }
}

/// Addresses and neighbours of a node on the wire. Neighbours are routes of their own: manifests may give nodes
/// addresses of any network.
fn wire_lines(layout: &Layout, at: usize) -> Vec<String> {
    let own = layout.nodes[at].addresses.iter();
    let mut lines: Vec<String> = own
        .map(|a| format!("addr add {} dev eth0{}", full(*a), nodad(*a)))
        .collect();
    let others = layout.nodes.iter().enumerate().filter(|(other, _)| *other != at);
    let others = others
        .flat_map(|(_, node)| &node.addresses)
        .chain(&layout.gateway);
    lines.extend(others.map(|a| format!("route add {} dev eth0", full(*a))));
    lines.extend(
        layout
            .gateway
            .iter()
            .map(|a| format!("route add default via {a} dev eth0")),
    );
    lines
}

/// Routes to the pods of all other nodes.
fn overlay_lines(layout: &Layout, at: usize, backend: Backend) -> Vec<String> {
    let mut lines = Vec::new();
    if backend == Backend::Vxlan {
        for v4 in [true, false] {
            lines.extend(vxlan_device(layout, at, v4));
        }
    }
    for (other, node) in layout.nodes.iter().enumerate().filter(|(other, _)| *other != at) {
        for v4 in [true, false] {
            let net = node.pods[usize::from(!v4)];
            let via = match backend {
                Backend::HostGw => format!("via {} dev eth0", node.address(v4).unwrap_or(net.addr())),
                Backend::Vxlan => {
                    let (device, next) = (vxlan_name(v4), net.network());
                    lines.push(format!(
                        "neigh replace {next} lladdr {} dev {device} nud permanent",
                        vxlan_mac(other)
                    ));
                    format!("via {next} dev {device} onlink")
                }
            };
            lines.push(format!("route add {net} {via}"));
            let far = layout
                .pods
                .iter()
                .filter(|pod| pod.node == other && !pod.host_network);
            let far = far
                .filter_map(|pod| pod.address(v4))
                .filter(|address| !net.contains(address));
            lines.extend(far.map(|address| format!("route add {} {via}", full(address))));
        }
    }
    lines
}

fn vxlan_name(v4: bool) -> &'static str {
    if v4 { "flannel.1" } else { "flannel-v6.1" }
}

fn vxlan_mac(node: usize) -> String {
    format!("02:00:00:00:01:{node:02x}")
}

fn vxlan_device(layout: &Layout, at: usize, v4: bool) -> Vec<String> {
    let (node, name) = (&layout.nodes[at], vxlan_name(v4));
    let net = node.pods[usize::from(!v4)];
    let Some(local) = node.address(v4) else {
        return Vec::new();
    };
    // The two devices differ in their network identifier: one port serves both families.
    let vni = if v4 { 1 } else { 2 };
    vec![
        format!(
            "link add {name} address {} mtu 1430 type vxlan id {vni} dev eth0 local {local} dstport 8472 nolearning",
            vxlan_mac(at)
        ),
        format!("addr add {} dev {name}{}", full(net.network()), nodad(local)),
        format!("link set {name} up"),
    ]
}

/// What the kernel's forwarding table of each VXLAN device must hold; `bridge fdb` has no `ip` command.
///
/// # Errors
/// `bridge` fails.
pub fn vxlan_peers(network: &Network, layout: &Layout) -> Result<()> {
    for (at, namespace) in network.nodes.iter().enumerate() {
        for (other, node) in layout.nodes.iter().enumerate().filter(|(other, _)| *other != at) {
            for v4 in [true, false] {
                let Some(address) = node.address(v4) else { continue };
                let (mac, to) = (vxlan_mac(other), address.to_string());
                namespace.command(
                    "bridge",
                    &["fdb", "append", &mac, "dev", vxlan_name(v4), "dst", &to],
                )?;
            }
        }
    }
    Ok(())
}

fn outside_lines(layout: &Layout) -> Vec<String> {
    let gateway = layout
        .gateway
        .iter()
        .map(|a| format!("addr add {} dev eth0{}", full(*a), nodad(*a)));
    let own = layout
        .outside
        .iter()
        .map(|a| format!("addr add {} dev lo{}", full(*a), nodad(*a)));
    let mut lines: Vec<String> = gateway.chain(own).collect();
    for (at, node) in layout.nodes.iter().enumerate() {
        lines.extend(
            node.addresses
                .iter()
                .map(|a| format!("route add {} dev eth0", full(*a))),
        );
        for v4 in [true, false] {
            let net = node.pods[usize::from(!v4)];
            let Some(via) = node.address(v4) else { continue };
            lines.push(format!("route add {net} via {via} dev eth0"));
            let far = layout
                .pods
                .iter()
                .filter(|pod| pod.node == at && !pod.host_network);
            let far = far
                .filter_map(|pod| pod.address(v4))
                .filter(|address| !net.contains(address));
            lines.extend(far.map(|address| format!("route add {} via {via} dev eth0", full(address))));
        }
    }
    lines
}
