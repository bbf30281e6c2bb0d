//! Single packets: sent as bytes or by a socket, seen or not seen at the other end.

use std::{
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use netpol_tests::{net::Wire, packet::Ether};

use crate::town::{PATIENCE, Town};

/// The next datagram and who sent it, where one comes in time.
pub(crate) fn next(socket: &UdpSocket) -> Result<Option<(Vec<u8>, SocketAddr)>> {
    within(socket, PATIENCE)
}

/// [`next`] with another patience.
pub(crate) fn within(socket: &UdpSocket, patience: Duration) -> Result<Option<(Vec<u8>, SocketAddr)>> {
    socket.set_read_timeout(Some(patience))?;
    let mut bytes = vec![0; 65536];
    loop {
        return match socket.recv_from(&mut bytes) {
            Ok((len, from)) => Ok(Some((bytes[..len].to_vec(), from))),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(None),
            // A stopped and continued process, or a machine that was suspended.
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => Err(error).context("receive a datagram"),
        };
    }
}

/// Which of `packets` (IP, sent as they are in frames with `ether` by `from`) reach the `eth0` of `to`.
///
/// A router changes the hop limit, so a packet is known by what follows its IP header.
pub(crate) fn crossing(
    town: &Town,
    from: &str,
    ether: &Ether,
    packets: &[Vec<u8>],
    to: &str,
) -> Result<Vec<bool>> {
    let (out, inbox) = (town.wire(from)?, town.wire(to)?);
    for packet in packets {
        out.send(&ether.frame(packet))?;
    }
    arrivals(&inbox, packets)
}

/// Which of `packets` come out of `inbox` while we are patient.
pub(crate) fn arrivals(inbox: &Wire, packets: &[Vec<u8>]) -> Result<Vec<bool>> {
    let mut seen = vec![false; packets.len()];
    let end = Instant::now() + PATIENCE;
    while seen.contains(&false) {
        let left = end.saturating_duration_since(Instant::now());
        let Some(frame) = inbox.receive(left, |_| true)? else {
            break;
        };
        for (packet, seen) in packets.iter().zip(&mut seen) {
            *seen |= frame.ends_with(payload(packet));
        }
    }
    Ok(seen)
}

/// What follows the IP header.
fn payload(packet: &[u8]) -> &[u8] {
    let header = if packet[0] >> 4 == 4 {
        usize::from(packet[0] & 15) * 4
    } else {
        40
    };
    &packet[header..]
}
