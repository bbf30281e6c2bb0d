//! Who speaks without having been asked, or to everybody.

use std::net::Ipv6Addr;

use anyhow::Result;
use netpol_tests::{
    cluster::Policy,
    packet::{Ether, Ip, tcp},
};

use crate::{
    packets::{arrivals, crossing},
    town::{FAMILIES, Town, deny_all},
};

#[test]
fn a_peer_that_answers_what_was_denied_opens_nothing() -> Result<()> {
    let mut town = Town::usual(&[("a", 1), ("b", 1), ("far", 2)])?;
    // Connection tracking knows the denied packet and takes its answer for one.
    town.cluster.node(1).masquerade()?;
    // Who is isolated, and on whose account the packets between `a` and `b` are dropped.
    let cases = [
        (&["b", "far"][..], ["t/b denied-ingress", "t/b denied-egress"]),
        (&["a"], ["t/a denied-egress", "t/a denied-ingress"]),
        (&["a", "b", "far"], ["t/a denied-egress", "t/b denied-egress"]),
    ];
    // Each round has ports of its own: connection tracking also holds what was dropped in an earlier one.
    for (port, (isolated, reasons)) in (4000..).step_by(10).zip(cases) {
        let policies: Vec<_> = isolated.iter().map(|name| deny_all(name)).collect();
        town.enforce(&policies)?;
        let before = town.drops(1);
        answers_all_the_same(&town, ("a", port), "b", 1)?;
        let drops = town.drops(1).since(&before);
        for reason in reasons {
            let (pod, reason) = reason.split_once(' ').expect("a pod and a reason");
            assert!(
                drops.of(pod, reason) >= 6,
                "{isolated:?}: {pod} {reason}: {drops:?}"
            );
        }
        answers_all_the_same(&town, ("a", port), "far", 2)?;
    }
    // The peer is isolated, the sender is outside.
    answers_all_the_same(&town, ("outside", 4000), "b", 1)
}

/// `from` asks from `port`, `peer` (a pod of `node`) answers, `from` goes on: nothing arrives.
fn answers_all_the_same(town: &Town, (from, port): (&str, u16), peer: &str, node: usize) -> Result<()> {
    let (mut asked, mut answered, mut went_on) = (Vec::new(), Vec::new(), Vec::new());
    for v4 in FAMILIES {
        let there = Ip::new(town.ip(from, v4), town.ip(peer, v4));
        let back = Ip::new(town.ip(peer, v4), town.ip(from, v4));
        let datagram = there.udp(port, 53, b"udp question");
        answered.extend([
            back.tcp_at(81, port, tcp::SYN | tcp::ACK, 2000, 1001, b""),
            back.tcp_at(81, port, tcp::RST | tcp::ACK, 0, 1001, b""),
            back.udp(53, port, b"udp answer"),
            back.port_unreachable(&datagram),
            back.echo_reply(port),
        ]);
        asked.extend([
            there.tcp_at(port, 81, tcp::SYN, 1000, 0, b""),
            datagram,
            there.echo(port),
        ]);
        went_on.extend([
            there.tcp_at(port, 81, tcp::ACK, 1001, 2001, b""),
            there.tcp_at(port, 81, tcp::ACK | tcp::PSH, 1001, 2001, b"data"),
            there.udp(port, 53, b"udp once more"),
            there.port_unreachable(&back.udp(53, port, b"udp answer")),
        ]);
    }
    let out = match (from, node) {
        ("outside", _) => town.inward(node)?,
        (_, 1) => town.ether(from, peer)?,
        _ => town.to_node(from, 1)?,
    };
    let back = match (from, node) {
        ("outside", _) => town.to_node(peer, node)?,
        (_, 1) => town.ether(peer, from)?,
        _ => town.to_node(peer, node)?,
    };
    for (step, sender, ether, packets, receiver) in [
        ("asks", from, &out, &asked, peer),
        ("answers", peer, &back, &answered, from),
        ("goes on", from, &out, &went_on, peer),
    ] {
        let seen = crossing(town, sender, ether, packets, receiver)?;
        assert_eq!(seen, vec![false; packets.len()], "{sender} {step} {receiver}");
    }
    Ok(())
}

#[test]
fn broadcast_multicast_and_link_local_are_judged_by_the_pod_they_reach() -> Result<()> {
    let mut town = Town::usual(&[("a", 1), ("isolated", 1), ("free", 1), ("held", 1), ("friend", 1)])?;
    town.enforce(&[
        Policy::new("t/isolated", "app=isolated").ingress(&["app=friend"]),
        Policy::new("t/held", "app=held").egress(&["app=friend"]),
    ])?;
    let cases = [
        ("a", false, true),
        ("friend", true, true),
        // Groups and link-local addresses are no pods.
        ("held", false, false),
    ];
    for (from, isolated, free) in cases {
        for (receiver, reached) in [("isolated", isolated), ("free", free)] {
            let before = town.drops(1);
            for (ether, packets) in everybody(&town, from, receiver)? {
                let seen = crossing(&town, from, &ether, &packets, receiver)?;
                assert_eq!(seen, vec![reached; packets.len()], "{from} to {receiver}");
            }
            let drops = town.drops(1).since(&before);
            let denied = if from == "held" {
                ("t/held", "denied-egress")
            } else {
                ("t/isolated", "denied-ingress")
            };
            assert_eq!(
                drops.of(denied.0, denied.1) > 0,
                !(isolated && free),
                "{from} to {receiver}: {drops:?}"
            );
        }
    }
    Ok(())
}

/// What reaches `receiver` without being sent to an address that it is known by; each list with its Ethernet header.
fn everybody(town: &Town, from: &str, receiver: &str) -> Result<Vec<(Ether, Vec<Vec<u8>>)>> {
    let own = town.namespace(from).mac("eth0")?;
    let link_local = |name: &str| -> Result<Ipv6Addr> {
        let [a, b, c, d, e, f] = town.namespace(name).mac("eth0")?;
        Ok(Ipv6Addr::from([
            0xfe,
            0x80,
            0,
            0,
            0,
            0,
            0,
            0,
            a ^ 2,
            b,
            c,
            0xff,
            0xfe,
            d,
            e,
            f,
        ]))
    };
    let udp = |src: String, dst: &str| {
        Ip::new(src, dst).udp(68, 67, format!("{from} to {dst} {receiver}").as_bytes())
    };
    let (v4, v6) = (town.ip(from, true).to_string(), town.ip(from, false).to_string());
    let to_group = |dst: &str| {
        let address: std::net::Ipv4Addr = dst.parse().expect("an address");
        let [_, b, c, d] = address.octets();
        (
            Ether::new(own, [1, 0, 0x5e, b & 0x7f, c, d]),
            vec![udp(v4.clone(), dst)],
        )
    };
    Ok(vec![
        (
            Ether::new(own, Ether::BROADCAST),
            vec![
                udp(v4.clone(), "255.255.255.255"),
                udp(v4.clone(), "10.244.1.255"),
            ],
        ),
        to_group("224.0.0.1"),
        to_group("239.1.2.3"),
        (
            Ether::new(own, [0x33, 0x33, 0, 0, 0, 1]),
            vec![
                udp(v6.clone(), "ff02::1"),
                udp(link_local(from)?.to_string(), "ff02::1"),
            ],
        ),
        (
            town.ether(from, receiver)?,
            vec![
                udp(v4.clone(), "169.254.0.9"),
                udp(link_local(from)?.to_string(), &link_local(receiver)?.to_string()),
            ],
        ),
    ])
}

#[test]
fn the_bridge_is_the_nodes_and_no_stranger_speaks_on_it() -> Result<()> {
    let mut town = Town::usual(&[("isolated", 1), ("free", 1)])?;
    town.enforce(&[deny_all("isolated")])?;
    let node = &town.cluster.node(1).namespace;
    let packets = [
        Ip::new("10.244.1.1", "255.255.255.255").udp(68, 67, b"to all"),
        Ip::new("10.244.1.1", "224.0.0.1").udp(68, 67, b"to the group"),
    ];
    let ether = Ether::new(node.mac("cni0")?, Ether::BROADCAST);
    let bridge = netpol_tests::net::Wire::open(node, "cni0")?;
    let inbox = town.wire("isolated")?;
    for packet in &packets {
        bridge.send(&ether.frame(packet))?;
    }
    assert_eq!(arrivals(&inbox, &packets)?, [true, true], "the pod's own node");

    // A port of the bridge that is nobody's: with the node's address, or one of its own.
    let stranger = town.cluster.rig.namespace("stranger")?;
    node.veth("vethstranger", &stranger, "eth0")?;
    node.ip("link set vethstranger master cni0 up")?;
    stranger.ip("link set eth0 up")?;
    let before = town.drops(1);
    let wire = netpol_tests::net::Wire::open(&stranger, "eth0")?;
    let own = Ether::new(stranger.mac("eth0")?, Ether::BROADCAST);
    for receiver in ["isolated", "free"] {
        let inbox = town.wire(receiver)?;
        let packets = ["10.244.1.1", "10.244.1.200"].map(|src| {
            Ip::new(src, "255.255.255.255").udp(68, 67, format!("stranger to {receiver}").as_bytes())
        });
        for packet in &packets {
            wire.send(&own.frame(packet))?;
        }
        assert_eq!(arrivals(&inbox, &packets)?, [false, false], "{receiver}");
    }
    let drops = town.drops(1).since(&before);
    assert!(drops.all("unknown-pod") + drops.all("lost-mark") > 0, "{drops:?}");
    Ok(())
}
