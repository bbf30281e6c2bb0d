//! The agent dies, comes back, is replaced, finds other policies: under load.

use std::{fs, net::SocketAddr, time::Instant};

use netpol_tests::{
    cluster::{Cluster, Options, binary, count},
    net::{Outcome, Probe, probe_all},
    town::{SILENCE, addresses, app, endpoints, ingress, namespace, serve, text, town},
};
use nix::sys::signal::Signal;

use netpol_tests::town::load::{Load, PAUSE, pods, policies};

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
