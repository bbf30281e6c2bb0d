//! Millions of mutated frames through the parser: it never panics, never reads a field from beyond the frame, and says the
//! same whether the frame is linear or in pages.

use netpol_ebpf::{
    packet::{Kind, Packet, parse},
    skb::{HostSkb, Skb},
};

/// A small generator (xorshift): the same frames in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

const MAC: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];

fn ethernet(kind: u16, rest: &[&[u8]]) -> Vec<u8> {
    let mut frame = MAC.to_vec();
    frame.extend(kind.to_be_bytes());
    frame.extend(rest.concat());
    frame
}

fn v4(options: &[u8], proto: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let header = 20 + options.len();
    let mut ip = vec![0x40 | (header / 4) as u8, 0];
    ip.extend(((header + payload.len()) as u16).to_be_bytes());
    ip.extend([0x12, 0x34]);
    ip.extend(fragment.to_be_bytes());
    ip.extend([64, proto, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    ip.extend(options);
    ethernet(0x0800, &[&ip, payload])
}

fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut ip = vec![0x60, 0, 0, 0];
    ip.extend((payload.len() as u16).to_be_bytes());
    ip.extend([next, 255]);
    ip.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    ip.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    ethernet(0x86dd, &[&ip, payload])
}

const TCP: [u8; 20] = [3, 232, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0];
const UDP: [u8; 12] = [3, 232, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4];

fn corpus() -> Vec<Vec<u8>> {
    let quoted = v4(&[], 6, 0, &TCP)[14..].to_vec();
    let hop_by_hop = [&[6u8, 0, 5, 2, 0, 0, 1, 0][..], &TCP].concat();
    let chain = [
        &[60u8, 0, 0, 0, 0, 0, 0, 0][..],
        &[44, 0, 0, 0, 0, 0, 0, 0],
        &[17, 0, 0, 1, 0, 0, 0, 9],
        &UDP,
    ]
    .concat();
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend([2, 0, 0, 0, 0, 1, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2]);
    let mut tagged = MAC.to_vec();
    tagged.extend([0x81, 0, 0, 7]);
    tagged.extend(&v4(&[], 6, 0, &TCP)[12..]);
    vec![
        v4(&[], 6, 0, &TCP),
        v4(&[7, 4, 0, 0, 1, 1, 1, 0], 17, 0, &UDP),
        v4(&[], 17, 0x2000, &UDP),
        v4(&[], 17, 0x0003, &UDP),
        v4(&[], 132, 0, &[3, 232, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20]),
        v4(&[], 1, 0, &[8, 0, 0, 0, 0, 7, 0, 1]),
        v4(&[], 1, 0, &[&[3, 4, 0, 0, 0, 0, 5, 0], &quoted[..]].concat()),
        v4(&[], 47, 0, &[0, 0, 8, 0]),
        v6(6, &TCP),
        v6(0, &hop_by_hop),
        v6(0, &chain),
        v6(
            58,
            &[
                135, 0, 0, 0, 0, 0, 0, 0, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9,
            ],
        ),
        v6(58, &[128, 0, 0, 0, 0, 7, 0, 1]),
        ethernet(0x0806, &[&arp]),
        tagged,
        ethernet(0x88cc, &[&[0, 1, 2]]),
    ]
}

fn parsed(bytes: &[u8], paged: usize) -> Packet {
    let skb = HostSkb {
        bytes: bytes.to_vec(),
        paged: paged.into(),
        ..HostSkb::default()
    };
    let mut packet = Packet::default();
    parse(&skb, &mut packet);
    packet
}

#[test]
fn the_corpus_is_what_it_was_built_as() {
    use Kind::{Arp, Error, Later, Loose, Mid, Neighbour, NotIp, Open};
    let kinds: Vec<Kind> = corpus().iter().map(|frame| parsed(frame, 0).kind).collect();
    let tcp_by_extensions = Open;
    assert_eq!(
        kinds,
        [
            Open,
            Loose,
            Loose,
            Later,
            Open,
            Open,
            Error,
            Loose,
            Open,
            tcp_by_extensions,
            Loose,
            Neighbour,
            Open,
            Arp,
            Open,
            NotIp
        ]
    );
    assert!(!kinds.contains(&Mid));
}

#[test]
fn ports_of_options_and_extension_headers_are_not_mistaken_for_ports() {
    for (frame, ports) in corpus().iter().zip([(1000, 80), (1000, 53)]) {
        let packet = parsed(frame, 0);
        assert_eq!((u16::from_be(packet.sport), u16::from_be(packet.dport)), ports);
    }
    for at in [9, 10] {
        let packet = parsed(&corpus()[at], 0);
        let port = if at == 9 { 80 } else { 53 };
        assert_eq!((packet.family, u16::from_be(packet.dport)), (6, port));
    }
}

#[test]
fn mutated_frames_never_panic_and_never_read_beyond_the_frame() {
    let rounds: usize = std::env::var("NETPOL_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(2_000_000);
    let corpus = corpus();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut seen = [0usize; 12];
    for round in 0..rounds {
        let mut bytes = corpus[random.below(corpus.len())].clone();
        for _ in 0..random.below(4) {
            let at = random.below(bytes.len());
            bytes[at] = match random.below(3) {
                0 => random.next() as u8,
                1 => bytes[at] ^ (1 << random.below(8)),
                _ => [0, 1, 6, 17, 43, 44, 51, 58, 60, 132, 255][random.below(11)],
            };
        }
        if random.below(3) == 0 {
            bytes.truncate(random.below(bytes.len() + 1));
        }
        let packet = parsed(&bytes, 0);
        seen[packet.kind as usize] += 1;
        let skb = HostSkb {
            bytes: bytes.clone(),
            ..HostSkb::default()
        };
        if matches!(packet.kind, Kind::Open | Kind::Mid | Kind::Error) {
            assert!(
                skb.load::<8>(packet.l4).is_some(),
                "round {round}: ports from beyond the frame {bytes:02x?}"
            );
        }
        let paged = random.below(bytes.len() + 1);
        let with_pages = parsed(&bytes, paged);
        assert_eq!(
            with_pages, packet,
            "round {round}: {paged} bytes in pages of {bytes:02x?}"
        );
    }
    assert!(
        seen.iter().all(|count| *count > 0 || rounds < 100_000),
        "kinds never reached: {seen:?}"
    );
}
