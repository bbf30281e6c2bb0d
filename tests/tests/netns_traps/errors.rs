//! ICMP errors: they pass with the conversation that they quote, on both sides of a NAT.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result};
use netpol_tests::{cluster::Policy, net::Namespace, packet::Ip};

use crate::{
    packets::crossing,
    town::{FAMILIES, Town, deny_all, only},
};

/// More than a window of full segments.
const BULK: usize = 300_000;
/// The narrow link's.
const MTU: u32 = 1300;

/// A host behind a router (the outside host) whose link to it is narrow in the host's direction.
fn far_host(town: &Town) -> Result<Namespace> {
    let router = &town.cluster.outside;
    let host = town.cluster.rig.namespace("host")?;
    router.veth("narrow", &host, "eth0")?;
    for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        router.sysctl(key, "1")?;
    }
    router.ip_batch([
        "addr add 10.99.0.1/24 dev narrow".to_owned(),
        "addr add fd00:99::1/64 dev narrow nodad".to_owned(),
        format!("link set narrow up mtu {MTU}"),
    ])?;
    host.ip_batch([
        "addr add 10.99.0.2/24 dev eth0",
        "addr add fd00:99::2/64 dev eth0 nodad",
        "link set eth0 up",
        "route add default via 10.99.0.1",
        "route add default via fd00:99::1",
    ])?;
    Ok(host)
}

fn host_at(v4: bool, port: u16) -> SocketAddr {
    let address: IpAddr = if v4 {
        [10, 99, 0, 2].into()
    } else {
        [0xfd00, 0x99, 0, 0, 0, 0, 0, 2].into()
    };
    SocketAddr::new(address, port)
}

/// Sends [`BULK`] bytes over `from` and reads them from `to`.
fn transfer(mut from: TcpStream, mut to: TcpStream) -> Result<()> {
    to.set_read_timeout(Some(Duration::from_secs(5)))?;
    from.set_write_timeout(Some(Duration::from_secs(5)))?;
    let writer = std::thread::spawn(move || from.write_all(&vec![7; BULK]));
    let mut bytes = vec![0; BULK];
    to.read_exact(&mut bytes)
        .context("the bulk does not get through")?;
    writer.join().expect("a writer does not panic").context("write")
}

fn connect(from: &Namespace, to: SocketAddr, listener: &TcpListener) -> Result<(TcpStream, TcpStream)> {
    let client = from
        .connect(to, Duration::from_secs(3))
        .with_context(|| format!("connect to {to}"))?;
    Ok((client, listener.accept()?.0))
}

/// The largest packet that the kernel of `namespace` has learnt to send to `to`.
fn path_mtu(namespace: &Namespace, to: IpAddr) -> Result<Option<u32>> {
    let route = namespace.ip(&format!("route get {to}"))?;
    let mut words = route.split_whitespace();
    Ok(words
        .find(|word| *word == "mtu")
        .and(words.next())
        .and_then(|mtu| mtu.parse().ok()))
}

#[test]
fn path_mtu_discovery_works_from_isolated_pods_through_nat() -> Result<()> {
    let mut town = Town::new(1, &[("client", 1), ("server", 1)], Default::default())?;
    town.cluster.node(1).masquerade()?;
    let host = far_host(&town)?;
    let nets = ["10.99.0.2/32", "fd00:99::2/128"];
    town.enforce(&[only("client", &[], &nets), only("server", &nets, &[])])?;
    for v4 in FAMILIES {
        // The error comes with the replies: it quotes the masqueraded packet, and is for the pod behind it.
        let front: SocketAddr = if v4 {
            "10.96.0.20:90"
        } else {
            "[fd00:10:96::20]:90"
        }
        .parse()?;
        town.cluster.node(1).service(front, host_at(v4, 80))?;
        let listener = host.listen(host_at(v4, 80))?;
        let (client, server) = connect(town.namespace("client"), front, &listener)?;
        transfer(client, server).with_context(|| format!("out through a Service, IPv4: {v4}"))?;
        assert_eq!(path_mtu(town.namespace("client"), front.ip())?, Some(MTU));

        // The error travels with the questions: it quotes an answer.
        let listener = town.namespace("server").listen(town.at("server", v4, 90))?;
        let (client, server) = connect(&host, town.at("server", v4, 90), &listener)?;
        transfer(server, client).with_context(|| format!("answers to the host, IPv4: {v4}"))?;
        assert_eq!(
            path_mtu(town.namespace("server"), host_at(v4, 0).ip())?,
            Some(MTU)
        );

        // The same behind a node port: the answer that the error quotes has the node's address.
        town.cluster
            .node(1)
            .node_port(30_090, town.at("server", v4, 91))?;
    }
    // Masqueraded by the node that it is on, the host is no longer the peer that the policy names.
    let bridge = ["10.244.1.1/32", "fd00:244:1::1/128"];
    town.enforce(&[only("server", &bridge, &[])])?;
    for v4 in FAMILIES {
        let listener = town.namespace("server").listen(town.at("server", v4, 91))?;
        town.namespace("server").ip("route flush cache")?;
        let (client, server) = connect(&host, town.at("node-1", v4, 30_090), &listener)?;
        transfer(server, client).with_context(|| format!("answers through a node port, IPv4: {v4}"))?;
    }
    Ok(())
}

#[test]
fn errors_about_unknown_conversations_are_judged_by_policy() -> Result<()> {
    let mut town = Town::usual(&[("pod", 1), ("near", 1), ("far", 2)])?;
    let senders = ["outside", "near", "far"];
    town.enforce(&[deny_all("pod")])?;
    let before = town.drops(1);
    for sender in senders {
        assert_eq!(forged(&town, sender)?, [false; 8], "{sender}");
    }
    assert!(town.drops(1).since(&before).of("t/pod", "denied-ingress") >= 24);
    // An error may be about what the pod might have sent: there is no telling, and it might have been.
    let allowed = ["172.18.0.100/32", "fd00:18::100/128", "app=near", "app=far"];
    town.enforce(&[Policy::new("t/pod", "app=pod").ingress(&[]).egress(&allowed)])?;
    for sender in senders {
        assert_eq!(forged(&town, sender)?, [true; 8], "{sender}");
    }
    Ok(())
}

/// Errors of both families, about datagrams and segments that the pod has never sent.
fn forged(town: &Town, sender: &str) -> Result<Vec<bool>> {
    let mut errors = Vec::new();
    for v4 in FAMILIES {
        let ip = Ip::new(town.ip(sender, v4), town.ip("pod", v4));
        let quoted = Ip::new(town.ip("pod", v4), town.ip(sender, v4));
        for quote in [
            quoted.udp(1234, 9, b"never sent"),
            quoted.tcp(1234, 9, netpol_tests::packet::tcp::ACK, b"never sent"),
        ] {
            errors.extend([ip.too_big(1280, &quote), ip.port_unreachable(&quote)]);
        }
    }
    let ether = match sender {
        "outside" => town.inward(1)?,
        "near" => town.ether("near", "pod")?,
        _ => town.to_node(sender, 2)?,
    };
    crossing(town, sender, &ether, &errors, "pod")
}
