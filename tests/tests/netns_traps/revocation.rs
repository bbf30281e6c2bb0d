//! What is no longer allowed ends at its next packet; what is goes on.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result};
use netpol_tests::cluster::{Policy, count};

use crate::{
    packets::next,
    town::{FAMILIES, PATIENCE, Town, only},
};

/// Both ends of a connection.
struct Connection {
    client: TcpStream,
    server: TcpStream,
}

impl Connection {
    fn open(town: &Town, client: &str, server: &str, at: SocketAddr) -> Result<Self> {
        let listener = town.namespace(server).listen(at)?;
        let client = town
            .namespace(client)
            .connect(at, Duration::from_secs(3))
            .with_context(|| format!("{client} to {at}"))?;
        let (server, _) = listener.accept()?;
        for stream in [&client, &server] {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
        }
        Ok(Self { client, server })
    }

    /// Whether data gets from client to server, and from server to client.
    fn goes_on(&mut self) -> Result<[bool; 2]> {
        Ok([
            passes(&mut self.client, &mut self.server)?,
            passes(&mut self.server, &mut self.client)?,
        ])
    }
}

fn passes(from: &mut TcpStream, to: &mut TcpStream) -> Result<bool> {
    from.write_all(b"x")?;
    match to.read_exact(&mut [0]) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(false),
        Err(error) => Err(error).context("a connection"),
    }
}

#[test]
fn a_revoked_connection_ends_at_its_next_packet_in_either_direction() -> Result<()> {
    let mut town = Town::usual(&[("server", 1), ("near", 1), ("far", 2)])?;
    town.cluster.node(1).masquerade()?;
    // Isolated for ingress, the answers are free; isolated both ways, they need the flow.
    for both in [false, true] {
        let server = |peers: &[&str]| match both {
            true => only("server", peers, &[]),
            false => Policy::new("t/server", "app=server").ingress(peers),
        };
        let open = server(&["app=near", "app=far"]);
        for revoked in ["near", "far"] {
            let stays = if revoked == "near" { "far" } else { "near" };
            for v4 in FAMILIES {
                town.enforce(std::slice::from_ref(&open))?;
                let at = |port| town.at("server", v4, port);
                let mut cut = Connection::open(&town, revoked, "server", at(5001))?;
                let mut pushed = Connection::open(&town, revoked, "server", at(5002))?;
                let mut kept = Connection::open(&town, stays, "server", at(5003))?;
                let asked = town.namespace("server").udp(at(5004))?;
                let asking = town.namespace(revoked).udp(town.at(revoked, v4, 5004))?;
                for connection in [&mut cut, &mut pushed, &mut kept] {
                    assert_eq!(connection.goes_on()?, [true, true]);
                }
                asking.send_to(b"question", asked.local_addr()?)?;
                assert!(next(&asked)?.is_some());
                asked.send_to(b"answer", asking.local_addr()?)?;
                assert!(next(&asking)?.is_some());

                town.enforce(&[server(&[&format!("app={stays}")])])?;
                let what = format!("both ways: {both}, {revoked} revoked, IPv4: {v4}");
                let before = town.drops(1);
                assert!(!passes(&mut cut.client, &mut cut.server)?, "{what}");
                if both {
                    // The first packet after the revocation is the server's.
                    assert!(!passes(&mut pushed.server, &mut pushed.client)?, "{what}");
                }
                assert!(!passes(&mut pushed.client, &mut pushed.server)?, "{what}");
                // The answer to a datagram is one only as long as its question is allowed.
                asked.send_to(b"second answer", asking.local_addr()?)?;
                assert_eq!(next(&asking)?, None, "{what}");
                asking.send_to(b"second question", asked.local_addr()?)?;
                assert_eq!(next(&asked)?, None, "{what}");
                assert_eq!(kept.goes_on()?, [true, true], "{what}");
                let drops = town.drops(1).since(&before);
                assert!(drops.all("revoked") > 0, "{what}: {drops:?}");
                if !both {
                    assert!(drops.of("t/server", "denied-ingress") > 0, "{what}: {drops:?}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn an_allowed_conversation_loses_nothing_while_policies_change() -> Result<()> {
    let mut town = Town::usual(&[("server", 1), ("near", 1), ("far", 2), ("other", 1)])?;
    let open = [
        only("server", &["app=near", "app=far"], &[]),
        only("near", &[], &["app=server"]),
    ];
    town.enforce(&open)?;
    let mut connections = Vec::new();
    let mut streams = Vec::new();
    for (index, (peer, v4)) in [("near", true), ("near", false), ("far", true), ("far", false)]
        .into_iter()
        .enumerate()
    {
        let at = |port: u16| town.at("server", v4, port + u16::try_from(index).expect("few"));
        connections.push(Connection::open(&town, peer, "server", at(5000))?);
        streams.push(count(
            town.namespace(peer),
            town.namespace("server"),
            at(6000),
            Duration::from_millis(2),
        )?);
    }
    for edit in 0..12 {
        let mut policies = open.to_vec();
        // Peers, ports and isolations that come and go, and the allowing rule under another policy's name.
        match edit % 4 {
            0 => policies.push(only("other", &["app=near"], &[])),
            1 => policies.push(
                Policy::new("t/more", "")
                    .ingress(&["app=server", "10.0.0.0/8"])
                    .egress(&["*"]),
            ),
            2 => {
                policies[0] = Policy::new("t/again", "app=server")
                    .ingress(&["app=far", "app=near"])
                    .egress(&["app=other"])
            }
            _ => policies.push(Policy::new("t/ports", "app=server").ingress_on("TCP/443", &["app=other"])),
        }
        town.enforce(&policies)?;
        for stream in &streams {
            stream.wait_for(20);
        }
        for connection in &mut connections {
            assert_eq!(connection.goes_on()?, [true, true], "edit {edit}");
        }
    }
    for stream in streams {
        let (sent, lost) = stream.stop();
        assert!(lost.is_empty(), "{} of {sent} datagrams are lost", lost.len());
    }
    Ok(())
}
