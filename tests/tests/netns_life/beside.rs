//! Somebody else's TCX programs on our devices: they are asked after ours, are not touched, and outlive us.
//! (Filters of a clsact qdisc: see `cleanup`.)

use std::{net::SocketAddr, time::Duration};

use aya::programs::{LinkOrder, TcAttachType};
use netpol_tests::{
    cluster::{Cluster, Options},
    net::wait_until,
    program::foreign::{self, Foreign, NAME, NEXT, PASS},
    town::{addresses, app, assert_closed, assert_open, ingress, namespace, serve, text, town},
};
use nix::sys::signal::Signal;

const HOOKS: [TcAttachType; 2] = [TcAttachType::Ingress, TcAttachType::Egress];

/// `server`, which takes `good` only; `bad` is on the node, too.
fn begin() -> (Cluster, String) {
    let pods = [app("server", 1, 10), app("good", 1, 11), app("bad", 1, 12)];
    let mut cluster = town(1, Options::default(), &pods);
    cluster
        .write(&text(&pods, &[ingress("server", &["good"])]))
        .unwrap();
    let device = cluster.pod("default/server").host.clone();
    (cluster, device)
}

fn order(cluster: &Cluster, device: &str, hook: TcAttachType) -> Vec<String> {
    foreign::order(&cluster.node(1).namespace, device, hook).unwrap()
}

/// What `good` and `bad` send to `server`, as always.
#[track_caller]
fn assert_enforced(cluster: &Cluster) {
    assert_open(cluster, "good", "server");
    assert_closed(cluster, "bad", "server");
}

const DATAGRAMS: u32 = 200;

/// So many datagrams, all of which are dropped at the receiver.
fn flood(cluster: &Cluster, from: &str, to: &str) {
    let before = cluster.node(1).drops();
    let socket = namespace(cluster, from)
        .udp("0.0.0.0:0".parse().unwrap())
        .unwrap();
    let to = SocketAddr::new(addresses(cluster, to)[0], 53);
    for _ in 0..DATAGRAMS {
        socket.send_to(b"?", to).unwrap();
    }
    let dropped = || {
        cluster
            .node(1)
            .drops()
            .since(&before)
            .of("default/server", "denied-ingress")
    };
    let all = wait_until(Duration::from_secs(5), || Ok(dropped() >= u64::from(DATAGRAMS)));
    assert!(all.unwrap(), "{} were dropped", dropped());
}

#[test]
fn programs_that_were_there_come_after_ours_and_stay() {
    let (mut cluster, device) = begin();
    let uplink = cluster.options.uplink.device();
    let attach = |device: &str| {
        HOOKS.map(|hook| {
            Foreign::attach(
                &cluster.node(1).namespace,
                device,
                hook,
                NEXT,
                LinkOrder::default(),
            )
            .unwrap()
        })
    };
    let (theirs, outside) = (attach(&device), attach(uplink));
    let _servers = serve(&cluster, &["server"]);
    cluster.start().unwrap();
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        for (device, ours) in [(&*device, ["from_pod", "to_pod"]), (uplink, ["arrive", "settle"])] {
            for (hook, ours) in HOOKS.into_iter().zip(ours) {
                assert_eq!(order(&cluster, device, hook), [ours, NAME], "{device}");
            }
        }
        let before = theirs.each_ref().map(|program| program.seen().unwrap());
        flood(&cluster, "bad", "server");
        let denied = theirs[1].seen().unwrap() - before[1];
        // Of each, but for address resolution.
        assert!(
            denied < u64::from(DATAGRAMS) / 2,
            "asked about {denied} of {DATAGRAMS} that we have dropped"
        );
        assert_open(&cluster, "good", "server");
        for (program, before) in theirs.iter().zip(before) {
            assert!(program.seen().unwrap() > before, "not asked about what passes");
        }
        cluster.node_mut(1).end_agent(signal).unwrap();
        cluster.start().unwrap();
    }
    cluster.node_mut(1).kill_agent().unwrap();
    let removed = cluster.node(1).netpol("cleanup", &[]).unwrap();
    assert!(removed.status.success(), "{removed:?}");
    for device in [&*device, uplink] {
        for hook in HOOKS {
            assert_eq!(order(&cluster, device, hook), [NAME], "{device}");
        }
    }
    let before = theirs[1].seen().unwrap();
    assert_open(&cluster, "bad", "server");
    assert!(theirs[1].seen().unwrap() > before, "not asked any more");
    assert!(outside[0].seen().is_ok());
}

/// Where somebody puts a program before ours, it stays there: ours is replaced in its place. One that passes packets for good
/// takes them out of our hands, which is its owner's choice and said in `docs/operations.md`.
#[test]
fn programs_put_before_ours_stay_before() {
    let (mut cluster, device) = begin();
    let _servers = serve(&cluster, &["server"]);
    cluster.start().unwrap();
    let before = |verdict| {
        let namespace = &cluster.node(1).namespace;
        Foreign::attach(
            namespace,
            &device,
            TcAttachType::Egress,
            verdict,
            LinkOrder::first(),
        )
        .unwrap()
    };
    let first = before(NEXT);
    assert_eq!(order(&cluster, &device, TcAttachType::Egress), [NAME, "to_pod"]);
    assert_enforced(&cluster);
    assert!(first.seen().unwrap() > 0);
    let passes = before(PASS);
    assert_open(&cluster, "bad", "server");
    drop(passes);
    assert_enforced(&cluster);
    cluster.node_mut(1).kill_agent().unwrap();
    cluster.start().unwrap();
    assert_eq!(order(&cluster, &device, TcAttachType::Egress), [NAME, "to_pod"]);
    assert_enforced(&cluster);
}
