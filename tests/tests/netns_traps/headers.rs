//! Packets that are not one header, one buffer, one frame: options, extension headers, fragments, GSO.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    time::Duration,
};

use anyhow::{Context, Result};
use netpol_tests::{
    cluster::{Options, Policy},
    packet::{Extension, Ip, fragments, protocol},
};

use crate::{
    packets::next,
    town::{FAMILIES, OUTSIDE, Town, only},
};

/// Bytes of one bulk transfer.
const BULK: usize = 4 << 20;

#[test]
fn options_and_extension_headers_hide_nothing_and_cost_nothing() -> Result<()> {
    let mut town = Town::usual(&[("friend", 1), ("stranger", 1), ("pod", 1)])?;
    town.enforce(&[Policy::new("t/pod", "app=pod")
        .ingress_on("UDP/53", &["app=friend"])
        .egress(&[])])?;
    for v4 in FAMILIES {
        let open = town.namespace("pod").udp(town.at("pod", v4, 53))?;
        let closed = town.namespace("pod").udp(town.at("pod", v4, 54))?;
        for (sender, allowed) in [("friend", true), ("stranger", false)] {
            let ip = Ip::new(town.ip(sender, v4), town.ip("pod", v4));
            // What looks like a port 53 where a parser would look that does not skip the options.
            let decoys: Vec<Ip> = if v4 {
                // No operation, then a timestamp option without room.
                vec![
                    ip.clone().options(&[1, 1, 0, 53]),
                    ip.clone().options(&[68, 8, 9, 0, 0, 53, 0, 53]),
                ]
            } else {
                let padded = |kind| Extension::padding(kind, 6);
                // An option that nobody knows and everybody skips (RFC 8200, 4.2), full of fifty-threes.
                let mut body = vec![0x1e, 60];
                body.extend([0, 53].repeat(30));
                let unknown = Extension {
                    kind: protocol::DESTINATION,
                    body,
                };
                vec![
                    ip.clone().extension(Extension::hop_by_hop()),
                    ip.clone().extension(padded(protocol::DESTINATION)),
                    ip.clone()
                        .extension(Extension::hop_by_hop())
                        .extension(padded(protocol::DESTINATION))
                        .extension(unknown),
                ]
            };
            let (wire, ether) = (town.wire(sender)?, town.ether(sender, "pod")?);
            for (number, ip) in decoys.iter().enumerate() {
                wire.send(&ether.frame(&ip.udp(5353, 54, b"to the closed port")))?;
                wire.send(&ether.frame(&ip.udp(5353, 53, &[u8::try_from(number).expect("few")])))?;
                let got = next(&open)?.map(|(bytes, from)| (bytes, from.ip()));
                let sent = (vec![u8::try_from(number).expect("few")], ip.src());
                assert_eq!(got, allowed.then_some(sent), "{sender}, {ip:?}");
            }
            assert_eq!(next(&closed)?, None, "{sender}");
        }
    }
    Ok(())
}

#[test]
fn fragmented_datagrams_pass_whole_or_not_at_all() -> Result<()> {
    for bridge_nf in [false, true] {
        let options = Options {
            bridge_nf,
            ..Options::default()
        };
        let mut town = Town::new(
            2,
            &[("friend", 1), ("stranger", 1), ("far", 2), ("pod", 1)],
            options,
        )?;
        let nets =
            OUTSIDE.map(|address| format!("{address}/{}", if address.contains(':') { 128 } else { 32 }));
        town.enforce(&[only("pod", &["app=friend", "app=far", &nets[0], &nets[1]], &[])])?;
        for v4 in FAMILIES {
            let pod = town.namespace("pod").udp(town.at("pod", v4, 53))?;
            for (sender, allowed) in [
                ("friend", true),
                ("stranger", false),
                ("far", true),
                ("outside", true),
            ] {
                let socket = town.namespace(sender).udp(town.at(sender, v4, 5353))?;
                // Three fragments there, three back.
                socket.send_to(&[1; 3500], pod.local_addr()?)?;
                let what = format!("{sender}, IPv4: {v4}, bridge-nf-call-iptables: {bridge_nf}");
                let got = next(&pod)?;
                assert_eq!(
                    got.as_ref().map(|(bytes, _)| bytes.len()),
                    allowed.then_some(3500),
                    "{what}"
                );
                let Some((_, from)) = got else { continue };
                pod.send_to(&[2; 3500], from)?;
                let back = next(&socket)?.map(|(bytes, _)| bytes.len());
                assert_eq!(back, Some(3500), "back to {what}");
                // A datagram that the pod may not begin.
                let unasked = town.namespace(sender).udp(town.at(sender, v4, 5454))?;
                pod.send_to(&[3; 3500], unasked.local_addr()?)?;
                assert_eq!(next(&unasked)?, None, "unasked to {what}");
            }
            orphans(&town, v4, &pod)?;
        }
    }
    Ok(())
}

/// Later fragments alone, and of a first that was denied.
fn orphans(town: &Town, v4: bool, pod: &std::net::UdpSocket) -> Result<()> {
    let ether = town.ether("stranger", "pod")?;
    let wire = town.wire("stranger")?;
    let packet = Ip::new(town.ip("stranger", v4), town.ip("pod", v4)).udp(5353, 53, &[9; 2000]);
    let parts = fragments(&packet, 4711, 800);
    let inbox = town.wire("pod")?;
    for part in &parts {
        wire.send(&ether.frame(part))?;
    }
    let leaked = inbox.receive(Duration::from_millis(300), |frame| frame.ends_with(&[9; 64]))?;
    assert_eq!(leaked, None, "a fragment of a denied datagram");
    assert_eq!(next(pod)?, None);
    Ok(())
}

#[test]
fn bulk_transfers_with_offloads_pass_isolated_pods() -> Result<()> {
    let mut town = Town::usual(&[("client", 1), ("near", 1), ("far", 2)])?;
    town.cluster.node(1).masquerade()?;
    let nets = ["172.18.0.100/32", "fd00:18::100/128"];
    town.enforce(&[
        only("client", &[], &["app=near", "app=far", nets[0], nets[1]]),
        only("near", &["app=client"], &[]),
        only("far", &["app=client"], &[]),
    ])?;
    for v4 in FAMILIES {
        for server in ["near", "far", "outside"] {
            there_and_back(&town, server, town.at(server, v4, 5001))
                .with_context(|| format!("client to {server}, IPv4: {v4}"))?;
        }
    }
    Ok(())
}

/// [`BULK`] bytes from the client to `server`, and as many back.
fn there_and_back(town: &Town, server: &str, at: SocketAddr) -> Result<()> {
    let listener = town.namespace(server).listen(at)?;
    let mut client = town.namespace("client").connect(at, Duration::from_secs(3))?;
    let (mut served, _) = listener.accept()?;
    for stream in [&client, &served] {
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    }
    let echo = std::thread::spawn(move || -> Result<()> {
        let mut bytes = vec![0; BULK];
        served.read_exact(&mut bytes).context("there")?;
        served.write_all(&bytes).context("write back")
    });
    let sent: Vec<u8> = (0..BULK).map(|at| at as u8).collect();
    client.write_all(&sent)?;
    let mut bytes = vec![0; BULK];
    client.read_exact(&mut bytes).context("back")?;
    assert!(bytes == sent, "other bytes than were sent");
    echo.join().expect("an echo does not panic")
}
