//! Tuples and addresses that belong to another pod now.

use std::net::UdpSocket;

use anyhow::Result;
use netpol_tests::cluster::pod;

use crate::{
    packets::next,
    town::{FAMILIES, Town, deny_all, only},
};

const NETS: [&str; 2] = ["172.18.0.100/32", "fd00:18::100/128"];

/// What comes, without who sent it.
fn text(socket: &UdpSocket) -> Result<Option<String>> {
    Ok(next(socket)?.map(|(bytes, _)| String::from_utf8_lossy(&bytes).into_owned()))
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn a_masqueraded_tuple_used_by_another_pod_is_that_pods() -> Result<()> {
    for v4 in FAMILIES {
        for gone in [false, true] {
            let mut town = Town::new(1, &[("first", 1), ("second", 1)], Default::default())?;
            town.cluster.node(1).masquerade()?;
            town.enforce(&[only("first", &[], &NETS), deny_all("second")])?;
            masqueraded(&mut town, v4, gone)?;
        }
    }
    Ok(())
}

/// Both pods send from port 5000, which is also the node's port on the wire. `gone`: the first pod is deleted before the second speaks.
fn masqueraded(town: &mut Town, v4: bool, gone: bool) -> Result<()> {
    let server = town.cluster.outside.udp(town.at("outside", v4, 9000))?;
    let server_at = server.local_addr()?;
    let wire_at = town.at("node-1", v4, 5000);
    let first_at = town.at("first", v4, 5000);
    let first = town.namespace("first").udp(first_at)?;
    let second = town.namespace("second").udp(town.at("second", v4, 5000))?;

    first.send_to(b"first", server_at)?;
    assert_eq!(next(&server)?, Some((b"first".to_vec(), wire_at)));
    server.send_to(b"to first", wire_at)?;
    assert_eq!(text(&first)?, some("to first"));

    town.cluster
        .node(1)
        .forget(&["--orig-src", &first_at.ip().to_string()])?;
    if gone {
        town.remove("first");
        town.enforce(&[deny_all("second")])?;
    }
    let before = town.drops(1);
    second.send_to(b"second", server_at)?;
    assert_eq!(text(&server)?, None, "the entry of the first lets the second out");
    server.send_to(b"late", wire_at)?;
    assert_eq!(text(&second)?, None, "the reply to the first reaches the second");
    let drops = town.drops(1).since(&before);
    assert_eq!(drops.of("t/second", "denied-egress"), 1, "{drops:?}");
    assert_eq!(drops.of("t/second", "denied-ingress"), 1, "{drops:?}");

    let mut policies = vec![only("second", &[], &NETS)];
    if !gone {
        policies.push(only("first", &[], &NETS));
    }
    town.enforce(&policies)?;
    second.send_to(b"second", server_at)?;
    assert_eq!(next(&server)?, Some((b"second".to_vec(), wire_at)));
    server.send_to(b"to second", wire_at)?;
    assert_eq!(text(&second)?, some("to second"));
    if !gone {
        assert_eq!(text(&first)?, None);
    }
    Ok(())
}

#[test]
fn an_address_used_again_has_nothing_of_its_former_pod() -> Result<()> {
    let mut town = Town::new(1, &[("first", 1), ("peer", 1)], Default::default())?;
    town.cluster.node(1).masquerade()?;
    let policies = [
        only("first", &["app=peer"], &["app=peer", NETS[0], NETS[1]]),
        only("peer", &["app=first"], &[]),
    ];
    town.enforce(&policies)?;
    let server = FAMILIES.map(|v4| town.cluster.outside.udp(town.at("outside", v4, 9000)));
    let server = server.into_iter().collect::<Result<Vec<_>, _>>()?;
    let peer = FAMILIES.map(|v4| town.namespace("peer").udp(town.at("peer", v4, 53)));
    let peer = peer.into_iter().collect::<Result<Vec<_>, _>>()?;
    let own = FAMILIES.map(|v4| town.at("first", v4, 5000));
    for (family, at) in own.iter().enumerate() {
        let first = town.namespace("first").udp(*at)?;
        first.send_to(b"question", peer[family].local_addr()?)?;
        assert_eq!(next(&peer[family])?, Some((b"question".to_vec(), *at)));
        peer[family].send_to(b"answer", at)?;
        assert_eq!(text(&first)?, some("answer"));
        first.send_to(b"question", server[family].local_addr()?)?;
        assert!(next(&server[family])?.is_some());
    }

    // Another pod with the address, before the agent can have heard of either.
    town.remove("first");
    town.add(pod("t/second", 1, 11, "app=second"))?;
    for known in [false, true] {
        if known {
            town.enforce(&[policies[1].clone(), deny_all("second")])?;
        }
        for (family, at) in own.iter().enumerate() {
            let second = town.namespace("second").udp(*at)?;
            second.send_to(b"question", peer[family].local_addr()?)?;
            assert_eq!(text(&peer[family])?, None, "by the first's name, known: {known}");
            second.send_to(b"question", server[family].local_addr()?)?;
            assert_eq!(text(&server[family])?, None, "outside, known: {known}");
            peer[family].send_to(b"late answer", at)?;
            server[family].send_to(b"late answer", town.at("node-1", family == 0, 5000))?;
            assert_eq!(text(&second)?, None, "an answer to the first, known: {known}");
        }
    }
    assert!(town.drops(1).of("t/second", "denied-egress") >= 4);
    Ok(())
}
