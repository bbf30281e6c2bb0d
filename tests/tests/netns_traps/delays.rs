//! A packet waits between its way in and its way out, and the policy may change meanwhile.

use std::{net::UdpSocket, time::Duration};

use anyhow::Result;
use netpol_tests::net::Namespace;

use crate::{
    packets::{next, within},
    town::{FAMILIES, OUTSIDE, Town, only},
};

/// Longer than a neighbour or a shaper takes.
const LATE: Duration = Duration::from_secs(10);

/// Nobody resolves the addresses of this namespace until it may hear again.
fn deafen(namespace: &Namespace) -> Result<()> {
    // Do not reply for any local address.
    namespace.sysctl("net.ipv4.conf.all.arp_ignore", "8")?;
    let rule = "type filter hook input priority 0; icmpv6 type nd-neighbor-solicit drop;";
    namespace
        .nft(&format!("table ip6 deaf {{ chain c {{ {rule} }}; }}"))
        .map(drop)
}

/// Ends [`deafen`].
fn hear(namespace: &Namespace) -> Result<()> {
    namespace.sysctl("net.ipv4.conf.all.arp_ignore", "0")?;
    namespace.nft("delete table ip6 deaf").map(drop)
}

/// Forgets the neighbours on `device`, and asks for a new one until somebody answers.
fn forget_neighbours(namespace: &Namespace, device: &str) -> Result<()> {
    for family in ["ipv4", "ipv6"] {
        namespace.sysctl(&format!("net.{family}.neigh.{device}.mcast_solicit"), "30")?;
    }
    namespace.ip(&format!("neigh flush dev {device}"))?;
    // Entries in use are only marked as stale.
    namespace
        .ip(&format!("neigh flush dev {device} nud all"))
        .map(drop)
}

/// A conversation by UDP between the outside and a pod that is isolated both ways.
struct Pair {
    asking: UdpSocket,
    answering: UdpSocket,
}

impl Pair {
    fn new(town: &Town, asking: &str, answering: &str, v4: bool, port: u16) -> Result<Self> {
        let answering_at = town.at(answering, v4, port);
        let asking_at = town.at(asking, v4, port + 1);
        let pair = Self {
            asking: town.namespace(asking).udp(asking_at)?,
            answering: town.namespace(answering).udp(answering_at)?,
        };
        pair.asking.connect(answering_at)?;
        Ok(pair)
    }
}

#[test]
fn an_unresolved_neighbour_keeps_marks_replies_and_revocation() -> Result<()> {
    let mut town = Town::new(1, &[("server", 1), ("client", 1)], Default::default())?;
    let nets = ["172.18.0.100/32", "fd00:18::100/128"];
    // Who asks, who answers, and the node's device on which the second is not resolved.
    let ways = [("outside", "server", "cni0"), ("client", "outside", "eth0")];
    for (asking, answering, device) in ways {
        // Each round has a tuple of its own: the first packet is the one that waits.
        for (revoked, port) in [(false, 7000), (true, 7010)] {
            town.enforce(&[only("server", &nets, &[]), only("client", &[], &nets)])?;
            let pairs = FAMILIES.map(|v4| Pair::new(&town, asking, answering, v4, port));
            let pairs = pairs.into_iter().collect::<Result<Vec<_>>>()?;
            deafen(town.namespace(answering))?;
            forget_neighbours(&town.cluster.node(1).namespace, device)?;
            for pair in &pairs {
                pair.asking.send(b"question")?;
            }
            for pair in &pairs {
                assert_eq!(next(&pair.answering)?, None, "{answering} is not resolved yet");
            }
            if revoked {
                town.enforce(&[only("server", &[], &[]), only("client", &[], &[])])?;
                let before = town.drops(1);
                hear(town.namespace(answering))?;
                for pair in &pairs {
                    assert_eq!(
                        within(&pair.answering, Duration::from_secs(3))?,
                        None,
                        "{asking} is revoked"
                    );
                }
                let drops = town.drops(1).since(&before);
                let (pod, reason) = match asking {
                    "outside" => ("t/server", "denied-ingress"),
                    _ => ("t/client", "denied-egress"),
                };
                assert!(drops.of(pod, reason) >= 2, "{asking}: {drops:?}");
            } else {
                hear(town.namespace(answering))?;
                for pair in &pairs {
                    let (bytes, from) = within(&pair.answering, LATE)?.expect("the late question");
                    assert_eq!(bytes, b"question");
                    pair.answering.send_to(b"answer", from)?;
                    let answer = next(&pair.asking)?.map(|(bytes, _)| bytes);
                    assert_eq!(answer.as_deref(), Some(&b"answer"[..]), "to {asking}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_shaper_between_the_ways_keeps_marks_replies_and_revocation() -> Result<()> {
    let mut town = Town::new(1, &[("server", 1), ("filler", 1)], Default::default())?;
    let nets = [format!("{}/32", OUTSIDE[0]), format!("{}/128", OUTSIDE[1])];
    let nets = [nets[0].as_str(), nets[1].as_str()];
    let policy = only("server", &nets, &[]);
    town.enforce(std::slice::from_ref(&policy))?;
    let pairs = FAMILIES.map(|v4| Pair::new(&town, "outside", "server", v4, 7000));
    let pairs = pairs.into_iter().collect::<Result<Vec<_>>>()?;
    let filler = Pair::new(&town, "outside", "filler", true, 7002)?;
    // Neighbours are known before anything is slow.
    for pair in pairs.iter().chain([&filler]) {
        pair.asking.send(b"hello")?;
        assert!(next(&pair.answering)?.is_some());
    }
    // Routed packets pass the bridge's own queue after `arrive` and before `to_pod`.
    let node = &town.cluster.node(1).namespace;
    let tbf = "qdisc add dev cni0 root tbf rate 8kbit burst 1600 limit 100000";
    node.command("tc", &tbf.split(' ').collect::<Vec<_>>())?;
    // A thousand bytes a second: the first takes the burst.
    let fill = |datagrams| (0..datagrams).try_for_each(|_| filler.asking.send(&[0; 1400]).map(drop));

    fill(1)?;
    for pair in &pairs {
        pair.asking.send(&[1; 500])?;
    }
    for pair in &pairs {
        assert_eq!(
            within(&pair.answering, Duration::from_millis(100))?,
            None,
            "not yet"
        );
    }
    for pair in &pairs {
        let (bytes, from) = within(&pair.answering, LATE)?.expect("the late question");
        assert_eq!(bytes.len(), 500);
        pair.answering.send_to(b"answer", from)?;
        assert!(
            next(&pair.asking)?.is_some(),
            "the answer is not shaped, and is a reply"
        );
    }

    fill(4)?;
    for pair in &pairs {
        pair.asking.send(&[2; 100])?;
    }
    let before = town.drops(1);
    town.enforce(&[only("server", &[], &[])])?;
    for pair in &pairs {
        assert_eq!(
            within(&pair.answering, Duration::from_secs(4))?,
            None,
            "revoked in the queue"
        );
    }
    assert!(
        town.drops(1).since(&before).of("t/server", "revoked") >= 2,
        "both were in the queue"
    );
    Ok(())
}
