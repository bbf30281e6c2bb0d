//! One pod's veth, addresses, and what the CNI plugin would note about it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::{
    build::{full, nodad},
    layout::{Layout, PodPlace},
};
use crate::net::{Namespace, Rig};

/// Ends of veths get indices of their own, the two of a pair different ones: where they are equal, the kernel
/// announces the carrier up to a second late.
const FIRST_INDEX: usize = 1000;

/// The host side of the veth of pod number `at`, as the bridge plugin names it.
#[must_use]
pub fn veth_name(at: usize) -> String {
    format!("veth{:08x}", (at as u32 + 1).wrapping_mul(0x9e37_79b1))
}

pub(super) fn build(rig: &Rig, layout: &Layout, at: usize, node: &Namespace) -> Result<Namespace> {
    let place = &layout.pods[at];
    let pod = rig.namespace(&format!("p{at}"))?;
    let (veth, index) = (veth_name(at), FIRST_INDEX + 2 * at);
    write_cni_result(rig, layout, at, place, &pod)?;
    let mut lines = vec![
        format!(
            "link add {veth} index {index} type veth peer name eth0 index {} address {} netns {}",
            index + 1,
            mac(at),
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
    inside.extend(permanent_neighbours(layout, at));
    node.ip_batch(lines)
        .with_context(|| format!("the veth of pod {}", place.name))?;
    pod.ip_batch(inside)
        .with_context(|| format!("the addresses of pod {}", place.name))?;
    Ok(pod)
}

/// The kernel's neighbour table is one for all namespaces, 1024 entries; permanent ones do not count. So where every
/// pod's learning all others would fill it, they are told instead.
fn permanent_neighbours(layout: &Layout, at: usize) -> Vec<String> {
    const LEARNED: usize = 400;
    let on = |node: usize| layout.pods.iter().filter(move |pod| pod.node == node).count();
    let all: usize = (0..layout.nodes.len()).map(|node| on(node) * on(node)).sum();
    if all <= LEARNED {
        return Vec::new();
    }
    let here = &layout.pods[at];
    let near = layout
        .pods
        .iter()
        .enumerate()
        .filter(|(other, pod)| *other != at && pod.node == here.node && !pod.host_network);
    let nets = layout.nodes[here.node].pods;
    near.flat_map(|(other, pod)| pod.addresses.iter().map(move |address| (other, address)))
        .filter(|(_, address)| {
            nets.iter().any(|net| net.contains(*address)) && here.address(address.is_ipv4()).is_some()
        })
        .map(|(other, address)| {
            format!(
                "neigh replace {address} lladdr {} dev eth0 nud permanent",
                mac(other)
            )
        })
        .collect()
}

/// The link-layer address of pod number `at`.
fn mac(at: usize) -> String {
    format!("02:00:00:01:{:02x}:{:02x}", at >> 8, at & 0xff)
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
