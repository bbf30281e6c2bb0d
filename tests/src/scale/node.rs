//! The node under test: its network, its pods' devices and what the CNI has written of them.

use std::{
    fs,
    net::{IpAddr, UdpSocket},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    control::ControlPlane,
    objects::{PROBED, Size, namespace_name, namespace_of, pod_name},
};
use crate::net::{Namespace, Rig, run};

/// The node's number in the network of the control plane.
const MACHINE: u8 = 11;

/// A namespace that is the node, one that is all of its pods, and one for each of the two that are probed.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) namespace: Namespace,
    /// Where the pods' ends are that nobody talks to.
    _others: Namespace,
    client: Namespace,
    server: Namespace,
    server_address: IpAddr,
    pub(super) directory: PathBuf,
    pub(super) pins: PathBuf,
}

impl Node {
    /// Builds it; `listed` are its pods as the API server lists them.
    pub(super) fn build(rig: &Rig, control: &ControlPlane, size: Size, listed: &Value) -> Result<Self> {
        let (client, server) = size.probes().context("no two pods can be probed")?;
        let this = Self {
            namespace: rig.namespace("node")?,
            _others: rig.namespace("pods")?,
            client: rig.namespace("client")?,
            server: rig.namespace("server")?,
            server_address: size.address(server).into(),
            directory: rig.directory().to_owned(),
            pins: rig.pins().to_owned(),
        };
        this.uplink(control)?;
        let (mut lines, mut places) = (Vec::new(), Vec::new());
        for (at, pod) in size.local_pods().enumerate() {
            let place = match pod {
                pod if pod == client => &this.client,
                pod if pod == server => &this.server,
                _ => &this._others,
            };
            let (host, device) = (host(at), device(at, pod == client || pod == server));
            // As PodPlace: an index of its own for each end.
            lines.push(format!(
                "link add {host} index {} type veth peer name {device} index {} netns {}",
                1000 + 2 * at,
                1001 + 2 * at,
                place.name()
            ));
            lines.push(format!("link set {host} master cni0 up"));
            places.push((place, device, size.address(pod)));
        }
        this.namespace.ip_batch(&lines)?;
        let up = places
            .iter()
            .map(|(_, device, _)| format!("link set {device} up"));
        let others = places.iter().zip(up);
        let others = others.filter(|((place, ..), _)| place.name() == this._others.name());
        this._others.ip_batch(others.map(|(_, line)| line))?;
        for (place, device, address) in places
            .iter()
            .filter(|(place, ..)| place.name() != this._others.name())
        {
            place.address(device, (*address).into(), 24)?;
            place.ip(&format!("link set {device} up"))?;
            place.ip("route add default via 10.64.0.1")?;
        }
        this.results(size, listed)?;
        Ok(this)
    }

    fn uplink(&self, control: &ControlPlane) -> Result<()> {
        self.namespace.sysctl("net.ipv4.ip_forward", "1")?;
        let init = control.init.to_string();
        self.namespace.ip(&format!(
            "link add eth0 index 900 type veth peer name scale index 5000 netns {init}"
        ))?;
        run(
            "nsenter",
            &[
                "-t", &init, "-n", "ip", "link", "set", "scale", "master", "br0", "up",
            ],
        )?;
        self.namespace.ip_batch([
            format!("addr add {}/24 dev eth0", control.address(MACHINE)),
            "link set eth0 up".to_owned(),
            format!("route add default via {}", control.address(2)),
            "link add cni0 type bridge stp_state 0 forward_delay 0".to_owned(),
            "addr add 10.64.0.1/24 dev cni0".to_owned(),
            "link set cni0 up".to_owned(),
        ])
    }

    /// The CNI's results, as libcni writes them.
    fn results(&self, size: Size, listed: &Value) -> Result<()> {
        let directory = self.cni();
        fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
        let items = listed["items"]
            .as_array()
            .context("a list of pods without items")?;
        ensure!(
            items.len() == size.local,
            "the API server lists {} pods of the node",
            items.len()
        );
        for (at, pod) in size.local_pods().enumerate() {
            let (space, name) = (namespace_name(namespace_of(pod)), pod_name(pod));
            let found = items
                .iter()
                .find(|item| item["metadata"]["namespace"] == *space && item["metadata"]["name"] == *name);
            let uid = found.with_context(|| format!("the API server does not list {space}/{name}"))?;
            let id = format!("{at:064x}");
            let result = json!({
                "kind": "cniCacheV1", "containerId": id, "config": "e30=", "ifName": "eth0", "networkName": "cbr0",
                "netns": format!("/var/run/netns/cni-{at}"),
                "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", space], ["K8S_POD_NAME", name],
                    ["K8S_POD_INFRA_CONTAINER_ID", id], ["K8S_POD_UID", uid["metadata"]["uid"]]],
                "capabilityArgs": {"dns": {}},
                "result": {"cniVersion": "1.0.0", "dns": {},
                    "interfaces": [{"name": "cni0"}, {"name": host(at)}, {"name": "eth0", "sandbox": format!("/var/run/netns/cni-{at}")}],
                    "ips": [{"address": format!("{}/24", size.address(pod)), "gateway": "10.64.0.1", "interface": 2}],
                    "routes": [{"dst": "0.0.0.0/0", "gw": "10.64.0.1"}]}});
            let file = directory.join(format!("cbr0-{id}-eth0"));
            fs::write(&file, result.to_string()).with_context(|| format!("writing {}", file.display()))?;
        }
        Ok(())
    }

    pub(super) fn cni(&self) -> PathBuf {
        self.directory.join("cni")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.directory.join("agent.log")
    }

    /// The client's socket, which talks to the server's.
    pub(super) fn sockets(&self) -> Result<(UdpSocket, UdpSocket)> {
        let server = self
            .server
            .udp((self.server_address, PROBED).into())
            .context("the server's socket")?;
        let client = self
            .client
            .udp(([0, 0, 0, 0], 0).into())
            .context("the client's socket")?;
        client
            .connect((self.server_address, PROBED))
            .context("the client's socket")?;
        Ok((client, server))
    }

    /// Removes what an agent has pinned, which must have ended.
    pub(super) fn cleanup(&self, agent: &Path) -> Result<()> {
        let (agent, pins) = (agent.to_string_lossy(), self.pins.to_string_lossy());
        self.namespace
            .command(&agent, &["cleanup", "--pin", &pins])
            .map(drop)
    }
}

/// The node's end of a pod's veth.
fn host(at: usize) -> String {
    format!("veth{at:08x}")
}

/// The pod's end, alone in its namespace or among others.
fn device(at: usize, alone: bool) -> String {
    if alone {
        "eth0".to_owned()
    } else {
        format!("pod{at}")
    }
}
