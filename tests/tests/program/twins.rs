//! The data path is tested on the host by the million; here the same frames go through the host's build and through the
//! loaded programs, with the same policy in both: verdict, mark and event are the same.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use netpol_common::{
    event::maps as names,
    mark::OUTSIDE,
    pod::{Config, Pod, state},
};
use netpol_ebpf::{hooks, maps, skb::HostSkb};
use netpol_tests::{
    packet::{Arp, Ether, Extension, Ip, fragments, nd, tcp},
    program::{Hook, Input, Lab, Run, within},
};

use crate::town::{SERVER, STRANGER, addresses, index, town};

/// How many frames without `NETPOL_CASES`.
const CASES: usize = 20_000;
const PODS: [&str; 5] = ["free", "client", "guarded", "held", "both"];

/// A small generator (xorshift): the same frames in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

/// Puts what is in the kernel's maps into this thread's.
fn copy(lab: &mut Lab<'_>) -> Result<()> {
    let mut world = maps::World {
        config: lab.machine.read::<Config>(names::CONFIG, 0)?,
        jiffies: 1_000_000,
        ..maps::World::default()
    };
    for word in [state::EPOCH, state::FLAGS] {
        world.state[word as usize] = lab.machine.read(names::STATE, word)?;
    }
    let tables = lab.tables();
    world.hosts4 = tables
        .hosts4
        .iter()
        .map(|(a, class)| (word(*a), *class))
        .collect();
    world.hosts6 = tables
        .hosts6
        .iter()
        .map(|(a, class)| (words(*a), *class))
        .collect();
    world.nets4 = (tables.nets4.iter())
        .map(|(net, class)| ((net.prefix_len().into(), net.network().into()), *class))
        .collect();
    world.nets6 = (tables.nets6.iter())
        .map(|(net, class)| ((net.prefix_len().into(), net.network().into()), *class))
        .collect();
    for (key, cell) in &tables.cells {
        world.cells.insert(*key, Box::leak(Box::new(*cell)));
    }
    for (key, chunk) in &tables.ports {
        world.ports.insert(*key, Box::leak(Box::new(*chunk)));
    }
    for name in PODS {
        let index = index(lab, name);
        let pod: Pod = lab.machine.read(names::PODS, index)?;
        world.local4.insert(pod.addr4[0], index);
        world.local6.insert(pod.addr6, index);
        world.ifaces.insert(lab.device(index), index);
        world.pods.insert(index, Box::leak(Box::new(pod)));
    }
    maps::world(|mine| *mine = world);
    Ok(())
}

fn word(address: std::net::Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

fn words(address: std::net::Ipv6Addr) -> [u32; 4] {
    let bytes = address.octets();
    [0, 4, 8, 12].map(|at| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes")))
}

/// What the host's build says.
fn on_host(hook: Hook, frame: &[u8], input: Input) -> Run {
    let mut skb = HostSkb {
        bytes: frame.to_vec(),
        mark: input.mark,
        ifindex: input.ifindex,
        ingress_ifindex: input.ingress_ifindex,
        ..HostSkb::default()
    };
    maps::world(|world| world.events.clear());
    let dropped = match hook {
        Hook::FromPod => hooks::from_pod(&mut skb),
        Hook::ToPod => hooks::to_pod(&mut skb),
        Hook::Arrive => hooks::arrive(&mut skb),
        Hook::Settle => hooks::settle(&mut skb),
    };
    Run {
        dropped,
        mark: skb.mark,
        event: maps::world(|world| world.events.pop()),
    }
}

/// One frame from end to end, on both; how many programs ran.
fn cross(lab: &mut Lab<'_>, (from, to): (u32, u32), frame: &[u8]) -> Result<usize> {
    let way_in = if from == OUTSIDE {
        Hook::Arrive
    } else {
        Hook::FromPod
    };
    let way_out = if to == OUTSIDE { Hook::Settle } else { Hook::ToPod };
    let mut mark = 0;
    for (ran, (hook, device)) in [(way_in, lab.device(from)), (way_out, lab.device(to))]
        .into_iter()
        .enumerate()
    {
        let input = Input {
            mark,
            ifindex: device,
            ingress_ifindex: lab.device(from),
        };
        let kernel = lab.machine.run(hook, frame, input)?;
        let host = on_host(hook, frame, input);
        ensure!(
            kernel == host,
            "{hook:?} of {frame:02x?} with {input:?}:\nthe kernel says {kernel:?}\nthe host says {host:?}"
        );
        if kernel.dropped {
            return Ok(ran + 1);
        }
        mark = kernel.mark;
    }
    Ok(2)
}

/// Frames of every kind between two ends of the town.
fn corpus(from: &str, to: &str, family: usize) -> Vec<Vec<u8>> {
    let address = |name: &str| match name {
        "server" => SERVER[family].to_owned(),
        "stranger" => STRANGER[family].to_owned(),
        pod => addresses(pod)[family].clone(),
    };
    let (forth, back) = (
        Ip::new(address(from), address(to)),
        Ip::new(address(to), address(from)),
    );
    let syn = forth.tcp(40_000, 443, tcp::SYN, b"");
    let dns = forth.udp(40_000, 53, &[7; 64]);
    let answer = back.tcp(443, 40_000, tcp::SYN | tcp::ACK, b"");
    let longer = if family == 0 {
        forth.clone().options(&[7, 4, 0, 0, 1, 1, 1, 0])
    } else {
        forth.clone().extension(Extension::hop_by_hop())
    };
    let mut packets = vec![
        forth.tcp(40_000, 80, tcp::SYN, b""),
        forth.tcp(40_000, 443, tcp::ACK, b"data"),
        forth.tcp(40_000, 443, tcp::RST, b""),
        forth.tcp(443, 40_000, tcp::SYN | tcp::ACK, b""),
        forth.udp(53, 40_000, b"answer"),
        forth.sctp_init(40_000, 80),
        forth.echo(7),
        forth.echo_reply(7),
        forth.port_unreachable(&answer),
        forth.too_big(1280, &answer),
        longer.tcp(40_000, 80, tcp::SYN, b""),
        longer.udp(40_000, 53, b"question"),
        forth.payload(47, &[0; 12]),
    ];
    packets.extend(fragments(&dns, 9, 24));
    packets.extend([syn, dns]);
    let ether = Ether::default();
    let mut frames: Vec<Vec<u8>> = packets.iter().map(|packet| ether.frame(packet)).collect();
    frames.push(ether.clone().vlan(7).frame(&packets[0]));
    if let (IpAddr::V4(own), IpAddr::V4(other)) = (forth.src(), forth.dst()) {
        frames.push(Arp::request(([2, 0, 0, 0, 0, 1], own), other).frame());
    }
    if let (IpAddr::V6(own), IpAddr::V6(other)) = (forth.src(), forth.dst()) {
        let mac = [2, 0, 0, 0, 0, 1];
        frames.push(ether.frame(&nd::solicit(own, other, mac)));
        frames.push(ether.frame(&nd::advert(own, other, own, mac)));
        frames.push(ether.frame(&nd::router_advert(own, mac)));
    }
    frames
}

fn mutate(frame: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..random.below(4) {
        let at = random.below(frame.len());
        frame[at] = match random.below(3) {
            0 => random.below(256) as u8,
            1 => frame[at] ^ (1 << random.below(8)),
            _ => [0, 1, 6, 17, 43, 44, 51, 58, 60, 132, 255][random.below(11)],
        };
    }
    if random.below(4) == 0 {
        frame.truncate(15 + random.below(frame.len() - 14));
    }
    // BPF_PROG_TEST_RUN refuses what has not the whole header that its type promises.
    let least = match frame[12..14] {
        [0x08, 0x00] => 34,
        [0x86, 0xdd] => 54,
        _ => 15,
    };
    frame.resize(frame.len().max(least), 0);
}

#[test]
fn the_programs_say_what_their_build_for_the_host_says() -> Result<()> {
    let asked = std::env::var("NETPOL_CASES")
        .ok()
        .and_then(|text| text.parse().ok());
    within(|lab| {
        lab.apply(&town())?;
        copy(lab)?;
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let outside = ["server", "stranger"];
        let ends: Vec<&str> = PODS.into_iter().chain(outside).collect();
        let mut ran = 0;
        for _ in 0..asked.unwrap_or(CASES) {
            let (from, to) = (ends[random.below(ends.len())], ends[random.below(ends.len())]);
            let mut frames = corpus(from, to, random.below(2));
            let mut frame = frames.swap_remove(random.below(frames.len()));
            if random.below(3) > 0 {
                mutate(&mut frame, &mut random);
            }
            let place = |name: &str| {
                if outside.contains(&name) {
                    OUTSIDE
                } else {
                    index(lab, name)
                }
            };
            let places = (place(from), place(to));
            ran += cross(lab, places, &frame)?;
        }
        println!("{ran} runs");
        Ok(())
    })
}
