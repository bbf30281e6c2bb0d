//! How long a flow is remembered, and what ends it. `client` talks to `both`, which is isolated in both directions, so
//! that its answers need an entry; the clock is turned by making entries older.

use anyhow::{Context, Result, ensure};
use netpol_common::{
    flow::{STATE_RESET, timeout},
    proto, reason as r,
};
use netpol_policy::{
    build::{matching, namespace, node, pod, pods, policy, port, rule, snapshot},
    model::{Peers, PortSpec, Ports, Protocol, Snapshot},
};
use netpol_tests::{
    packet::{Ip, sctp, tcp},
    program::{Lab, within},
};

use crate::packets::{expect, ip, judge, plain};

/// Jiffies; each longer than a test takes, and each told from the next.
const UNIT: u64 = 1 << 20;
/// By index of `timeout`: opening, established, closing, reset, unanswered, answered, fragment, half-closed.
const UNITS: [u64; 8] = [30, 100, 20, 10, 40, 50, 1000, 60];

const OUT: (&str, &str) = ("client", "both");
const BACK: (&str, &str) = ("both", "client");

/// `client` may come to `both` by anything.
fn scene() -> Snapshot {
    let everything = rule(Peers::Of(vec![pods(matching("app=client"))]), Ports::Any);
    snapshot(
        [namespace("default", "")],
        [node("node-1", &["10.1.0.1"])],
        [
            pod("default/client", "app=client", &["10.0.0.2", "fd00::2"]),
            pod("default/both", "app=both", &["10.0.0.5", "fd00::5"]),
        ],
        [policy(
            "default/both",
            matching("app=both"),
            Some(vec![everything]),
            Some(Vec::new()),
        )],
    )
}

/// A packet of a conversation: `client`'s (`true`) or `both`'s, and its TCP flags or SCTP chunk.
type Step = (bool, u8);

const SYN: Step = (true, tcp::SYN);
const SYN_ACK: Step = (false, tcp::SYN | tcp::ACK);
const ACK: Step = (true, tcp::ACK);

fn frame(proto: u8, family: usize, (forward, what): Step) -> Vec<u8> {
    let (from, to) = if forward { OUT } else { BACK };
    let ip = ip(from, to, family);
    let (sport, dport) = if forward { (40_000, 80) } else { (80, 40_000) };
    plain(&match (proto, forward) {
        (proto::TCP, _) => ip.tcp(sport, dport, what, b""),
        (proto::SCTP, _) => ip.sctp(sport, dport, 9, what, &[0; 16]),
        (proto::UDP, _) => ip.udp(sport, dport, b"?"),
        (_, true) => ip.echo(7),
        (_, false) => ip.echo_reply(7),
    })
}

fn send(lab: &mut Lab<'_>, proto: u8, family: usize, step: Step) -> Result<u8> {
    let (from, to) = if step.0 { OUT } else { BACK };
    Ok(judge(lab, from, to, &frame(proto, family, step))?.reason)
}

fn play(lab: &mut Lab<'_>, proto: u8, family: usize, steps: &[Step]) -> Result<()> {
    for step in steps {
        let reason = send(lab, proto, family, *step)?;
        ensure!(!r::is_drop(reason), "{step:?} of {steps:?}: {}", r::name(reason));
    }
    Ok(())
}

fn begin(lab: &mut Lab<'_>) -> Result<()> {
    lab.forget_flows()?;
    lab.apply(&scene())?;
    lab.configure(|config| config.timeouts = UNITS.map(|units| units * UNIT))
}

/// Conversations, and how long each is remembered in its last state.
const CONVERSATIONS: &[(u8, &[Step], usize)] = &[
    (proto::TCP, &[SYN], timeout::OPENING),
    (proto::TCP, &[SYN, SYN_ACK], timeout::OPENING),
    (proto::TCP, &[SYN, SYN_ACK, (false, tcp::ACK)], timeout::OPENING),
    (proto::TCP, &[SYN, SYN_ACK, SYN], timeout::OPENING),
    (proto::TCP, &[SYN, SYN_ACK, ACK], timeout::ESTABLISHED),
    // Data before the acknowledgement is seen.
    (
        proto::TCP,
        &[SYN, SYN_ACK, (false, tcp::PSH | tcp::ACK), ACK],
        timeout::ESTABLISHED,
    ),
    // A SYN within a living connection is no reason to forget it.
    (proto::TCP, &[SYN, SYN_ACK, ACK, SYN], timeout::ESTABLISHED),
    (
        proto::TCP,
        &[SYN, SYN_ACK, ACK, (true, tcp::FIN | tcp::ACK)],
        timeout::HALF_CLOSED,
    ),
    (
        proto::TCP,
        &[SYN, SYN_ACK, ACK, (false, tcp::FIN | tcp::ACK)],
        timeout::HALF_CLOSED,
    ),
    (
        proto::TCP,
        &[
            SYN,
            SYN_ACK,
            ACK,
            (false, tcp::FIN | tcp::ACK),
            (true, tcp::FIN | tcp::ACK),
            (false, tcp::ACK),
        ],
        timeout::CLOSING,
    ),
    (proto::TCP, &[SYN, SYN_ACK, ACK, (true, tcp::RST)], timeout::RESET),
    (
        proto::TCP,
        &[SYN, SYN_ACK, ACK, (false, tcp::RST)],
        timeout::RESET,
    ),
    // Refused; and an opener that goes on all the same has had no answer.
    (proto::TCP, &[SYN, (false, tcp::RST | tcp::ACK)], timeout::RESET),
    (
        proto::TCP,
        &[SYN, (false, tcp::RST | tcp::ACK), ACK],
        timeout::OPENING,
    ),
    // A reset was blind if the connection goes on.
    (
        proto::TCP,
        &[SYN, SYN_ACK, ACK, (false, tcp::RST), ACK],
        timeout::ESTABLISHED,
    ),
    // The tuple begins again after its end.
    (
        proto::TCP,
        &[
            SYN,
            SYN_ACK,
            ACK,
            (false, tcp::FIN | tcp::ACK),
            (true, tcp::FIN | tcp::ACK),
            SYN,
        ],
        timeout::OPENING,
    ),
    (
        proto::TCP,
        &[SYN, SYN_ACK, ACK, (true, tcp::RST), SYN, SYN_ACK],
        timeout::OPENING,
    ),
    (
        proto::TCP,
        &[SYN, SYN_ACK, ACK, (true, tcp::RST), SYN, SYN_ACK, ACK],
        timeout::ESTABLISHED,
    ),
    (proto::SCTP, &[(true, sctp::INIT)], timeout::OPENING),
    (
        proto::SCTP,
        &[(true, sctp::INIT), (false, sctp::INIT_ACK)],
        timeout::OPENING,
    ),
    (
        proto::SCTP,
        &[
            (true, sctp::INIT),
            (false, sctp::INIT_ACK),
            (true, sctp::COOKIE_ECHO),
        ],
        timeout::ESTABLISHED,
    ),
    (
        proto::SCTP,
        &[
            (true, sctp::INIT),
            (false, sctp::INIT_ACK),
            (true, sctp::COOKIE_ECHO),
            (true, sctp::ABORT),
        ],
        timeout::RESET,
    ),
    (
        proto::SCTP,
        &[
            (true, sctp::INIT),
            (false, sctp::INIT_ACK),
            (true, sctp::COOKIE_ECHO),
            (true, sctp::SHUTDOWN),
        ],
        timeout::CLOSING,
    ),
    (proto::UDP, &[(true, 0)], timeout::UNANSWERED),
    (proto::UDP, &[(true, 0), (true, 0)], timeout::UNANSWERED),
    (proto::UDP, &[(true, 0), (false, 0)], timeout::ANSWERED),
    (proto::ICMP, &[(true, 0)], timeout::UNANSWERED),
    (proto::ICMP, &[(true, 0), (false, 0)], timeout::ANSWERED),
];

/// What `both` sends late.
fn late(proto: u8) -> Step {
    (
        false,
        if proto == proto::SCTP {
            sctp::DATA
        } else {
            tcp::ACK
        },
    )
}

#[test]
fn a_flow_is_remembered_as_long_as_its_state_says_and_no_longer() -> Result<()> {
    within(|lab| {
        for (proto, steps, which) in CONVERSATIONS {
            for family in [0, 1] {
                let what = || format!("protocol {proto}, {steps:?}");
                begin(lab)?;
                play(lab, *proto, family, steps).with_context(what)?;
                lab.age((UNITS[*which] - 1) * UNIT)?;
                let reason = send(lab, *proto, family, late(*proto))?;
                ensure!(reason == r::REPLY, "{}, in time: {}", what(), r::name(reason));

                begin(lab)?;
                play(lab, *proto, family, steps).with_context(what)?;
                lab.age((UNITS[*which] + 1) * UNIT)?;
                let reason = send(lab, *proto, family, late(*proto))?;
                ensure!(
                    reason == r::DENIED_EGRESS,
                    "{}, late: {}",
                    what(),
                    r::name(reason)
                );
            }
        }
        Ok(())
    })
}

#[test]
fn each_packet_of_either_end_keeps_a_connection_alive() -> Result<()> {
    within(|lab| {
        begin(lab)?;
        play(lab, proto::TCP, 0, &[SYN, SYN_ACK, ACK])?;
        for step in [ACK, late(proto::TCP)].into_iter().cycle().take(6) {
            lab.age((UNITS[timeout::ESTABLISHED] - 1) * UNIT)?;
            let reason = send(lab, proto::TCP, 0, step)?;
            ensure!(
                [r::KNOWN_FLOW, r::REPLY].contains(&reason),
                "{step:?}: {}",
                r::name(reason)
            );
        }
        // Silent for too long: the opener's packet is judged as a new one, and opens nothing.
        lab.age((UNITS[timeout::ESTABLISHED] + 1) * UNIT)?;
        expect(lab, "too late", OUT, &frame(proto::TCP, 0, ACK), r::ALLOWED)?;
        expect(
            lab,
            "its answer",
            BACK,
            &frame(proto::TCP, 0, late(proto::TCP)),
            r::DENIED_EGRESS,
        )
    })
}

#[test]
fn errors_keep_nothing_alive_and_change_nothing() -> Result<()> {
    within(|lab| {
        let syn = ip("client", "both", 0).tcp(40_000, 80, tcp::SYN, b"");
        let data = ip("both", "client", 0).tcp(80, 40_000, tcp::ACK, b"data");
        let back = plain(&ip("both", "client", 0).port_unreachable(&syn));
        let out = plain(&ip("client", "both", 0).port_unreachable(&data));
        for steps in [
            &[SYN][..],
            &[SYN, SYN_ACK, ACK],
            &[SYN, SYN_ACK, ACK, (true, tcp::RST)],
        ] {
            begin(lab)?;
            play(lab, proto::TCP, 0, steps)?;
            lab.age(5 * UNIT)?;
            let before = lab.flows()?;
            expect(lab, "about what it got", BACK, &back, r::REPLY)?;
            expect(lab, "about the answer", OUT, &out, r::RELATED)?;
            assert_eq!(lab.flows()?, before, "after {steps:?}");
        }
        assert!(lab.flows()?.iter().all(|flow| flow.state & STATE_RESET != 0));
        Ok(())
    })
}

#[test]
fn one_socket_with_several_servers_hears_those_that_it_asked() -> Result<()> {
    within(|lab| {
        let dns = port(Protocol::Udp, PortSpec::Range(53, 53));
        let mut town = crate::town::town();
        for policy in town.policies.values_mut() {
            policy.egress = policy
                .egress
                .as_ref()
                .map(|_| vec![rule(Peers::Any, Ports::Of(vec![dns.clone()]))]);
        }
        lab.apply(&town)?;
        let server = |last: u8| format!("192.0.2.{last}");
        let asks = |last| plain(&Ip::new("10.0.0.5", server(last).as_str()).udp(5353, 53, b"?"));
        let says = |last, port| plain(&Ip::new(server(last).as_str(), "10.0.0.5").udp(port, 5353, b"!"));
        for last in 1..=3 {
            expect(lab, "a question", ("both", "server"), &asks(last), r::ALLOWED)?;
        }
        // In any order, more than once, after a while.
        lab.age(2 * 250)?;
        for last in [3, 1, 2, 2, 3] {
            expect(lab, "an answer", ("server", "both"), &says(last, 53), r::REPLY)?;
        }
        expect(
            lab,
            "unasked",
            ("server", "both"),
            &says(4, 53),
            r::DENIED_INGRESS,
        )?;
        expect(
            lab,
            "another port",
            ("server", "both"),
            &says(1, 54),
            r::DENIED_INGRESS,
        )
    })
}

#[test]
fn two_syns_that_cross_make_a_connection() -> Result<()> {
    within(|lab| {
        let everything = || vec![rule(Peers::Any, Ports::Any)];
        let mut scene = scene();
        for policy in scene.policies.values_mut() {
            policy.ingress = Some(everything());
            policy.egress = Some(everything());
        }
        begin(lab)?;
        lab.apply(&scene)?;
        let crossing = [
            SYN,
            (false, tcp::SYN),
            (true, tcp::SYN | tcp::ACK),
            SYN_ACK,
            ACK,
            late(proto::TCP),
        ];
        play(lab, proto::TCP, 0, &crossing)?;
        // Both openings are forgotten some time; the rules allow either end to go on.
        lab.age((UNITS[timeout::OPENING] + 1) * UNIT)?;
        play(lab, proto::TCP, 0, &[late(proto::TCP), ACK])
    })
}

#[test]
fn the_answerer_of_a_revoked_connection_may_open_one_on_the_same_ports() -> Result<()> {
    within(|lab| {
        begin(lab)?;
        let mut turned = scene();
        for policy in turned.policies.values_mut() {
            policy.ingress = Some(Vec::new());
            policy.egress = Some(vec![rule(Peers::Any, Ports::Any)]);
        }
        for family in [0, 1] {
            lab.apply(&scene())?;
            play(lab, proto::TCP, family, &[SYN, SYN_ACK, ACK])?;
            lab.apply(&turned)?;
            let (syn, syn_ack, ack) = ((false, tcp::SYN), (true, tcp::SYN | tcp::ACK), (false, tcp::ACK));
            let reason = send(lab, proto::TCP, family, ack)?;
            ensure!(reason == r::REVOKED, "{}", r::name(reason));
            play(lab, proto::TCP, family, &[syn, syn_ack, ack, ACK, ack])?;
        }
        Ok(())
    })
}
