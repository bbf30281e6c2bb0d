//! Packets that somebody would send who wants one through: each is judged by what it is, and ends at the rules.

use anyhow::{Result, ensure};
use netpol_common::{
    mark::{self, OUTSIDE},
    pod::Pod,
    reason as r,
};
use netpol_tests::{
    packet::{Ether, Ip, fragments, icmp4, icmp6, protocol, sctp, tcp},
    program::{Lab, within},
};

use crate::{
    packets::{FAMILIES, expect, ip, judge, plain},
    town::{addresses, index, town},
};

/// `free` has a connection with `held`, whose answers need an entry.
fn converse(lab: &mut Lab<'_>, family: usize) -> Result<()> {
    let out = ip("free", "held", family);
    let back = ip("held", "free", family);
    expect(
        lab,
        "SYN",
        ("free", "held"),
        &plain(&out.tcp(40_000, 80, tcp::SYN, b"")),
        r::NOT_ISOLATED,
    )?;
    expect(
        lab,
        "SYN-ACK",
        ("held", "free"),
        &plain(&back.tcp(80, 40_000, tcp::SYN | tcp::ACK, b"")),
        r::REPLY,
    )?;
    expect(
        lab,
        "ACK",
        ("free", "held"),
        &plain(&out.tcp(40_000, 80, tcp::ACK, b"")),
        r::KNOWN_FLOW,
    )
}

#[test]
fn a_held_pod_sends_errors_only_about_what_was_opened_to_it() -> Result<()> {
    within(|lab| {
        lab.apply(&town())?;
        for family in FAMILIES {
            let syn = ip("free", "held", family).tcp(40_000, 80, tcp::SYN, b"");
            let error = plain(&ip("held", "free", family).port_unreachable(&syn));
            // `free` may open to `held`, and did not.
            expect(
                lab,
                "nothing was opened",
                ("held", "free"),
                &error,
                r::DENIED_EGRESS,
            )?;
            converse(lab, family)?;
            expect(lab, "it was", ("held", "free"), &error, r::REPLY)?;
            let other = ip("free", "held", family).tcp(40_001, 80, tcp::SYN, b"");
            let error = plain(&ip("held", "free", family).port_unreachable(&other));
            expect(lab, "another port", ("held", "free"), &error, r::DENIED_EGRESS)?;
            // To somebody else than who sent what is quoted.
            let error = plain(&ip("held", "client", family).port_unreachable(&syn));
            let event = judge(lab, "held", "client", &error)?;
            ensure!(r::is_drop(event.reason), "to another: {event:?}");
        }
        Ok(())
    })
}

#[test]
fn no_combination_of_flags_makes_an_answer_or_an_entry() -> Result<()> {
    within(|lab| {
        for family in FAMILIES {
            for flags in 0..64u8 {
                let begins = flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::SYN;
                lab.forget_flows()?;
                lab.apply(&town())?;
                let denied = plain(&ip("held", "free", family).tcp(80, 40_000, flags, b""));
                expect(
                    lab,
                    &format!("flags {flags:#x}"),
                    ("held", "free"),
                    &denied,
                    r::DENIED_EGRESS,
                )?;
                let allowed = plain(&ip("free", "held", family).tcp(40_000, 80, flags, b""));
                expect(lab, "allowed", ("free", "held"), &allowed, r::NOT_ISOLATED)?;
                let entries = usize::from(begins);
                assert_eq!(lab.flows()?.len(), entries, "flags {flags:#x} leave entries");
                // Within a connection all but a beginning are answers.
                converse(lab, family)?;
                let reason = if begins { r::DENIED_EGRESS } else { r::REPLY };
                expect(
                    lab,
                    &format!("flags {flags:#x} back"),
                    ("held", "free"),
                    &denied,
                    reason,
                )?;
            }
        }
        Ok(())
    })
}

#[test]
fn port_zero_and_protocols_without_ports_are_different_conversations() -> Result<()> {
    within(|lab| {
        lab.apply(&town())?;
        for family in FAMILIES {
            for proto in [protocol::GRE, protocol::ESP, protocol::UDPLITE, 255] {
                lab.forget_flows()?;
                let open = plain(&ip("free", "held", family).payload(proto, &[0; 16]));
                expect(lab, "portless", ("free", "held"), &open, r::NOT_ISOLATED)?;
                let back = ip("held", "free", family);
                expect(
                    lab,
                    "UDP",
                    ("held", "free"),
                    &plain(&back.udp(0, 0, b"")),
                    r::DENIED_EGRESS,
                )?;
                expect(
                    lab,
                    "TCP",
                    ("held", "free"),
                    &plain(&back.tcp(0, 0, tcp::ACK, b"")),
                    r::DENIED_EGRESS,
                )?;
                let own = plain(&back.payload(proto, &[0; 16]));
                expect(lab, "the same protocol", ("held", "free"), &own, r::REPLY)?;
            }
            lab.forget_flows()?;
            let zero = plain(&ip("free", "held", family).udp(0, 0, b""));
            expect(lab, "UDP from 0 to 0", ("free", "held"), &zero, r::NOT_ISOLATED)?;
            expect(
                lab,
                "and back",
                ("held", "free"),
                &plain(&ip("held", "free", family).udp(0, 0, b"")),
                r::REPLY,
            )?;
            let gre = plain(&ip("held", "free", family).payload(protocol::GRE, &[0; 16]));
            expect(lab, "GRE", ("held", "free"), &gre, r::DENIED_EGRESS)?;
        }
        Ok(())
    })
}

#[test]
fn an_echo_answers_its_own_request() -> Result<()> {
    within(|lab| {
        lab.apply(&town())?;
        for family in FAMILIES {
            expect(
                lab,
                "ping",
                ("free", "held"),
                &plain(&ip("free", "held", family).echo(7)),
                r::NOT_ISOLATED,
            )?;
            let back = ip("held", "free", family);
            expect(
                lab,
                "pong",
                ("held", "free"),
                &plain(&back.echo_reply(7)),
                r::REPLY,
            )?;
            expect(
                lab,
                "another's",
                ("held", "free"),
                &plain(&back.echo_reply(8)),
                r::DENIED_EGRESS,
            )?;
            expect(
                lab,
                "a ping back",
                ("held", "free"),
                &plain(&back.echo(7)),
                r::DENIED_EGRESS,
            )?;
            let else_where = plain(&ip("held", "client", family).echo_reply(7));
            expect(
                lab,
                "to another",
                ("held", "client"),
                &else_where,
                r::DENIED_EGRESS,
            )?;
            // A timestamp's answer is another kind of message on the same identifier: the same two ends agreed to talk.
            let wrong = if family == 0 {
                protocol::ICMPV6
            } else {
                protocol::ICMP
            };
            let other = plain(&back.payload(wrong, &[0, 0, 0, 0, 0, 7, 0, 0]));
            expect(
                lab,
                "the other family's ICMP",
                ("held", "free"),
                &other,
                r::DENIED_EGRESS,
            )?;
        }
        Ok(())
    })
}

#[test]
fn sctp_begins_with_an_init_and_nothing_else() -> Result<()> {
    within(|lab| {
        for family in FAMILIES {
            lab.forget_flows()?;
            lab.apply(&town())?;
            let out = ip("free", "held", family);
            // An INIT behind another chunk, which no stack takes for one (RFC 9260 6.10).
            let mut bundle = sctp::chunk(sctp::DATA, &[0; 12]);
            bundle.extend(sctp::chunk(sctp::INIT, &[0; 16]));
            let bundled = out.payload(protocol::SCTP, &sctp::segment(40_000, 80, 0, &bundle));
            expect(
                lab,
                "bundled",
                ("free", "held"),
                &plain(&bundled),
                r::NOT_ISOLATED,
            )?;
            assert_eq!(lab.flows()?, [], "a bundled INIT opens nothing");
            expect(
                lab,
                "INIT",
                ("free", "held"),
                &plain(&out.sctp_init(40_000, 80)),
                r::NOT_ISOLATED,
            )?;
            let back = ip("held", "free", family);
            let init_ack = back.sctp(80, 40_000, 9, sctp::INIT_ACK, &[0; 16]);
            expect(lab, "INIT-ACK", ("held", "free"), &plain(&init_ack), r::REPLY)?;
            expect(
                lab,
                "INIT back",
                ("held", "free"),
                &plain(&back.sctp_init(80, 40_000)),
                r::DENIED_EGRESS,
            )?;
        }
        Ok(())
    })
}

#[test]
fn a_later_fragment_belongs_to_the_first_with_its_ends_its_protocol_and_its_number() -> Result<()> {
    within(|lab| {
        lab.apply(&town())?;
        for family in FAMILIES {
            let parts = |from, to, id, proto| {
                let ip = ip(from, to, family);
                let packet = if proto == protocol::TCP {
                    ip.tcp(40_000, 80, tcp::ACK, &[0; 100])
                } else {
                    ip.udp(40_000, 80, &[0; 100])
                };
                let parts = fragments(&packet, id, 48);
                (plain(&parts[0]), plain(&parts[1]))
            };
            let path = ("client", "guarded");
            let (first, later) = parts("client", "guarded", 77, protocol::TCP);
            expect(lab, "first", path, &first, r::ALLOWED)?;
            expect(lab, "its own", path, &later, r::ALLOWED)?;
            expect(
                lab,
                "another number",
                path,
                &parts("client", "guarded", 78, protocol::TCP).1,
                r::FRAGMENT,
            )?;
            expect(
                lab,
                "another sender",
                ("free", "guarded"),
                &parts("free", "guarded", 77, protocol::TCP).1,
                r::FRAGMENT,
            )?;
            if family == 0 {
                let udp = parts("client", "guarded", 77, protocol::UDP).1;
                expect(lab, "another protocol", path, &udp, r::FRAGMENT)?;
            }
            // The same number again: the first decides anew.
            let denied = fragments(
                &ip("client", "guarded", family).tcp(40_000, 81, tcp::ACK, &[0; 100]),
                79,
                48,
            );
            expect(lab, "a denied first", path, &plain(&denied[0]), r::DENIED_INGRESS)?;
            expect(lab, "its later", path, &plain(&denied[1]), r::FRAGMENT)?;
        }
        Ok(())
    })
}

#[test]
fn a_source_that_is_not_the_pods_is_one_in_any_wrapping() -> Result<()> {
    within(|lab| {
        lab.apply(&town())?;
        let path = ("free", "client");
        for source in [
            "10.0.0.2",
            "0.0.0.0",
            "255.255.255.255",
            "127.0.0.1",
            "224.0.0.1",
            "10.1.0.1",
        ] {
            let spoofed = Ip::new(source, "10.0.0.3").udp(1, 2, b"");
            for ether in [
                Ether::default(),
                Ether::default().vlan(5),
                Ether::default().qinq(5).vlan(6),
            ] {
                expect(lab, source, path, &ether.frame(&spoofed), r::SPOOFED)?;
            }
        }
        for source in [
            "fd00::2",
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "::10.0.0.1",
            "ff02::1",
            "64:ff9b::a00:1",
        ] {
            let spoofed = Ip::new(source, addresses("guarded")[1].as_str()).udp(1, 2, b"");
            expect(lab, source, path, &plain(&spoofed), r::SPOOFED)?;
        }
        Ok(())
    })
}

#[test]
fn arp_that_is_not_whole_or_not_arp_for_ipv4_is_no_neighbours() -> Result<()> {
    within(|lab| {
        lab.apply(&town())?;
        let whole = [
            &[0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 0, 1][..],
            &[0; 6],
            &[10, 0, 0, 3],
        ]
        .concat();
        let path = ("free", "guarded");
        let arp = |body: &[u8]| Ether::default().with_type(0x0806, body);
        expect(lab, "whole", path, &arp(&whole), r::NEIGHBOUR)?;
        for len in 1..whole.len() {
            expect(lab, "short", path, &arp(&whole[..len]), r::MALFORMED)?;
        }
        for at in 0..6 {
            let mut odd = whole.clone();
            odd[at] ^= 1;
            expect(lab, "another kind", path, &arp(&odd), r::MALFORMED)?;
        }
        Ok(())
    })
}

#[test]
fn a_router_message_from_beyond_a_router_is_no_routers() -> Result<()> {
    within(|lab| {
        lab.apply(&town())?;
        for kind in [icmp6::ROUTER_ADVERT, icmp6::REDIRECT] {
            let message = |hops| {
                plain(
                    &ip("stranger", "guarded", 1)
                        .ttl(hops)
                        .icmp(kind, 0, [0; 4], &[0; 32]),
                )
            };
            expect(
                lab,
                "from a neighbour",
                ("stranger", "guarded"),
                &message(255),
                r::NEIGHBOUR,
            )?;
            expect(
                lab,
                "from afar",
                ("stranger", "guarded"),
                &message(64),
                r::DENIED_INGRESS,
            )?;
            let own = plain(&ip("free", "guarded", 1).ttl(64).icmp(kind, 0, [0; 4], &[0; 32]));
            expect(lab, "from a pod", ("free", "guarded"), &own, r::ROUTER_MESSAGE)?;
        }
        let redirect = plain(&ip("stranger", "guarded", 0).icmp(icmp4::REDIRECT, 1, [0; 4], &[0; 28]));
        expect(
            lab,
            "ICMP redirect",
            ("stranger", "guarded"),
            &redirect,
            r::DENIED_INGRESS,
        )
    })
}

#[test]
fn a_mark_that_no_program_writes_says_nothing() -> Result<()> {
    within(|lab| {
        lab.apply(&town())?;
        let came = lab.device(OUTSIDE);
        let syn = plain(&ip("stranger", "guarded", 0).tcp(40_000, 80, tcp::SYN, b""));
        for to in [index(lab, "guarded"), OUTSIDE] {
            for odd in [1, 2, 3, 0x3ffe] {
                let run = lab.leave(to, &syn, odd << 16, came)?;
                ensure!(run.reason() == "lost-mark", "{odd:#x} to {to}: {run:?}");
            }
        }
        Ok(())
    })
}

#[test]
fn a_pod_that_is_gone_sends_nothing_more() -> Result<()> {
    within(|lab| {
        lab.apply(&town())?;
        let held = index(lab, "held");
        let (came, free) = (lab.device(held), index(lab, "free"));
        let allowed = plain(&ip("held", "server", 0).tcp(40_000, 443, tcp::SYN, b""));
        let denied = plain(&ip("held", "free", 0).tcp(40_000, 80, tcp::SYN, b""));
        let on_its_way = mark::sender(held);
        ensure!(!lab.leave(OUTSIDE, &allowed, on_its_way, came)?.dropped);
        // Between the ways in and out its slot is freed, or was never anybody's.
        lab.change_pod(held, |pod| *pod = Pod::default())?;
        for mark in [on_its_way, mark::sender(4000), mark::sender(mark::MAX_INDEX)] {
            for (to, packet) in [(OUTSIDE, &allowed), (free, &denied)] {
                let run = lab.leave(to, packet, mark, came)?;
                ensure!(run.reason() == "unknown-pod", "{mark:#x} to {to}: {run:?}");
            }
        }
        Ok(())
    })
}

#[test]
fn more_tags_than_anybody_strips_are_not_ip() -> Result<()> {
    within(|lab| {
        lab.apply(&town())?;
        let syn = ip("client", "guarded", 0).tcp(40_000, 80, tcp::SYN, b"");
        let thrice = Ether::default().qinq(5).vlan(6).vlan(7).frame(&syn);
        expect(lab, "three tags", ("client", "guarded"), &thrice, r::NOT_IP)
    })
}
