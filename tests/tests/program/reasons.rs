//! Every reason of the closed list, reached by a packet.

use std::{collections::BTreeSet, net::Ipv4Addr};

use anyhow::{Context, Result, ensure};
use netpol_common::{
    mark::{self, OUTSIDE},
    reason::{self as r, is_drop},
};
use netpol_tests::{
    packet::{Arp, Ether, Extension, Ip, fragments, nd, protocol, tcp},
    program::{Hook, Input, Lab, Run, within},
};

use crate::town::{SERVER, STRANGER, addresses, index, strict_town, town};

/// A packet (or several, of which the last counts) and the reason of the run that decided.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    reason: u8,
    pub(crate) run: fn(&mut Lab<'_>) -> Result<Run>,
}

/// From one end of the town to another; the deciding run: the way in if that drops, else the way out.
fn send(lab: &mut Lab<'_>, from: &str, to: &str, frame: &[u8]) -> Result<Run> {
    let end = |lab: &Lab<'_>, name: &str| {
        if name == "outside" {
            OUTSIDE
        } else {
            index(lab, name)
        }
    };
    let (from, to) = (end(lab, from), end(lab, to));
    let (way_in, way_out) = lab.cross(from, to, frame)?;
    Ok(way_out.unwrap_or(way_in))
}

fn ip(from: &str, to: &str) -> Ip {
    let address = |name: &str| match name {
        "server" => SERVER[0].to_owned(),
        "stranger" => STRANGER[0].to_owned(),
        pod => addresses(pod)[0].clone(),
    };
    Ip::new(address(from), address(to))
}

fn frame(packet: &[u8]) -> Vec<u8> {
    Ether::default().frame(packet)
}

fn v4(pod: &str) -> Ipv4Addr {
    addresses(pod)[0].parse().expect("an address")
}

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn syn(from: &str, to: &str, port: u16) -> Vec<u8> {
    frame(&ip(from, to).tcp(40_000, port, tcp::SYN, b""))
}

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "between pods that no policy selects",
        reason: r::NOT_ISOLATED,
        run: |lab| send(lab, "free", "client", &syn("free", "client", 80)),
    },
    Case {
        name: "from the node to an isolated pod",
        reason: r::NODE,
        run: |lab| {
            let to = index(lab, "guarded");
            lab.leave(to, &syn("stranger", "guarded", 80), 0, 0)
        },
    },
    Case {
        name: "from an isolated pod to itself",
        reason: r::ITSELF,
        run: |lab| send(lab, "guarded", "guarded", &syn("guarded", "guarded", 81)),
    },
    Case {
        name: "the answer to what an isolated pod opened",
        reason: r::REPLY,
        run: |lab| {
            send(lab, "guarded", "free", &syn("guarded", "free", 81))?;
            let answer = ip("free", "guarded").tcp(81, 40_000, tcp::SYN | tcp::ACK, b"");
            send(lab, "free", "guarded", &frame(&answer))
        },
    },
    Case {
        name: "a segment of a known connection",
        reason: r::KNOWN_FLOW,
        run: |lab| {
            send(lab, "client", "both", &syn("client", "both", 80))?;
            let data = ip("client", "both").tcp(40_000, 80, tcp::ACK, b"data");
            send(lab, "client", "both", &frame(&data))
        },
    },
    Case {
        name: "what a rule allows",
        reason: r::ALLOWED,
        run: |lab| send(lab, "client", "guarded", &syn("client", "guarded", 80)),
    },
    Case {
        name: "through the node",
        reason: r::NOT_OURS,
        run: |lab| send(lab, "outside", "outside", &syn("server", "stranger", 80)),
    },
    Case {
        name: "ARP to an isolated pod",
        reason: r::NEIGHBOUR,
        run: |lab| {
            let arp = Arp::request((MAC, v4("free")), v4("guarded"));
            send(lab, "free", "guarded", &arp.frame())
        },
    },
    Case {
        name: "an ICMP error about an allowed conversation that needs no entry",
        reason: r::RELATED,
        run: |lab| {
            let answer = ip("guarded", "client").tcp(80, 40_000, tcp::ACK, b"data");
            let error = ip("client", "guarded").port_unreachable(&answer);
            send(lab, "client", "guarded", &frame(&error))
        },
    },
    Case {
        name: "in mid-stream, when isolation has just begun",
        reason: r::ADOPTED,
        run: |lab| {
            let guarded = index(lab, "guarded");
            lab.change_pod(guarded, |pod| pod.adopt_until = u64::MAX)?;
            let data = ip("free", "guarded").tcp(443, 40_000, tcp::ACK, b"data");
            let run = send(lab, "free", "guarded", &frame(&data));
            lab.change_pod(guarded, |pod| pod.adopt_until = 0)?;
            run
        },
    },
    Case {
        name: "to a pod whose rules do not name the sender",
        reason: r::DENIED_INGRESS,
        run: |lab| send(lab, "free", "guarded", &syn("free", "guarded", 80)),
    },
    Case {
        name: "to where the sender's rules do not let it go",
        reason: r::DENIED_EGRESS,
        run: |lab| send(lab, "held", "outside", &syn("held", "stranger", 443)),
    },
    Case {
        name: "a connection that was allowed once",
        reason: r::REVOKED,
        run: |lab| {
            send(lab, "client", "both", &syn("client", "both", 80))?;
            lab.apply(&strict_town())?;
            let data = ip("client", "both").tcp(40_000, 80, tcp::ACK, b"data");
            send(lab, "client", "both", &frame(&data))
        },
    },
    Case {
        name: "half a TCP header",
        reason: r::MALFORMED,
        run: |lab| {
            let short = ip("client", "guarded").payload(6, &[0x9c, 0x40, 0, 80, 0, 0, 0, 0]);
            send(lab, "client", "guarded", &frame(&short))
        },
    },
    Case {
        name: "from another pod's address",
        reason: r::SPOOFED,
        run: |lab| send(lab, "free", "guarded", &syn("client", "guarded", 80)),
    },
    Case {
        name: "ARP for another pod's address",
        reason: r::SPOOFED_NEIGHBOUR,
        run: |lab| {
            let arp = Arp::request((MAC, v4("client")), v4("guarded"));
            send(lab, "free", "guarded", &arp.frame())
        },
    },
    Case {
        name: "a router advertisement from a pod",
        reason: r::ROUTER_MESSAGE,
        run: |lab| {
            let source = "fe80::1".parse()?;
            send(lab, "free", "client", &frame(&nd::router_advert(source, MAC)))
        },
    },
    Case {
        name: "VXLAN from a pod",
        reason: r::TUNNEL,
        run: |lab| {
            lab.configure(|config| config.tunnels[0] = 17 << 16 | 8472)?;
            send(
                lab,
                "free",
                "outside",
                &frame(&ip("free", "server").udp(40_000, 8472, &[0; 50])),
            )
        },
    },
    Case {
        name: "VXLAN where NAT has led it",
        reason: r::TUNNEL,
        run: |lab| {
            lab.configure(|config| config.tunnels[0] = 17 << 16 | 8472)?;
            let (from, led) = (
                index(lab, "free"),
                ip("free", "server").udp(40_000, 8472, &[0; 50]),
            );
            lab.leave(OUTSIDE, &frame(&led), mark::sender(from), lab.device(from))
        },
    },
    Case {
        name: "behind more extension headers than are walked, where there are tunnels",
        reason: r::TUNNEL,
        run: |lab| {
            lab.configure(|config| config.tunnels[0] = 17 << 16 | 8472)?;
            let options = Extension::padding(protocol::DESTINATION, 6);
            let packet = (0..9).fold(Ip::new(&addresses("free")[1], SERVER[1]), |ip, _| {
                ip.extension(options.clone())
            });
            send(
                lab,
                "free",
                "outside",
                &frame(&packet.udp(40_000, 8472, &[0; 50])),
            )
        },
    },
    Case {
        name: "forwarded without a mark",
        reason: r::LOST_MARK,
        run: |lab| {
            let (to, came) = (index(lab, "guarded"), lab.device(OUTSIDE));
            lab.leave(to, &syn("stranger", "guarded", 80), 0, came)
        },
    },
    Case {
        name: "the reply of an isolated pod on its way to somebody else",
        reason: r::MISDIRECTED,
        run: |lab| {
            let (to, other, came) = (
                index(lab, "free"),
                index(lab, "client"),
                lab.device(index(lab, "held")),
            );
            let answer = frame(&ip("held", "free").tcp(80, 40_000, tcp::ACK, b""));
            lab.leave(to, &answer, mark::reply(other, true), came)
        },
    },
    Case {
        name: "a later fragment without its first",
        reason: r::FRAGMENT,
        run: |lab| {
            let parts = fragments(&ip("client", "guarded").udp(40_000, 80, &[0; 100]), 9, 48);
            send(lab, "client", "guarded", &frame(&parts[1]))
        },
    },
    Case {
        name: "neither IP nor ARP",
        reason: r::NOT_IP,
        run: |lab| {
            send(
                lab,
                "free",
                "guarded",
                &Ether::default().with_type(0x88cc, &[0; 46]),
            )
        },
    },
    Case {
        name: "from a device whose pod nobody knows",
        reason: r::UNKNOWN_POD,
        run: |lab| {
            let device = lab.device(10);
            let input = Input {
                ifindex: device,
                ingress_ifindex: device,
                ..Input::default()
            };
            lab.machine.run(Hook::FromPod, &syn("free", "client", 80), input)
        },
    },
    Case {
        name: "from outside with a local pod's address",
        reason: r::SPOOFED_OUTSIDE,
        run: |lab| send(lab, "outside", "guarded", &syn("client", "guarded", 80)),
    },
];

#[test]
fn every_reason_is_reached_and_no_packet_passes_for_a_reason_to_drop() -> Result<()> {
    within(|lab| {
        for case in CASES {
            lab.forget_flows()?;
            lab.configure(|_| {})?;
            lab.apply(&town())?;
            let run = (case.run)(lab).with_context(|| case.name)?;
            let event = run.event.with_context(|| format!("{}: no event", case.name))?;
            ensure!(
                event.reason == case.reason,
                "{}: expected {}, got {}",
                case.name,
                r::name(case.reason),
                r::name(event.reason)
            );
            ensure!(run.dropped == is_drop(case.reason), "{}: {run:?}", case.name);
        }
        let reached: BTreeSet<_> = CASES.iter().map(|case| case.reason).collect();
        let all: BTreeSet<_> = r::ALL.iter().map(|(reason, _)| *reason).collect();
        assert_eq!(reached, all, "reasons without a packet that reaches them");
        Ok(())
    })
}
