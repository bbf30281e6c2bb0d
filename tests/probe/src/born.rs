//! `born`: a pod's first process that sends nothing, and says what reached the pod since it has a network; `hammer`:
//! who sends to addresses that may become a pod's.

use std::{
    fs,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use crate::{
    serve::{Arrivals, arrived, listen},
    target::{Kind, Target, datagrams, open},
    text::{print, quote},
};

/// Between two packets to one target, and how long a connection is waited for: no SYN is repeated by the kernel.
const PAUSE: Duration = Duration::from_millis(20);
/// Between two questions for the link-layer address of who is not there yet, in milliseconds: the usual second would
/// hide a pod's first one.
const RETRANSMIT: &str = "50";

/// What the kernel has received in this network namespace, of both families: segments, datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Received {
    tcp: u64,
    udp: u64,
}

impl Received {
    fn read() -> Result<Self, String> {
        let read = |path: &str| fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
        let mut received = Self::default();
        received.add(&read("/proc/self/net/snmp")?);
        // Not there without IPv6.
        received.add6(&read("/proc/self/net/snmp6").unwrap_or_default());
        Ok(received)
    }

    /// A line of names and one of numbers for each protocol. TCP's are of both families.
    fn add(&mut self, text: &str) {
        let lines: Vec<&str> = text.lines().collect();
        for pair in lines.chunks_exact(2) {
            for (name, number) in pair[0].split_whitespace().zip(pair[1].split_whitespace()) {
                let number = number.parse().unwrap_or(0);
                match (pair[0].split(':').next(), name) {
                    (Some("Tcp"), "InSegs") => self.tcp += number,
                    (Some("Udp"), "InDatagrams" | "NoPorts" | "InErrors") => self.udp += number,
                    _ => {}
                }
            }
        }
    }

    fn add6(&mut self, text: &str) {
        for line in text.lines() {
            let mut words = line.split_whitespace();
            if let (Some("Udp6InDatagrams" | "Udp6NoPorts" | "Udp6InErrors"), Some(number)) =
                (words.next(), words.next())
            {
                self.udp += number.parse().unwrap_or(0);
            }
        }
    }

    fn json(self) -> String {
        format!("{{\"tcp\":{},\"udp\":{}}}", self.tcp, self.udp)
    }
}

/// Listens for `hold_ms`; says what came before it began, in all, and from whom it saw something arrive; by its output
/// and as the container's termination message.
pub(crate) fn run(tcp: &[u16], udp: &[u16], hold_ms: u64) -> Result<bool, String> {
    let before = Received::read()?;
    let arrivals = Arrivals::default();
    listen("born", tcp, udp, true, &arrivals)?;
    thread::sleep(Duration::from_millis(hold_ms));
    let line = format!(
        "{{\"before\":{},\"all\":{},\"arrived\":{}}}",
        before.json(),
        Received::read()?.json(),
        arrived(&arrivals)
    );
    // Only in a container; its log says the same.
    let _ = fs::write("/dev/termination-log", &line);
    print(&line);
    Ok(true)
}

/// Sends a datagram or a SYN to each target again and again, for `seconds`.
pub(crate) fn hammer(seconds: u64, targets: &[Target]) -> Result<bool, String> {
    for family in ["ipv4", "ipv6"] {
        let path = format!("/proc/sys/net/{family}/neigh/eth0/retrans_time_ms");
        fs::write(&path, RETRANSMIT).map_err(|error| format!("{path}: {error}"))?;
    }
    let (start, sent) = (Instant::now(), AtomicU64::new(0));
    let limit = Duration::from_secs(seconds);
    thread::scope(|scope| {
        for target in targets {
            let sent = &sent;
            scope.spawn(move || {
                while start.elapsed() < limit {
                    sent.fetch_add(u64::from(hit(*target)), Relaxed);
                    thread::sleep(PAUSE);
                }
            });
        }
    });
    let first = targets.first().map(Target::to_string).unwrap_or_default();
    print(&format!(
        "{{\"targets\":{},\"first\":{},\"sent\":{}}}",
        targets.len(),
        quote(&first),
        sent.load(Relaxed)
    ));
    Ok(true)
}

/// Whether something was sent. Who is not there, or does not answer, is nothing new.
fn hit(target: Target) -> bool {
    match target.kind {
        Kind::Udp => datagrams(None, target.address).is_ok_and(|socket| socket.send(b"!").is_ok()),
        Kind::Tcp | Kind::Connect => {
            let _ = open(None, target.address, PAUSE);
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_received_is_added_up() {
        let mut received = Received::default();
        received.add(
            "Tcp: RtoMin InSegs OutSegs\nTcp: 200 7 9\nUdp: InDatagrams NoPorts InErrors\nUdp: 1 2 4\nUdpLite: InDatagrams\nUdpLite: 99\n",
        );
        received.add6("Ip6InReceives 50\nUdp6InDatagrams 8\nUdp6NoPorts 16\n");
        assert_eq!(received, Received { tcp: 7, udp: 31 });
        assert_eq!(received.json(), "{\"tcp\":7,\"udp\":31}");
    }
}
