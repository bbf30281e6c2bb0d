//! Packets of every shape: the verdict depends on what they are, never on how they are written.

use anyhow::{Context, Result, ensure};
use netpol_common::{
    event::Event,
    mark::{self, OUTSIDE},
    reason as r,
};
use netpol_tests::{
    packet::{Ether, Extension, Ip, fragments, icmp4, icmp6, nd, protocol, tcp},
    program::{Hook, Input, Lab, within},
};

use crate::town::{SERVER, STRANGER, addresses, index, town};

pub(crate) const FAMILIES: [usize; 2] = [0, 1];

pub(crate) fn ip(from: &str, to: &str, family: usize) -> Ip {
    let address = |name: &str| match name {
        "server" => SERVER[family].to_owned(),
        "stranger" => STRANGER[family].to_owned(),
        pod => addresses(pod)[family].clone(),
    };
    Ip::new(address(from), address(to))
}

/// The reason that decided about `frame` from one end to the other.
pub(crate) fn judge(lab: &mut Lab<'_>, from: &str, to: &str, frame: &[u8]) -> Result<Event> {
    let end = |lab: &Lab<'_>, name: &str| {
        if matches!(name, "server" | "stranger") {
            OUTSIDE
        } else {
            index(lab, name)
        }
    };
    let (from, to) = (end(lab, from), end(lab, to));
    let (way_in, way_out) = lab.cross(from, to, frame)?;
    let run = way_out.unwrap_or(way_in);
    let event = run.event.context("no event")?;
    ensure!(run.dropped == r::is_drop(event.reason), "{run:?}");
    Ok(event)
}

pub(crate) fn expect(
    lab: &mut Lab<'_>,
    what: &str,
    (from, to): (&str, &str),
    frame: &[u8],
    reason: u8,
) -> Result<()> {
    let event = judge(lab, from, to, frame).with_context(|| what.to_owned())?;
    ensure!(
        event.reason == reason,
        "{what}, {from} to {to}: expected {}, got {} ({event:?})",
        r::name(reason),
        r::name(event.reason)
    );
    Ok(())
}

pub(crate) fn plain(packet: &[u8]) -> Vec<u8> {
    Ether::default().frame(packet)
}

#[test]
fn ipv4_options_are_not_ports() -> Result<()> {
    within(|lab| {
        lab.apply(&town())?;
        for len in [1, 4, 8, 20, 36, 40] {
            // Read as ports they would say 80.
            let options = [0, 80].repeat(20);
            let with = |port| {
                plain(
                    &ip("client", "guarded", 0)
                        .options(&options[..len])
                        .tcp(40_000, port, tcp::SYN, b""),
                )
            };
            expect(lab, "allowed port", ("client", "guarded"), &with(80), r::ALLOWED)?;
            expect(
                lab,
                "other port",
                ("client", "guarded"),
                &with(81),
                r::DENIED_INGRESS,
            )?;
        }
        Ok(())
    })
}

#[test]
fn ipv6_extension_headers_hide_nothing() -> Result<()> {
    let chains: [&[Extension]; 7] = [
        &[Extension::hop_by_hop()],
        &[Extension::padding(protocol::DESTINATION, 14)],
        &[Extension::padding(protocol::ROUTING, 6)],
        &[
            Extension::hop_by_hop(),
            Extension::padding(protocol::DESTINATION, 6),
            Extension::padding(protocol::ROUTING, 22),
        ],
        &[Extension::padding(protocol::AH, 22)],
        // An atomic fragment (RFC 6946).
        &[Extension {
            kind: protocol::FRAGMENT,
            body: vec![0; 6],
        }],
        &[
            Extension::padding(protocol::DESTINATION, 62),
            Extension::hop_by_hop(),
        ],
    ];
    within(move |lab| {
        lab.apply(&town())?;
        for chain in chains {
            let with = |port| {
                let ip = chain
                    .iter()
                    .cloned()
                    .fold(ip("client", "guarded", 1), Ip::extension);
                plain(&ip.tcp(40_000, port, tcp::SYN, b""))
            };
            let what = format!("{chain:?}");
            expect(lab, &what, ("client", "guarded"), &with(80), r::ALLOWED)?;
            expect(lab, &what, ("client", "guarded"), &with(81), r::DENIED_INGRESS)?;
        }
        let endless = (0..20).fold(ip("client", "guarded", 1), |ip, _| {
            ip.extension(Extension::padding(protocol::DESTINATION, 6))
        });
        let endless = plain(&endless.tcp(40_000, 80, tcp::SYN, b""));
        expect(
            lab,
            "twenty headers",
            ("client", "guarded"),
            &endless,
            r::MALFORMED,
        )
    })
}

#[test]
fn tags_in_the_frame_are_skipped() -> Result<()> {
    within(|lab| {
        lab.apply(&town())?;
        for ether in [Ether::default().vlan(5), Ether::default().qinq(5).vlan(6)] {
            for family in FAMILIES {
                let with =
                    |port| ether.frame(&ip("client", "guarded", family).tcp(40_000, port, tcp::SYN, b""));
                expect(lab, "tagged", ("client", "guarded"), &with(80), r::ALLOWED)?;
                expect(lab, "tagged", ("client", "guarded"), &with(81), r::DENIED_INGRESS)?;
            }
        }
        Ok(())
    })
}

#[test]
fn later_fragments_share_the_fate_of_their_first() -> Result<()> {
    within(|lab| {
        lab.apply(&town())?;
        for family in FAMILIES {
            let parts = |port, id| {
                let packet = ip("client", "both", family).tcp(40_000, port, tcp::SYN, &[0; 200]);
                fragments(&packet, id, 64)
                    .iter()
                    .map(|part| plain(part))
                    .collect::<Vec<_>>()
            };
            let path = ("client", "both");
            let allowed = parts(80, 1);
            expect(lab, "first", path, &allowed[0], r::ALLOWED)?;
            for later in &allowed[1..] {
                let event = judge(lab, path.0, path.1, later)?;
                ensure!(
                    !r::is_drop(event.reason),
                    "a later fragment: {}",
                    r::name(event.reason)
                );
            }
            let denied = parts(81, 2);
            expect(lab, "first", path, &denied[0], r::DENIED_INGRESS)?;
            expect(lab, "later of a denied first", path, &denied[1], r::FRAGMENT)?;
            // Before its first, and with an identification that nobody announced.
            expect(lab, "orphan", path, &parts(80, 3)[1], r::FRAGMENT)?;
            // Between pods that nobody isolates it does not matter.
            let free = fragments(&ip("free", "client", family).udp(1, 2, &[0; 100]), 4, 48);
            expect(
                lab,
                "not isolated",
                ("free", "client"),
                &plain(&free[1]),
                r::NOT_ISOLATED,
            )?;
        }
        Ok(())
    })
}

#[test]
fn a_fragment_that_could_overwrite_the_ports_is_dropped() -> Result<()> {
    within(|lab| {
        lab.apply(&town())?;
        for family in FAMILIES {
            let packet = ip("client", "guarded", family).tcp(40_000, 80, tcp::SYN, &[0; 100]);
            let parts = fragments(&packet, 5, 8);
            expect(
                lab,
                "eight bytes of TCP",
                ("client", "guarded"),
                &plain(&parts[0]),
                r::MALFORMED,
            )?;
            expect(
                lab,
                "at offset eight",
                ("client", "guarded"),
                &plain(&parts[1]),
                r::MALFORMED,
            )?;
        }
        Ok(())
    })
}

#[test]
fn truncated_and_contradicting_headers_do_not_reach_an_isolated_pod() -> Result<()> {
    within(|lab| {
        lab.apply(&town())?;
        // Tagged: the kernel runs no program on what it sees to be a truncated IP header.
        let ether = Ether::default().vlan(5);
        for family in FAMILIES {
            let from = ip("client", "guarded", family);
            let headers = if family == 0 { 18 + 20 } else { 18 + 40 };
            // Behind the fixed part of the transport header nothing more is needed.
            for (packet, fixed) in [
                (from.tcp(40_000, 80, tcp::SYN, b""), 20),
                (from.udp(40_000, 80, b""), 8),
                (from.sctp_init(40_000, 80), 16),
            ] {
                let whole = ether.frame(&packet);
                for len in 19..headers + fixed {
                    let event = judge(lab, "client", "guarded", &whole[..len])?;
                    ensure!(
                        event.reason == r::MALFORMED,
                        "{len} of {} bytes: {event:?}",
                        whole.len()
                    );
                }
            }
        }
        // The IP header claims to be shorter than 20 bytes, longer than the packet, of another version.
        for (at, value) in [(0, 0x44), (0, 0x4f), (0, 0x55), (3, 10)] {
            let mut packet = ip("client", "guarded", 0).tcp(40_000, 80, tcp::SYN, b"");
            packet[at] = value;
            let event = judge(
                lab,
                "client",
                "guarded",
                &Ether::default().with_type(0x0800, &packet),
            )?;
            ensure!(event.reason == r::MALFORMED, "byte {at} = {value:#x}: {event:?}");
        }
        Ok(())
    })
}

#[test]
fn protocols_without_ports_match_only_rules_without_ports() -> Result<()> {
    within(|lab| {
        lab.apply(&town())?;
        for family in FAMILIES {
            for proto in [protocol::GRE, protocol::ESP, protocol::UDPLITE, 255] {
                let packet =
                    plain(&ip("client", "guarded", family).payload(proto, &[0x9c, 0x40, 0, 80, 0, 0, 0, 0]));
                expect(
                    lab,
                    "a rule with ports",
                    ("client", "guarded"),
                    &packet,
                    r::DENIED_INGRESS,
                )?;
            }
            let echo = plain(&ip("client", "guarded", family).echo(80));
            expect(lab, "echo", ("client", "guarded"), &echo, r::DENIED_INGRESS)?;
        }
        Ok(())
    })
}

#[test]
fn icmp_errors_pass_with_the_conversation_they_quote() -> Result<()> {
    within(|lab| {
        lab.apply(&town())?;
        for family in FAMILIES {
            let syn = ip("both", "server", family).tcp(40_000, 443, tcp::SYN, b"");
            let other = ip("both", "server", family).tcp(40_001, 443, tcp::SYN, b"");
            expect(
                lab,
                "the conversation",
                ("both", "server"),
                &plain(&syn),
                r::ALLOWED,
            )?;
            // A router on the way, not the server, answers: its own address is no peer of the pod.
            let router = ip("stranger", "both", family);
            for error in [
                router.too_big(1280, &syn),
                router.time_exceeded(&syn),
                router.port_unreachable(&syn),
            ] {
                expect(lab, "an error", ("stranger", "both"), &plain(&error), r::REPLY)?;
            }
            let quoted = plain(&router.too_big(1280, &other));
            let event = judge(lab, "stranger", "both", &quoted)?;
            ensure!(
                event.reason == r::RELATED,
                "a conversation that may be: {event:?}"
            );
            let denied = ip("both", "stranger", family).tcp(40_000, 443, tcp::SYN, b"");
            let event = judge(lab, "stranger", "both", &plain(&router.port_unreachable(&denied)))?;
            ensure!(
                r::is_drop(event.reason),
                "a conversation that may not be: {event:?}"
            );
        }
        Ok(())
    })
}

#[test]
fn an_icmp_error_goes_only_to_the_sender_of_what_it_quotes() -> Result<()> {
    within(|lab| {
        lab.apply(&town())?;
        for family in FAMILIES {
            let answer = ip("server", "both", family).tcp(443, 40_000, tcp::SYN | tcp::ACK, b"");
            let to_server = plain(&ip("both", "server", family).port_unreachable(&answer));
            let to_stranger = plain(&ip("both", "stranger", family).port_unreachable(&answer));
            let leak = ("both", "stranger");
            expect(lab, "by its rules", ("both", "server"), &to_server, r::RELATED)?;
            expect(lab, "a quote of what may be", leak, &to_stranger, r::MALFORMED)?;
            let syn = ip("both", "server", family).tcp(40_000, 443, tcp::SYN, b"");
            expect(lab, "the flow", ("both", "server"), &plain(&syn), r::ALLOWED)?;
            expect(lab, "by the flow", ("both", "server"), &to_server, r::RELATED)?;
            expect(lab, "a quote of what is", leak, &to_stranger, r::MALFORMED)?;
        }
        Ok(())
    })
}

#[test]
fn neighbour_discovery_passes_and_forgeries_do_not() -> Result<()> {
    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    within(|lab| {
        lab.apply(&town())?;
        let [own, other] = ["client", "free"].map(|pod| addresses(pod)[1].parse().expect("an address"));
        let to = addresses("guarded")[1].parse()?;
        let path = ("client", "guarded");
        expect(
            lab,
            "solicitation",
            path,
            &plain(&nd::solicit(own, to, MAC)),
            r::NEIGHBOUR,
        )?;
        expect(
            lab,
            "advertisement",
            path,
            &plain(&nd::advert(own, to, own, MAC)),
            r::NEIGHBOUR,
        )?;
        expect(
            lab,
            "router solicitation",
            path,
            &plain(&nd::router_solicit(own, MAC)),
            r::NEIGHBOUR,
        )?;
        expect(
            lab,
            "of another",
            path,
            &plain(&nd::advert(own, to, other, MAC)),
            r::SPOOFED_NEIGHBOUR,
        )?;
        let advert = nd::router_advert("fe80::1".parse()?, MAC);
        expect(
            lab,
            "router advertisement",
            path,
            &plain(&advert),
            r::ROUTER_MESSAGE,
        )?;
        expect(
            lab,
            "redirect",
            path,
            &plain(&nd::redirect(own, to, other, other)),
            r::ROUTER_MESSAGE,
        )?;
        let redirect = ip("client", "guarded", 0).icmp(icmp4::REDIRECT, 1, [10, 0, 0, 1], &[0; 28]);
        expect(lab, "ICMP redirect", path, &plain(&redirect), r::ROUTER_MESSAGE)?;
        // With another hop limit it comes from beyond a router and is no neighbour's.
        let far = Ip::new(own, to)
            .ttl(64)
            .icmp(icmp6::NEIGHBOUR_SOLICIT, 0, [0; 4], &[0; 16]);
        expect(lab, "from afar", path, &plain(&far), r::DENIED_INGRESS)
    })
}

#[test]
fn an_exempt_pod_may_send_from_any_address_but_is_no_router() -> Result<()> {
    within(|lab| {
        lab.apply(&town())?;
        let free = index(lab, "free");
        lab.change_pod(free, |pod| pod.flags = netpol_common::pod::POD_EXEMPT)?;
        let borrowed = plain(&ip("client", "guarded", 0).tcp(40_000, 80, tcp::SYN, b""));
        let device = lab.device(free);
        let input = Input {
            ifindex: device,
            ingress_ifindex: device,
            ..Input::default()
        };
        let run = lab.machine.run(Hook::FromPod, &borrowed, input)?;
        ensure!(!run.dropped, "{run:?}");
        assert_eq!(mark::decode(run.mark), mark::Mark::Sender(free));
        let advert = plain(&nd::router_advert("fe80::1".parse()?, [2, 0, 0, 0, 0, 1]));
        ensure!(lab.machine.run(Hook::FromPod, &advert, input)?.dropped);
        Ok(())
    })
}

#[test]
fn marks_say_who_and_leave_other_bits_alone() -> Result<()> {
    within(|lab| {
        lab.apply(&town())?;
        let theirs = 0xc0de;
        let client = index(lab, "client");
        let syn = plain(&ip("client", "server", 0).tcp(40_000, 443, tcp::SYN, b""));
        let (pod, outside) = (lab.device(client), lab.device(OUTSIDE));
        let at = |ifindex, mark| Input {
            mark,
            ifindex,
            ingress_ifindex: ifindex,
        };
        // Whatever was in our bits, the way in overwrites it.
        for stale in [
            0,
            mark::JUDGED,
            mark::reply(client, true),
            mark::sender(9),
            mark::MASK,
        ] {
            let run = lab.machine.run(Hook::FromPod, &syn, at(pod, theirs | stale))?;
            assert_eq!(run.mark, mark::sender(client) | theirs, "from {stale:#x}");
        }
        let back = plain(&ip("server", "client", 0).tcp(443, 40_000, tcp::ACK, b""));
        let run = lab.machine.run(Hook::Arrive, &back, at(outside, theirs))?;
        assert_eq!(run.mark, mark::sender(OUTSIDE) | theirs, "arrive");
        let run = lab.leave(OUTSIDE, &syn, mark::sender(client) | theirs, pod)?;
        assert_eq!(run.mark, mark::JUDGED | theirs, "settle");
        // A second settle passes what the first has judged.
        let run = lab.leave(OUTSIDE, &syn, run.mark, pod)?;
        assert_eq!((run.dropped, run.reason()), (false, "not-ours"));
        // A pod's mark on what arrives survived decapsulation: that pod has made the tunnel's packet.
        for inner in [mark::sender(client), mark::reply(OUTSIDE, true)] {
            let run = lab.machine.run(Hook::Arrive, &back, at(outside, inner))?;
            assert_eq!(
                (run.dropped, run.reason()),
                (true, "tunnel-injection"),
                "{inner:#x}"
            );
        }
        Ok(())
    })
}
