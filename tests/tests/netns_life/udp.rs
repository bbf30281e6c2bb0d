//! UDP as DNS has it: many short conversations, answers after seconds, several servers, none at all.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, UdpSocket},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use netpol_tests::cluster::{Cluster, Options};

use netpol_tests::town::{SILENCE, addresses, app, egress, ingress, namespace, text, town};

/// How long a slow server thinks.
const SLOW: Duration = Duration::from_millis(2500);

/// Answers `questions` datagrams on port 53, each `after` it came; no more.
fn server(cluster: &Cluster, name: &str, v4: bool, questions: usize, after: Duration) -> JoinHandle<()> {
    let socket = namespace(cluster, name)
        .udp((addresses(cluster, name)[usize::from(!v4)], 53).into())
        .unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    std::thread::spawn(move || {
        let mut pending = Vec::new();
        let mut buffer = [0; 64];
        for _ in 0..questions {
            let (len, from) = socket.recv_from(&mut buffer).expect("a question");
            pending.push((Instant::now() + after, buffer[..len].to_vec(), from));
        }
        for (when, question, from) in pending {
            std::thread::sleep(when.saturating_duration_since(Instant::now()));
            socket.send_to(&question, from).expect("an answer");
        }
    })
}

fn client(cluster: &Cluster, v4: bool) -> UdpSocket {
    let any: SocketAddr = if v4 { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
    namespace(cluster, "client").udp(any).unwrap()
}

/// A pod that is isolated both ways and may ask `near` (its own node) and `far`, and the outside host; not `other`.
fn isolated_client(arguments: &[&str]) -> Cluster {
    let pods = [
        app("client", 1, 10),
        app("near", 1, 11),
        app("far", 2, 20),
        app("other", 2, 21),
    ];
    let options = Options {
        arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
        ..Options::default()
    };
    let mut cluster = town(2, options, &pods);
    let policies = [
        ingress("client", &[]),
        egress("client", &["near", "far", "172.18.0.100/32", "fd00:18::100/128"]),
        // Servers that open nothing: their answers pass as answers only.
        egress("near", &[]),
        egress("far", &[]),
    ];
    cluster.write(&text(&pods, &policies)).unwrap();
    cluster.start().unwrap();
    cluster
}

#[test]
fn many_short_conversations_are_answered_after_seconds() {
    let cluster = isolated_client(&[]);
    let names = ["near", "far", "outside"];
    let each = 100;
    let mut servers = Vec::new();
    let mut sockets = Vec::new();
    for v4 in [true, false] {
        for name in names {
            servers.push(server(&cluster, name, v4, each, SLOW));
            let to = SocketAddr::new(addresses(&cluster, name)[usize::from(!v4)], 53);
            for number in 0..each as u64 {
                let socket = client(&cluster, v4);
                socket.connect(to).unwrap();
                socket.send(&number.to_be_bytes()).unwrap();
                sockets.push((name, number, socket));
            }
        }
    }
    for (name, number, socket) in sockets {
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut answer = [0; 8];
        socket
            .recv(&mut answer)
            .unwrap_or_else(|error| panic!("{name}, {number}: {error}"));
        assert_eq!(u64::from_be_bytes(answer), number, "{name}");
    }
    servers.into_iter().for_each(|server| server.join().unwrap());
    for node in [1, 2] {
        assert!(
            cluster.node(node).drops().is_empty(),
            "{:?}",
            cluster.node(node).drops()
        );
    }
}

#[test]
fn several_servers_answer_one_socket_and_nobody_else_does() {
    let cluster = isolated_client(&[]);
    for v4 in [true, false] {
        let socket = client(&cluster, v4);
        let names = ["near", "far", "outside"];
        let of = |name: &str| SocketAddr::new(addresses(&cluster, name)[usize::from(!v4)], 53);
        let servers = names.map(|name| server(&cluster, name, v4, 1, SLOW));
        for name in names {
            socket.send_to(b"question", of(name)).unwrap();
        }
        // One that may not be asked hears nothing, and one that was not asked can not answer.
        let stranger = namespace(&cluster, "other").udp(of("other")).unwrap();
        stranger.set_read_timeout(Some(SILENCE)).unwrap();
        socket.send_to(b"question", of("other")).unwrap();
        assert!(
            stranger.recv(&mut [0; 8]).is_err(),
            "a server that may not be asked was asked"
        );
        let me = SocketAddr::new(
            addresses(&cluster, "client")[usize::from(!v4)],
            socket.local_addr().unwrap().port(),
        );
        stranger.send_to(b"answer", me).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let answers: BTreeSet<SocketAddr> = names
            .iter()
            .map(|_| socket.recv_from(&mut [0; 8]).unwrap().1)
            .collect();
        assert_eq!(answers, names.iter().map(|name| of(name)).collect());
        socket.set_read_timeout(Some(SILENCE)).unwrap();
        assert!(socket.recv(&mut [0; 8]).is_err(), "somebody else answered");
        servers.into_iter().for_each(|server| server.join().unwrap());
    }
    let drops = cluster.node(1).drops();
    assert_eq!(
        [
            drops.of("default/client", "denied-egress"),
            drops.of("default/client", "denied-ingress"),
            drops.total()
        ],
        [2, 2, 4],
        "{drops:?}"
    );
}

#[test]
fn an_answer_that_comes_too_late_is_no_answer() {
    let cluster = isolated_client(&["--timeout", "unanswered=1"]);
    for name in ["near", "far", "outside"] {
        let to = SocketAddr::new(addresses(&cluster, name)[0], 53);
        let questions = 3;
        let server = server(&cluster, name, true, questions, SLOW);
        let sockets: Vec<_> = (0..questions).map(|_| client(&cluster, true)).collect();
        let before = cluster.node(1).drops();
        for socket in &sockets {
            socket.send_to(b"question", to).unwrap();
        }
        server.join().unwrap();
        for socket in &sockets {
            socket.set_read_timeout(Some(SILENCE)).unwrap();
            assert!(
                socket.recv(&mut [0; 8]).is_err(),
                "{name} answered after the time"
            );
        }
        let drops = cluster.node(1).drops().since(&before);
        // Here both ends refuse it: the server opens nothing, the client takes nothing.
        let denied = drops.all("denied-egress") + drops.all("denied-ingress");
        let expected = if name == "far" { 0 } else { 3 };
        assert_eq!((denied, drops.total()), (expected, expected), "{name}: {drops:?}");
    }
    let far = cluster.node(2).drops();
    assert_eq!(
        (far.of("default/far", "denied-egress"), far.total()),
        (3, 3),
        "{far:?}"
    );
}
