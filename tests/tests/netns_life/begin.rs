//! Isolation that begins on live connections: what the policy allows goes on, the rest is cut.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use netpol_tests::cluster::{Cluster, Options};

use netpol_tests::town::{ANSWER, SILENCE, addresses, app, namespace, policy, text, town};

/// Both ends of a conversation.
enum Pair {
    Tcp(TcpStream, TcpStream),
    Udp(UdpSocket, UdpSocket),
}

impl Pair {
    fn tcp(cluster: &Cluster, from: &str, to: &str, v4: bool) -> Self {
        let to_address = SocketAddr::new(addresses(cluster, to)[usize::from(!v4)], 80);
        let listener = namespace(cluster, to).listen(to_address).unwrap();
        let opened = namespace(cluster, from).connect(to_address, ANSWER).unwrap();
        Self::Tcp(opened, listener.accept().unwrap().0)
    }

    fn udp(cluster: &Cluster, from: &str, to: &str, v4: bool) -> Self {
        /// A port of the policies' for each conversation, below those that the kernel gives out.
        static PORT: AtomicU16 = AtomicU16::new(1000);
        let address = |name: &str| addresses(cluster, name)[usize::from(!v4)];
        let any: SocketAddr = if v4 { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
        let to_address = SocketAddr::new(address(to), PORT.fetch_add(1, Ordering::Relaxed));
        let answers = namespace(cluster, to).udp(to_address).unwrap();
        let opened = namespace(cluster, from).udp(any).unwrap();
        opened.connect(to_address).unwrap();
        let back = SocketAddr::new(address(from), opened.local_addr().unwrap().port());
        answers.connect(back).unwrap();
        let pair = Self::Udp(opened, answers);
        assert!(
            pair.forward(ANSWER) && pair.back(ANSWER),
            "{from} → {to}: no conversation"
        );
        pair
    }

    /// Whether a word of the initiator arrives.
    fn forward(&self, timeout: Duration) -> bool {
        match self {
            Self::Tcp(opened, accepted) => passes(opened, accepted, timeout),
            Self::Udp(opened, answers) => word(opened, answers, timeout),
        }
    }

    /// Whether a word of the other end arrives.
    fn back(&self, timeout: Duration) -> bool {
        match self {
            Self::Tcp(opened, accepted) => passes(accepted, opened, timeout),
            Self::Udp(opened, answers) => word(answers, opened, timeout),
        }
    }
}

fn passes(mut from: &TcpStream, mut to: &TcpStream, timeout: Duration) -> bool {
    to.set_read_timeout(Some(timeout)).unwrap();
    from.write_all(b"x").is_ok() && to.read_exact(&mut [0]).is_ok()
}

fn word(from: &UdpSocket, to: &UdpSocket, timeout: Duration) -> bool {
    to.set_read_timeout(Some(timeout)).unwrap();
    from.send(b"x").is_ok() && to.recv(&mut [0; 4]).is_ok()
}

/// Who opened a connection to whom before `db` was isolated, and whether it goes on.
const CONNECTIONS: [(&str, &str, bool); 8] = [
    // Inbound, allowed: from the same node and from another.
    ("api", "db", true),
    ("farapi", "db", true),
    // Inbound, not allowed.
    ("web", "db", false),
    ("outside", "db", false),
    // Opened by the pod, allowed by its egress. Their answers would not come in as connections of their own.
    ("db", "web", true),
    ("db", "outside", true),
    // Opened by the pod, not allowed.
    ("db", "api", false),
    ("db", "farapi", false),
];

/// By ports, so that no connection would be allowed from its other end.
fn policies() -> Vec<String> {
    let peer = |app: &str| format!("{{podSelector: {{matchLabels: {{app: {app}}}}}}}");
    let ports = "ports: [{port: 80}, {protocol: UDP, port: 1000, endPort: 9999}]";
    vec![policy(
        "db",
        &format!(
            "{{podSelector: {{matchLabels: {{app: db}}}}, policyTypes: [Ingress, Egress], \
             ingress: [{{from: [{}, {}], {ports}}}], \
             egress: [{{to: [{}, {{ipBlock: {{cidr: 172.18.0.100/32}}}}, {{ipBlock: {{cidr: \"fd00:18::100/128\"}}}}], {ports}}}]}}",
            peer("api"),
            peer("farapi"),
            peer("web")
        ),
    )]
}

/// As kube-proxy's rules do: conntrack follows what is forwarded.
const TRACK: &str =
    "table inet track { chain forward { type filter hook forward priority 0; ct state invalid counter; }; }";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Conntrack {
    Sees,
    Blind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Begin {
    /// A policy is added while the agent runs.
    NewPolicy,
    /// The agent's first start on a busy node.
    FirstStart,
}

fn play(conntrack: Conntrack, begin: Begin) {
    let pods = [
        app("db", 1, 10),
        app("api", 1, 11),
        app("web", 2, 20),
        app("farapi", 2, 21),
    ];
    let options = Options {
        bridge_nf: conntrack == Conntrack::Sees,
        ..Options::default()
    };
    let mut cluster = town(2, options, &pods);
    if conntrack == Conntrack::Sees {
        cluster.node(1).namespace.nft(TRACK).unwrap();
    }
    if begin == Begin::NewPolicy {
        cluster.write(&text(&pods, &[])).unwrap();
        cluster.start().unwrap();
    }
    let mut pairs = Vec::new();
    for (from, to, goes_on) in CONNECTIONS {
        for v4 in [true, false] {
            for (what, pair) in [
                ("TCP", Pair::tcp(&cluster, from, to, v4)),
                ("UDP", Pair::udp(&cluster, from, to, v4)),
            ] {
                // Without conntrack nobody knows who opened a UDP conversation: whoever speaks first from now on.
                let asks_first = what == "UDP" && conntrack == Conntrack::Blind;
                pairs.push((
                    format!("{what} {from} → {to}, IPv4: {v4}"),
                    pair,
                    goes_on,
                    asks_first,
                ));
            }
        }
    }
    cluster.write(&text(&pods, &policies())).unwrap();
    match begin {
        Begin::NewPolicy => cluster.wait().unwrap(),
        Begin::FirstStart => cluster.start().unwrap(),
    }
    // Those that go on first: where conntrack is blind they have five seconds to show themselves. The other end speaks
    // first: its words are the ones that need to be recognised.
    pairs.sort_by_key(|(_, _, goes_on, _)| !goes_on);
    let mut wrong = Vec::new();
    for (what, pair, goes_on, asks_first) in &pairs {
        let timeout = if *goes_on { ANSWER } else { SILENCE / 2 };
        let first = if *asks_first {
            pair.forward(timeout)
        } else {
            pair.back(timeout)
        };
        let second = if *asks_first {
            pair.back(timeout)
        } else {
            pair.forward(timeout)
        };
        if (first, second) != (*goes_on, *goes_on) {
            wrong.push(format!("{what}: {first}, {second}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}\n{:?}", cluster.node(1).drops());
}

#[test]
fn a_new_policy_where_conntrack_sees() {
    play(Conntrack::Sees, Begin::NewPolicy);
}

#[test]
fn a_new_policy_where_conntrack_is_blind() {
    play(Conntrack::Blind, Begin::NewPolicy);
}

#[test]
fn the_first_start_where_conntrack_sees() {
    play(Conntrack::Sees, Begin::FirstStart);
}

#[test]
fn the_first_start_where_conntrack_is_blind() {
    play(Conntrack::Blind, Begin::FirstStart);
}
