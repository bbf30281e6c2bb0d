//! The rig itself: without it no other result means anything.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Result;
use netpol_tests::{
    net::{Namespace, Outcome, Owner, Probe, Residue, Responder, Rig, Transport, Wire, probe_all},
    packet::{Ether, Ip},
};

const SHORT: Duration = Duration::from_millis(400);

/// Two namespaces, joined, dual stack: 10.1.0.1 and fd01::1, 10.1.0.2 and fd01::2.
fn pair(rig: &Rig) -> Result<(Namespace, Namespace)> {
    let (a, b) = (rig.namespace("a")?, rig.namespace("b")?);
    a.veth("eth0", &b, "eth0")?;
    for (namespace, last) in [(&a, 1), (&b, 2)] {
        namespace.address("eth0", format!("10.1.0.{last}").parse()?, 24)?;
        namespace.address("eth0", format!("fd01::{last}").parse()?, 64)?;
        namespace.ip("link set eth0 up")?;
    }
    Ok((a, b))
}

#[test]
fn probes_tell_answered_refused_and_silent_apart() -> Result<()> {
    let rig = Rig::new("nptest")?;
    let (a, b) = pair(&rig)?;
    let addresses: Vec<SocketAddr> = ["10.1.0.2:80", "[fd01::2]:80"]
        .iter()
        .map(|a| a.parse().unwrap())
        .collect();
    let transports = [Transport::Tcp, Transport::Udp, Transport::Sctp];
    let each = |port: u16| {
        let addresses = addresses.clone();
        transports.into_iter().flat_map(move |transport| {
            addresses
                .clone()
                .into_iter()
                .map(move |address| Probe::new(transport, SocketAddr::new(address.ip(), port)))
        })
    };
    let _responder = Responder::start(&b, "b", each(80).map(|probe| (probe.transport, probe.to)))?;
    let open: Vec<_> = each(80).collect();
    assert_eq!(
        probe_all(&a, &open, SHORT),
        vec![Outcome::Answered("b".into()); 6]
    );
    let closed: Vec<_> = each(81).collect();
    assert_eq!(probe_all(&a, &closed, SHORT), vec![Outcome::Refused; 6]);
    b.nft("table inet t { chain c { type filter hook input priority 0; policy drop; meta l4proto icmpv6 accept; }; }")?;
    assert_eq!(probe_all(&a, &open, SHORT), vec![Outcome::Silent; 6]);
    Ok(())
}

#[test]
fn built_packets_are_accepted_by_the_kernel() -> Result<()> {
    let rig = Rig::new("nptest")?;
    let (a, b) = pair(&rig)?;
    let ether = Ether::new(a.mac("eth0")?, b.mac("eth0")?);
    let wire = Wire::open(&a, "eth0")?;
    for (src, dst) in [("10.1.0.1", "10.1.0.2"), ("fd01::1", "fd01::2")] {
        let server = b.udp(SocketAddr::new(dst.parse()?, 53))?;
        let ip = Ip::new(src, dst);
        let whole = ip.udp(5353, 53, &[7; 100]);
        let mut frames = vec![ether.frame(&whole)];
        frames.extend(
            netpol_tests::packet::fragments(&whole, 9, 48)
                .iter()
                .map(|part| ether.frame(part)),
        );
        for frame in frames {
            wire.send(&frame)?;
        }
        let mut buffer = [0; 200];
        for _ in 0..2 {
            let (len, from) = server.recv_from(&mut buffer)?;
            assert_eq!((len, from), (100, SocketAddr::new(src.parse()?, 5353)));
        }
        // The kernel answers an echo request only where its checksum is right.
        wire.send(&ether.frame(&ip.echo(77)))?;
        let reply = Ip::new(dst, src).echo_reply(77);
        let payload = &reply[reply.len() - 8..];
        let seen = wire.receive(Duration::from_secs(2), |frame| {
            frame.ends_with(payload) && frame[6..12] == b.mac("eth0").unwrap()
        })?;
        assert!(seen.is_some(), "no echo reply from {dst}");
    }
    Ok(())
}

#[test]
fn a_killed_run_leaves_nothing_for_the_next() -> Result<()> {
    // What a failed run of this test itself left.
    drop(Rig::new("npdead")?);
    // Made by a process that has ended: what a killed test leaves.
    let mut child = std::process::Command::new("sleep").arg("0").spawn()?;
    let pid = child.id();
    child.wait()?;
    let dead = format!("npdead-{pid}-1-0");
    let namespace = PathBuf::from(format!("/run/netns/{dead}-n"));
    netpol_tests::net::run("ip", &["netns", "add", &format!("{dead}-n")])?;
    let pins = PathBuf::from(format!("/sys/fs/bpf/{dead}"));
    std::fs::create_dir(&pins)?;
    let mut orphan = std::process::Command::new("sleep")
        .arg("600")
        .env(Owner::VARIABLE, format!("{pid}-1"))
        .spawn()?;
    // The variable is there once the program has been executed.
    while Residue::of_dead_owners("npdead")?.processes.is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let expected = Residue {
        processes: vec![orphan.id() as i32],
        namespaces: vec![namespace.clone()],
        directories: vec![pins.clone()],
    };
    assert_eq!(Residue::of_dead_owners("npdead")?, expected);
    let rig = Rig::new("npdead")?;
    orphan.wait()?;
    assert_eq!(Residue::of_dead_owners("npdead")?, Residue::default());
    drop(rig);
    assert_eq!(Residue::of("npdead", Owner::this_process()?)?, Residue::default());
    Ok(())
}
