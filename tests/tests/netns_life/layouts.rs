//! What another version's maps mean is what its tree notes. Flow tables that mean something else are not taken over:
//! connections are, by the kernel's connection tracking. Another mark is refused.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use aya::maps::MapInfo;
use netpol_common::{ABI, event::maps, layout};
use netpol_tests::{
    cluster::{Cluster, Talk, binary, next_binary},
    net::{Responder, Transport},
    town::{ANSWER, SILENCE, addresses, namespace, text},
};

use netpol_tests::town::load::{Load, pods, policies, tracked};

const FLOWS: [&str; 4] = [maps::FLOWS4, maps::FLOWS6, maps::OPENING4, maps::OPENING6];
/// What no version has.
const OTHER: u16 = 77;

fn tree(cluster: &Cluster, abi: u32) -> PathBuf {
    cluster.node(1).pins.join(format!("v{abi}"))
}

/// From now on the tree of node 1 says that `names` have this number, as one of a version with other layouts would.
fn note(cluster: &Cluster, abi: u32, names: &[&str], number: u16) {
    let marker = tree(cluster, abi).join("layouts");
    let noted = fs::read_link(&marker).unwrap();
    let pairs: Vec<String> = noted
        .to_str()
        .unwrap()
        .split(',')
        .map(|pair| match pair.split_once('=').unwrap() {
            (name, _) if names.contains(&name) => format!("{name}={number}"),
            _ => pair.to_owned(),
        })
        .collect();
    fs::remove_file(&marker).unwrap();
    symlink(pairs.join(","), &marker).unwrap();
}

/// The maps of a tree by name: the kernel's own numbers.
fn ids(cluster: &Cluster, abi: u32) -> BTreeMap<&'static str, u32> {
    let id = |name: &&'static str| {
        let path = tree(cluster, abi).join("maps").join(name);
        (*name, MapInfo::from_pin(path).unwrap().id())
    };
    maps::ALL.iter().map(id).collect()
}

/// A connection to this port of `to` on which nothing is said for now.
fn idle(cluster: &Cluster, from: &str, to: &str, (v4, port): (bool, u16)) -> (String, Talk) {
    let at = SocketAddr::new(addresses(cluster, to)[usize::from(!v4)], port);
    let mut talk = Talk::open(namespace(cluster, from), at).unwrap();
    assert!(talk.exchange(ANSWER).unwrap(), "{from} → {to}: no conversation");
    (format!("{from} → {to} {at}"), talk)
}

/// Connections that are opened one after the other, and used when all of them are.
struct Crowd {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Vec<TcpStream>>>,
}

impl Crowd {
    fn start(cluster: &Cluster, from: &str, to: &str) -> Self {
        /// Both ends of each are files of this process.
        const PAUSE: Duration = Duration::from_millis(15);
        let to = SocketAddr::new(addresses(cluster, to)[0], EARLY);
        let stop = Arc::<AtomicBool>::default();
        let ended = stop.clone();
        let open = move || {
            let mut streams = Vec::new();
            while !ended.load(Ordering::Relaxed) {
                // One whose SYN meets programs of both versions may have to send it again.
                streams.push(TcpStream::connect_timeout(&to, 2 * ANSWER)?);
                std::thread::sleep(PAUSE);
            }
            Ok(streams)
        };
        // A thread is in the namespace of the one that has started it.
        let thread = namespace(cluster, from).run(|| std::thread::spawn(open));
        Self { stop, thread }
    }

    /// What was said on each comes back.
    fn goes_on(self) {
        self.stop.store(true, Ordering::Relaxed);
        let streams = self.thread.join().unwrap().unwrap();
        let silent = |stream: &&TcpStream| {
            let (mut heard, mut stream) = (Vec::new(), *stream);
            stream.set_read_timeout(Some(ANSWER)).unwrap();
            stream.write_all(b"ping").unwrap();
            while !heard.ends_with(b"ping") {
                let mut bytes = [0; 64];
                match stream.read(&mut bytes) {
                    Ok(len) if len > 0 => heard.extend(&bytes[..len]),
                    _ => return true,
                }
            }
            false
        };
        let lost = streams.iter().filter(silent).count();
        assert!(streams.len() > 20, "only {} were opened", streams.len());
        assert_eq!(lost, 0, "of {} connections opened meanwhile", streams.len());
    }
}

/// Long enough for the grace to end in which mid-stream TCP is believed.
const GRACE: Duration = Duration::from_secs(6);
/// Where those listen that are denied later.
const EARLY: u16 = 8080;

/// There and back, under load, between versions whose flow tables do not fit.
fn play(attach: &str) {
    let mut cluster = tracked(attach, &[]);
    let early = ["server", "good"].map(|name| {
        let at = addresses(&cluster, name)
            .into_iter()
            .map(|ip| (Transport::Tcp, SocketAddr::new(ip, EARLY)));
        Responder::start(namespace(&cluster, name), name, at).unwrap()
    });
    let mut cut: Vec<(String, Talk)> = [("bad", "server"), ("farbad", "server"), ("server", "good")]
        .into_iter()
        .flat_map(|(from, to)| [true, false].map(|v4| idle(&cluster, from, to, (v4, EARLY))))
        .collect();
    let mut kept: Vec<(String, Talk)> = [("good", "server"), ("fargood", "server")]
        .into_iter()
        .flat_map(|(from, to)| [true, false].map(|v4| idle(&cluster, from, to, (v4, EARLY))))
        .collect();
    cluster.apply(&text(&pods(), &policies())).unwrap();
    // Known to connection tracking all the same, and sent again and again from now on.
    for (what, talk) in &mut cut {
        assert!(!talk.exchange(SILENCE).unwrap(), "{what} was not cut");
    }
    let load = Load::start(&cluster);
    load.go_on("at first");
    for (from, to, binary) in [(ABI, ABI + 1, Some(next_binary().unwrap())), (ABI + 1, ABI, None)] {
        cluster.node_mut(1).kill_agent().unwrap();
        note(&cluster, from, &FLOWS, OTHER);
        let before = ids(&cluster, from);
        cluster.options.binary = binary;
        let crowds = ["good", "fargood"].map(|client| Crowd::start(&cluster, client, "server"));
        cluster.start().unwrap();
        for crowd in crowds {
            crowd.goes_on();
        }
        assert!(
            !tree(&cluster, from).exists(),
            "something of version {from} is left"
        );
        let after = ids(&cluster, to);
        for name in maps::ALL {
            // What a verdict is looked up in begins anew with the flows.
            let alone = [maps::FRAGS, maps::QUOTAS, maps::VERDICTS, maps::EVENTS].contains(name);
            assert_eq!(before[name] == after[name], alone, "{name} is shared");
        }
        load.go_on(&format!("as version {to}"));
        for (what, talk) in &mut cut {
            assert!(
                !talk.receive(SILENCE).unwrap(),
                "{what} came back in version {to}"
            );
        }
    }
    std::thread::sleep(GRACE);
    for (what, talk) in &mut kept {
        assert!(talk.exchange(ANSWER).unwrap(), "{what} has ended");
    }
    for (what, talk) in &mut cut {
        assert!(!talk.receive(SILENCE).unwrap(), "{what} came back");
    }
    load.end();
    drop(early);
}

#[test]
fn other_flow_tables_begin_empty_and_connections_go_on() {
    play("tcx");
}

#[test]
fn other_flow_tables_begin_empty_with_clsact_filters_too() {
    play("clsact");
}

/// `run --once` of `binary` in the place of node 1's agent.
fn once(cluster: &Cluster, binary: &Path) -> Output {
    let (node, directory) = (cluster.node(1), cluster.rig.directory().join("node-1"));
    let mut command = Command::new(binary);
    command
        .args(["run", "--once", "--node", "node-1", "--manifests"])
        .arg(cluster.manifests());
    command
        .arg("--pin")
        .arg(&node.pins)
        .arg("--state")
        .arg(directory.join("state"));
    command.arg("--cni-cache").arg(directory.join("cni"));
    node.namespace.run(|| command.output()).unwrap()
}

#[test]
fn another_mark_is_refused_before_anything_is_changed() {
    let mut cluster = tracked("tcx", &[]);
    cluster.apply(&text(&pods(), &policies())).unwrap();
    let load = Load::start(&cluster);
    load.go_on("at first");
    cluster.node_mut(1).kill_agent().unwrap();
    let before = (
        ids(&cluster, ABI),
        cluster.node(1).status()["kernel"]["programs"].clone(),
    );
    note(&cluster, ABI, &[layout::MARK.0], OTHER);
    // The same version is no better: its programs would read the other's marks.
    for binary in [next_binary().unwrap(), binary().unwrap()] {
        let refused = once(&cluster, &binary);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2), "{said}");
        for part in [
            &format!("v{ABI} is pinned by a version whose `mark` means something else")[..],
            "netpol-agent cleanup",
        ] {
            assert!(said.contains(part), "{part} is not in {said}");
        }
        let trees: Vec<_> = fs::read_dir(&cluster.node(1).pins)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert_eq!(trees, [tree(&cluster, ABI)], "something was made");
        let after = (
            ids(&cluster, ABI),
            cluster.node(1).status()["kernel"]["programs"].clone(),
        );
        assert_eq!(after, before, "something was changed");
        load.go_on("after the refusal");
    }
    note(&cluster, ABI, &[layout::MARK.0], layout::MARK.1);
    cluster.options.binary = Some(next_binary().unwrap());
    cluster.start().unwrap();
    assert!(
        !tree(&cluster, ABI).exists(),
        "something of the other version is left"
    );
    load.go_on("as the next version");
    load.end();
}
