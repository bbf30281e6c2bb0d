//! NAT between the ends: Services that move, node ports, a pod behind its own Service.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use netpol_tests::cluster::Policy;

use crate::{
    packets::next,
    town::{FAMILIES, PORT, Town, agreed, deny_all, only},
};

/// The cluster address of the Service, by family, on port 53.
fn front(v4: bool) -> SocketAddr {
    let text = if v4 {
        "10.96.0.10:53"
    } else {
        "[fd00:10:96::10]:53"
    };
    text.parse().expect("an address")
}

#[test]
fn a_udp_tuple_whose_service_moves_to_a_denied_backend_is_judged_where_it_goes() -> Result<()> {
    let pods = [
        ("client", 1),
        ("good", 1),
        ("bad", 1),
        ("good-far", 2),
        ("bad-far", 2),
    ];
    let mut town = Town::usual(&pods)?;
    town.enforce(&[only("client", &[], &["app=good", "app=good-far"])])?;
    for v4 in FAMILIES {
        // On the client's node `to_pod` judges, for the other node `settle`.
        for backends in [["good", "bad"], ["good-far", "bad-far"]] {
            moves(&town, v4, backends).with_context(|| format!("{backends:?}, IPv4: {v4}"))?;
        }
    }
    Ok(())
}

fn moves(town: &Town, v4: bool, backends: [&str; 2]) -> Result<()> {
    let node = town.cluster.node(1);
    let [good_at, bad_at] = backends.map(|name| town.at(name, v4, 53));
    let good = town.namespace(backends[0]).udp(good_at)?;
    let bad = town.namespace(backends[1]).udp(bad_at)?;
    // Not connected: what comes late from the first backend has its own address, as nobody translates it any more.
    let client = town.namespace("client").udp(town.at("client", v4, 5353))?;
    let client_at = client.local_addr()?;

    node.service(front(v4), good_at)?;
    client.send_to(b"one", front(v4))?;
    assert_eq!(next(&good)?, Some((b"one".to_vec(), client_at)));

    let before = town.drops(1);
    node.service(front(v4), bad_at)?;
    client.send_to(b"two", front(v4))?;
    assert_eq!(next(&bad)?, None, "the same tuple, now to a denied backend");
    assert!(town.drops(1).since(&before).of("t/client", "denied-egress") > 0);
    good.send_to(b"late", client_at)?;
    assert_eq!(next(&client)?, Some((b"late".to_vec(), good_at)));
    bad.send_to(b"unasked", client_at)?;
    assert_eq!(next(&client)?, None, "the denied backend answers nothing");

    node.service(front(v4), good_at)?;
    client.send_to(b"three", front(v4))?;
    // The late answer is tracked, too, so that NAT may have to choose another port of the client's.
    let (bytes, from) = next(&good)?.context("the allowed backend again")?;
    assert_eq!((&bytes[..], from.ip()), (&b"three"[..], client_at.ip()));
    good.send_to(b"answer", from)?;
    assert_eq!(next(&client)?, Some((b"answer".to_vec(), front(v4))));
    Ok(())
}

#[test]
fn a_node_port_hides_the_client_only_from_other_nodes() -> Result<()> {
    let mut town = Town::usual(&[("client", 1), ("other", 1), ("near", 1), ("far", 2)])?;
    town.cluster.node(1).masquerade()?;
    for v4 in FAMILIES {
        for number in [1, 2] {
            let node = town.cluster.node(number);
            node.node_port(30_001, town.at("near", v4, PORT))?;
            node.node_port(30_002, town.at("far", v4, PORT))?;
        }
    }
    let table = |town: &Town| {
        let targets = [
            ("node-1", 30_001),
            ("node-2", 30_001),
            ("node-1", 30_002),
            ("node-2", 30_002),
        ];
        let addresses: Vec<SocketAddr> = targets
            .iter()
            .flat_map(|(node, port)| FAMILIES.map(|v4| town.at(node, v4, *port)))
            .collect();
        ["client", "other"].map(|from| {
            let answers = town.ask_all(from, &addresses);
            answers.chunks(2).map(agreed).collect::<Vec<_>>()
        })
    };
    let (near, far, nobody) = ("near", "far", "nobody");
    assert_eq!(table(&town), [[near, near, far, far]; 2], "no policy");

    // A selector sees through the masquerade of the pod's own node, and of no other.
    town.enforce(
        &["near", "far"]
            .map(|name| Policy::new(&format!("t/{name}"), &format!("app={name}")).ingress(&["app=client"])),
    )?;
    let before = [town.drops(1), town.drops(2)];
    assert_eq!(table(&town), [[near, nobody, nobody, nobody], [nobody; 4]]);
    assert!(town.drops(1).since(&before[0]).of("t/near", "denied-ingress") > 0);
    assert!(town.drops(2).since(&before[1]).of("t/far", "denied-ingress") > 0);

    // To the other node's pods this is the node, by the address that it masquerades with.
    let node_1 = ["172.18.0.1/32", "fd00:18::1/128"];
    town.enforce(&[
        Policy::new("t/far", "app=far").ingress(&node_1),
        Policy::new("t/near", "app=near").ingress(&["172.18.0.2/32", "fd00:18::2/128"]),
    ])?;
    // Node 2 masquerades with the address of its bridge what it sends to its own pod: that is not the pod's own
    // node talking, and no rule names it.
    assert_eq!(table(&town), [[nobody, near, far, nobody]; 2]);
    town.enforce(&[Policy::new("t/far", "app=far").ingress(&["10.244.2.1/32", "fd00:244:2::1/128"])])?;
    assert_eq!(table(&town), [[near, near, nobody, far]; 2]);
    Ok(())
}

#[test]
fn a_pod_reaches_itself_and_its_node_under_full_isolation() -> Result<()> {
    let mut town = Town::usual(&[("pod", 1), ("other", 1)])?;
    for v4 in FAMILIES {
        town.cluster
            .node(1)
            .service(front(v4), town.at("pod", v4, PORT))?;
    }
    let at_node: Vec<SocketAddr> = FAMILIES.map(|v4| town.at("node-1", v4, PORT)).to_vec();
    let at_bridge = ["10.244.1.1:80", "[fd00:244:1::1]:80"].map(|text| text.parse().expect("an address"));
    town.listen("node-1", &at_node)?;
    town.listen("node-1", &at_bridge)?;
    town.enforce(&[deny_all("pod")])?;
    for v4 in FAMILIES {
        assert_eq!(town.ask("pod", front(v4)), "pod", "itself, by its Service");
        assert_eq!(
            town.ask("pod", town.at("pod", v4, PORT)),
            "pod",
            "itself, by its address"
        );
        assert_eq!(town.ask("other", front(v4)), "nobody", "another, by the Service");
        assert_eq!(town.ask("node-1", front(v4)), "pod", "the node, by the Service");
    }
    for address in at_node.iter().chain(&at_bridge) {
        assert_eq!(
            town.ask("pod", *address),
            "node-1",
            "the pod to its node at {address}"
        );
    }
    assert_eq!(town.talk("node-1", "pod"), "pod", "a probe of the kubelet");
    assert_eq!(town.talk("node-2", "pod"), "nobody", "another node");
    assert_eq!(town.talk("pod", "node-2"), "nobody", "to another node");
    Ok(())
}

/// What CNI's `bandwidth` sets up where a pod's annotation says how much it may send: all of it goes over an intermediate device, and
/// then on from the pod's own.
fn shape(town: &Town, pod: &str) -> Result<()> {
    let node = &town.cluster.node(1).namespace;
    let host = &town.cluster.pod(&format!("t/{pod}")).host;
    node.ip("link add bwp0 type ifb")?;
    node.ip("link set bwp0 up")?;
    let tc = |line: &str| node.command("tc", &line.split(' ').collect::<Vec<_>>());
    // Where our own filters are (a kernel without TCX), theirs go behind them: the two qdiscs exclude each other.
    if !tc(&format!("qdisc show dev {host}"))?.contains("clsact") {
        tc(&format!("qdisc add dev {host} ingress"))?;
    }
    tc(&format!(
        "filter add dev {host} ingress pref 50000 protocol all u32 match u32 0 0 action mirred egress redirect dev bwp0"
    ))?;
    Ok(())
}

#[test]
fn what_is_shaped_is_judged_where_it_goes() -> Result<()> {
    let mut town = Town::usual(&[("pod", 1), ("near", 1), ("far", 2), ("held", 1)])?;
    shape(&town, "pod")?;
    let answers = |town: &Town, backend: &str| {
        for v4 in FAMILIES {
            let node = town.cluster.node(1);
            node.service(front(v4), town.at(backend, v4, PORT))?;
        }
        let by_service = town.ask_all("pod", &FAMILIES.map(front));
        anyhow::Ok((agreed(&by_service), town.talk("pod", backend)))
    };
    let said = |who: &str| (who.to_owned(), who.to_owned());
    for backend in ["near", "far"] {
        town.enforce(&[deny_all("held")])?;
        assert_eq!(answers(&town, backend)?, said(backend), "not isolated");
        town.enforce(&[only("pod", &[], &["app=near", "app=far"])])?;
        assert_eq!(answers(&town, backend)?, said(backend), "allowed");
        // The Service's address is nobody's.
        let fronts = ["10.96.0.0/12", "fd00:10:96::/112"];
        town.enforce(&[only("pod", &[], &fronts)])?;
        assert_eq!(
            answers(&town, backend)?,
            said("nobody"),
            "allowed is the Service's address"
        );
    }
    Ok(())
}
