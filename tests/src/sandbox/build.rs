//! The network of a [`Layout`], as kubelet, Flannel and its plugins would make it.
//!
//! A switch namespace joins the nodes and the outside host. Every node has `eth0` to the switch, the bridge
//! `cni0` and one veth a pod; nodes route to each other's pods directly (*host-gw*) or through `flannel.1` (*vxlan*).
//! Pods reach the outside by masquerade.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::layout::{Layout, NodePlace, PodPlace};
use crate::net::{Namespace, Rig};

/// How packets go from node to node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Backend {
    /// A route to the other node.
    HostGw,
    /// A VXLAN device.
    Vxlan,
}

/// Ends of veths get indices of their own, the two of a pair different ones: where they are equal, the kernel
/// announces the carrier up to a second late.
const FIRST_INDEX: usize = 1000;

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
            let pod = (!place.host_network)
                .then(|| build_pod(rig, layout, at, place, &nodes[place.node]))
                .transpose()?;
            pods.push(pod);
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

fn full(address: IpAddr) -> String {
    if address.is_ipv4() {
        format!("{address}/32")
    } else {
        format!("{address}/128")
    }
}

fn nodad(address: IpAddr) -> &'static str {
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

/// The host side of the veth of pod number `at`, as the bridge plugin names it.
#[must_use]
pub fn veth_name(at: usize) -> String {
    format!("veth{:08x}", (at as u32 + 1).wrapping_mul(0x9e37_79b1))
}

fn build_pod(rig: &Rig, layout: &Layout, at: usize, place: &PodPlace, node: &Namespace) -> Result<Namespace> {
    let pod = rig.namespace(&format!("p{at}"))?;
    let (veth, index) = (veth_name(at), FIRST_INDEX + 2 * at);
    write_cni_result(rig, layout, at, place, &pod)?;
    let mut lines = vec![
        format!(
            "link add {veth} index {index} type veth peer name eth0 index {} netns {}",
            index + 1,
            pod.name()
        ),
        format!("link set {veth} master cni0 up"),
        format!("link set {veth} type bridge_slave hairpin on"),
    ];
    let mut inside = vec!["link set eth0 up".to_owned()];
    for address in &place.addresses {
        let v4 = address.is_ipv4();
        let (net, bridge) = (
            layout.nodes[place.node].pods[usize::from(!v4)],
            layout.nodes[place.node].bridge(v4),
        );
        if net.contains(address) {
            inside.push(format!(
                "addr add {address}/{} dev eth0{}",
                net.prefix_len(),
                nodad(*address)
            ));
        } else {
            // An address of the manifest's, outside the node's network: everything goes through the bridge's address.
            inside.push(format!("addr add {} dev eth0{}", full(*address), nodad(*address)));
            inside.push(format!("route add {} dev eth0", full(bridge)));
            lines.push(format!("route add {} dev cni0", full(*address)));
        }
        inside.push(format!("route add default via {bridge} dev eth0"));
    }
    node.ip_batch(lines)
        .with_context(|| format!("the veth of pod {}", place.name))?;
    pod.ip_batch(inside)
        .with_context(|| format!("the addresses of pod {}", place.name))?;
    Ok(pod)
}

/// Where the result cache of the node's CNI is.
#[must_use]
pub fn cni_results(rig: &Rig, node: usize) -> PathBuf {
    rig.directory().join(format!("node-{node}/cni/results"))
}

/// What libcni leaves of an attachment (`cniCacheV1`).
fn write_cni_result(rig: &Rig, layout: &Layout, at: usize, place: &PodPlace, pod: &Namespace) -> Result<()> {
    let container = format!("{:064x}", at + 1);
    let netns = Path::new("/var/run/netns").join(pod.name());
    let node = &layout.nodes[place.node];
    let ips = place.addresses.iter().map(|address| {
        json!({"interface": 2, "address": format!("{address}/{}", if address.is_ipv4() { 24 } else { 64 }), "gateway": node.bridge(address.is_ipv4())})
    });
    let cached = json!({
        "kind": "cniCacheV1",
        "containerId": container,
        "config": "e30=",
        "ifName": "eth0",
        "networkName": "cbr0",
        "netns": netns,
        "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", &*place.name.namespace], ["K8S_POD_NAME", &*place.name.name], ["K8S_POD_INFRA_CONTAINER_ID", container]],
        "result": {
            "cniVersion": "0.3.1",
            "interfaces": [{"name": "cni0"}, {"name": veth_name(at)}, {"name": "eth0", "sandbox": netns}],
            "ips": ips.collect::<Vec<_>>(),
            "dns": {},
        },
    });
    let results = cni_results(rig, place.node);
    fs::create_dir_all(&results).with_context(|| format!("create {}", results.display()))?;
    let path = results.join(format!("cbr0-{container}-eth0"));
    fs::write(&path, cached.to_string()).with_context(|| format!("write {}", path.display()))
}
