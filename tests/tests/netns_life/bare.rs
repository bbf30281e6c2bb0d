//! An outside device without link layer, as a VPN's or a tunnel's: packets begin with the IP header.

use std::time::Duration;

use netpol_tests::{
    cluster::Options,
    net::{Outcome, Probe, Responder, Transport, Tunnel, probe_all, wait_until},
};

use netpol_tests::town::{
    ANSWER, SILENCE, app, assert_open, egress, endpoints, ingress, namespace, serve, text, town,
};

/// The far end of the tunnel.
const FAR: [&str; 2] = ["203.0.113.5", "2001:db8:5::5"];
const ALLOWED: [&str; 2] = ["203.0.113.5/32", "2001:db8:5::5/128"];

#[test]
fn isolation_holds_over_a_device_without_link_layer() {
    // `a` may go to the far end and takes nothing, `b` goes nowhere and takes what comes from the far end.
    let pods = [app("a", 1, 10), app("b", 1, 11), app("c", 1, 12)];
    let policies = [
        ingress("a", &[]),
        egress("a", &ALLOWED),
        ingress("b", &ALLOWED),
        egress("b", &[]),
    ];
    let mut cluster = town(1, Options::default(), &pods);
    cluster.write(&text(&pods, &policies)).unwrap();
    cluster.start().unwrap();
    // The agent runs already: the device is announced to it.
    let node = &cluster.node(1).namespace;
    let _tunnel = Tunnel::join(node, &cluster.outside, "tun0").unwrap();
    let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
    node.ip_batch(lines(&[
        "link set tun0 up",
        "route add 203.0.113.0/24 dev tun0",
        "route add 2001:db8:5::/64 dev tun0",
    ]))
    .unwrap();
    cluster
        .outside
        .ip_batch(lines(&[
            "addr add 203.0.113.5/32 dev lo",
            "addr add 2001:db8:5::5/128 dev lo nodad",
            "link set lo up",
            "link set tun0 up",
            "route replace 10.244.1.0/24 dev tun0 src 203.0.113.5",
            "route replace fd00:244:1::/64 dev tun0 src 2001:db8:5::5",
        ]))
        .unwrap();
    let attached = || {
        let status = cluster.node(1).status();
        let devices = status["agent"]["devices"].as_array();
        devices.into_iter().flatten().any(|device| {
            device["name"] == "tun0" && device["programs"].as_array().is_some_and(|all| all.len() == 2)
        })
    };
    assert!(wait_until(Duration::from_secs(10), || Ok(attached())).unwrap());

    let _pods = serve(&cluster, &["a", "b", "c"]);
    let far = FAR.map(|address| address.parse::<std::net::IpAddr>().unwrap());
    let far = far.into_iter().flat_map(|address| {
        [
            (Transport::Tcp, (address, 80).into()),
            (Transport::Udp, (address, 53).into()),
        ]
    });
    let far: Vec<_> = far.collect();
    let _far = Responder::start(&cluster.outside, "far", far.clone()).unwrap();
    let probes: Vec<_> = far
        .into_iter()
        .map(|(transport, address)| Probe::new(transport, address))
        .collect();
    let before = cluster.node(1).drops();
    for pod in ["a", "c"] {
        let outcomes = probe_all(namespace(&cluster, pod), &probes, ANSWER);
        assert_eq!(outcomes, vec![Outcome::Answered("far".into()); 4], "{pod} → far");
    }
    for pod in ["b", "c"] {
        assert_open(&cluster, "outside", pod);
    }
    let since = cluster.node(1).drops().since(&before);
    assert!(since.is_empty(), "{since:?}");
    let outcomes = probe_all(namespace(&cluster, "b"), &probes, SILENCE);
    assert_eq!(outcomes, vec![Outcome::Silent; 4], "b → far");
    let to_a: Vec<_> = endpoints(&cluster, "a")
        .into_iter()
        .map(|(transport, address)| Probe::new(transport, address))
        .collect();
    let outcomes = probe_all(&cluster.outside, &to_a, SILENCE);
    assert_eq!(outcomes, vec![Outcome::Silent; 4], "far → a");
    let since = cluster.node(1).drops().since(&before);
    assert_eq!(since.of("default/b", "denied-egress"), 4, "{since:?}");
    assert_eq!(since.of("default/a", "denied-ingress"), 4, "{since:?}");
    assert_eq!(since.total(), 8, "{since:?}");
}
