//! `cleanup`, a second agent, and other people's things on the same devices.

use std::{
    fs::{self, File},
    os::unix::fs::{MetadataExt as _, symlink},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use netpol_tests::{
    cluster::{Cluster, Node, Options, binary},
    net::{Namespace, wait_until},
};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::Signal,
};

use netpol_tests::town::{app, assert_closed, assert_open, ingress, serve, text, town, uplink};

/// A bridge without ports, which netpol leaves alone: what is mirrored to it is counted and goes nowhere.
const TAP: &str = "tap0";

/// Somebody else's filters: everything that `device` takes in, and gives out, is mirrored to [`TAP`].
fn watch(node: &Node, device: &str) {
    let tc = |args: &str| {
        let args: Vec<_> = args.split_whitespace().collect();
        node.namespace.command("tc", &args).unwrap()
    };
    tc(&format!("qdisc add dev {device} clsact"));
    for direction in ["ingress", "egress"] {
        tc(&format!(
            "filter add dev {device} {direction} protocol all prio 7 u32 match u32 0 0 action mirred egress mirror dev {TAP}"
        ));
    }
}

fn filters(namespace: &Namespace, device: &str) -> Vec<bool> {
    ["ingress", "egress"]
        .map(|direction| {
            let shown = namespace
                .command("tc", &["filter", "show", "dev", device, direction])
                .unwrap();
            shown.contains("pref 7 u32")
        })
        .to_vec()
}

fn watched(node: &Node) -> u64 {
    let statistics = node
        .namespace
        .command("ip", &["-s", "-j", "link", "show", "dev", TAP])
        .unwrap();
    let shown: serde_json::Value = serde_json::from_str(&statistics).unwrap();
    shown[0]["stats64"]["tx"]["packets"].as_u64().unwrap()
}

/// The names in `directory`; none where there is no such directory.
fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Whether somebody holds the directory as agents hold theirs.
fn is_locked(directory: &Path) -> bool {
    File::open(directory).is_ok_and(|directory| Flock::lock(directory, FlockArg::LockSharedNonblock).is_err())
}

fn play(attach: &str) {
    let pods = uplink::pods();
    let options = Options {
        arguments: vec!["--attach".into(), attach.into()],
        ..Options::default()
    };
    let mut cluster = town(2, options, &pods);
    let host = cluster.pod("default/a").host.clone();
    let devices = [host.as_str(), "eth0"];
    let node = cluster.node(1);
    node.namespace
        .ip_batch([
            format!("link add {TAP} type bridge"),
            format!("link set {TAP} up"),
        ])
        .unwrap();
    devices.iter().for_each(|device| watch(node, device));
    cluster.write(&text(&pods, &uplink::policies())).unwrap();
    let _servers = serve(&cluster, &["outside"]);

    // Before the agent, with it, after it: a question and its answer cross each of both devices twice.
    let counts = |cluster: &Cluster, when: &str| {
        let before = watched(cluster.node(1));
        assert_open(cluster, "a", "outside");
        let more = watched(cluster.node(1)) - before;
        assert!(more >= 4 * 4, "{when}: {more} packets seen by the other filters");
    };
    counts(&cluster, "before");
    cluster.start().unwrap();
    counts(&cluster, "with the agent");
    assert_closed(&cluster, "outside", "a");

    // Somebody else's pin beside ours, and beside our directory.
    let pins = cluster.node(1).pins.clone();
    let ours = pins.join(names(&pins).pop().unwrap());
    let foreign = cluster.rig.pins().join("foreign");
    fs::hard_link(ours.join("maps/state"), &foreign).unwrap();
    symlink("nothing", pins.join("beside")).unwrap();

    refuse_a_second(&mut cluster);
    cluster.node_mut(1).kill_agent().unwrap();
    counts(&cluster, "after the agent");
    assert_closed(&cluster, "outside", "a");
    let dead = cluster.node(1).netpol("status", &[]).unwrap();
    let said = String::from_utf8_lossy(&dead.stdout).into_owned();
    assert_eq!(
        (
            dead.status.code(),
            said.contains("not running; what is attached stays in force")
        ),
        (Some(1), true),
        "{said}"
    );

    let done = cluster.node(1).netpol("cleanup", &[]).unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(names(&pins), ["beside"]);
    assert!(foreign.exists());
    assert_eq!(
        names(&cluster.rig.directory().join("node-1/state")),
        Vec::<String>::new()
    );
    for device in devices {
        assert_eq!(
            filters(&cluster.node(1).namespace, device),
            [true, true],
            "{device}"
        );
    }
    let qdiscs = cluster
        .node(1)
        .namespace
        .command("tc", &["qdisc", "show"])
        .unwrap();
    assert_eq!(qdiscs.matches("clsact").count(), 2, "{qdiscs}");
    counts(&cluster, "after cleanup");
    let _server = serve(&cluster, &["a", "d"]);
    assert_open(&cluster, "outside", "a");
    // Once more there is nothing to do; and no agent to speak of.
    let again = cluster.node(1).netpol("cleanup", &[]).unwrap();
    assert!(
        again.status.success(),
        "{}",
        String::from_utf8_lossy(&again.stderr)
    );
    assert_eq!(
        cluster.node(1).netpol("status", &[]).unwrap().status.code(),
        Some(2)
    );
}

/// Neither another agent nor `cleanup` gets hold of what an agent holds; what is in force stays.
fn refuse_a_second(cluster: &mut Cluster) {
    let manifests = cluster.manifests().to_str().unwrap().to_owned();
    let state = cluster
        .rig
        .directory()
        .join("second")
        .to_str()
        .unwrap()
        .to_owned();
    let second = [
        "--manifests",
        &manifests,
        "--node",
        "node-1",
        "--state",
        &state,
        "--once",
        "--wait-for-lock",
        "0",
    ];
    for (verb, arguments) in [("run", &second[..]), ("cleanup", &[])] {
        let refused = cluster.node(1).netpol(verb, arguments).unwrap();
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2), "{verb}: {said}");
        assert!(
            said.contains(cluster.node(1).pins.to_str().unwrap()),
            "{verb}: {said}"
        );
        assert!(said.contains("another"), "{verb}: {said}");
    }
    assert_eq!(cluster.node(1).status()["kernel"]["running"], true);
    assert_closed(cluster, "outside", "a");
}

#[test]
fn links_beside_other_filters_come_and_go_alone() {
    play("tcx");
}

#[test]
fn filters_beside_other_filters_come_and_go_alone() {
    play("clsact");
}

#[test]
fn cleanup_takes_its_own_qdiscs_with_it() {
    let pods = [app("a", 1, 10), app("b", 1, 11)];
    let options = Options {
        arguments: vec!["--attach".into(), "clsact".into()],
        ..Options::default()
    };
    let mut cluster = town(1, options, &pods);
    cluster.write(&text(&pods, &[ingress("a", &[])])).unwrap();
    cluster.start().unwrap();
    let _servers = serve(&cluster, &["a"]);
    let qdiscs = |cluster: &Cluster| {
        cluster
            .node(1)
            .namespace
            .command("tc", &["qdisc", "show"])
            .unwrap()
    };
    assert_eq!(qdiscs(&cluster).matches("clsact").count(), 3);
    cluster.node_mut(1).kill_agent().unwrap();
    assert_closed(&cluster, "b", "a");
    assert!(cluster.node(1).netpol("cleanup", &[]).unwrap().status.success());
    assert_eq!(qdiscs(&cluster).matches("clsact").count(), 0);
    assert_open(&cluster, "b", "a");
}

/// What the cleaning DaemonSet relies on: it stays, no agent gets in, and a signal ends it without a trace.
#[test]
fn a_cleanup_that_waits_keeps_agents_out() {
    let pods = [app("a", 1, 10), app("b", 1, 11)];
    let mut cluster = town(1, Options::default(), &pods);
    cluster.write(&text(&pods, &[ingress("a", &[])])).unwrap();
    cluster.start().unwrap();
    let _servers = serve(&cluster, &["a"]);
    assert_closed(&cluster, "b", "a");
    let refused = cluster.node(1).netpol("cleanup", &["--wait"]).unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert_closed(&cluster, "b", "a");
    cluster.node_mut(1).kill_agent().unwrap();

    let pins = cluster.node(1).pins.clone();
    let inode = || fs::metadata(&pins).map(|directory| directory.ino()).ok();
    let cleaned = inode();
    let mut command = Command::new(binary().unwrap());
    command.args(["cleanup", "--wait", "--pin"]).arg(&pins);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut waiting = cluster.node(1).namespace.spawn(&mut command).unwrap();
    // The directory is made anew to be held: until then the agent's is being cleaned.
    let held = wait_until(Duration::from_secs(10), || {
        Ok(inode() != cleaned && is_locked(&pins) && names(&pins).is_empty())
    });
    assert!(held.unwrap(), "{:?}", names(&pins));
    assert_open(&cluster, "b", "a");

    let manifests = cluster.manifests().to_str().unwrap().to_owned();
    let state = cluster
        .rig
        .directory()
        .join("second")
        .to_str()
        .unwrap()
        .to_owned();
    let agent = [
        "--manifests",
        &manifests,
        "--node",
        "node-1",
        "--state",
        &state,
        "--once",
    ];
    let refused = cluster.node(1).netpol("run", &agent).unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(
        (refused.status.code(), said.contains("another")),
        (Some(2), true),
        "{said}"
    );
    assert_open(&cluster, "b", "a");

    waiting.signal(Signal::SIGTERM).unwrap();
    assert!(waiting.wait(Duration::from_secs(10)).unwrap().success());
    assert!(!pins.exists());
}

/// Who cleans the wrong place is told so, and the nodes that share the file system are left alone.
#[test]
fn cleanup_refuses_to_call_clean_what_is_pinned_elsewhere() {
    let pods = [app("a", 1, 10), app("b", 2, 11)];
    let mut cluster = town(2, Options::default(), &pods);
    cluster.write(&text(&pods, &[ingress("a", &[])])).unwrap();
    cluster.start().unwrap();
    let _servers = serve(&cluster, &["a"]);
    for node in [1, 2] {
        cluster.node_mut(node).kill_agent().unwrap();
    }
    let clean = |cluster: &Cluster, pin: &str, wait: &[&str]| {
        let mut command = Command::new(binary().unwrap());
        command
            .args(["cleanup", "--pin", pin])
            .args(wait)
            .stdin(Stdio::null());
        let done = cluster.node(1).namespace.run(|| command.output()).unwrap();
        (done.status.code(), String::from_utf8(done.stderr).unwrap())
    };
    let pins = [1, 2].map(|node| cluster.node(node).pins.to_str().unwrap().to_owned());
    let wrong = cluster.rig.pins().join("mistyped");
    for wait in [&[][..], &["--wait"]] {
        let (code, said) = clean(&cluster, wrong.to_str().unwrap(), wait);
        let (refusal, left_alone) = (said.lines().last().unwrap(), &pins[1]);
        assert_eq!(code, Some(2), "{said}");
        assert!(
            refusal.contains(&pins[0]) && !refusal.contains(left_alone),
            "{said}"
        );
    }
    assert_closed(&cluster, "b", "a");
    // The node's own place is clean, whatever the other node has.
    assert_eq!(clean(&cluster, &pins[0], &[]).0, Some(0));
    assert_open(&cluster, "b", "a");
    assert!(!names(Path::new(&pins[1])).is_empty());
}
