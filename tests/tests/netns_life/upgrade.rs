//! Agents of two versions of the map ABI in each other's place, under load. The next one numbers a policy table and a
//! counter differently, so that it shares flows and fills tables of its own before it changes a link.

use std::{fs, time::Duration};

use netpol_common::ABI;
use netpol_tests::{
    cluster::{Cluster, binary, next_binary},
    net::wait_until,
    town::{addresses, assert_closed, assert_open, ingress, serve, text},
};
use nix::sys::signal::Signal;

use netpol_tests::town::load::{Load, Openings, pods, policies, tracked};

/// What is pinned on node 1.
fn trees(cluster: &Cluster) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(&cluster.node(1).pins)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn this() -> Vec<String> {
    vec![format!("v{ABI}")]
}

fn next() -> Vec<String> {
    vec![format!("v{}", ABI + 1)]
}

/// There and back, after each way to end.
fn play(attach: &str) {
    let mut cluster = tracked(attach, &policies());
    let load = Load::start(&cluster);
    load.go_on("at first");
    // Streams live by their entries; what is new is looked up in the tables of policy.
    let openings = ["good", "fargood"].map(|from| Openings::start(&cluster, from, "server"));
    assert_eq!(trees(&cluster), this());
    for (signal, binary, expected) in [
        (Signal::SIGTERM, Some(next_binary().unwrap()), next()),
        (Signal::SIGKILL, None, this()),
        (Signal::SIGKILL, Some(next_binary().unwrap()), next()),
        (Signal::SIGTERM, None, this()),
    ] {
        let life = format!("{binary:?} after {signal}");
        cluster.node_mut(1).end_agent(signal).unwrap();
        cluster.options.binary = binary;
        cluster.start().unwrap();
        assert_eq!(trees(&cluster), expected, "{life}");
        load.go_on(&life);
    }
    for opening in openings {
        opening.end(&cluster, "server");
    }
    load.end();
}

#[test]
fn another_abi_and_back_breaks_nothing_and_lets_nothing_through() {
    play("tcx");
}

#[test]
fn nor_does_it_with_clsact_filters() {
    play("clsact");
}

#[test]
fn killed_in_the_middle_either_version_goes_on() {
    let mut cluster = tracked("tcx", &policies());
    let load = Load::start(&cluster);
    load.go_on("at first");
    let mut random = 7_u64;
    let (mut halfway, mut lives) = (0, 0);
    for life in 0..16 {
        random = random * 48271 % 0x7fff_ffff;
        let next = (random / 64).is_multiple_of(2) || life % 4 == 0;
        cluster.options.binary = next.then(|| next_binary().unwrap());
        cluster.node_mut(1).kill_agent().unwrap();
        let (manifests, options) = (cluster.manifests().to_owned(), cluster.options.clone());
        cluster.node_mut(1).start(&manifests, &options).unwrap();
        std::thread::sleep(Duration::from_millis(100 + random % 900));
        lives += 1;
        halfway += usize::from(trees(&cluster).len() > 1);
    }
    eprintln!("{halfway} of {lives} lives ended with both trees there");
    for (binary, expected) in [
        (None, this()),
        (Some(next_binary().unwrap()), next()),
        (None, this()),
    ] {
        cluster.node_mut(1).kill_agent().unwrap();
        cluster.options.binary = binary;
        cluster.start().unwrap();
        assert_eq!(trees(&cluster), expected);
        load.go_on("at last");
    }
    load.end();
}

#[test]
fn an_edit_made_meanwhile_is_in_force_after_the_upgrade() {
    let mut cluster = tracked("tcx", &policies());
    let _servers = serve(&cluster, &["server"]);
    assert_open(&cluster, "good", "server");
    assert_closed(&cluster, "bad", "server");
    for (binary, open, closed) in [
        (Some(next_binary().unwrap()), "bad", "good"),
        (None, "good", "bad"),
    ] {
        cluster.node_mut(1).kill_agent().unwrap();
        cluster
            .write(&text(&pods(), &[ingress("server", &[open])]))
            .unwrap();
        assert_open(&cluster, closed, "server");
        cluster.options.binary = binary;
        cluster.start().unwrap();
        assert_open(&cluster, open, "server");
        assert_closed(&cluster, closed, "server");
    }
    assert!(!addresses(&cluster, "server").is_empty());
}

#[test]
fn cleanup_removes_what_both_have_left() {
    let mut cluster = tracked("tcx", &policies());
    cluster.node_mut(1).kill_agent().unwrap();
    let pins = cluster.node(1).pins.clone();
    // What a killed run leaves: half a tree, and one on its way out.
    for half in ["new-v9", "old-v2"] {
        fs::create_dir_all(pins.join(half).join("maps")).unwrap();
    }
    cluster.options.binary = Some(next_binary().unwrap());
    cluster.start().unwrap();
    assert_eq!(trees(&cluster), next());
    cluster.node_mut(1).kill_agent().unwrap();
    fs::create_dir_all(pins.join("old-v2")).unwrap();
    let removed = cluster.node(1).netpol("cleanup", &[]).unwrap();
    assert!(removed.status.success(), "{removed:?}");
    assert!(!pins.exists());
}

/// Two agents of either version: the second waits for the first, and goes on where it was.
#[test]
fn a_second_agent_waits_for_the_first() {
    let mut cluster = tracked("tcx", &policies());
    let load = Load::start(&cluster);
    load.go_on("at first");
    for second in [binary().unwrap(), next_binary().unwrap(), binary().unwrap()] {
        let (manifests, mut options) = (cluster.manifests().to_owned(), cluster.options.clone());
        options.binary = Some(second);
        let mut first = cluster.node_mut(1).start_beside(&manifests, &options).unwrap();
        let (pid, node) = (first.child.id(), cluster.node_mut(1));
        let waits = format!("another netpol-agent (process {pid}, node node-1) holds the pins: waiting");
        let told = wait_until(Duration::from_secs(10), || {
            Ok(node.agent().unwrap().log().contains(&waits))
        });
        assert!(told.unwrap(), "{}", node.agent().unwrap().log());
        assert_eq!(node.status()["agent"]["pid"], pid);
        load.go_on("while the second waits");
        first.child.signal(Signal::SIGTERM).unwrap();
        first.child.wait(Duration::from_secs(10)).unwrap();
        cluster.wait().unwrap();
        load.go_on("after the second has begun");
    }
    // One that waits can be told to end.
    let (manifests, options) = (cluster.manifests().to_owned(), cluster.options.clone());
    let first = cluster.node_mut(1).start_beside(&manifests, &options).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let status = cluster.node_mut(1).end_agent(Signal::SIGTERM).unwrap();
    assert!(status.success(), "{status}");
    load.go_on("after it was told to end");
    drop(first);
    load.end();
}
