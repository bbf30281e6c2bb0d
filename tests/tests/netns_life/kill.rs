//! The agent dies, comes back, is replaced, finds other policies: under load.

use std::{
    fs,
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
use netpol_tests::{
    cluster::{Cluster, Counter, Options, Talk, binary, count},
    net::{Outcome, Probe, Responder, probe_all},
};
use nix::sys::signal::Signal;

use netpol_tests::town::{SILENCE, addresses, app, egress, endpoints, ingress, namespace, serve, text, town};

/// Between datagrams: a receiver that does not run for a second loses none.
const PAUSE: Duration = Duration::from_millis(4);

fn pods() -> Vec<Pod> {
    vec![
        app("server", 1, 10),
        app("good", 1, 11),
        app("bad", 1, 12),
        app("fargood", 2, 20),
        app("farbad", 2, 21),
    ]
}

fn policies() -> Vec<String> {
    vec![
        ingress("server", &["good", "fargood"]),
        egress("server", &["172.18.0.100/32"]),
    ]
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

/// All of it at once.
struct Load {
    streams: Vec<Stream>,
    allowed: Vec<(String, Counter)>,
    denied: Vec<(String, Counter)>,
    knocks: Vec<Knock>,
    _servers: Vec<Responder>,
}

impl Load {
    fn start(cluster: &Cluster) -> Self {
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

    /// Until every stream and every sender has gone on for a while; no allowed datagram may have been lost by then.
    #[track_caller]
    fn go_on(&self, when: &str) {
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
    }

    /// No connection broke, no allowed datagram was lost, no denied one passed.
    fn end(self) {
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

/// Ends the agent in each way and starts it, or another binary, again.
fn play(attach: &str) {
    let pods = pods();
    let options = Options {
        arguments: vec!["--attach".to_owned(), attach.to_owned()],
        ..Options::default()
    };
    let mut cluster = town(2, options, &pods);
    cluster.write(&text(&pods, &policies())).unwrap();
    cluster.start().unwrap();
    let load = Load::start(&cluster);
    load.go_on("at first");
    let other = cluster.rig.directory().join("netpol-agent-2");
    fs::copy(binary().unwrap(), &other).unwrap();
    for (signal, binary) in [
        (Signal::SIGKILL, None),
        (Signal::SIGTERM, None),
        (Signal::SIGKILL, Some(other)),
    ] {
        let status = cluster.node_mut(1).end_agent(signal).unwrap();
        assert_eq!(status.success(), signal == Signal::SIGTERM, "{status}");
        load.go_on(&format!("after {signal}"));
        let life = format!("started again after {signal}, {binary:?}");
        cluster.options.binary = binary;
        cluster.start().unwrap();
        load.go_on(&life);
    }
    load.end();
}

#[test]
fn nothing_breaks_and_nothing_passes_however_the_agent_ends_and_returns() {
    play("tcx");
}

#[test]
fn nor_with_clsact_filters() {
    play("clsact");
}

/// The kernel stops a device's queue for an instant when a clsact qdisc comes or goes, so that single packets may be lost
/// there. The programs drop nothing that is allowed, let nothing through that is not, and connections go on.
#[test]
fn links_and_filters_take_over_from_each_other() {
    let pods = pods();
    let mut cluster = town(2, Options::default(), &pods);
    cluster.write(&text(&pods, &policies())).unwrap();
    cluster.start().unwrap();
    let mut load = Load::start(&cluster);
    load.allowed.clear();
    let before = cluster.node(1).drops();
    for attach in ["clsact", "tcx", "clsact", "tcx"] {
        cluster.options.arguments = vec!["--attach".to_owned(), attach.to_owned()];
        cluster.node_mut(1).kill_agent().unwrap();
        cluster.start().unwrap();
        load.go_on(attach);
        let drops = cluster.node(1).drops().since(&before);
        let denied = drops.all("denied-ingress") + drops.all("denied-egress");
        assert!(denied > 0 && denied == drops.total(), "to {attach}: {drops:?}");
    }
    load.end();
}

#[test]
fn an_agent_that_is_killed_while_it_starts_leaves_everything_in_force() {
    let pods = pods();
    let mut cluster = town(2, Options::default(), &pods);
    cluster.write(&text(&pods, &policies())).unwrap();
    cluster.start().unwrap();
    let begun = Instant::now();
    cluster.node_mut(1).kill_agent().unwrap();
    cluster.start().unwrap();
    let start = begun.elapsed();
    let load = Load::start(&cluster);
    for quarter in 1..=4 {
        cluster.node_mut(1).kill_agent().unwrap();
        let (manifests, options) = (cluster.manifests().to_owned(), cluster.options.clone());
        cluster.node_mut(1).start(&manifests, &options).unwrap();
        std::thread::sleep(start * quarter / 4);
    }
    cluster.wait().unwrap();
    load.go_on("at last");
    load.end();
}

#[test]
fn an_edit_made_while_the_agent_is_dead_is_in_force_when_it_is_back() {
    let pods = pods();
    let mut cluster = town(2, Options::default(), &pods);
    let before = [ingress("server", &["good", "fargood"])];
    let after = [ingress("server", &["good", "bad"])];
    cluster.write(&text(&pods, &before)).unwrap();
    cluster.start().unwrap();
    let flow = |cluster: &Cluster, from: &str, port: u16| {
        let to = SocketAddr::new(addresses(cluster, "server")[0], port);
        count(namespace(cluster, from), namespace(cluster, "server"), to, PAUSE).unwrap()
    };
    let (always, then, revoked) = (
        flow(&cluster, "good", 5001),
        flow(&cluster, "bad", 5002),
        flow(&cluster, "fargood", 5003),
    );
    revoked.wait_for(50);
    cluster.node_mut(1).kill_agent().unwrap();
    cluster.write(&text(&pods, &after)).unwrap();
    let first = revoked.received();
    revoked.wait_for(100);
    assert!(
        revoked.received() > first,
        "the policy that was in force is no longer"
    );
    assert_eq!(then.received(), 0, "nobody has put the new policy in force");

    cluster.start().unwrap();
    // What was under way.
    revoked.wait_for(10);
    let last = revoked.received();
    then.wait_for(100);
    revoked.wait_for(100);
    assert!(then.received() > 0, "the new policy is not in force");
    assert_eq!(revoked.received(), last, "the old policy is in force still");
    let (sent, missing) = always.stop();
    assert!(
        missing.is_empty(),
        "{} of {sent} datagrams that both policies allow are missing",
        missing.len()
    );
}

/// Whom a receiver lets in now, over all protocols and families: `good`, `bad`, or a mixture, which is wrong.
fn state(cluster: &Cluster, receivers: &[&str]) -> Vec<String> {
    let mut states = vec![String::new(); receivers.len()];
    for from in ["good", "bad"] {
        let probes: Vec<Probe> = receivers
            .iter()
            .flat_map(|to| endpoints(cluster, to))
            .map(|(transport, address)| Probe::new(transport, address))
            .collect();
        let outcomes = probe_all(namespace(cluster, from), &probes, SILENCE);
        for (state, outcomes) in states.iter_mut().zip(outcomes.chunks(4)) {
            if outcomes.iter().all(Outcome::reached) {
                state.push_str(from);
            } else if outcomes.iter().any(Outcome::reached) {
                state.push_str(&format!("{from} in part: {outcomes:?}"));
            }
        }
    }
    states
}

/// How often the agent dies in the middle of an edit; a hundred times where there is time.
fn deaths() -> u32 {
    if std::env::var_os("NETPOL_NIGHTLY").is_some() {
        100
    } else {
        12
    }
}

#[test]
fn killed_in_the_middle_of_an_edit_each_pod_has_the_old_policy_or_the_new() {
    let receivers = ["one", "two"];
    let pods = [
        app("one", 1, 10),
        app("two", 1, 13),
        app("good", 1, 11),
        app("bad", 1, 12),
    ];
    let mut cluster = town(1, Options::default(), &pods);
    let lets_in = |who: &str| receivers.map(|to| ingress(to, &[who]));
    let _servers = serve(&cluster, &receivers);
    cluster.write(&text(&pods, &lets_in("good"))).unwrap();
    cluster.start().unwrap();
    let begun = Instant::now();
    cluster.apply(&text(&pods, &lets_in("bad"))).unwrap();
    let edit = begun.elapsed();
    // Park and Miller's generator: the same moments in each run, as far as the machine allows.
    let mut random = 1_u64;
    let mut seen = [0, 0];
    let sides = ["good", "bad"];
    let mut old = 1;
    for death in 0..deaths() {
        let new = 1 - old;
        cluster.write(&text(&pods, &lets_in(sides[new]))).unwrap();
        random = random * 48271 % 0x7fff_ffff;
        std::thread::sleep(edit * (random % 100) as u32 / 80);
        cluster.node_mut(1).kill_agent().unwrap();
        for (receiver, state) in receivers.iter().zip(state(&cluster, &receivers)) {
            assert!(
                sides.contains(&&*state),
                "death {death}: {receiver} lets in: {state:?}"
            );
            seen[usize::from(state == sides[new])] += 1;
        }
        cluster.start().unwrap();
        assert_eq!(state(&cluster, &receivers), [sides[new]; 2], "death {death}");
        old = new;
    }
    eprintln!("old policy {} times, new {} times", seen[0], seen[1]);
}
