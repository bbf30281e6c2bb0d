//! Addresses and names that change hands.

use std::{net::SocketAddr, time::Duration};

use netpol_tests::cluster::{self, Options, Talk};

use netpol_tests::town::{
    ANSWER, SILENCE, addresses, app, assert_closed, assert_open, egress, ingress, namespace, serve, text,
    town,
};

#[test]
fn a_pod_created_again_under_its_name_is_judged_by_its_new_labels() {
    let db = app("db", 1, 10);
    let client = |labels: &str| cluster::pod("default/client", 1, 11, labels);
    let mut cluster = town(1, Options::default(), &[db.clone(), client("app=api")]);
    let _server = serve(&cluster, &["db"]);
    let policies = [ingress("db", &["api"]), egress("db", &[])];
    cluster
        .write(&text(&[db.clone(), client("app=api")], &policies))
        .unwrap();
    cluster.start().unwrap();
    assert_open(&cluster, "client", "db");
    // The same name, the same addresses; what was known of its flows is not the new pod's.
    let again = |labels: &str| {
        let mut pod = client(labels);
        pod.uid = format!("again-{labels}").into();
        pod
    };
    for (labels, open) in [("app=web", false), ("app=api", true), ("app=other", false)] {
        let pod = again(labels);
        cluster.remove_pod("default/client");
        cluster.add_pod(&pod).unwrap();
        cluster.apply(&text(&[db.clone(), pod], &policies)).unwrap();
        if open {
            assert_open(&cluster, "client", "db");
        } else {
            let before = cluster.node(1).drops();
            assert_closed(&cluster, "client", "db");
            let drops = cluster.node(1).drops().since(&before);
            assert_eq!(drops.of("default/db", "denied-ingress"), 4, "{labels}: {drops:?}");
        }
    }
}

#[test]
fn flows_of_a_pod_are_not_those_of_the_next_with_its_address() {
    // `old` may be answered by the outside host; its address goes to `new`, which may not.
    let old = app("old", 1, 10);
    let new = app("new", 1, 10);
    let mut cluster = town(1, Options::default(), std::slice::from_ref(&old));
    let policies = [
        ingress("old", &[]),
        egress("old", &["172.18.0.100/32"]),
        ingress("new", &[]),
        egress("new", &[]),
    ];
    cluster
        .write(&text(std::slice::from_ref(&old), &policies))
        .unwrap();
    cluster.start().unwrap();
    let far: SocketAddr = "172.18.0.100:53".parse().unwrap();
    let outside = cluster.outside.udp(far).unwrap();
    let from = SocketAddr::new(addresses(&cluster, "old")[0], 4000);
    let word = |name: &str, cluster: &cluster::Cluster| {
        let socket = namespace(cluster, name).udp(from).unwrap();
        socket.set_read_timeout(Some(SILENCE)).unwrap();
        socket
    };
    let socket = word("old", &cluster);
    socket.send_to(b"?", far).unwrap();
    assert_eq!(outside.recv_from(&mut [0; 8]).unwrap(), (1, from));
    outside.send_to(b"!", from).unwrap();
    assert!(socket.recv(&mut [0; 8]).is_ok(), "no answer to the old pod");
    drop(socket);

    cluster.remove_pod("default/old");
    cluster.add_pod(&new).unwrap();
    cluster
        .apply(&text(std::slice::from_ref(&new), &policies))
        .unwrap();
    let socket = word("new", &cluster);
    let before = cluster.node(1).drops();
    outside.send_to(b"!", from).unwrap();
    assert!(socket.recv(&mut [0; 8]).is_err(), "an answer to the pod before");
    socket.send_to(b"?", far).unwrap();
    outside.set_read_timeout(Some(SILENCE)).unwrap();
    assert!(outside.recv(&mut [0; 8]).is_err(), "a flow of the pod before");
    let drops = cluster.node(1).drops().since(&before);
    assert_eq!(
        [
            drops.of("default/new", "denied-ingress"),
            drops.of("default/new", "denied-egress"),
            drops.total()
        ],
        [1, 1, 2],
        "{drops:?}"
    );
}

#[test]
fn a_completed_pod_has_lost_its_address_to_the_next() {
    let db = app("db", 1, 10);
    let job = app("job", 1, 11);
    let mut cluster = town(1, Options::default(), &[db.clone(), job.clone()]);
    let _server = serve(&cluster, &["db"]);
    let policies = [ingress("db", &["job"])];
    cluster
        .write(&text(&[db.clone(), job.clone()], &policies))
        .unwrap();
    cluster.start().unwrap();
    assert_open(&cluster, "job", "db");
    let to = SocketAddr::new(addresses(&cluster, "db")[0], 80);
    let mut talk = Talk::open(namespace(&cluster, "job"), to).unwrap();

    // The job is done, its object stays; what it allowed goes at once, and its network when the runtime gets to it.
    let mut done = job.clone();
    done.completed = true;
    cluster
        .write(&text(&[db.clone(), done.clone()], &policies))
        .unwrap();
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while talk.exchange(SILENCE).unwrap_or(false) {
        assert!(std::time::Instant::now() < end, "the job's connection goes on");
    }
    cluster.remove_pod("default/job");
    let next = app("next", 1, 11);
    cluster.add_pod(&next).unwrap();
    cluster
        .apply(&text(&[db.clone(), done, next.clone()], &policies))
        .unwrap();
    assert_closed(&cluster, "next", "db");
    // The other way round: what the next may do does not end with the completed one's object.
    let policies = [ingress("db", &["next"])];
    cluster.apply(&text(&[db, next], &policies)).unwrap();
    assert_open(&cluster, "next", "db");
    let mut talk = Talk::open(namespace(&cluster, "next"), to).unwrap();
    assert!(talk.exchange(ANSWER).unwrap());
}
