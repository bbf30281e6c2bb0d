//! Real clusters come, end in every way there is, and leave nothing.
//!
//! `cargo test -p xtask --test cluster -- --ignored --test-threads=1`

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(30);

/// A cluster of this test process.
struct Cluster {
    name: String,
    before: BTreeSet<String>,
}

impl Cluster {
    fn new(letter: char) -> Self {
        let mut this = Self {
            name: format!("t{letter}{}", std::process::id()),
            before: BTreeSet::new(),
        };
        this.before = this.things();
        this
    }

    fn xtask(&self, verb: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        let (verb, rest) = verb.split_first().expect("a verb");
        command.args(["cluster", verb, "--name", &self.name]).args(rest);
        command
    }

    fn run(&self, verb: &[&str]) -> Output {
        self.xtask(verb).output().expect("xtask starts")
    }

    fn up_in_background(&self) -> Child {
        self.xtask(&["up"])
            .stderr(Stdio::piped())
            .spawn()
            .expect("xtask starts")
    }

    fn dir(&self) -> PathBuf {
        Path::new("/var/lib/netpol-cluster").join(&self.name)
    }

    fn record(&self) -> Option<Value> {
        serde_json::from_slice(&fs::read(self.dir().join("cluster.json")).ok()?).ok()
    }

    /// The process `role` of the record, once it is written.
    fn process(&self, role: &str) -> i32 {
        let start = Instant::now();
        loop {
            if let Some(pid) = self.record().and_then(|record| record[role]["pid"].as_i64()) {
                return i32::try_from(pid).expect("a process id");
            }
            assert!(start.elapsed() < LIMIT, "no cluster.json");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Everything on this machine that a cluster could leave; what belongs to others by its name is left out.
    fn things(&self) -> BTreeSet<String> {
        let mut things = BTreeSet::new();
        let own = format!("netpol-cluster-{}", self.name);
        let foreign = |path: &str| path.contains("netpol-cluster-") && !path.contains(&own);
        for path in cgroups(Path::new("/sys/fs/cgroup")) {
            things.insert(format!("cgroup {path}"));
        }
        for entry in fs::read_dir("/sys/class/net").expect("sysfs").flatten() {
            let link = entry.file_name().to_string_lossy().into_owned();
            if link == format!("npc-{}", self.name) {
                things.insert(format!("link {link}"));
            }
        }
        for line in fs::read_to_string("/proc/self/mounts").expect("proc").lines() {
            if line.contains("netpol-cluster") || line.contains("kubelet") || line.contains("containerd") {
                things.insert(format!("mount {line}"));
            }
        }
        for path in [
            "/var/lib/kubelet",
            "/var/lib/cni",
            "/var/run/kubernetes",
            "/etc/cni",
            "/run/flannel",
            "/run/containerd",
        ] {
            if Path::new(path).exists() {
                things.insert(format!("directory {path}"));
            }
        }
        for key in [
            "vm/overcommit_memory",
            "vm/panic_on_oom",
            "kernel/panic",
            "kernel/panic_on_oops",
            "kernel/keys/root_maxkeys",
        ] {
            let value = fs::read_to_string(Path::new("/proc/sys").join(key)).unwrap_or_default();
            things.insert(format!("setting {key} {}", value.trim()));
        }
        if self.dir().exists() {
            things.insert(format!("directory {}", self.dir().display()));
        }
        things.retain(|thing| !foreign(thing));
        things
    }

    /// Waits until nothing is left.
    fn assert_gone(&self, namespace: Option<&str>) {
        let start = Instant::now();
        loop {
            let mut left: Vec<_> = self.things().difference(&self.before).cloned().collect();
            left.extend(namespace.into_iter().flat_map(processes));
            if left.is_empty() {
                return;
            }
            assert!(start.elapsed() < LIMIT, "left: {left:#?}");
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// The PID namespace of the cluster.
    fn namespace(&self) -> String {
        let link = fs::read_link(format!("/proc/{}/ns/pid", self.process("init"))).expect("init runs");
        link.display().to_string()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // After a failed assertion: another test, and the machine, must not suffer from it.
        self.run(&["down"]);
    }
}

/// All cgroups; those that other tests of this machine make and remove meanwhile do not matter, as only new ones count.
fn cgroups(path: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(entry.path().display().to_string());
            found.extend(cgroups(&entry.path()));
        }
    }
    found
}

/// The processes in a PID namespace.
fn processes(namespace: &str) -> Vec<String> {
    let all = fs::read_dir("/proc").expect("proc").flatten();
    all.filter(|entry| {
        let link = fs::read_link(entry.path().join("ns/pid"));
        link.is_ok_and(|link| link.display().to_string() == namespace)
    })
    .map(|entry| format!("process {}", entry.path().display()))
    .collect()
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("the process runs");
}

#[test]
#[ignore = "starts a real cluster: root, and components that take minutes to build"]
fn a_cluster_runs_pods_and_leaves_nothing() {
    let cluster = Cluster::new('a');
    let up = cluster.run(&["up"]);
    assert!(up.status.success(), "{}", text(&up));
    let status = cluster.run(&["status"]);
    assert!(status.status.success(), "{}", text(&status));
    assert!(!text(&status).contains("DEAD"), "{}", text(&status));
    let pod = [
        "kubectl",
        "--",
        "run",
        "pod",
        "--image=netpol.local/agnhost:1",
        "--",
        "netexec",
    ];
    let run = cluster.run(&pod);
    assert!(run.status.success(), "{}", text(&run));
    let ready = [
        "kubectl",
        "--",
        "wait",
        "--for=condition=Ready",
        "pod/pod",
        "--timeout=30s",
    ];
    let ready = cluster.run(&ready);
    assert!(ready.status.success(), "{}", text(&ready));
    let second = cluster.run(&["up"]);
    assert_eq!(second.status.code(), Some(2), "{}", text(&second));
    let namespace = cluster.namespace();
    assert!(processes(&namespace).len() > 10, "the check sees the components");
    assert!(
        cluster.things().len() > cluster.before.len(),
        "the check sees the cgroups"
    );
    let down = cluster.run(&["down"]);
    assert!(down.status.success(), "{}", text(&down));
    cluster.assert_gone(Some(&namespace));
}

#[test]
#[ignore = "starts real clusters: root, and components that take minutes to build"]
fn an_up_that_is_killed_leaves_nothing() {
    let cluster = Cluster::new('b');
    for (sent, after) in [(Signal::SIGKILL, 1), (Signal::SIGKILL, 6), (Signal::SIGINT, 4)] {
        let mut up = cluster.up_in_background();
        let init = cluster.process("init");
        assert!(init > 0);
        let namespace = cluster.namespace();
        thread::sleep(Duration::from_secs(after));
        signal(i32::try_from(up.id()).expect("a process id"), sent);
        let status = up.wait().expect("it ends");
        if sent == Signal::SIGINT {
            assert_eq!(status.code(), Some(130), "it says that it was interrupted");
        }
        cluster.assert_gone(Some(&namespace));
    }
}

#[test]
#[ignore = "starts real clusters: root, and components that take minutes to build"]
fn what_a_killed_supervisor_leaves_the_next_removes() {
    let cluster = Cluster::new('c');
    let up = cluster.run(&["up"]);
    assert!(up.status.success(), "{}", text(&up));
    let namespace = cluster.namespace();
    signal(cluster.process("supervisor"), Signal::SIGKILL);
    let start = Instant::now();
    while !processes(&namespace).is_empty() {
        assert!(start.elapsed() < LIMIT, "processes outlive their supervisor");
        thread::sleep(Duration::from_millis(50));
    }
    assert!(!cluster.run(&["status"]).status.success());
    let again = cluster.run(&["up"]);
    assert!(again.status.success(), "{}", text(&again));
    signal(cluster.process("init"), Signal::SIGKILL);
    cluster.assert_gone(None);
}
