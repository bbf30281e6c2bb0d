//! TCP connections from their first packet to their last: ends, reuse, both ends at once, long silence.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use netpol_tests::{
    cluster::{Cluster, Options},
    net::{Namespace, Outcome, Probe, probe},
};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket,
    sockopt::{Linger, ReuseAddr},
};

use netpol_tests::town::{ANSWER, SILENCE, addresses, app, egress, ingress, namespace, text, town};

/// `a` may open connections to `far` and nobody else; `far` takes those of `a` and opens none itself. Of each node one, so
/// that replies are recognised at a pod and at the outside; `near` is as `far`, but on the node of `a`.
fn pair(arguments: &[&str]) -> Cluster {
    let pods = [app("a", 1, 10), app("far", 2, 20), app("near", 1, 11)];
    let options = Options {
        arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
        ..Options::default()
    };
    let mut cluster = town(2, options, &pods);
    let mut policies = vec![ingress("a", &[]), egress("a", &["far", "near"])];
    policies.extend(["far", "near"].map(|name| ingress(name, &["a"])));
    policies.extend(["far", "near"].map(|name| egress(name, &[])));
    cluster.write(&text(&pods, &policies)).unwrap();
    cluster.start().unwrap();
    cluster
}

fn at(cluster: &Cluster, name: &str, v4: bool, port: u16) -> SocketAddr {
    SocketAddr::new(addresses(cluster, name)[usize::from(!v4)], port)
}

fn open(cluster: &Cluster, to: &str, v4: bool) -> (TcpStream, TcpStream, TcpListener) {
    let address = at(cluster, to, v4, 80);
    let listener = namespace(cluster, to).listen(address).unwrap();
    let opened = namespace(cluster, "a").connect(address, ANSWER).unwrap();
    let accepted = listener.accept().unwrap().0;
    for stream in [&opened, &accepted] {
        stream.set_read_timeout(Some(ANSWER)).unwrap();
        stream.set_nodelay(true).unwrap();
    }
    (opened, accepted, listener)
}

#[track_caller]
fn send(from: &TcpStream, to: &TcpStream) {
    assert!(passes(from, to), "a word is lost");
}

fn passes(mut from: &TcpStream, mut to: &TcpStream) -> bool {
    from.write_all(b"word").is_ok() && to.read_exact(&mut [0; 4]).is_ok()
}

fn reset_on_close(stream: &TcpStream) {
    let linger = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(stream, Linger, &linger).unwrap();
}

#[test]
fn the_end_of_a_connection_is_heard_at_the_other_end() {
    let cluster = pair(&[]);
    for (to, v4) in [("far", true), ("far", false), ("near", true), ("near", false)] {
        for by_client in [true, false] {
            // In order: a FIN each way; what the other end still has to say arrives.
            let (opened, accepted, listener) = open(&cluster, to, v4);
            let (first, mut last) = if by_client {
                (opened, accepted)
            } else {
                (accepted, opened)
            };
            send(&first, &last);
            first.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(last.read(&mut [0; 8]).unwrap(), 0, "{to}: no FIN");
            send(&last, &first);
            drop(last);
            assert_eq!((&first).read(&mut [0; 8]).unwrap(), 0, "{to}: no FIN back");
            drop((first, listener));

            // At once: a reset.
            let (opened, accepted, _listener) = open(&cluster, to, v4);
            let (first, mut last) = if by_client {
                (opened, accepted)
            } else {
                (accepted, opened)
            };
            send(&first, &last);
            reset_on_close(&first);
            drop(first);
            let error = last.read(&mut [0; 8]).unwrap_err();
            assert_eq!(
                error.kind(),
                ErrorKind::ConnectionReset,
                "{to}: no RST, by the client: {by_client}"
            );
        }
    }
    // A refused connection: the reset answers the SYN.
    for to in ["far", "near"] {
        let refused = probe(
            namespace(&cluster, "a"),
            Probe::tcp(at(&cluster, to, true, 81)),
            ANSWER,
        );
        assert_eq!(refused, Outcome::Refused, "{to}");
    }
    for node in [1, 2] {
        let drops = cluster.node(node).drops();
        assert!(drops.is_empty(), "{drops:?}");
    }
}

/// A TCP socket bound to `from` that is not connected yet.
fn bound(namespace: &Namespace, from: SocketAddr) -> std::os::fd::OwnedFd {
    let family = if from.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = namespace
        .run(|| socket(family, SockType::Stream, flags, None))
        .unwrap();
    setsockopt(&fd, ReuseAddr, &true).unwrap();
    bind(fd.as_raw_fd(), &SockaddrStorage::from(from)).unwrap();
    fd
}

fn begin(fd: &std::os::fd::OwnedFd, to: SocketAddr) {
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => {}
        Err(error) => panic!("connect to {to}: {error}"),
    }
}

/// The stream of `fd` once the connection is there.
fn established(fd: std::os::fd::OwnedFd) -> TcpStream {
    let stream = TcpStream::from(fd);
    let end = Instant::now() + Duration::from_secs(8);
    while stream.peer_addr().is_err() {
        assert!(Instant::now() < end, "no connection: {:?}", stream.take_error());
        std::thread::sleep(Duration::from_millis(10));
    }
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(ANSWER)).unwrap();
    stream
}

#[test]
fn the_same_ports_serve_one_connection_after_another() {
    let cluster = pair(&[]);
    for to in ["far", "near"] {
        let address = at(&cluster, to, true, 80);
        let listener = namespace(&cluster, to).listen(address).unwrap();
        // Ended by a FIN from the server (which keeps the old connection's memory), by a reset from either.
        for (round, end) in ["fin", "server", "client", "fin"].into_iter().enumerate() {
            let fd = bound(namespace(&cluster, "a"), at(&cluster, "a", true, 40_000));
            begin(&fd, address);
            let opened = established(fd);
            let mut accepted = listener.accept().unwrap().0;
            accepted.set_read_timeout(Some(ANSWER)).unwrap();
            send(&opened, &accepted);
            send(&accepted, &opened);
            match end {
                "server" => reset_on_close(&accepted),
                "client" => reset_on_close(&opened),
                _ => {
                    accepted.shutdown(std::net::Shutdown::Write).unwrap();
                    assert_eq!((&opened).read(&mut [0; 8]).unwrap(), 0, "{to}, round {round}");
                    drop(opened);
                    assert_eq!(accepted.read(&mut [0; 8]).unwrap(), 0, "{to}, round {round}");
                    continue;
                }
            }
            let (first, mut last) = if end == "server" {
                (accepted, opened)
            } else {
                (opened, accepted)
            };
            drop(first);
            last.read(&mut [0; 8]).unwrap_err();
        }
    }
    let drops = cluster.node(1).drops();
    assert!(drops.is_empty(), "{drops:?}");
}

/// Both ends send a SYN before either has seen the other's: the first ones are held back on the way.
fn open_from_both_ends(cluster: &Cluster, one: &str, other: &str, port: u16) -> (TcpStream, TcpStream) {
    let hold = "table inet hold { chain out { type filter hook output priority 0; tcp flags syn tcp dport {4000, 4001} drop; }; }";
    let ends = [one, other].map(|name| namespace(cluster, name));
    ends.iter().for_each(|end| drop(end.nft(hold).unwrap()));
    let addresses = [one, other].map(|name| at(cluster, name, true, port));
    let sockets = [bound(ends[0], addresses[0]), bound(ends[1], addresses[1])];
    begin(&sockets[0], addresses[1]);
    begin(&sockets[1], addresses[0]);
    ends.iter()
        .for_each(|end| drop(end.nft("delete table inet hold").unwrap()));
    let [one, other] = sockets;
    (established(one), established(other))
}

/// `left` and each of the others open one connection at once, and both speak.
fn talk(cluster: &Cluster, what: &str, port: u16) {
    for other in ["right", "remote"] {
        let (one, two) = open_from_both_ends(cluster, "left", other, port);
        for (from, to) in [(&one, &two), (&two, &one)] {
            let drops = || [1, 2].map(|node| cluster.node(node).drops());
            assert!(passes(from, to), "{what}, with {other}: {:?}", drops());
        }
    }
}

#[test]
fn both_ends_may_open_one_connection_at_once() {
    let pods = [app("left", 1, 10), app("right", 1, 11), app("remote", 2, 20)];
    let mut cluster = town(2, Options::default(), &pods);
    let both = |name: &str, with: &[&str]| [ingress(name, with), egress(name, with)];
    let policies = [
        both("left", &["right", "remote"]),
        both("right", &["left"]),
        both("remote", &["left"]),
    ]
    .concat();
    cluster.write(&text(&pods, &policies)).unwrap();
    cluster.start().unwrap();
    talk(&cluster, "both may", 4000);
    // Where one end may not open it, the other's SYN does, and its answer is one.
    let policies = [
        ingress("left", &[]),
        egress("left", &["right", "remote"]),
        ingress("right", &["left"]),
        egress("right", &[]),
        ingress("remote", &["left"]),
        egress("remote", &[]),
    ];
    cluster.apply(&text(&pods, &policies)).unwrap();
    talk(&cluster, "one may", 4001);
}

#[test]
fn a_silent_connection_goes_on_until_its_time_is_over() {
    let cluster = pair(&["--timeout", "established=3"]);
    let mut connections = Vec::new();
    for to in ["far", "near"] {
        let (opened, accepted, _listener) = open(&cluster, to, true);
        send(&opened, &accepted);
        send(&accepted, &opened);
        connections.push((to, opened, accepted));
    }
    // Shorter than the time, twice, so that it counts from the last packet.
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(1800));
        for (_, opened, accepted) in &connections {
            send(accepted, opened);
        }
    }
    assert!(cluster.node(1).drops().is_empty() && cluster.node(2).drops().is_empty());
    // Longer: what comes then is judged as new. The initiator's end may open it still, the other may not.
    std::thread::sleep(Duration::from_millis(4300));
    for (to, opened, accepted) in &mut connections {
        accepted.write_all(b"word").unwrap();
        opened.set_read_timeout(Some(SILENCE)).unwrap();
        assert!(
            opened.read(&mut [0; 4]).is_err(),
            "{to}: a reply of a flow that is over"
        );
        opened.write_all(b"word").unwrap();
        accepted
            .read_exact(&mut [0; 4])
            .unwrap_or_else(|error| panic!("{to}: {error}"));
    }
    let drops = [1, 2].map(|node| cluster.node(node).drops());
    assert!(drops[0].of("default/near", "denied-egress") > 0, "{drops:?}");
    assert!(drops[1].of("default/far", "denied-egress") > 0, "{drops:?}");
}
