//! The API server as a source, against a server that fails in every way: what comes out in the end is what is there.

mod again;
mod server;
mod tls;

use std::{
    fs,
    time::{Duration, SystemTime},
};

use netpol_agent::source::kubernetes::{Access, Watcher};
use netpol_policy::model::{Event, ObjectName, Snapshot};
use serde_json::{Value, json};
use server::{Mood, Server};
use tempfile::TempDir;
use tokio::time::{Instant, timeout};

/// Nothing here takes so long on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

fn namespace(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"team": "a"}}})
}

fn pod(name: &str, address: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "prod", "uid": name, "labels": {"app": name}},
           "spec": {"nodeName": "n1"}, "status": {"phase": "Running", "podIPs": [{"ip": address}]}})
}

fn policy(name: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "prod"}, "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}})
}

fn filled(streams: bool) -> Server {
    let server = Server::start(streams);
    server.put("namespaces", "prod", namespace("prod"));
    server.put("nodes", "n1", json!({"metadata": {"name": "n1"}, "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}));
    server.put("networkpolicies", "prod/p", policy("p"));
    for at in 1..=5 {
        server.put(
            "pods",
            &format!("prod/a{at}"),
            pod(&format!("a{at}"), &format!("10.0.0.{at}")),
        );
    }
    server
}

fn kubeconfig(files: &TempDir, cluster: &str, user: &str) {
    let text = format!(
        "{{apiVersion: v1, kind: Config, clusters: [{{name: l, cluster: {{{cluster}}}}}], users: [{{name: u, user: {{{user}}}}}], \
         contexts: [{{name: c, context: {{cluster: l, user: u}}}}], current-context: c}}"
    );
    fs::write(files.path().join("config"), text).unwrap();
}

/// A watcher, and the snapshot that its changes lead to.
struct Follower {
    watcher: Watcher,
    snapshot: Snapshot,
    problems: usize,
    /// Whether a policy was gone, perhaps for a moment.
    revoked: bool,
    /// The kubeconfig, and what it names.
    files: TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Follower {
    fn new(server: &Server) -> Self {
        let files = tempfile::tempdir().unwrap();
        kubeconfig(&files, &format!("server: \"http://{}\"", server.address), "");
        Self::of(files)
    }

    fn of(files: TempDir) -> Self {
        let watcher = Watcher::start(&Access::File(files.path().join("config"), None)).unwrap();
        Self {
            files,
            watcher,
            snapshot: Snapshot::default(),
            problems: 0,
            revoked: false,
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap(),
        }
    }

    /// Follows the changes until `is` holds.
    #[track_caller]
    fn until(&mut self, what: &str, is: impl Fn(&Snapshot) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !is(&self.snapshot) {
            let left = end.saturating_duration_since(Instant::now());
            let next = self
                .runtime
                .block_on(async { timeout(left, self.watcher.next()).await });
            let Ok(change) = next else {
                panic!(
                    "{what}: not within {PATIENCE:?}; {:?}; {:#?}",
                    self.watcher.health().status(),
                    self.snapshot
                );
            };
            let (change, _) = change.expect("the thread goes on");
            for event in change.events {
                self.revoked |= matches!(event, Event::PolicyGone(_));
                self.snapshot.apply(event);
            }
            self.problems = change.problems.len();
        }
    }

    fn errors(&self, plural: &str, kind: &str) -> u64 {
        self.watcher.health().status().watches[plural]
            .errors
            .get(kind)
            .copied()
            .unwrap_or(0)
    }

    fn wait(&self, what: &str, is: impl Fn(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !is(self) {
            assert!(
                Instant::now() < end,
                "{what}: {:?}",
                self.watcher.health().status()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn names(snapshot: &Snapshot) -> Vec<String> {
    snapshot.pods.keys().map(|name| name.name.to_string()).collect()
}

fn is(wanted: &'static [&'static str]) -> impl Fn(&Snapshot) -> bool {
    move |snapshot| names(snapshot) == wanted
}

const FIVE: &[&str] = &["a1", "a2", "a3", "a4", "a5"];

#[test]
fn streamed_lists_where_they_are_served_and_pages_where_not() {
    for streams in [true, false] {
        let server = filled(streams);
        let mut follower = Follower::new(&server);
        follower.until("the list", is(FIVE));
        assert_eq!(
            (follower.snapshot.policies.len(), follower.snapshot.nodes.len()),
            (1, 1)
        );
        assert_eq!(server.asked(&["/pods?", "continue="]) > 0, !streams, "pages");
        assert_eq!(server.asked(&["/pods?", "sendInitialEvents=true"]), 1);
        // Whatever a server's cache has is older than what another one has told, where that is behind.
        assert_eq!(server.asked(&["/pods?", "resourceVersion=0"]), 0);
        let way = if streams { "streamed" } else { "paged" };
        let status = follower.watcher.health().status();
        assert_eq!((status.is_synced(), status.stale_since()), (true, None));
        for (plural, watch) in &status.watches {
            assert_eq!(watch.lists, [(way, 1)].into(), "{plural}");
        }
        // Servers keep a part of their watches for as long as we ask: not all for the same time.
        server.put("pods", "prod/b", pod("b", "10.0.0.9"));
        follower.until("an event", |snapshot| snapshot.pods.len() == 6);
    }
}

#[test]
fn nothing_comes_out_before_everything_was_listed() {
    let server = filled(true);
    server.mood("pods", Mood::Refuses(403));
    let mut follower = Follower::new(&server);
    follower.wait("policies", |follower| {
        follower.watcher.health().status().watches["networkpolicies"].synced
    });
    follower.wait("a refusal", |follower| follower.errors("pods", "forbidden") >= 1);
    let early = follower.runtime.block_on(async {
        timeout(Duration::from_millis(300), follower.watcher.next())
            .await
            .is_ok()
    });
    assert!(!early, "a change without pods");
    server.mood("pods", Mood::Well);
    follower.until("the list", is(FIVE));
}

#[test]
fn a_long_list_comes_in_parts_of_which_only_the_last_is_complete() {
    for streams in [true, false] {
        let server = filled(streams);
        for at in 0..3000 {
            let name = format!("b{at:04}");
            let address = format!("10.1.{}.{}", at / 200, at % 200 + 1);
            server.put("pods", &format!("prod/{name}"), pod(&name, &address));
        }
        let mut follower = Follower::new(&server);
        let (mut parts, mut snapshot) = (Vec::new(), Snapshot::default());
        while parts.last() != Some(&true) {
            let next = async { timeout(PATIENCE, follower.watcher.next()).await };
            let next = follower.runtime.block_on(next).expect("in time");
            let (change, _) = next.expect("the thread goes on");
            parts.push(change.complete);
            change.events.into_iter().for_each(|event| snapshot.apply(event));
        }
        assert_eq!(snapshot.pods.len(), 3005);
        assert!(parts.len() > 2, "{parts:?}");
        server.put("pods", "prod/c", pod("c", "10.0.0.9"));
        let next = follower.runtime.block_on(follower.watcher.next());
        assert!(next.is_some_and(|(change, _)| change.complete));
    }
}

#[test]
fn what_was_missed_while_the_server_was_busy_comes_after() {
    for code in [429, 500, 503] {
        let server = filled(true);
        let mut follower = Follower::new(&server);
        follower.until("the list", is(FIVE));
        server.mood("pods", Mood::Refuses(code));
        follower.wait("staleness", |follower| {
            follower.watcher.health().status().stale_since().is_some()
        });
        assert!(follower.watcher.health().status().stale_since() <= Some(SystemTime::now()));
        server.delete("pods", "prod/a2");
        server.put("pods", "prod/b", pod("b", "10.0.0.9"));
        server.mood("pods", Mood::Well);
        follower.until("what was missed", is(&["a1", "a3", "a4", "a5", "b"]));
        assert_eq!(follower.watcher.health().status().stale_since(), None);
    }
}

#[test]
fn a_version_too_old_leads_to_a_new_list_deletions_included() {
    for streams in [true, false] {
        let server = filled(streams);
        let mut follower = Follower::new(&server);
        follower.until("the list", is(FIVE));
        server.mood("pods", Mood::Refuses(503));
        follower.wait("the end of the watch", |follower| {
            follower.errors("pods", "server") >= 1
        });
        server.delete("pods", "prod/a1");
        server.delete("pods", "prod/a5");
        server.put("pods", "prod/b", pod("b", "10.0.0.9"));
        server.compact();
        server.mood("pods", Mood::Well);
        follower.until("the new list", is(&["a2", "a3", "a4", "b"]));
        assert!(follower.errors("pods", "expired") >= 1);
    }
}

#[test]
fn watches_that_close_lose_nothing() {
    let server = filled(true);
    let mut follower = Follower::new(&server);
    follower.until("the list", is(FIVE));
    server.mood("pods", Mood::Closes);
    // Each end is followed by a longer pause.
    for round in 0..3 {
        let name = format!("b{round:02}");
        server.put(
            "pods",
            &format!("prod/{name}"),
            pod(&name, &format!("10.0.1.{round}")),
        );
    }
    server.delete("pods", "prod/a3");
    follower.until("all of it", |snapshot| {
        snapshot.pods.len() == 7 && !snapshot.pods.contains_key(&ObjectName::new("prod", "a3"))
    });
}

#[test]
fn a_streamed_list_that_is_cut_off_leaves_nothing_behind() {
    let server = filled(true);
    server.mood("pods", Mood::CutsLists);
    let mut follower = Follower::new(&server);
    follower.wait("half a list", |follower| {
        follower.errors("pods", "connection") >= 1
    });
    assert!(!follower.watcher.health().status().watches["pods"].synced);
    server.delete("pods", "prod/a1");
    server.mood("pods", Mood::Well);
    follower.until("the rest", is(&["a2", "a3", "a4", "a5"]));
}

#[test]
fn a_server_that_ends_every_watch_at_once_is_asked_seldom() {
    for streams in [true, false] {
        let server = filled(streams);
        let mut follower = Follower::new(&server);
        follower.until("the list", is(FIVE));
        server.mood("pods", Mood::ClosesAtOnce);
        follower.wait("the first end", |follower| {
            follower.errors("pods", "connection") >= 1
        });
        let before = server.asked(&["/pods?", "watch=true"]);
        std::thread::sleep(Duration::from_secs(5));
        let asked = server.asked(&["/pods?", "watch=true"]) - before;
        // No pause is shorter than half a second.
        assert!(asked <= 10, "{asked} requests in 5 s");
        assert!(follower.watcher.health().status().stale_since().is_some());
        server.put("pods", "prod/b", pod("b", "10.0.0.9"));
        server.mood("pods", Mood::Well);
        follower.until("what was missed", |snapshot| snapshot.pods.len() == 6);
    }
}

#[test]
fn a_busy_server_is_left_alone_for_as_long_as_it_wishes() {
    for (mood, kind) in [(Mood::Rests(8), "throttled"), (Mood::RestsByBody(8), "server")] {
        let server = filled(true);
        server.mood("pods", mood);
        let follower = Follower::new(&server);
        follower.wait("a refusal", |follower| follower.errors("pods", kind) == 1);
        std::thread::sleep(Duration::from_secs(7));
        assert_eq!(server.asked(&["/pods?"]), 1, "{mood:?}");
        follower.wait("another", |follower| follower.errors("pods", kind) == 2);
    }
}

#[test]
fn a_quiet_watch_is_an_answer_after_a_while() {
    let server = filled(true);
    let mut follower = Follower::new(&server);
    follower.until("the list", is(FIVE));
    server.mood("networkpolicies", Mood::ClosesAtOnce);
    follower.wait("staleness", |follower| {
        follower.watcher.health().status().stale_since().is_some()
    });
    server.mood("networkpolicies", Mood::Well);
    follower.wait("the end of it", |follower| {
        follower.watcher.health().status().stale_since().is_none()
    });
}

#[test]
fn a_failure_at_the_start_does_not_end_streamed_lists() {
    for code in [500, 503] {
        let server = filled(true);
        server.mood("pods", Mood::Refuses(code));
        let mut follower = Follower::new(&server);
        follower.wait("a refusal", |follower| follower.errors("pods", "server") >= 1);
        server.mood("pods", Mood::Well);
        follower.until("the list", is(FIVE));
        assert_eq!(server.asked(&["/pods?", "limit="]), 0, "no pages");
    }
}

#[test]
fn what_does_not_decode_leads_to_a_new_list() {
    let server = filled(true);
    let mut follower = Follower::new(&server);
    follower.until("the list", is(FIVE));
    server.mood("pods", Mood::Babbles);
    follower.wait("the babble", |follower| follower.errors("pods", "decode") >= 1);
    server.put("pods", "prod/b", pod("b", "10.0.0.9"));
    follower.until("the new list", |snapshot| snapshot.pods.len() == 6);
    assert_eq!(server.asked(&["/pods?", "sendInitialEvents=true"]), 2);
}

#[test]
fn an_object_that_is_not_understood_takes_nobody_along() {
    let server = filled(true);
    let mut follower = Follower::new(&server);
    follower.until("the list", is(FIVE));
    let strange = json!({"metadata": {"name": "q", "namespace": "prod"}, "spec": {"podSelector": {}, "ingress": [{"from": 7}]}});
    server.put("networkpolicies", "prod/q", strange);
    let name = ObjectName::new("prod", "q");
    follower.until("the strange policy", |snapshot| {
        snapshot.policies.contains_key(&name)
    });
    assert_eq!(
        follower.snapshot.policies[&name].ingress,
        Some(vec![]),
        "it isolates and allows nothing"
    );
    assert_eq!(follower.problems, 1);
}
