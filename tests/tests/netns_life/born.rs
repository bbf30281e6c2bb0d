//! A pod that starts while the agent is dead.

use std::net::SocketAddr;

use netpol_tests::{
    cluster::Options,
    net::{Outcome, Probe, probe},
};

use netpol_tests::town::{
    ANSWER, SILENCE, addresses, app, ask, assert_closed, assert_open, ingress, namespace, serve, text, town,
};

#[test]
fn a_pod_born_without_an_agent_gets_no_further_than_its_node_until_one_is_back() {
    let mut pods = vec![app("held", 1, 10), app("free", 1, 11), app("far", 2, 20)];
    let mut cluster = town(2, Options::default(), &pods);
    let policies = [ingress("held", &["far"])];
    cluster.write(&text(&pods, &policies)).unwrap();
    cluster.start().unwrap();
    cluster.node_mut(1).kill_agent().unwrap();

    pods.push(app("new", 1, 12));
    cluster.add_pod(&pods[3]).unwrap();
    let servers = serve(&cluster, &["held", "free", "far", "outside"]);

    // What it sends is dropped on the way to any other machine, and to any other pod: there even the questions for
    // link-layer addresses,
    for (to, leaves) in [("far", 4), ("outside", 4), ("held", 0), ("free", 0)] {
        let before = cluster.node(1).drops();
        assert_closed(&cluster, "new", to);
        let drops = cluster.node(1).drops().since(&before);
        assert_eq!(drops.of("-", "lost-mark"), leaves, "new → {to}: {drops:?}");
        assert!(
            drops.total() > 0 && drops.all("lost-mark") == drops.total(),
            "new → {to}: {drops:?}"
        );
    }
    // but for its own node.
    let gateway: SocketAddr = "10.244.1.1:81".parse().unwrap();
    let answer = probe(namespace(&cluster, "new"), Probe::tcp(gateway), ANSWER);
    assert_eq!(answer, Outcome::Refused);
    // Single datagrams come in, no answer gets out. (A pod of this node does not learn where to send them.)
    let inbox = namespace(&cluster, "new")
        .udp((addresses(&cluster, "new")[0], 53).into())
        .unwrap();
    for (from, arrives) in [("far", true), ("outside", true), ("free", false)] {
        let outcomes = ask(&cluster, from, "new", SILENCE);
        assert!(
            outcomes.iter().all(|outcome| !outcome.reached()),
            "{from} → new: {outcomes:?}"
        );
        inbox
            .set_read_timeout(Some(if arrives { ANSWER } else { SILENCE }))
            .unwrap();
        assert_eq!(inbox.recv(&mut [0; 8]).is_ok(), arrives, "{from} → new");
    }
    drop(inbox);

    // The agent is back, before it has heard of the pod and after.
    cluster.write(&text(&pods, &policies)).unwrap();
    cluster.start().unwrap();
    let _servers = (servers, serve(&cluster, &["new"]));
    // Questions for link-layer addresses that nobody answered so far: the kernel gives up on what waits for them.
    for name in ["new", "free"] {
        let pod = namespace(&cluster, name);
        pod.ip("neigh flush dev eth0 nud all").unwrap();
    }
    for (from, to) in [
        ("new", "free"),
        ("new", "far"),
        ("new", "outside"),
        ("free", "new"),
        ("far", "new"),
    ] {
        assert_open(&cluster, from, to);
    }
    let before = cluster.node(1).drops();
    assert_closed(&cluster, "new", "held");
    let drops = cluster.node(1).drops().since(&before);
    assert_eq!(
        (drops.of("default/held", "denied-ingress"), drops.total()),
        (4, 4),
        "{drops:?}"
    );
}
