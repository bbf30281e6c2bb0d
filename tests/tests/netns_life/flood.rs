//! Floods of SYNs, twice as many as the table of openings has places: what is established goes on.

use std::{net::IpAddr, time::Duration};

use netpol_tests::{
    cluster::{Cluster, Options, Talk},
    net::{Namespace, Wire},
    packet::{Ether, Ip, Mac, tcp},
};

use netpol_tests::town::{
    ANSWER, addresses, app, assert_closed, egress, ingress, namespace, serve, text, town,
};

/// Places for flows that are not established, of each family.
const PLACES: u16 = 1024;

/// `victim` opens connections to everybody and takes those of `good`, `flooder` and the outside host; it is the one whose
/// flows need entries, both ways. The others open to it alone. `evil` may not.
fn cluster(quota: u32) -> Cluster {
    let pods = [
        app("victim", 1, 10),
        app("good", 1, 11),
        app("flooder", 1, 12),
        app("evil", 1, 13),
        app("far", 2, 20),
    ];
    let options = Options {
        arguments: vec![
            "--map-size".into(),
            format!("opening4={PLACES},opening6={PLACES}"),
            "--quota".into(),
            quota.to_string(),
        ],
        ..Options::default()
    };
    let mut cluster = town(2, options, &pods);
    let outside = ["172.18.0.100/32", "fd00:18::100/128"];
    let mut policies = vec![
        ingress(
            "victim",
            &["good", "flooder", "far", outside[0], outside[1], "198.18.0.0/15"],
        ),
        egress("victim", &["far", outside[0], outside[1]]),
    ];
    for name in ["good", "flooder"] {
        policies.extend([ingress(name, &[]), egress(name, &["victim", "far"])]);
    }
    cluster.write(&text(&pods, &policies)).unwrap();
    cluster.start().unwrap();
    cluster
}

/// Connections of all kinds: opened by a pod and taken by one, here and elsewhere.
fn talks(cluster: &Cluster) -> Vec<(String, Talk)> {
    let ways = [
        ("good", "victim"),
        ("far", "victim"),
        ("outside", "victim"),
        ("victim", "far"),
        ("victim", "outside"),
        ("good", "far"),
    ];
    let mut talks = Vec::new();
    for (from, to) in ways {
        for address in addresses(cluster, to) {
            let mut talk = Talk::open(namespace(cluster, from), (address, 80).into()).unwrap();
            assert!(talk.exchange(ANSWER).unwrap(), "{from} → {address}");
            talks.push((format!("{from} → {address}"), talk));
        }
    }
    talks
}

/// SYNs from `sources` to closed and open ports of `to`, each from another port, as frames on `device` of `namespace`.
fn flood(from: &Namespace, router: Mac, sources: &[IpAddr], to: IpAddr) {
    let wire = Wire::open(from, "eth0").unwrap();
    let ether = Ether::new(from.mac("eth0").unwrap(), router);
    for number in 0..2 * PLACES {
        let source = sources[usize::from(number) % sources.len()];
        let port = if number % 2 == 0 { 80 } else { 81 };
        let syn = Ip::new(source, to).tcp(20_000 + number, port, tcp::SYN, b"");
        wire.send(&ether.frame(&syn)).unwrap();
        if number % 64 == 0 {
            // As fast as a backlog of a thousand packets takes them.
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn play(quota: u32, attack: impl Fn(&Cluster, bool)) {
    let cluster = cluster(quota);
    let _servers = serve(&cluster, &["victim", "far", "outside"]);
    let mut talks = talks(&cluster);
    for v4 in [true, false] {
        attack(&cluster, v4);
        for (what, talk) in &mut talks {
            assert!(talk.exchange(ANSWER).unwrap(), "{what} broke, IPv4: {v4}");
        }
        assert_closed(&cluster, "evil", "victim");
    }
    // It was a flood: the openings of a pod took all places, or all that one pod may have at a time.
    let maps = cluster.node(1).status()["kernel"]["maps"].clone();
    let openings = maps
        .as_array()
        .unwrap()
        .iter()
        .filter(|map| map["name"].as_str().unwrap().starts_with("opening"));
    let entries: u64 = openings.map(|map| map["entries"].as_u64().unwrap()).sum();
    assert!(
        entries >= u64::from(quota.min(PLACES.into())) / 2,
        "no flood: {maps}"
    );
}

fn pod_floods(cluster: &Cluster, v4: bool) {
    let pick = |name: &str| addresses(cluster, name)[usize::from(!v4)];
    let victim = cluster.pod("default/victim").namespace.mac("eth0").unwrap();
    flood(
        namespace(cluster, "flooder"),
        victim,
        &[pick("flooder")],
        pick("victim"),
    );
}

#[test]
fn a_pod_that_floods_another_breaks_nobodys_connections() {
    play(4096, pod_floods);
}

#[test]
fn a_pod_past_its_quota_hurts_itself_only() {
    play(256, |cluster, v4| {
        pod_floods(cluster, v4);
        // The others' new connections are recorded still.
        for (from, to) in [("good", "victim"), ("good", "far"), ("far", "victim")] {
            let to_address = addresses(cluster, to)[usize::from(!v4)];
            let mut talk = Talk::open(namespace(cluster, from), (to_address, 80).into()).unwrap();
            assert!(talk.exchange(ANSWER).unwrap(), "{from} → {to} after the flood");
        }
    });
}

#[test]
fn a_flood_from_outside_breaks_nobodys_connections() {
    play(4096, |cluster, v4| {
        let router = cluster.node(1).namespace.mac("eth0").unwrap();
        // Sources that nobody answers for, and the outside host itself.
        let sources: Vec<IpAddr> = if v4 {
            (1..=64).map(|last| [198, 18, 0, last].into()).collect()
        } else {
            vec!["fd00:18::100".parse().unwrap()]
        };
        let victim = addresses(cluster, "victim")[usize::from(!v4)];
        flood(&cluster.outside, router, &sources, victim);
    });
}
