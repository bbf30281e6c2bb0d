//! Connections that must not break and packets that must not pass, while somebody does something to the agent.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use netpol_policy::model::Pod;

use super::{addresses, app, egress, ingress, namespace, serve, text, town};
use crate::{
    cluster::{Cluster, Counter, Options, Talk, count},
    net::Responder,
};

/// Between datagrams: a receiver that does not run for a second loses none.
pub const PAUSE: Duration = Duration::from_millis(4);

/// Who there is.
pub fn pods() -> Vec<Pod> {
    vec![
        app("server", 1, 10),
        app("good", 1, 11),
        app("bad", 1, 12),
        app("fargood", 2, 20),
        app("farbad", 2, 21),
    ]
}

/// Who may talk.
pub fn policies() -> Vec<String> {
    vec![
        ingress("server", &["good", "fargood"]),
        egress("server", &["172.18.0.100/32"]),
    ]
}

/// Node 1's connection tracking sees everything, as where kube-proxy runs: also what we drop.
fn track(cluster: &Cluster) {
    let rule = "table inet t { chain c { type filter hook forward priority 0; ct state invalid counter; }; }";
    cluster.node(1).namespace.nft(rule).unwrap();
}

/// Two nodes under `policies`, whose agents attach in one way, and whose connection tracking sees everything.
pub fn tracked(attach: &str, policies: &[String]) -> Cluster {
    let options = Options {
        arguments: vec!["--attach".to_owned(), attach.to_owned()],
        ..Options::default()
    };
    let mut cluster = town(2, options, &pods());
    track(&cluster);
    cluster.write(&text(&pods(), policies)).unwrap();
    cluster.start().unwrap();
    cluster
}

/// A connection on which somebody always waits for an answer.
struct Stream {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    thread: JoinHandle<Result<(), String>>,
}

impl Stream {
    fn start(cluster: &Cluster, from: &str, to: &str, v4: bool) -> Self {
        let to = SocketAddr::new(addresses(cluster, to)[usize::from(!v4)], 80);
        let mut talk = Talk::open(namespace(cluster, from), to).unwrap();
        let (stop, answers) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (ended, count, what) = (stop.clone(), answers.clone(), format!("{from} → {to}"));
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                match talk.exchange(Duration::from_secs(10)) {
                    Ok(true) => count.fetch_add(1, Ordering::Relaxed),
                    Ok(false) => return Err(format!("{what}: no answer")),
                    Err(error) => return Err(format!("{what}: {error:#}")),
                };
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        });
        Self {
            stop,
            answers,
            thread,
        }
    }
}

/// Denied connections, tried again and again.
struct Knock {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Knock {
    fn start(cluster: &Cluster, from: &str, to: &str) -> Self {
        let to = SocketAddr::new(addresses(cluster, to)[0], 80);
        let stop = Arc::<AtomicBool>::default();
        let ended = stop.clone();
        let tries = move || {
            let mut through = 0;
            while !ended.load(Ordering::Relaxed) {
                match TcpStream::connect_timeout(&to, Duration::from_millis(50)) {
                    Err(error) if error.kind() == ErrorKind::TimedOut => {}
                    // A reset is an answer, too.
                    _ => through += 1,
                }
            }
            through
        };
        // A thread is in the namespace of the one that has started it.
        let thread = namespace(cluster, from).run(|| std::thread::spawn(tries));
        Self { stop, thread }
    }
}

/// Allowed connections, opened one after the other: none may have to send its SYN again.
pub struct Openings {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(u64, Vec<String>)>,
}

impl Openings {
    /// Begins; somebody must listen on TCP port 80.
    pub fn start(cluster: &Cluster, from: &str, to: &str) -> Self {
        // The kernel sends a SYN again after a second.
        const LOST: Duration = Duration::from_millis(900);
        let to = SocketAddr::new(addresses(cluster, to)[0], 80);
        let stop = Arc::<AtomicBool>::default();
        let ended = stop.clone();
        let tries = move || {
            let (mut opened, mut lost) = (0, Vec::new());
            while !ended.load(Ordering::Relaxed) {
                match TcpStream::connect_timeout(&to, LOST) {
                    Ok(_) => opened += 1,
                    Err(error) => lost.push(format!("after {opened}: {error}")),
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            (opened, lost)
        };
        let thread = namespace(cluster, from).run(|| std::thread::spawn(tries));
        Self { stop, thread }
    }

    /// All that were tried came about, but for what the listener of `to` itself has turned away.
    #[track_caller]
    pub fn end(self, cluster: &Cluster, to: &str) {
        self.stop.store(true, Ordering::Relaxed);
        let (opened, lost) = self.thread.join().unwrap();
        let full = listen_drops(cluster, to);
        assert!(opened > 100, "{opened} connections were opened");
        assert!(
            lost.len() as u64 <= full,
            "{lost:?}, {opened} came about; the listener turned {full} away"
        );
    }
}

/// How many SYNs a pod's own listeners have dropped: a busy machine accepts too slowly.
fn listen_drops(cluster: &Cluster, pod: &str) -> u64 {
    let read = || std::fs::read_to_string("/proc/thread-self/net/netstat");
    let text = namespace(cluster, pod).run(read).unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    let (_, value) = pairs.find(|(name, _)| *name == "ListenDrops").unwrap();
    value.parse().unwrap()
}

/// All of it at once.
pub struct Load {
    streams: Vec<Stream>,
    /// What must arrive; cleared where single datagrams may be lost.
    pub allowed: Vec<(String, Counter)>,
    denied: Vec<(String, Counter)>,
    knocks: Vec<Knock>,
    _servers: Vec<Responder>,
}

impl Load {
    /// Begins.
    pub fn start(cluster: &Cluster) -> Self {
        let servers = serve(cluster, &["server", "outside"]);
        let streams = [
            ("good", "server", true),
            ("good", "server", false),
            ("fargood", "server", true),
            ("server", "outside", true),
        ];
        let flow = |from: &str, to: &str, port: u16| {
            let to_address = SocketAddr::new(addresses(cluster, to)[0], port);
            count(
                namespace(cluster, from),
                namespace(cluster, to),
                to_address,
                PAUSE,
            )
            .unwrap()
        };
        let knocks = [("bad", "server"), ("outside", "server")];
        let allowed = [("good", "server"), ("fargood", "server"), ("server", "outside")];
        let denied = [
            ("bad", "server"),
            ("farbad", "server"),
            ("outside", "server"),
            ("server", "bad"),
        ];
        Self {
            streams: streams
                .map(|(from, to, v4)| Stream::start(cluster, from, to, v4))
                .into(),
            allowed: (5001..)
                .zip(allowed)
                .map(|(port, (from, to))| (format!("{from} → {to}"), flow(from, to, port)))
                .collect(),
            denied: (6001..)
                .zip(denied)
                .map(|(port, (from, to))| (format!("{from} → {to}"), flow(from, to, port)))
                .collect(),
            knocks: knocks.map(|(from, to)| Knock::start(cluster, from, to)).into(),
            _servers: servers,
        }
    }

    /// Until every stream and every sender has gone on for a while; no allowed datagram may have been lost by then, and no
    /// denied one have passed.
    #[track_caller]
    pub fn go_on(&self, when: &str) {
        let answers = || {
            self.streams
                .iter()
                .map(|stream| stream.answers.load(Ordering::Relaxed))
        };
        let goals: Vec<u64> = answers().map(|answers| answers + 20).collect();
        self.allowed.iter().for_each(|(_, counter)| counter.wait_for(50));
        self.denied.iter().for_each(|(_, counter)| counter.wait_for(50));
        let end = Instant::now() + Duration::from_secs(15);
        while answers().zip(&goals).any(|(now, goal)| now < *goal) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        for (what, counter) in &self.allowed {
            let missing = counter.missing(Duration::from_secs(1));
            assert!(
                missing.is_empty(),
                "{when}: {what}: missing {missing:?} of {}",
                counter.sent()
            );
        }
        for (what, counter) in &self.denied {
            assert_eq!(counter.received(), 0, "{when}: {what}: denied datagrams passed");
        }
    }

    /// No connection broke, no allowed datagram was lost, no denied one passed.
    pub fn end(self) {
        for stream in self.streams {
            stream.stop.store(true, Ordering::Relaxed);
            assert_eq!(stream.thread.join().unwrap(), Ok(()));
            assert!(stream.answers.load(Ordering::Relaxed) > 20);
        }
        for (what, counter) in self.allowed {
            let (sent, missing) = counter.stop();
            assert!(missing.is_empty(), "{what}: missing {missing:?} of {sent}");
        }
        for (what, counter) in self.denied {
            assert!(counter.sent() > 0, "{what} did not try");
            assert_eq!(counter.received(), 0, "{what}: denied datagrams passed");
        }
        for knock in self.knocks {
            knock.stop.store(true, Ordering::Relaxed);
            assert_eq!(knock.thread.join().unwrap(), 0, "denied connections came about");
        }
    }
}
