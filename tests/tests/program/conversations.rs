//! Every pair of isolations and places: forward, reply, revoke, mid-stream without a flow, reuse by another life.

use anyhow::{Context, Result};
use netpol_common::{
    mark::OUTSIDE,
    proto,
    reason::{self as r},
};
use netpol_policy::{
    build::{block, from_to, matching, namespace, node, pod, policy, snapshot},
    model::{Rule, Snapshot},
};
use netpol_tests::{
    packet::{Ether, Ip, sctp, tcp},
    program::{Lab, Run, within},
};

use crate::town::index;

/// Which directions a pod is isolated in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Isolation {
    ingress: bool,
    egress: bool,
}

/// One conversation between an opener and an answerer.
#[derive(Clone, Copy, Debug)]
struct Case {
    /// `None` where that end is outside.
    opener: Option<Isolation>,
    answerer: Option<Isolation>,
    /// Whether the policies allow it. They never allow what the answerer opens.
    allowed: bool,
    proto: u8,
    v6: bool,
}

const OPENER: [&str; 2] = ["10.0.0.1", "fd00::1"];
const ANSWERER: [&str; 2] = ["10.0.0.2", "fd00::2"];

fn cases() -> Vec<Case> {
    let flags = [false, true];
    let isolations = || {
        let all = flags
            .into_iter()
            .flat_map(|ingress| flags.map(|egress| Some(Isolation { ingress, egress })));
        all.chain([None]).collect::<Vec<_>>()
    };
    let mut cases = Vec::new();
    for opener in isolations() {
        for answerer in isolations()
            .into_iter()
            .filter(|answerer| opener.is_some() || answerer.is_some())
        {
            for allowed in flags {
                for proto in [proto::TCP, proto::UDP, proto::SCTP, proto::ICMP] {
                    cases.extend(flags.map(|v6| Case {
                        opener,
                        answerer,
                        allowed,
                        proto,
                        v6,
                    }));
                }
            }
        }
    }
    cases
}

impl Case {
    /// Pods as `opener` and `answerer`; policies that allow the former to open to the latter, or nothing.
    fn snapshot(&self, allowed: bool) -> Snapshot {
        let pods = [
            ("opener", OPENER, self.opener),
            ("answerer", ANSWERER, self.answerer),
        ]
        .into_iter()
        .filter_map(|(name, [v4, v6], isolation)| {
            let Isolation { ingress, egress } = isolation?;
            let labels = format!("app={name},in={ingress},out={egress}");
            Some(pod(&format!("default/{name}"), &labels, &[v4, v6]))
        });
        let rule = |on: bool, [v4, v6]: [&str; 2]| -> Vec<Rule> {
            let cidrs = [format!("{v4}/32"), format!("{v6}/128")];
            if on {
                vec![from_to(cidrs.map(|cidr| block(&cidr, &[])))]
            } else {
                Vec::new()
            }
        };
        let directions = |name: &str, ingress, egress| {
            [
                policy(
                    &format!("default/{name}-in"),
                    matching(&format!("app={name},in=true")),
                    Some(ingress),
                    None,
                ),
                policy(
                    &format!("default/{name}-out"),
                    matching(&format!("app={name},out=true")),
                    None,
                    Some(egress),
                ),
            ]
        };
        let opener = directions("opener", Vec::new(), rule(allowed, ANSWERER));
        let answerer = directions("answerer", rule(allowed, OPENER), Vec::new());
        snapshot(
            [namespace("default", "")],
            [node("node-1", &["10.1.0.1"])],
            pods,
            opener.into_iter().chain(answerer),
        )
    }

    /// Whether a rule has to allow what the opener sends (`forward`) or what the answerer would open.
    fn judged(&self, forward: bool) -> bool {
        let (from, to) = if forward {
            (self.opener, self.answerer)
        } else {
            (self.answerer, self.opener)
        };
        from.is_some_and(|end| end.egress) || to.is_some_and(|end| end.ingress)
    }

    fn passes(&self, forward: bool, allowed: bool) -> bool {
        !self.judged(forward) || (forward && allowed)
    }

    fn ip(&self, forward: bool) -> Ip {
        let at = usize::from(self.v6);
        if forward {
            Ip::new(OPENER[at], ANSWERER[at])
        } else {
            Ip::new(ANSWERER[at], OPENER[at])
        }
    }

    fn packet(&self, step: Step) -> Vec<u8> {
        let forward = matches!(step, Step::Open | Step::Forward);
        let ip = self.ip(forward);
        let ports = if forward { (40_000, 80) } else { (80, 40_000) };
        let packet = match (self.proto, step) {
            (proto::TCP, Step::Open) => ip.tcp(ports.0, ports.1, tcp::SYN, b""),
            (proto::TCP, Step::Reply) => ip.tcp(ports.0, ports.1, tcp::ACK, b"answer"),
            (proto::TCP, Step::Forward) => ip.tcp(ports.0, ports.1, tcp::ACK, b"more"),
            (proto::TCP, Step::OpenBack) => ip.tcp(ports.0, ports.1, tcp::SYN, b""),
            (proto::SCTP, Step::Open | Step::OpenBack) => ip.sctp_init(ports.0, ports.1),
            (proto::SCTP, _) => ip.sctp(ports.0, ports.1, 9, sctp::DATA, b"data"),
            (proto::ICMP, Step::Open | Step::Forward | Step::OpenBack) => ip.echo(7),
            (proto::ICMP, Step::Reply) => ip.echo_reply(7),
            (_, _) => ip.udp(ports.0, ports.1, b"datagram"),
        };
        Ether::default().frame(&packet)
    }

    fn send(&self, lab: &mut Lab<'_>, step: Step) -> Result<Run> {
        let end = |lab: &Lab<'_>, isolation: Option<Isolation>, name| {
            isolation.map_or(OUTSIDE, |_| index(lab, name))
        };
        let ends = (
            end(lab, self.opener, "opener"),
            end(lab, self.answerer, "answerer"),
        );
        let (from, to) = if matches!(step, Step::Open | Step::Forward) {
            ends
        } else {
            (ends.1, ends.0)
        };
        let (way_in, way_out) = lab.cross(from, to, &self.packet(step))?;
        Ok(way_out.unwrap_or(way_in))
    }
}

/// A packet of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The opener's first.
    Open,
    /// The answerer's.
    Reply,
    /// A later one of the opener's.
    Forward,
    /// The answerer opens a conversation of its own on the reversed tuple. (UDP: the same bytes as a reply.)
    OpenBack,
}

/// Runs `steps`; each must pass or not.
fn expect(lab: &mut Lab<'_>, case: &Case, what: &str, steps: &[(Step, bool)]) -> Result<()> {
    for (at, (step, passes)) in steps.iter().enumerate() {
        let run = case.send(lab, *step)?;
        anyhow::ensure!(
            run.dropped != *passes,
            "{case:?}, {what}, packet {at} ({step:?}): {} ({}), should {}",
            if run.dropped { "dropped" } else { "passed" },
            run.reason(),
            if *passes { "pass" } else { "be dropped" },
        );
    }
    Ok(())
}

/// Every case on a fresh table.
fn each(check: impl Fn(&mut Lab<'_>, &Case) -> Result<()> + Send + Sync) -> Result<()> {
    within(|lab| {
        for case in cases() {
            lab.forget_flows()?;
            lab.apply(&case.snapshot(case.allowed))?;
            check(lab, &case)?;
        }
        Ok(())
    })
}

#[test]
fn replies_pass_exactly_where_what_they_answer_passed() -> Result<()> {
    each(|lab, case| {
        let forward = case.passes(true, case.allowed);
        // Without a flow, a packet that looks like a reply is judged like what the answerer opens.
        expect(
            lab,
            case,
            "without a flow",
            &[(Step::Reply, case.passes(false, case.allowed))],
        )?;
        lab.forget_flows()?;
        let reply = forward || case.passes(false, case.allowed);
        // Where the answerer may send by itself, its datagram opens a conversation to which the opener replies.
        let after = forward || (case.proto == proto::UDP && reply);
        let steps = [
            (Step::Open, forward),
            (Step::Reply, reply),
            (Step::Forward, after),
            (Step::Reply, reply),
        ];
        expect(lab, case, "a conversation", &steps)
    })
}

#[test]
fn a_beginning_is_never_a_reply() -> Result<()> {
    each(|lab, case| {
        if case.proto == proto::UDP {
            return Ok(());
        }
        let steps = [
            (Step::Open, case.passes(true, case.allowed)),
            (Step::OpenBack, case.passes(false, case.allowed)),
        ];
        expect(lab, case, "crossing openings", &steps)
    })
}

#[test]
fn a_revoked_conversation_is_cut_at_its_next_packet_in_either_direction() -> Result<()> {
    each(|lab, case| {
        if !case.allowed || !case.judged(true) {
            return Ok(());
        }
        for first in [Step::Forward, Step::Reply] {
            lab.forget_flows()?;
            lab.apply(&case.snapshot(true))?;
            expect(
                lab,
                case,
                "before",
                &[(Step::Open, true), (Step::Reply, true), (Step::Forward, true)],
            )?;
            lab.apply(&case.snapshot(false))?;
            // A reply that needed no entry passes by itself: its conversation is cut forward. (UDP, which shows no
            // beginnings, always has one where an end is isolated.)
            let reply = case.proto != proto::UDP && !case.judged(false);
            let mut steps = vec![
                (Step::Forward, false),
                (Step::Reply, reply),
                (Step::Forward, false),
            ];
            if first == Step::Reply {
                steps.remove(0);
            }
            expect(lab, case, "revoked", &steps)?;
            // Allowed again: a new beginning supersedes the tombstone.
            lab.apply(&case.snapshot(true))?;
            expect(
                lab,
                case,
                "allowed again",
                &[(Step::Open, true), (Step::Reply, true)],
            )?;
        }
        Ok(())
    })
}

#[test]
fn an_allowed_conversation_outlives_changes_of_the_epoch() -> Result<()> {
    each(|lab, case| {
        if !case.passes(true, case.allowed) {
            return Ok(());
        }
        expect(lab, case, "before", &[(Step::Open, true), (Step::Reply, true)])?;
        lab.next_epoch()?;
        expect(
            lab,
            case,
            "one epoch later",
            &[(Step::Reply, true), (Step::Forward, true)],
        )?;
        lab.next_epoch()?;
        expect(
            lab,
            case,
            "two epochs later",
            &[(Step::Forward, true), (Step::Reply, true)],
        )
    })
}

#[test]
fn an_entry_of_another_life_counts_for_nobody() -> Result<()> {
    each(|lab, case| {
        if !case.passes(true, case.allowed) {
            return Ok(());
        }
        for reborn in ["opener", "answerer"] {
            lab.forget_flows()?;
            lab.apply(&case.snapshot(case.allowed))?;
            expect(lab, case, "before", &[(Step::Open, true), (Step::Reply, true)])?;
            let index = index(lab, reborn);
            if index == OUTSIDE {
                continue;
            }
            lab.reincarnate(index)?;
            let reply = [(Step::Reply, case.passes(false, case.allowed))];
            expect(lab, case, &format!("{reborn} is another pod"), &reply)?;
        }
        Ok(())
    })
}

#[test]
fn tcp_between_pods_isolated_for_what_they_receive_leaves_no_entry() -> Result<()> {
    within(|lab| {
        let isolation = Some(Isolation {
            ingress: true,
            egress: false,
        });
        let free = Some(Isolation {
            ingress: false,
            egress: false,
        });
        for opener in [free, None] {
            let case = Case {
                opener,
                answerer: isolation,
                allowed: true,
                proto: proto::TCP,
                v6: false,
            };
            lab.apply(&case.snapshot(true))?;
            lab.forget_flows()?;
            expect(
                lab,
                &case,
                "a conversation",
                &[(Step::Open, true), (Step::Reply, true), (Step::Forward, true)],
            )?;
            assert_eq!(lab.flows()?, [], "{case:?}");
        }
        Ok(())
    })
}

#[test]
fn the_answers_of_an_ingress_isolated_pod_do_not_turn_its_peer_into_a_reply() -> Result<()> {
    within(|lab| {
        let isolation = Some(Isolation {
            ingress: true,
            egress: false,
        });
        for opener in [
            Some(Isolation {
                ingress: false,
                egress: false,
            }),
            None,
        ] {
            let case = Case {
                opener,
                answerer: isolation,
                allowed: true,
                proto: proto::TCP,
                v6: false,
            };
            lab.forget_flows()?;
            lab.apply(&case.snapshot(true))?;
            expect(
                lab,
                &case,
                "before",
                &[(Step::Open, true), (Step::Reply, true), (Step::Forward, true)],
            )?;
            lab.apply(&case.snapshot(false))?;
            // The answers still pass; the peer's packets do not, however often it is answered.
            let steps = [
                (Step::Reply, true),
                (Step::Forward, false),
                (Step::Reply, true),
                (Step::Forward, false),
            ];
            expect(lab, &case, "revoked", &steps)?;
            let last = case.send(lab, Step::Forward)?.event.context("no event")?;
            assert_eq!(r::name(last.reason), "denied-ingress");
        }
        Ok(())
    })
}
