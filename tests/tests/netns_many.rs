//! Ten thousand policies in one edit, under load; signals in the middle of writing them.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};

use aya::maps::{
    Map, MapData,
    lpm_trie::{Key, LpmTrie},
};
use netpol_common::{ABI, event::maps};
use netpol_tests::{
    cluster::{Cluster, Options},
    net::{Outcome, Probe, probe, wait_until},
    town::{ANSWER, SILENCE, addresses, app, assert_closed, assert_open, ingress, policy, serve, text, town},
};
use nix::sys::signal::Signal;

use netpol_tests::town::load::{Load, pods, policies};

/// One of many nets outside, each of a policy of its own.
fn net(first: u8, number: u32) -> [u8; 4] {
    let [_, _, high, low] = number.to_be_bytes();
    [first, high, low, 0]
}

/// `server` may be asked on one port by each of `count` nets of `first`/8: TCP 80 by every fiftieth, others by the rest.
fn many(first: u8, count: u32) -> Vec<String> {
    (0..count)
        .map(|number| {
            let [a, b, c, d] = net(first, number);
            policy(
                &format!("many-{first}-{number}"),
                &format!(
                    "{{podSelector: {{matchLabels: {{app: server}}}}, policyTypes: [Ingress], ingress: [{{from: \
                     [{{ipBlock: {{cidr: {a}.{b}.{c}.{d}/24}}}}], ports: [{{port: {}}}]}}]}}",
                    80 + number % 50
                ),
            )
        })
        .collect()
}

/// The outside host is in these nets, too.
fn live_in(cluster: &Cluster, nets: &[[u8; 4]]) {
    for [a, b, c, _] in nets {
        let address = IpAddr::from([*a, *b, *c, 9]);
        cluster.outside.address("eth0", address, 32).unwrap();
        let route = format!("route add {address} via 172.18.0.100");
        cluster.node(1).namespace.ip(&route).unwrap();
    }
}

/// Whether `server` answers the outside host's address in this net on TCP port 80.
fn answers(cluster: &Cluster, [a, b, c, _]: [u8; 4], timeout: Duration) -> bool {
    let to = SocketAddr::new(addresses(cluster, "server")[0], 80);
    let asked = Probe {
        from: Some([a, b, c, 9].into()),
        ..Probe::tcp(to)
    };
    match probe(&cluster.outside, asked, timeout) {
        Outcome::Answered(_) => true,
        Outcome::Silent => false,
        other => panic!("from {a}.{b}.{c}.9: {other:?}"),
    }
}

const MANY: u32 = 10_000;

#[test]
fn ten_thousand_policies_at_once_come_and_go_whole() {
    let pods = pods();
    let mut cluster = town(2, Options::default(), &pods);
    cluster.write(&text(&pods, &policies())).unwrap();
    cluster.start().unwrap();
    // The first and the last that are asked on port 80; one that is asked on another; one of no policy.
    let allowed = [net(20, 0), net(20, MANY - 50)];
    let denied = [net(20, MANY - 49), net(20, MANY)];
    live_in(&cluster, &[&allowed[..], &denied].concat());
    let load = Load::start(&cluster);
    load.go_on("at first");
    let all = [policies(), many(20, MANY)].concat();
    let check = |cluster: &Cluster, when: &str| {
        for net in allowed {
            assert!(answers(cluster, net, ANSWER), "{when}: {net:?}");
        }
        for net in denied {
            assert!(!answers(cluster, net, SILENCE), "{when}: {net:?}");
        }
        load.go_on(when);
    };
    let begun = Instant::now();
    cluster.apply(&text(&pods, &all)).unwrap();
    eprintln!("{MANY} policies were in force after {:?}", begun.elapsed());
    check(&cluster, "with all of them");
    cluster.node_mut(1).kill_agent().unwrap();
    cluster.start().unwrap();
    check(&cluster, "after a restart");
    cluster.apply(&text(&pods, &policies())).unwrap();
    for net in allowed {
        assert!(!answers(&cluster, net, SILENCE), "without them: {net:?}");
    }
    load.go_on("without them");
    load.end();
}

#[test]
fn ten_thousand_policies_that_do_not_fit_change_nothing_and_are_named() {
    let pods = pods();
    let options = Options {
        arguments: ["--map-size", "nets4=5000"].map(str::to_owned).to_vec(),
        ..Options::default()
    };
    let mut cluster = town(2, options, &pods);
    cluster.write(&text(&pods, &policies())).unwrap();
    cluster.start().unwrap();
    let load = Load::start(&cluster);
    load.go_on("at first");
    cluster
        .write(&text(&pods, &[policies(), many(20, MANY)].concat()))
        .unwrap();
    let error = |cluster: &Cluster| {
        let status = cluster.node(1).status();
        let errors = status["agent"]["errors"].as_array().cloned().unwrap_or_default();
        errors
            .iter()
            .map(|error| error["error"].to_string())
            .collect::<String>()
    };
    let told = wait_until(Duration::from_secs(60), || Ok(!error(&cluster).is_empty())).unwrap();
    assert!(told, "nothing is said to be wrong");
    let said = error(&cluster);
    for part in [
        "map nets4 is too small",
        "default/many-20-",
        "--map-size nets4=32768",
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    assert_eq!(
        cluster.node(1).netpol("status", &[]).unwrap().status.code(),
        Some(1)
    );
    load.go_on("as before");
    cluster.apply(&text(&pods, &policies())).unwrap();
    assert_eq!(error(&cluster), "");
    load.go_on("with fewer");
    load.end();
}

/// The classes of nets that are in the kernel.
fn written(pins: &Path) -> LpmTrie<MapData, [u8; 4], u32> {
    let map = MapData::from_pin(pins.join(format!("v{ABI}/maps")).join(maps::NETS4)).unwrap();
    LpmTrie::try_from(Map::from_map_data(map).unwrap()).unwrap()
}

/// Two policies take turns, each with many nets of its own, so that it takes a while to write them. As soon as the first of
/// the new nets is seen in the kernel, the agent is told to end.
fn end_while_it_writes(signal: Signal) -> [usize; 2] {
    const NETS: u32 = 4_000;
    let pods = [app("server", 1, 10), app("good", 1, 11), app("bad", 1, 12)];
    let mut cluster = town(1, Options::default(), &pods);
    let side = |even: bool| {
        let (client, first) = if even { ("good", 20) } else { ("bad", 21) };
        [vec![ingress("server", &[client])], many(first, NETS)].concat()
    };
    cluster.write(&text(&pods, &side(true))).unwrap();
    cluster.start().unwrap();
    let _servers = serve(&cluster, &["server"]);
    let ends = [net(20, 0), net(20, NETS - 50), net(21, 0), net(21, NETS - 50)];
    live_in(&cluster, &ends);
    let mut even = true;
    let mut outcomes = [0, 0];
    for _ in 0..8 {
        let wanted = !even;
        cluster.write(&text(&pods, &side(wanted))).unwrap();
        let classes = written(&cluster.node(1).pins);
        let new = if wanted { 20 } else { 21 };
        let some: Vec<_> = (0..NETS)
            .step_by(97)
            .map(|number| Key::new(24, net(new, number)))
            .collect();
        let end = Instant::now() + Duration::from_secs(60);
        while !some.iter().any(|key| classes.get(key, 0).is_ok()) {
            assert!(Instant::now() < end, "nothing is written");
        }
        let status = cluster.node_mut(1).end_agent(signal).unwrap();
        assert_eq!(status.success(), signal == Signal::SIGTERM, "{status}");
        // All of one and nothing of the other.
        let now = netpol_tests::town::ask(&cluster, "good", "server", SILENCE)[0] != Outcome::Silent;
        let (open, closed) = if now { ("good", "bad") } else { ("bad", "good") };
        assert_open(&cluster, open, "server");
        assert_closed(&cluster, closed, "server");
        for net in ends {
            let allowed = (net[0] == 20) == now;
            let timeout = if allowed { ANSWER } else { SILENCE };
            assert_eq!(answers(&cluster, net, timeout), allowed, "{net:?}, even: {now}");
        }
        outcomes[usize::from(now == wanted)] += 1;
        cluster.start().unwrap();
        let open = if wanted { "good" } else { "bad" };
        assert_open(&cluster, open, "server");
        even = wanted;
    }
    eprintln!(
        "{signal}: {} ended before the flip, {} after it",
        outcomes[0], outcomes[1]
    );
    outcomes
}

/// What was begun is finished first.
#[test]
fn an_agent_told_to_end_while_it_writes_finishes_what_it_began() {
    assert_eq!(end_while_it_writes(Signal::SIGTERM), [0, 8]);
}

#[test]
fn an_agent_killed_while_it_writes_leaves_all_or_nothing() {
    let [before, after] = end_while_it_writes(Signal::SIGKILL);
    assert_eq!(before + after, 8);
    assert!(before > 0, "none was killed in the middle");
}
