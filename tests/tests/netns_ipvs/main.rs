//! Beside kube-proxy's `ipvs` mode: a virtual server's packets come in as the node's own and leave as forwarded ones, and
//! both ends are judged by who they really are.

mod town;

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use netpol_tests::{
    cluster::{Policy, Talk, lacks_ipvs},
    harness::{self, Test},
    net::{patience, wait_until},
};

use self::town::{FAMILIES, NODE_PORTS, TARGET, To, Town, at};

const ANSWER: Duration = Duration::from_millis(1500);
/// How long to wait for what must not come.
const SILENCE: Duration = Duration::from_millis(500);

const NOBODY: &str = "nobody";

/// The policy of one pod.
fn of(pod: &str) -> Policy {
    Policy::new(&format!("t/{pod}"), &format!("app={pod}"))
}

/// One rule a protocol, for the backends' port.
fn egress_to(policy: Policy, port: u16, peers: &[&str]) -> Policy {
    ["TCP", "UDP", "SCTP"].iter().fold(policy, |policy, protocol| {
        policy.egress_on(&format!("{protocol}/{port}"), peers)
    })
}

/// One rule a protocol, for the backends' port.
fn ingress_from(policy: Policy, port: u16, peers: &[&str]) -> Policy {
    ["TCP", "UDP", "SCTP"].iter().fold(policy, |policy, protocol| {
        policy.ingress_on(&format!("{protocol}/{port}"), peers)
    })
}

fn without_policies_every_backend_answers(town: &mut Town) -> Result<()> {
    town.enforce(&[])?;
    let all = [To::Near, To::Far, To::Outside, To::Node1, To::Node2, To::Client];
    let names = ["near", "far", "outside", "node-1", "node-2", "client"];
    let of_node = [To::Near, To::Far, To::Client, To::Outside];
    let table = town.table(&[
        ("client", &all),
        ("other", &all),
        ("far", &all),
        ("node-1", &of_node),
    ]);
    assert_eq!(table[..3], [names; 3]);
    assert_eq!(table[3], ["near", "far", "client", "outside"]);
    for v4 in FAMILIES {
        let seen: BTreeSet<_> = town
            .connections("client", To::Both.front(v4), 4)
            .into_iter()
            .collect();
        assert_eq!(seen, ["near", "far"].map(str::to_owned).into(), "both in turn");
    }
    for node in [1, 2] {
        assert!(town.drops(node).is_empty(), "{:?}", town.drops(node));
    }
    Ok(())
}

/// The address that the client knows is in no policy, nor is its port.
fn egress_is_judged_by_the_pod_and_port_behind(town: &mut Town) -> Result<()> {
    let ask = |town: &Town| town.table(&[("client", &[To::Near, To::Far]), ("other", &[To::Near, To::Far])]);
    let others = ["near", "far"];
    let before = town.drops(1);
    for (what, policy, expected) in [
        (
            "near",
            egress_to(of("client"), TARGET, &["app=near"]),
            ["near", NOBODY],
        ),
        (
            "far",
            egress_to(of("client"), TARGET, &["app=far"]),
            [NOBODY, "far"],
        ),
        (
            "the Service's port",
            egress_to(of("client"), 80, &["app=near", "app=far"]),
            [NOBODY; 2],
        ),
        (
            "the Services' addresses",
            of("client").egress(&["10.96.0.0/16", "fd00:10:96::/64"]),
            [NOBODY; 2],
        ),
    ] {
        town.enforce(&[policy])?;
        assert_eq!(ask(town), [expected, others], "egress to {what}");
    }
    assert!(town.drops(1).since(&before).of("t/client", "denied-egress") > 0);
    // Each connection by where it goes.
    town.enforce(&[egress_to(of("client"), TARGET, &["app=near"])])?;
    for v4 in FAMILIES {
        let seen = town.connections("client", To::Both.front(v4), 6);
        let of = |name: &str| seen.iter().filter(|answer| *answer == name).count();
        assert_eq!((of("near"), of(NOBODY)), (3, 3), "{seen:?}");
    }
    Ok(())
}

fn ingress_is_judged_by_the_client_and_the_port_behind(town: &mut Town) -> Result<()> {
    let both = |policy: fn(Policy) -> Policy| ["near", "far"].map(|pod| policy(of(pod)));
    let ask = |town: &Town| town.table(&[("client", &[To::Near, To::Far]), ("other", &[To::Near, To::Far])]);
    let before = [1, 2].map(|node| town.drops(node));
    town.enforce(&both(|policy| ingress_from(policy, TARGET, &["app=client"])))?;
    assert_eq!(ask(town), [["near", "far"], [NOBODY; 2]]);
    for (node, pod) in [(1, "t/near"), (2, "t/far")] {
        let drops = town.drops(node).since(&before[node - 1]);
        assert!(drops.of(pod, "denied-ingress") > 0, "{drops:?}");
    }
    town.enforce(&both(|policy| ingress_from(policy, 80, &["app=client"])))?;
    assert_eq!(ask(town), [[NOBODY; 2]; 2], "only the Service's port");
    Ok(())
}

/// All ends are isolated in the direction of the answers, so they pass only as answers.
fn answers_pass_and_a_revoked_connection_is_cut(town: &mut Town) -> Result<()> {
    let closed = [
        ingress_from(of("near"), TARGET, &["app=client"]).egress(&[]),
        ingress_from(of("far"), TARGET, &["app=client"]).egress(&[]),
    ];
    let with = |peers: &[&str]| {
        [
            &closed[..],
            &[egress_to(of("client"), TARGET, peers).ingress(&[])],
        ]
        .concat()
    };
    town.enforce(&with(&["app=near", "app=far"]))?;
    assert_eq!(town.table(&[("client", &[To::Near, To::Far])]), [["near", "far"]]);
    let mut talks = Vec::new();
    for v4 in FAMILIES {
        for to in [To::Near, To::Far] {
            talks.push((to, Talk::open(town.namespace("client"), to.front(v4))?));
        }
    }
    for (to, talk) in &mut talks {
        ensure!(talk.exchange(patience(ANSWER))?, "{to:?} does not answer");
    }
    town.enforce(&with(&["app=far"]))?;
    for (to, talk) in &mut talks {
        let allowed = *to == To::Far;
        let limit = if allowed { patience(ANSWER) } else { SILENCE };
        assert_eq!(talk.exchange(limit)?, allowed, "{to:?} after the change");
    }
    Ok(())
}

/// Who opened what is known to connection tracking alone, which IPVS has told where it went.
fn isolation_that_begins_on_live_connections(town: &mut Town) -> Result<()> {
    town.enforce(&[])?;
    for v4 in FAMILIES {
        let open = |from: &str, to: To| Talk::open(town.namespace(from), to.front(v4));
        let mut to_near = open("client", To::Near)?;
        let mut to_far = open("client", To::Far)?;
        let mut from_other = open("other", To::Client)?;
        for talk in [&mut to_near, &mut to_far, &mut from_other] {
            ensure!(talk.exchange(patience(ANSWER))?, "not answered before any policy");
        }
        town.enforce(&[
            egress_to(of("client"), TARGET, &["app=near"]).ingress(&[]),
            ingress_from(of("near"), TARGET, &["app=client"]).egress(&[]),
        ])?;
        ensure!(
            to_near.exchange(patience(ANSWER))?,
            "what the policies allow was cut"
        );
        ensure!(!to_far.exchange(SILENCE)?, "what the client may not open goes on");
        ensure!(
            !from_other.exchange(SILENCE)?,
            "what nobody may open to the client goes on"
        );
        town.enforce(&[])?;
    }
    Ok(())
}

/// A pod can not block itself, and hears its own node.
fn a_pod_reaches_itself_by_its_service(town: &mut Town) -> Result<()> {
    town.enforce(&[of("client").ingress(&[]).egress(&[])])?;
    let to: &[To] = &[To::Client];
    let table = town.table(&[
        ("client", to),
        ("other", to),
        ("far", to),
        ("node-1", to),
        ("node-2", to),
    ]);
    assert_eq!(table, [["client"], [NOBODY], [NOBODY], ["client"], [NOBODY]]);
    Ok(())
}

fn a_client_keeps_its_backend_and_is_not_moved_by_a_denial(town: &mut Town) -> Result<()> {
    for v4 in FAMILIES {
        town.enforce(&[])?;
        let front = To::Sticky.front(v4);
        let seen = town.connections("client", front, 4);
        let backend = seen[0].clone();
        assert_eq!(seen, vec![backend.clone(); 4], "always the same");
        let other = if backend == "near" { "far" } else { "near" };
        let only = |pod: &str| egress_to(of("client"), TARGET, &[&format!("app={pod}")]);
        town.enforce(&[only(other)])?;
        assert_eq!(town.connections("client", front, 4), vec![NOBODY.to_owned(); 4]);
        town.enforce(&[only(&backend)])?;
        assert_eq!(town.connections("client", front, 4), vec![backend; 4]);
    }
    Ok(())
}

/// Endpoints that are no pods: the host outside, and processes of nodes.
fn other_endpoints_are_judged_by_their_address(town: &mut Town) -> Result<()> {
    let to: &[To] = &[To::Outside, To::Node1, To::Node2];
    for (peers, expected) in [
        (
            ["172.18.0.100/32", "fd00:18::100/128"],
            ["outside", "node-1", NOBODY],
        ),
        (["172.18.0.2/32", "fd00:18::2/128"], [NOBODY, "node-1", "node-2"]),
        (["10.96.0.0/16", "fd00:10:96::/64"], [NOBODY, "node-1", NOBODY]),
    ] {
        town.enforce(&[of("client").egress(&peers).ingress(&[])])?;
        // The pod's own node is always allowed.
        assert_eq!(town.table(&[("client", to)]), [expected], "{peers:?}");
    }
    Ok(())
}

/// The node's own packets pass, also with a cluster address as their source; another node's are judged.
fn a_node_reaches_its_own_pods(town: &mut Town) -> Result<()> {
    town.enforce(&["near", "far"].map(|pod| of(pod).ingress(&[]).egress(&[])))?;
    let to: &[To] = &[To::Near, To::Far];
    let table = town.table(&[("node-1", to), ("node-2", to)]);
    assert_eq!(table, [["near", NOBODY], [NOBODY, "far"]]);
    Ok(())
}

fn a_node_port_hides_the_client_as_it_does_without_us(town: &mut Town) -> Result<()> {
    let ports = [
        ("node-1", NODE_PORTS[0]),
        ("node-2", NODE_PORTS[0]),
        ("node-1", NODE_PORTS[1]),
        ("node-2", NODE_PORTS[1]),
        // Keeps the client's address.
        ("node-1", NODE_PORTS[2]),
    ];
    let ask = |town: &Town| town.node_ports(&["client", "other", "outside"], &ports);
    town.enforce(&[])?;
    assert_eq!(ask(town), [["near", "near", "far", "far", "near"]; 3]);
    // A selector sees through the masquerade of the pod's own node, and of no other.
    let selected = |peers: &[&str]| ["near", "far"].map(|pod| ingress_from(of(pod), TARGET, peers));
    town.enforce(&selected(&["app=client"]))?;
    let client = ["near", NOBODY, NOBODY, NOBODY, "near"];
    assert_eq!(ask(town), [client, [NOBODY; 5], [NOBODY; 5]]);
    town.enforce(&selected(&["172.18.0.100/32", "fd00:18::100/128"]))?;
    assert_eq!(
        ask(town),
        [[NOBODY; 5], [NOBODY; 5], [NOBODY, NOBODY, NOBODY, NOBODY, "near"]]
    );
    // To the other node's pods whoever comes is the node.
    town.enforce(&[
        of("far").ingress(&["172.18.0.1/32", "fd00:18::1/128"]),
        of("near").ingress(&["172.18.0.2/32", "fd00:18::2/128"]),
    ])?;
    assert_eq!(ask(town), [[NOBODY, "near", "far", NOBODY, NOBODY]; 3]);
    Ok(())
}

/// The next datagram, if one comes.
fn next(socket: &UdpSocket, limit: Duration) -> Result<Option<(Vec<u8>, SocketAddr)>> {
    socket.set_read_timeout(Some(limit))?;
    let mut buffer = [0; 64];
    match socket.recv_from(&mut buffer) {
        Ok((len, from)) => Ok(Some((buffer[..len].to_vec(), from))),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(None),
        Err(error) => Err(error).context("receive a datagram"),
    }
}

fn a_udp_tuple_that_moves_to_a_denied_backend_is_judged_where_it_goes(town: &mut Town) -> Result<()> {
    town.enforce(&[of("client").egress(&["app=near"]).ingress(&[])])?;
    for v4 in FAMILIES {
        let (front, good_at, bad_at) = (To::Moves.front(v4), at("near", v4, 53), at("far", v4, 53));
        let (good, bad) = (
            town.namespace("near").udp(good_at)?,
            town.namespace("far").udp(bad_at)?,
        );
        let client = town.namespace("client").udp(at("client", v4, 5353))?;
        // IPVS drops a tuple's first packets after a change, so each is said until it is heard.
        let say = |text: &[u8], to: &UdpSocket| -> Result<SocketAddr> {
            for _ in 0..10 {
                client.send_to(text, front)?;
                while let Some((heard, from)) = next(to, patience(SILENCE))? {
                    if heard == text {
                        return Ok(from);
                    }
                }
            }
            anyhow::bail!("{:?} is not heard", String::from_utf8_lossy(text))
        };
        let from = say(b"one", &good)?;
        good.send_to(b"answer", from)?;
        assert_eq!(
            next(&client, patience(ANSWER))?,
            Some((b"answer".to_vec(), front))
        );

        let node = town.cluster.node(1);
        node.ipvs_moves(front, good_at, bad_at)?;
        let before = town.drops(1);
        // Until it is the policy that drops it.
        let denied = wait_until(Duration::from_secs(10), || {
            client.send_to(b"two", front)?;
            Ok(town.drops(1).since(&before).of("t/client", "denied-egress") > 2)
        })?;
        ensure!(denied, "the tuple did not get as far as the denied backend");
        assert_eq!(
            next(&bad, SILENCE)?,
            None,
            "the same tuple, now to a denied backend"
        );
        bad.send_to(b"unasked", client.local_addr()?)?;
        assert_eq!(
            next(&client, SILENCE)?,
            None,
            "the denied backend answers nothing"
        );

        node.ipvs_moves(front, bad_at, good_at)?;
        let from = say(b"three", &good)?;
        good.send_to(b"again", from)?;
        assert_eq!(next(&client, patience(ANSWER))?, Some((b"again".to_vec(), front)));
    }
    Ok(())
}

fn main() -> ExitCode {
    macro_rules! tests {
        ($($name:ident),* $(,)?) => { [$(Test { name: stringify!($name), run: $name }),*] };
    }
    harness::main(
        lacks_ipvs(),
        Town::new,
        &tests![
            without_policies_every_backend_answers,
            egress_is_judged_by_the_pod_and_port_behind,
            ingress_is_judged_by_the_client_and_the_port_behind,
            answers_pass_and_a_revoked_connection_is_cut,
            isolation_that_begins_on_live_connections,
            a_pod_reaches_itself_by_its_service,
            a_client_keeps_its_backend_and_is_not_moved_by_a_denial,
            other_endpoints_are_judged_by_their_address,
            a_node_reaches_its_own_pods,
            a_node_port_hides_the_client_as_it_does_without_us,
            a_udp_tuple_that_moves_to_a_denied_backend_is_judged_where_it_goes,
        ],
    )
}
