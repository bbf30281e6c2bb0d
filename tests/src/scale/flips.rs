//! From the API server's answer to a policy's patch until packets are judged by it, with real packets.
//!
//! One pod of the node sends a datagram a millisecond to another. The policy that is patched allows them or does not: the first
//! that arrives, or the first that does not, tells when.

use std::{
    net::UdpSocket,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use tokio::runtime::Runtime;

use super::{api::Api, node::Node, objects::namespace_of};
use crate::sandbox::stop;

/// Between two datagrams.
const PACE: Duration = Duration::from_millis(1);
/// Nothing has come for so long: nothing comes any more.
const SILENCE: Duration = Duration::from_millis(150);
/// Longer than any flip may take.
const LIMIT: Duration = Duration::from_secs(30);

/// When datagrams were sent, and when those that arrived were sent and arrived: nanoseconds since the beginning.
#[derive(Debug, Default)]
struct Traffic {
    sent: Mutex<Vec<u64>>,
    arrived: Mutex<Vec<(u64, u64)>>,
    stop: AtomicBool,
}

/// Patches the policy `times` times, back and forth; how long each took.
pub(super) fn measure(runtime: &Runtime, api: &Api, node: &Node, times: usize) -> Result<Vec<Duration>> {
    let (client, server) = node.sockets()?;
    server.set_read_timeout(Some(Duration::from_millis(100)))?;
    let (traffic, base) = (Traffic::default(), Instant::now());
    thread::scope(|scope| {
        scope.spawn(|| send(&client, &traffic, base));
        scope.spawn(|| receive(&server, &traffic, base));
        let done = flip(runtime, api, &traffic, base, times);
        traffic.stop.store(true, Ordering::Relaxed);
        done
    })
}

fn now(base: Instant) -> u64 {
    base.elapsed().as_nanos() as u64
}

/// Who measures should not wait for the processor behind who is measured.
fn hurry() {
    let id = nix::unistd::gettid().to_string();
    // Without it the figures are a little worse.
    let _ = crate::net::run("renice", &["-n", "-10", "-p", &id]);
}

fn send(socket: &UdpSocket, traffic: &Traffic, base: Instant) {
    hurry();
    let mut next = Instant::now();
    while !traffic.stop.load(Ordering::Relaxed) {
        let stamp = now(base);
        // The kernel may tell a sender that nobody listens, or that its datagram was dropped.
        let _ = socket.send(&stamp.to_be_bytes());
        lock(&traffic.sent).push(stamp);
        next = (next + PACE).max(Instant::now());
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

fn receive(socket: &UdpSocket, traffic: &Traffic, base: Instant) {
    hurry();
    let mut buffer = [0; 8];
    while !traffic.stop.load(Ordering::Relaxed) {
        if let Ok(8) = socket.recv(&mut buffer) {
            let stamp = u64::from_be_bytes(buffer);
            lock(&traffic.arrived).push((stamp, now(base)));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn flip(
    runtime: &Runtime,
    api: &Api,
    traffic: &Traffic,
    base: Instant,
    times: usize,
) -> Result<Vec<Duration>> {
    let (client, server) = api.size.probes().context("no two pods can be probed")?;
    let space = namespace_of(server);
    // What an earlier run has left.
    runtime.block_on(api.allow(space, None))?;
    thread::sleep(4 * SILENCE);
    lock(&traffic.arrived).clear();
    thread::sleep(SILENCE);
    if !lock(&traffic.arrived).is_empty() {
        bail!("probes pass before any policy allows them");
    }
    let mut took = Vec::new();
    for turn in 0..times {
        stop::check()?;
        // Not in step with anything that the agent does regularly.
        thread::sleep(Duration::from_millis(40 + (turn as u64 * 37) % 101));
        let allow = turn.is_multiple_of(2);
        let asked = now(base);
        runtime.block_on(api.allow(space, allow.then_some(client)))?;
        let answered = now(base);
        let flipped = if allow {
            first_arrival(traffic, asked)
        } else {
            first_loss(traffic, base)
        };
        let flipped = flipped
            .with_context(|| format!("patch {turn} (allow: {allow}) is not in force after {LIMIT:?}"))?;
        took.push(Duration::from_nanos(flipped.saturating_sub(answered)));
    }
    Ok(took)
}

/// When the first datagram arrived after `asked`.
fn first_arrival(traffic: &Traffic, asked: u64) -> Option<u64> {
    let begun = Instant::now();
    while begun.elapsed() < LIMIT {
        let found = lock(&traffic.arrived)
            .iter()
            .map(|(_, arrived)| *arrived)
            .find(|arrived| *arrived >= asked);
        if found.is_some() {
            return found;
        }
        thread::sleep(Duration::from_millis(2));
    }
    None
}

/// When the first datagram was sent that did not arrive, after the last one that did.
fn first_loss(traffic: &Traffic, base: Instant) -> Option<u64> {
    let begun = Instant::now();
    while begun.elapsed() < LIMIT {
        thread::sleep(Duration::from_millis(10));
        let (last, arrived) = lock(&traffic.arrived).last().copied()?;
        if now(base).saturating_sub(arrived) < SILENCE.as_nanos() as u64 {
            continue;
        }
        let sent = lock(&traffic.sent).iter().copied().find(|sent| *sent > last);
        // A sender that was not run for so long has lost nothing.
        if let Some(sent) = sent.filter(|sent| now(base) - sent >= SILENCE.as_nanos() as u64 / 2) {
            lock(&traffic.arrived).clear();
            lock(&traffic.sent).clear();
            return Some(sent);
        }
    }
    None
}
