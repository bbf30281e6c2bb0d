//! Nanoseconds a packet, as `BPF_PROG_TEST_RUN` takes them.
//!
//! Each figure is the difference to an empty program between which and the measured one the rounds alternate. Packets
//! come from the rotor's ring: one key again and again, or every peer in a random order.

use anyhow::{Context, Result, ensure};
use netpol_common::{
    mark::{OUTSIDE, reply, sender},
    pod::state,
    reason,
};
use netpol_tests::{
    packet::{Ether, Ip, tcp},
    program::{Hook, Input, Lab, Machine, Next, Packet, Rotor, in_namespace},
};

use crate::{
    row::{Row, spread},
    scene::{ALLOWED, DENIED, Kind, Local, Size},
};

/// A kind of packet at one program.
struct Case {
    what: &'static str,
    hook: Hook,
    /// TCP flags.
    flags: u8,
    /// What the program must say of it, or nothing was measured.
    reason: u8,
    /// The local pods whose packets these are, and how they go.
    way: Way,
    port: u16,
    goal: f64,
}

/// From whom to whom.
#[derive(Clone, Copy)]
enum Way {
    /// A local pod sends to the peers.
    Out(Local),
    /// The peers send to a local pod.
    In(Local),
    /// Strangers, whom no policy names, send to a local pod.
    StrangersIn(Local),
    /// A local pod sends to strangers.
    StrangersOut(Local),
    /// A peer on this node sends to the server.
    Here,
    /// A local pod answers the peers that have opened a connection.
    ReplyOut(Local),
    /// The peers answer a local pod that has opened one.
    ReplyIn(Local),
}

/// Room for two flows of each of 100 000 peers: a full table replaces what is about to be measured.
const FLOWS: u32 = 1 << 19;

const ESTABLISHED: f64 = 55.0;
const UNISOLATED: f64 = 30.0;
const NEW: f64 = 140.0;

#[rustfmt::skip]
fn cases() -> Vec<Case> {
    use Hook::{Arrive, FromPod, Settle, ToPod};
    use Local::{Door, Free, Server};
    use Way::{Here, In, Out, ReplyIn, ReplyOut, StrangersIn, StrangersOut};
    use reason::{ALLOWED as OK, DENIED_EGRESS, DENIED_INGRESS, KNOWN_FLOW, NOT_ISOLATED, NOT_OURS, REPLY};
    let case = |what, hook, flags, reason, way, port, goal| Case { what, hook, flags, reason, way, port, goal };
    vec![
        case("unisolated, from_pod", FromPod, tcp::ACK, NOT_OURS, Out(Free), ALLOWED, UNISOLATED),
        case("unisolated, settle", Settle, tcp::ACK, NOT_ISOLATED, Out(Free), ALLOWED, UNISOLATED),
        case("unisolated, arrive", Arrive, tcp::ACK, NOT_OURS, In(Free), ALLOWED, UNISOLATED),
        case("unisolated, to_pod", ToPod, tcp::ACK, NOT_ISOLATED, In(Free), ALLOWED, UNISOLATED),
        case("established by the pod, from_pod", FromPod, tcp::ACK, NOT_OURS, Out(Server), ALLOWED, ESTABLISHED),
        case("established by the pod, settle", Settle, tcp::ACK, KNOWN_FLOW, Out(Server), ALLOWED, ESTABLISHED),
        case("established by the pod, reply, arrive", Arrive, tcp::ACK, REPLY, ReplyIn(Server), ALLOWED, ESTABLISHED),
        case("established by the pod, reply, to_pod", ToPod, tcp::ACK, REPLY, ReplyIn(Server), ALLOWED, ESTABLISHED),
        case("established by a peer, arrive", Arrive, tcp::ACK, NOT_OURS, In(Server), ALLOWED, ESTABLISHED),
        case("established by a peer, to_pod", ToPod, tcp::ACK, KNOWN_FLOW, In(Server), ALLOWED, ESTABLISHED),
        case("established by a peer, reply, from_pod", FromPod, tcp::ACK, REPLY, ReplyOut(Server), ALLOWED, ESTABLISHED),
        case("established by a peer, reply, settle", Settle, tcp::ACK, REPLY, ReplyOut(Server), ALLOWED, ESTABLISHED),
        case("new, allowed, stateless, to_pod", ToPod, tcp::SYN, OK, In(Door), ALLOWED, NEW),
        case("new, allowed, recorded, to_pod", ToPod, tcp::SYN, OK, In(Server), ALLOWED, NEW),
        case("new, allowed, recorded, settle", Settle, tcp::SYN, OK, Out(Server), ALLOWED, NEW),
        case("new, allowed, both ends' rules, to_pod", ToPod, tcp::SYN, OK, Here, ALLOWED, NEW),
        case("denied, peer known, to_pod", ToPod, tcp::SYN, DENIED_INGRESS, In(Server), DENIED, NEW),
        case("denied, peer known, settle", Settle, tcp::SYN, DENIED_EGRESS, Out(Server), DENIED, NEW),
        case("denied, peer unknown, to_pod", ToPod, tcp::SYN, DENIED_INGRESS, StrangersIn(Server), ALLOWED, NEW),
        case("denied, peer unknown, settle", Settle, tcp::SYN, DENIED_EGRESS, StrangersOut(Server), ALLOWED, NEW),
    ]
}

/// How long and how often.
#[derive(Clone, Copy)]
struct Effort {
    rounds: usize,
    repeat: u32,
}

fn sizes(quick: bool) -> Vec<Size> {
    let size = |policies, peers, kind| Size {
        policies,
        peers,
        kind,
    };
    let mut sizes = vec![size(100, 1_000, Kind::Pods)];
    if quick {
        return sizes;
    }
    sizes.splice(
        0..0,
        [(1, 1_000), (100, 10)].map(|(policies, peers)| size(policies, peers, Kind::Pods)),
    );
    sizes.extend(
        [(10_000, 1_000), (100, 100_000), (10_000, 100_000)]
            .map(|(policies, peers)| size(policies, peers, Kind::Pods)),
    );
    sizes.extend([10, 1_000, 100_000].map(|peers| size(100, peers, Kind::Blocks)));
    sizes
}

/// All cases at all sizes.
pub(crate) fn measure(quick: bool) -> Result<Vec<Row>> {
    let effort = Effort {
        rounds: if quick { 7 } else { 11 },
        repeat: if quick { 20_000 } else { 50_000 },
    };
    let mut machine = Machine::load(&[("nets4", 131_072), ("flows4", FLOWS)])?;
    let mut rows = Vec::new();
    for size in sizes(quick) {
        eprintln!("{size}");
        rows.extend(in_namespace(&mut machine, |lab| at_size(lab, size, effort))?);
    }
    Ok(rows)
}

fn at_size(lab: &mut Lab<'_>, size: Size, effort: Effort) -> Result<Vec<Row>> {
    lab.configure(|config| {
        config.quota = u32::MAX;
        config.local4 = (10_u32 << 24).to_be();
        config.local4_mask = 0xffff_ff00_u32.to_be();
        // VXLAN, as Flannel has it.
        config.tunnels[0] = 17 << 16 | 8472;
    })?;
    lab.apply(&size.snapshot())?;
    let mut bench = Bench {
        lab,
        rotor: Rotor::load(262_144, 131_072, FLOWS)?,
        size,
        effort,
        order: shuffled(size.peers),
        rows: Vec::new(),
    };
    bench.establish(Local::Server)?;
    bench.bare()?;
    // Both ends' rules name pods; no ipBlock holds the client.
    let fits = |case: &Case| size.kind == Kind::Pods || !matches!(case.way, Way::Here);
    for case in cases().into_iter().filter(fits) {
        bench.case(&case).with_context(|| case.what)?;
    }
    Ok(bench.rows)
}

/// One size.
struct Bench<'b, 'm> {
    lab: &'b mut Lab<'m>,
    rotor: Rotor,
    size: Size,
    effort: Effort,
    /// The peers, in the order in which their packets come.
    order: Vec<usize>,
    rows: Vec<Row>,
}

impl Bench<'_, '_> {
    fn packet(&self, way: Way, port: u16, hook: Hook, peer: usize) -> Packet {
        let there = self.size.peer(peer);
        let stranger = (50 << 24) + (peer as u32).wrapping_mul(2_654_435_761) % (1 << 24);
        let own = 40_000;
        let index = |local: Local| local.index(self.lab);
        let (src, dst, sport, dport, mark) = match way {
            Way::Out(local) => (local.address(), there, own, port, sender(index(local))),
            Way::In(local) => (there, local.address(), own, port, sender(OUTSIDE)),
            Way::StrangersOut(local) => (local.address(), stranger, own, port, sender(index(local))),
            Way::StrangersIn(local) => (stranger, local.address(), own, port, sender(OUTSIDE)),
            Way::Here => {
                let (from, to) = (Local::Client, Local::Server);
                // Masqueraded: only the mark says who it is.
                (
                    from.address(),
                    to.address(),
                    own + peer as u16 % 1000,
                    port,
                    sender(index(from)),
                )
            }
            Way::ReplyOut(local) => (local.address(), there, port, own, reply(OUTSIDE, true)),
            Way::ReplyIn(local) => (there, local.address(), port, own, reply(index(local), false)),
        };
        let way_in = matches!(hook, Hook::FromPod | Hook::Arrive);
        Packet {
            src,
            dst,
            sport,
            dport,
            mark: if way_in { 0 } else { mark },
        }
    }

    fn input(&self, way: Way, hook: Hook) -> Input {
        let local = match way {
            Way::Here => Local::Server,
            Way::Out(local)
            | Way::In(local)
            | Way::StrangersIn(local)
            | Way::StrangersOut(local)
            | Way::ReplyOut(local)
            | Way::ReplyIn(local) => local,
        };
        let pod = self.lab.device(local.index(self.lab));
        let outside = self.lab.device(OUTSIDE);
        let (ifindex, ingress_ifindex) = match hook {
            Hook::FromPod => (pod, pod),
            Hook::Arrive => (outside, outside),
            Hook::ToPod => (pod, outside),
            Hook::Settle => (outside, pod),
        };
        Input {
            mark: 0,
            ifindex,
            ingress_ifindex,
        }
    }

    /// A connection of each peer to `pod` and one of `pod` to each peer, by the packets that make them.
    fn establish(&mut self, pod: Local) -> Result<()> {
        let ways = [
            (Way::In(pod), Hook::ToPod, Way::ReplyOut(pod), Hook::FromPod),
            (Way::Out(pod), Hook::Settle, Way::ReplyIn(pod), Hook::Arrive),
        ];
        self.lab.flags(0, state::FLAG_EVENTS_ALL)?;
        let order = self.order.clone();
        for (open, out, answer, back) in ways {
            // A part at a time, as unanswered flows have a table of their own that does not hold them all.
            for part in order.chunks(16_384) {
                for (way, hook, flags) in [
                    (open, out, tcp::SYN),
                    (answer, back, tcp::ACK),
                    (open, out, tcp::ACK),
                ] {
                    let packets: Vec<_> = part
                        .iter()
                        .map(|&peer| self.packet(way, ALLOWED, hook, peer))
                        .collect();
                    self.aim(&packets, &Next::Program(self.lab.machine.program(hook)?))?;
                    self.rotor
                        .run(&frame(flags), self.input(way, hook), packets.len() as u32)?;
                }
            }
        }
        let flows = self.lab.flows()?.len();
        ensure!(flows == self.order.len() * 2, "only {flows} flows were recorded");
        Ok(())
    }

    fn aim(&mut self, packets: &[Packet], next: &Next) -> Result<()> {
        self.rotor.packets(packets)?;
        self.rotor.direct(next)
    }

    /// The lookups that no program can do without, alone.
    fn bare(&mut self) -> Result<()> {
        let way = Way::In(Local::Server);
        let packets: Vec<_> = self
            .order
            .iter()
            .map(|&peer| self.packet(way, ALLOWED, Hook::ToPod, peer))
            .collect();
        let peers: Vec<u32> = packets.iter().map(|packet| packet.src).collect();
        let nets: Vec<_> = peers.iter().map(|peer| (peer & 0xffff_ff00, 24)).collect();
        let (hosts, nets, maps) = match self.size.kind {
            Kind::Pods => (
                &peers[..],
                &[][..],
                &[
                    ("a bare hash of peers", Next::BareHash),
                    ("a bare table of flows", Next::BareFlows),
                ][..],
            ),
            Kind::Blocks => (
                &[][..],
                &nets[..],
                &[
                    ("a bare trie of ipBlocks", Next::BareTrie),
                    ("a bare table of flows", Next::BareFlows),
                ][..],
            ),
        };
        self.rotor.fill(hosts, nets, &packets)?;
        for (what, next) in maps {
            self.rounds(
                what,
                &packets,
                tcp::ACK,
                self.input(way, Hook::ToPod),
                next,
                1,
                None,
            )?;
        }
        Ok(())
    }

    fn case(&mut self, case: &Case) -> Result<()> {
        let input = self.input(case.way, case.hook);
        let packets: Vec<_> = self
            .order
            .iter()
            .map(|&peer| self.packet(case.way, case.port, case.hook, peer))
            .collect();
        self.check(case, input, packets[0])?;
        let answer = if reason::is_drop(case.reason) { 2 } else { -1 };
        let next = Next::Program(self.lab.machine.program(case.hook)?);
        self.rounds(
            case.what,
            &packets,
            case.flags,
            input,
            &next,
            answer,
            Some(case.goal),
        )
    }

    /// That the program says of the packet what the case says.
    fn check(&mut self, case: &Case, input: Input, packet: Packet) -> Result<()> {
        self.lab.flags(state::FLAG_EVENTS_ALL, 0)?;
        let [src, dst] =
            [packet.src, packet.dst].map(|address| std::net::Ipv4Addr::from(address).to_string());
        let frame =
            Ether::default().frame(&Ip::new(&src, &dst).tcp(packet.sport, packet.dport, case.flags, b""));
        let mark = packet.mark;
        let run = self.lab.machine.run(case.hook, &frame, Input { mark, ..input })?;
        self.lab.flags(0, state::FLAG_EVENTS_ALL)?;
        ensure!(
            run.event.is_some_and(|event| event.reason == case.reason),
            "{} where {} should be measured",
            run.reason(),
            reason::name(case.reason)
        );
        Ok(())
    }

    /// Measures with one key and with all of them.
    #[expect(clippy::too_many_arguments, reason = "what a row says")]
    fn rounds(
        &mut self,
        what: &str,
        packets: &[Packet],
        flags: u8,
        input: Input,
        next: &Next,
        answer: i32,
        goal: Option<f64>,
    ) -> Result<()> {
        let frame = frame(flags);
        for (keys, ring) in [("one key", &packets[..1]), ("random keys", packets)] {
            self.rotor.packets(ring)?;
            let (mut least, mut net) = ([f64::MAX; 2], Vec::new());
            for _ in 0..self.effort.rounds {
                let mut pair = [0.0; 2];
                for (at, next) in [&Next::Empty, next].into_iter().enumerate() {
                    self.rotor.direct(next)?;
                    let (time, said) = self.rotor.run(&frame, input, self.effort.repeat)?;
                    ensure!(at == 0 || said == answer, "answered {said} instead of {answer}");
                    pair[at] = time as f64;
                    least[at] = least[at].min(pair[at]);
                }
                net.push(pair[1] - pair[0]);
            }
            self.rows.push(Row {
                part: "packets",
                what: format!("{what}, {keys}"),
                at: self.size.to_string(),
                unit: "ns",
                min: least[1] - least[0],
                median: spread(net).1,
                goal: goal.filter(|_| keys == "one key"),
            });
        }
        Ok(())
    }
}

/// A frame whose addresses and ports the rotor replaces.
fn frame(flags: u8) -> Vec<u8> {
    Ether::default().frame(&Ip::new("10.0.0.1", "10.0.0.2").tcp(1, 2, flags, b""))
}

/// 0 … `count`, in an order that no prefetcher guesses; the same at every run.
fn shuffled(count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for at in (1..count).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        order.swap(at, (state % (at as u64 + 1)) as usize);
    }
    order
}
