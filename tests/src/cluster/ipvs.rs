//! Services of one node as kube-proxy's `ipvs` mode writes them: virtual servers, the device with their addresses, sets
//! and the chains that masquerade (kubernetes/pkg/proxy/ipvs/proxier.go).

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Command,
};

use anyhow::Result;

use super::Node;
use crate::net::{Transport, kernel_has_sctp, run_with_input};

/// Carries every cluster address, so that packets to them are the node's and IPVS sees them.
const DEVICE: &str = "kube-ipvs0";

/// kube-proxy's `--masquerade-all` is off and it knows the pods' addresses, as with kubeadm.
const PODS: [&str; 2] = ["10.244.0.0/16", "fd00:244::/32"];

/// Why virtual servers can not be tested here.
#[must_use]
pub fn lacks_ipvs() -> Option<&'static str> {
    // Where it is there but not loaded. What this says does not matter, but whether the module is there afterwards.
    let _absent = Command::new("modprobe").args(["-q", "ip_vs"]).output();
    if !Path::new("/proc/net/ip_vs").exists() {
        return Some("this kernel has no IPVS (module ip_vs)");
    }
    let tool = |name: &str| Command::new(name).arg("--version").output().is_ok();
    if !["ipvsadm", "ipset", "iptables-restore"].into_iter().all(tool) {
        return Some("no ipvsadm, ipset or iptables-restore here");
    }
    None
}

/// A Service of one family, its port the same in every protocol.
#[derive(Clone, Debug)]
pub struct Virtual {
    /// `clusterIP:port`
    pub front: SocketAddr,
    /// `endpoint:targetPort`
    pub backends: Vec<SocketAddr>,
    /// On every address of the node.
    pub node_port: Option<u16>,
    /// `externalTrafficPolicy: Local`: the client's address is kept. (The backends are the node's own.)
    pub local: bool,
    /// `sessionAffinity: ClientIP`
    pub sticky: bool,
}

impl Virtual {
    /// A plain one.
    #[must_use]
    pub fn new(front: SocketAddr, backends: &[SocketAddr]) -> Self {
        Self {
            front,
            backends: backends.to_vec(),
            node_port: None,
            local: false,
            sticky: false,
        }
    }
}

/// What IPVS balances here.
fn transports() -> impl Iterator<Item = Transport> {
    [Transport::Tcp, Transport::Udp, Transport::Sctp]
        .into_iter()
        .filter(|transport| *transport != Transport::Sctp || kernel_has_sctp())
}

/// Its number: not every machine has `/etc/protocols`.
fn protocol(transport: Transport) -> u8 {
    match transport {
        Transport::Tcp => 6,
        Transport::Udp => 17,
        Transport::Sctp => 132,
    }
}

/// ipvsadm's option for a virtual server.
fn option(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "-t",
        Transport::Udp => "-u",
        Transport::Sctp => "--sctp-service",
    }
}

/// How names of sets and programs differ by family.
struct Family {
    v4: bool,
    /// Between `KUBE-` and the rest of a set's name.
    infix: &'static str,
    /// ipset's name.
    sets: &'static str,
    /// The program that loads its rules.
    restore: &'static str,
    pods: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        v4: true,
        infix: "",
        sets: "inet",
        restore: "iptables-restore",
        pods: PODS[0],
    },
    Family {
        v4: false,
        infix: "6-",
        sets: "inet6",
        restore: "ip6tables-restore",
        pods: PODS[1],
    },
];

impl Node {
    /// From now on the node balances `services`, and no others, with IPVS; `addresses` are the node's own, for node ports.
    ///
    /// # Errors
    /// Where `ip`, `ipset`, `iptables-restore` or `ipvsadm` fails.
    pub fn ipvs(&self, services: &[Virtual], addresses: &[IpAddr]) -> Result<()> {
        for (key, value) in [
            ("conntrack", "1"),
            ("expire_nodest_conn", "1"),
            ("expire_quiescent_template", "1"),
        ] {
            self.namespace.sysctl(&format!("net.ipv4.vs.{key}"), value)?;
        }
        let link = self.namespace.ip("-brief link show")?;
        if !link.contains(DEVICE) {
            self.namespace.ip(&format!("link add {DEVICE} type dummy"))?;
        }
        let mut lines = vec![format!("addr flush dev {DEVICE}")];
        lines.extend(services.iter().map(|service| {
            let (len, nodad) = if service.front.is_ipv4() {
                (32, "")
            } else {
                (128, "nodad")
            };
            format!("addr add {}/{len} dev {DEVICE} {nodad}", service.front.ip())
        }));
        self.namespace.ip_batch(lines)?;
        for family in &FAMILIES {
            let ours: Vec<_> = services
                .iter()
                .filter(|service| service.front.is_ipv4() == family.v4)
                .collect();
            self.feed("ipset", &["restore"], &sets(family, &ours))?;
            self.feed(family.restore, &["--noflush"], &chains(family))?;
        }
        self.namespace.command("ipvsadm", &["-C"])?;
        self.feed("ipvsadm", &["-R"], &servers(services, addresses))
    }

    /// Puts `new` in the place of the backend `old` of `front`, as for an endpoint that is replaced.
    ///
    /// # Errors
    /// Where `ipvsadm` fails.
    pub fn ipvs_moves(&self, front: SocketAddr, old: SocketAddr, new: SocketAddr) -> Result<()> {
        let mut lines = String::new();
        for transport in transports() {
            let server = option(transport);
            let _ = writeln!(
                lines,
                "-a {server} {front} -r {new} -m -w 1\n-d {server} {front} -r {old}"
            );
        }
        self.feed("ipvsadm", &["-R"], &lines)
    }

    fn feed(&self, program: &str, arguments: &[&str], input: &str) -> Result<()> {
        self.namespace
            .run(|| run_with_input(program, arguments, input))
            .map(drop)
    }
}

/// For `ipvsadm -R`.
fn servers(services: &[Virtual], addresses: &[IpAddr]) -> String {
    let mut out = String::new();
    for service in services {
        let node_ports = addresses
            .iter()
            .filter(|address| address.is_ipv4() == service.front.is_ipv4())
            .filter_map(|address| Some(SocketAddr::new(*address, service.node_port?)));
        for front in std::iter::once(service.front).chain(node_ports) {
            for transport in transports() {
                let server = option(transport);
                // kube-proxy masks persistence of IPv6 by all 128 bits; ipvsadm's default is the same.
                let sticky = if service.sticky { "-p 10800" } else { "" };
                let _ = writeln!(out, "-A {server} {front} -s rr {sticky}");
                for backend in &service.backends {
                    let _ = writeln!(out, "-a {server} {front} -r {backend} -m -w 1");
                }
            }
        }
    }
    out
}

/// For `ipset restore`.
fn sets(family: &Family, services: &[&Virtual]) -> String {
    let Family {
        infix, sets: inet, ..
    } = family;
    let mut out = String::new();
    for (name, kind) in [
        ("LOOP-BACK", "hash:ip,port,ip"),
        ("CLUSTER-IP", "hash:ip,port"),
        ("IPVS-IPS", "hash:ip"),
    ] {
        let _ = writeln!(
            out,
            "create KUBE-{infix}{name} {kind} family {inet} -exist\nflush KUBE-{infix}{name}"
        );
    }
    for name in ["TCP", "UDP", "LOCAL-TCP", "LOCAL-UDP"].map(|end| format!("KUBE-{infix}NODE-PORT-{end}")) {
        let _ = writeln!(
            out,
            "create {name} bitmap:port range 0-65535 -exist\nflush {name}"
        );
    }
    for service in services {
        let (ip, port) = (service.front.ip(), service.front.port());
        let _ = writeln!(out, "add KUBE-{infix}IPVS-IPS {ip} -exist");
        for transport in transports() {
            let protocol = protocol(transport);
            let _ = writeln!(out, "add KUBE-{infix}CLUSTER-IP {ip},{protocol}:{port}");
            for backend in &service.backends {
                let (at, target) = (backend.ip(), backend.port());
                let _ = writeln!(
                    out,
                    "add KUBE-{infix}LOOP-BACK {at},{protocol}:{target},{at} -exist"
                );
            }
            // SCTP's set has addresses: left out, as no test asks a node port by SCTP.
            if let Some(port) = service.node_port.filter(|_| transport != Transport::Sctp) {
                let end = if transport == Transport::Tcp { "TCP" } else { "UDP" };
                let _ = writeln!(out, "add KUBE-{infix}NODE-PORT-{end} {port}");
                if service.local {
                    let _ = writeln!(out, "add KUBE-{infix}NODE-PORT-LOCAL-{end} {port}");
                }
            }
        }
    }
    out
}

/// For `iptables-restore --noflush`: a chain that is named is emptied first, so it can be loaded again.
fn chains(family: &Family) -> String {
    let Family { infix, pods, .. } = family;
    format!(
        "*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
         :KUBE-SERVICES - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n:KUBE-NODE-PORT - [0:0]\n\
         -A PREROUTING -j KUBE-SERVICES\n\
         -A OUTPUT -j KUBE-SERVICES\n\
         -A POSTROUTING -j KUBE-POSTROUTING\n\
         -A KUBE-POSTROUTING -m set --match-set KUBE-{infix}LOOP-BACK dst,dst,src -j MASQUERADE\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
         -A KUBE-POSTROUTING -j MASQUERADE\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n\
         -A KUBE-SERVICES ! -s {pods} -m set --match-set KUBE-{infix}CLUSTER-IP dst,dst -j KUBE-MARK-MASQ\n\
         -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT\n\
         -A KUBE-SERVICES -m set --match-set KUBE-{infix}CLUSTER-IP dst,dst -j ACCEPT\n\
         -A KUBE-NODE-PORT -p tcp -m set --match-set KUBE-{infix}NODE-PORT-LOCAL-TCP dst -j RETURN\n\
         -A KUBE-NODE-PORT -p tcp -m set --match-set KUBE-{infix}NODE-PORT-TCP dst -j KUBE-MARK-MASQ\n\
         -A KUBE-NODE-PORT -p udp -m set --match-set KUBE-{infix}NODE-PORT-LOCAL-UDP dst -j RETURN\n\
         -A KUBE-NODE-PORT -p udp -m set --match-set KUBE-{infix}NODE-PORT-UDP dst -j KUBE-MARK-MASQ\n\
         COMMIT\n\
         *filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:KUBE-FORWARD - [0:0]\n:KUBE-IPVS-FILTER - [0:0]\n\
         -A INPUT -j KUBE-IPVS-FILTER\n\
         -A FORWARD -j KUBE-FORWARD\n\
         -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\n\
         -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         -A KUBE-IPVS-FILTER -m set --match-set KUBE-{infix}CLUSTER-IP dst,dst -j RETURN\n\
         -A KUBE-IPVS-FILTER -m conntrack --ctstate NEW -m set --match-set KUBE-{infix}IPVS-IPS dst -j REJECT\n\
         COMMIT\n"
    )
}
