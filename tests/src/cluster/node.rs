//! One node's network, and its pods'.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use netpol_policy::model::Pod;
use nix::sys::signal::Signal;
use serde_json::Value as Json;

use super::{
    Options,
    agent::{Agent, binary},
    drops::Drops,
};
use crate::net::{Namespace, Rig};

/// A node.
#[derive(Debug)]
pub struct Node {
    // First, so that it ends before its network does.
    pub(super) agent: Option<Agent>,
    /// Where its devices are.
    pub namespace: Namespace,
    /// `node-N`
    pub name: String,
    pub(super) number: u8,
    /// Where its agent pins.
    pub pins: PathBuf,
    directory: PathBuf,
}

impl Node {
    pub(super) fn build(rig: &Rig, switch: &Namespace, number: u8, options: &Options) -> Result<Self> {
        let name = format!("node-{number}");
        let namespace = rig.namespace(&name)?;
        for (key, value) in [
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv6.conf.all.forwarding", "1"),
            ("net.ipv4.conf.all.rp_filter", "0"),
            ("net.ipv4.conf.default.rp_filter", "0"),
            ("net.ipv4.conf.all.send_redirects", "0"),
            ("net.ipv4.conf.default.send_redirects", "0"),
        ] {
            namespace.sysctl(key, value)?;
        }
        for family in ["iptables", "ip6tables"] {
            let value = if options.bridge_nf { "1" } else { "0" };
            namespace.sysctl(&format!("net.bridge.bridge-nf-call-{family}"), value)?;
        }
        switch.veth(&format!("p{number}"), &namespace, "eth0")?;
        switch.ip(&format!("link set p{number} master br0 up"))?;
        options.uplink.build(&namespace)?;
        let uplink = options.uplink.device();
        namespace.ip_batch([
            "link add cni0 type bridge stp_state 0 forward_delay 0".to_owned(),
            format!("addr add 10.244.{number}.1/24 dev cni0"),
            format!("addr add fd00:244:{number}::1/64 dev cni0 nodad"),
            "link set cni0 up".to_owned(),
            format!("addr add 172.18.0.{number}/24 dev {uplink}"),
            format!("addr add fd00:18::{number}/64 dev {uplink} nodad"),
            "route add default via 172.18.0.100".to_owned(),
            "route add default via fd00:18::100".to_owned(),
        ])?;
        let directory = rig.directory().join(&name);
        fs::create_dir_all(directory.join("cni"))
            .with_context(|| format!("create {}", directory.display()))?;
        Ok(Self {
            agent: None,
            namespace,
            pins: rig.pins().join(&name),
            name,
            number,
            directory,
        })
    }

    /// Starts the agent where none runs.
    ///
    /// # Errors
    /// Where it can not be started.
    pub fn start(&mut self, manifests: &Path, options: &Options) -> Result<()> {
        if self.agent.is_none() {
            let agent = Agent::start(
                &self.namespace,
                &self.name,
                &self.pins,
                &self.directory,
                manifests,
                options,
            )?;
            self.agent = Some(agent);
        }
        Ok(())
    }

    /// The running agent.
    ///
    /// # Errors
    /// Where none runs.
    pub fn agent(&mut self) -> Result<&mut Agent> {
        self.agent
            .as_mut()
            .with_context(|| format!("no agent runs on {}", self.name))
    }

    /// Runs the agent's binary with `verb` (`status`, `cleanup`, ...) and this node's pins in this node's network; no agent
    /// needs to run.
    ///
    /// # Errors
    /// Where it can not be started.
    pub fn netpol(&self, verb: &str, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(binary()?);
        command.arg(verb).arg("--pin").arg(&self.pins).args(arguments);
        self.namespace
            .run(|| command.stdin(Stdio::null()).output())
            .with_context(|| format!("run netpol-agent {verb}"))
    }

    /// `netpol-agent status -o json`; null where it says nothing.
    #[must_use]
    pub fn status(&self) -> Json {
        let output = self.netpol("status", &["-o", "json"]);
        let bytes = output.map(|output| output.stdout).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// What was dropped so far.
    #[must_use]
    pub fn drops(&self) -> Drops {
        Drops::read(&self.status())
    }

    /// Starts another agent beside the one that runs, which is returned and goes on.
    ///
    /// # Errors
    /// Where none runs, or it can not be started.
    pub fn start_beside(&mut self, manifests: &Path, options: &Options) -> Result<Agent> {
        let first = self.agent.take();
        let first = first.with_context(|| format!("no agent runs on {}", self.name))?;
        self.start(manifests, options)?;
        Ok(first)
    }

    /// Ends the agent by `signal` and waits for it; what it attached stays.
    ///
    /// # Errors
    /// Where none runs, or it does not end.
    pub fn end_agent(&mut self, signal: Signal) -> Result<ExitStatus> {
        let mut agent = self
            .agent
            .take()
            .with_context(|| format!("no agent runs on {}", self.name))?;
        agent.child.signal(signal)?;
        agent.child.wait(Duration::from_secs(10))
    }

    /// Kills the agent without warning; what it attached stays.
    ///
    /// # Errors
    /// Where none runs.
    pub fn kill_agent(&mut self) -> Result<()> {
        self.agent
            .take()
            .with_context(|| format!("no agent runs on {}", self.name))?;
        Ok(())
    }
}

/// A pod's network.
#[derive(Debug)]
pub struct PodPlace {
    /// The pod's namespace; its device is `eth0`.
    pub namespace: Namespace,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The node's end of its veth.
    pub host: String,
    pub(super) node: String,
    result: PathBuf,
}

impl PodPlace {
    pub(super) fn build(rig: &Rig, node: &Node, pod: &Pod) -> Result<Self> {
        let label = pod.name.to_string().replace('/', ".");
        let namespace = rig.namespace(&label)?;
        // As the bridge plugin names them: `veth` and a hash.
        let host = format!("veth{:08x}", hash(&label));
        let result = node.directory.join("cni").join(format!("cbr0-{label}-eth0"));
        // As libcni: the result is written when the network is ready.
        let ready = namespace.path();
        node.namespace.veth(&host, &namespace, "eth0")?;
        node.namespace.ip_batch([
            format!("link set {host} master cni0 up"),
            // As Flannel's `hairpinMode`: a pod behind its own Service.
            format!("link set {host} type bridge_slave hairpin on"),
        ])?;
        let mut lines = Vec::new();
        for address in &pod.addresses {
            let (len, nodad) = if address.is_ipv4() {
                (24, "")
            } else {
                (64, "nodad")
            };
            lines.push(format!("addr add {address}/{len} dev eth0 {nodad}"));
        }
        lines.push("link set eth0 up".to_owned());
        for address in &pod.addresses {
            lines.push(if address.is_ipv4() {
                format!("route add default via 10.244.{}.1", node.number)
            } else {
                format!("route add default via fd00:244:{}::1", node.number)
            });
        }
        namespace.ip_batch(lines)?;
        let json = serde_json::json!({
            "kind": "cniCacheV1",
            "ifName": "eth0",
            "networkName": "cbr0",
            "cniArgs": [
                ["K8S_POD_NAMESPACE", &*pod.name.namespace],
                ["K8S_POD_NAME", &*pod.name.name],
                ["K8S_POD_UID", &*pod.uid],
            ],
            "result": {
                "cniVersion": "1.0.0",
                "interfaces": [{"name": "cni0"}, {"name": host}, {"name": "eth0", "sandbox": ready}],
                "ips": pod.addresses.iter().map(|address| serde_json::json!({"address": address})).collect::<Vec<_>>(),
            },
        });
        let half = node.directory.join("half");
        fs::write(&half, json.to_string()).with_context(|| format!("write {}", half.display()))?;
        fs::rename(&half, &result).with_context(|| format!("write {}", result.display()))?;
        Ok(Self {
            namespace,
            addresses: pod.addresses.clone(),
            host,
            node: node.name.clone(),
            result,
        })
    }

    /// What the runtime does when the pod ends: the namespace goes, and its record.
    pub(super) fn forget(self) {
        let _absent = fs::remove_file(&self.result);
    }

    /// The first address.
    ///
    /// # Panics
    /// Where the pod has none.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        *self.addresses.first().expect("a pod with an address")
    }

    /// `port` at the first address of the family.
    ///
    /// # Panics
    /// Where it has none.
    #[must_use]
    pub fn at(&self, v4: bool, port: u16) -> SocketAddr {
        let address = self
            .addresses
            .iter()
            .find(|address| address.is_ipv4() == v4)
            .expect("an address");
        SocketAddr::new(*address, port)
    }
}

/// FNV-1a.
fn hash(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}
