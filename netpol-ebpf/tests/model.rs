//! A small model, checked exhaustively: two ends, every isolation of both, local or outside, and every sequence of a few
//! events (open, go on, answer, reset, revoke, allow again, pause, idle, reuse) through the real verdict core.
//!
//! Two bounds are held after every packet: nothing passes that the policy does not allow now, as itself or as
//! the answer of a flow that was opened, lives and is still allowed; and what is allowed, or belongs to such a flow,
//! passes. A flow outlives a pause only once it is established: TCP when its opener has gone on after an answer, UDP
//! when it was answered.

use netpol_common::{
    mark::OUTSIDE,
    pod::{self, Pod, state},
    proto::{TCP, UDP},
    tables::{CELL_ALL, Cell, CellKey},
};
use netpol_ebpf::{hooks, maps, skb::HostSkb};

const HZ: u64 = 100;
const A: u32 = 1;
const B: u32 = 2;
const ADDRESSES: [[u8; 4]; 3] = [[0; 4], [10, 0, 0, 1], [10, 0, 0, 2]];
/// Classes of A's and B's addresses.
const CLASSES: [u32; 3] = [0, 11, 12];
const PORTS: [u16; 3] = [0, 1000, 80];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// The end sends the beginning of a conversation (UDP: a datagram).
    Open(u32),
    /// The end sends a segment in mid-stream (UDP: a datagram).
    Data(u32),
    /// The end sends a reset (UDP: a datagram).
    Reset(u32),
    /// What the end may send to the other is revoked, or allowed again.
    Toggle(u32),
    /// Longer than an opening, a reset or an unanswered datagram is remembered; shorter than anything established.
    Pause,
    /// Longer than any timeout.
    Idle,
}

/// In jiffies; see [`Event::Pause`].
const PAUSE: u64 = 3500;

const EVENTS: [Event; 10] = [
    Event::Open(A),
    Event::Open(B),
    Event::Data(A),
    Event::Data(B),
    Event::Reset(A),
    Event::Reset(B),
    Event::Toggle(A),
    Event::Toggle(B),
    Event::Pause,
    Event::Idle,
];

/// Where the ends are, and how they are isolated.
#[derive(Clone, Copy, Debug)]
struct Setup {
    /// Whether the end is a local pod; index 0 is unused.
    local: [bool; 3],
    ingress: [bool; 3],
    egress: [bool; 3],
    proto: u8,
}

/// What should be known about the flow that one end opened.
#[derive(Clone, Copy, Debug, Default)]
struct Opened {
    /// A beginning passed, and it was not silent for too long since.
    lives: bool,
    /// The other end has answered.
    answered: bool,
    /// It is among the answered flows.
    established: bool,
    /// The last that passed was a reset.
    reset: bool,
    /// It was revoked while it lived: it may stay cut, whatever is allowed later.
    cut: bool,
}

/// What should be known, by end.
#[derive(Clone, Copy, Debug, Default)]
struct Expected {
    allowed: [bool; 3],
    by: [Opened; 3],
}

impl Opened {
    fn begin(&mut self, proto: u8) {
        if self.lives && self.established && !self.reset && !self.cut && proto == TCP {
            // A SYN within a living connection changes nothing.
            return;
        }
        *self = Self {
            lives: true,
            ..Self::default()
        };
    }

    /// A packet of the end that did not open it passed.
    fn answer(&mut self, proto: u8, reset: bool) {
        self.reset = reset;
        self.answered |= !reset;
        self.established |= proto == UDP;
    }

    /// A later packet of the end that opened it passed.
    fn go_on(&mut self, proto: u8, reset: bool) {
        self.reset = reset;
        self.established |= proto == TCP && !reset && self.answered;
    }

    fn pause(&mut self) {
        if !self.established || self.reset {
            *self = Self::default();
        }
    }
}

fn other(end: u32) -> u32 {
    A + B - end
}

fn ruleset(end: u32, egress: bool) -> u32 {
    end * 2 + u32::from(egress)
}

impl Setup {
    fn install(&self) {
        maps::world(|w| {
            *w = maps::World::default();
            w.jiffies = 1_000_000;
            w.config.timeouts = [3000, 80_000, 1000, 1000, 3000, 40_000, 3000, 0];
            w.config.hz = HZ;
            w.config.quota = 1000;
            w.config.quota_window = 3000;
            w.config.local4_mask = u32::MAX;
            w.state[state::EPOCH as usize] = 1;
            for end in [A, B] {
                let at = end as usize;
                w.hosts4.insert(u32::from_ne_bytes(ADDRESSES[at]), CLASSES[at]);
                if !self.local[at] {
                    continue;
                }
                let ingress = if self.ingress[at] { ruleset(end, false) } else { 0 };
                let egress = if self.egress[at] { ruleset(end, true) } else { 0 };
                let slot = Pod {
                    rulesets: pod::rulesets(ingress, egress),
                    incarnation: 1,
                    addr4: [u32::from_ne_bytes(ADDRESSES[at]), 0, 0, 0],
                    ..Pod::default()
                };
                w.pods.insert(end, Box::leak(Box::new(slot)));
                w.ifaces.insert(end, end);
                w.local4.insert(u32::from_ne_bytes(ADDRESSES[at]), end);
                if self.ingress[at] {
                    w.state[state::FLAGS as usize] |= state::FLAG_ANY_INGRESS;
                }
                if self.ingress[at] || self.egress[at] {
                    w.state[state::FLAGS as usize] |= state::FLAG_ANY_ISOLATED;
                }
            }
        });
    }

    /// Writes who may send to whom, and moves the epoch.
    fn allow(&self, allowed: [bool; 3]) {
        static ALL: Cell = Cell {
            flags: CELL_ALL,
            ports: 0,
            ranges: [netpol_common::tables::Range::UNUSED; 3],
        };
        maps::world(|w| {
            w.cells.clear();
            for end in [A, B] {
                if allowed[end as usize] {
                    let peer = other(end);
                    let out = CellKey {
                        ruleset: ruleset(end, true),
                        class: CLASSES[peer as usize],
                    };
                    let inwards = CellKey {
                        ruleset: ruleset(peer, false),
                        class: CLASSES[end as usize],
                    };
                    w.cells.insert(out, &ALL);
                    w.cells.insert(inwards, &ALL);
                }
            }
            w.state[state::EPOCH as usize] += 1;
        });
    }

    /// Whether the rules let a packet from `end` pass now.
    fn permits(&self, end: u32, allowed: [bool; 3]) -> bool {
        let (at, peer) = (end as usize, other(end) as usize);
        allowed[at] || !(self.local[at] && self.egress[at] || self.local[peer] && self.ingress[peer])
    }

    /// Sends a packet from `end` across both hooks; whether it got through.
    fn send(&self, end: u32, tcp_flags: u8) -> bool {
        let (at, peer) = (end as usize, other(end) as usize);
        let mut skb = HostSkb {
            bytes: frame(end, self.proto, tcp_flags),
            ingress_ifindex: 9,
            ..HostSkb::default()
        };
        skb.ifindex = if self.local[at] { end } else { 7 };
        let dropped = if self.local[at] {
            hooks::from_pod(&mut skb)
        } else {
            hooks::arrive(&mut skb)
        };
        if dropped {
            return false;
        }
        skb.ifindex = if self.local[peer] { other(end) } else { 7 };
        !if self.local[peer] {
            hooks::to_pod(&mut skb)
        } else {
            hooks::settle(&mut skb)
        }
    }

    /// Whether the flow that `end` opens has an entry.
    fn recorded(&self, end: u32) -> bool {
        let isolated = |end: usize| self.local[end] && (self.ingress[end] || self.egress[end]);
        self.answers_judged(end) || self.proto == UDP && (isolated(1) || isolated(2))
    }

    /// Whether the flow that `end` opens needs its answers to be recognised at all.
    fn answers_judged(&self, end: u32) -> bool {
        let (at, peer) = (end as usize, other(end) as usize);
        self.local[peer] && self.egress[peer] || self.local[at] && self.ingress[at]
    }
}

fn frame(end: u32, proto: u8, tcp_flags: u8) -> Vec<u8> {
    let peer = other(end) as usize;
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    let l4 = if proto == TCP { 20 } else { 8 };
    bytes.extend([0x45, 0, 0, 20 + l4, 0, 0, 0, 0, 64, proto, 0, 0]);
    bytes.extend(ADDRESSES[end as usize]);
    bytes.extend(ADDRESSES[peer]);
    bytes.extend(PORTS[end as usize].to_be_bytes());
    bytes.extend(PORTS[peer].to_be_bytes());
    if proto == TCP {
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, tcp_flags, 0, 0, 0, 0, 0, 0]);
    } else {
        bytes.extend([0, 8, 0, 0]);
    }
    bytes
}

const SYN: u8 = 2;
const ACK: u8 = 16;
const RST: u8 = 4;

fn step(setup: &Setup, expected: &mut Expected, event: Event) -> Result<(), String> {
    let (end, flags) = match event {
        Event::Open(end) => (end, SYN),
        Event::Data(end) => (end, ACK),
        Event::Reset(end) => (end, RST),
        Event::Toggle(end) => {
            let at = end as usize;
            expected.allowed[at] = !expected.allowed[at];
            setup.allow(expected.allowed);
            expected.by[at].cut |= expected.by[at].lives && !setup.permits(end, expected.allowed);
            return Ok(());
        }
        Event::Pause => {
            maps::world(|w| w.jiffies += PAUSE);
            expected.by.iter_mut().for_each(Opened::pause);
            return Ok(());
        }
        Event::Idle => {
            maps::world(|w| w.jiffies += 10_000_000);
            expected.by = [Opened::default(); 3];
            return Ok(());
        }
    };
    let passed = setup.send(end, flags);
    let (at, peer) = (end as usize, other(end));
    let (own, its) = (expected.by[at], expected.by[peer as usize]);
    let opens = setup.proto == UDP || flags == SYN;
    let as_itself = setup.permits(end, expected.allowed);
    let answers = (setup.proto == UDP || flags != SYN) && its.lives;
    let of_flow = answers && setup.permits(peer, expected.allowed);
    if passed && !as_itself && !of_flow {
        return Err(format!("{event:?} passed, which nothing allows"));
    }
    // A tombstone of either direction may hold what would be allowed as new.
    let may_be_cut = (setup.proto == UDP || flags != SYN) && (own.cut || its.cut);
    let known = of_flow && (setup.answers_judged(peer) || as_itself);
    if !passed && !may_be_cut && (as_itself || known) {
        return Err(format!("{event:?} was dropped, which is allowed"));
    }
    if !passed {
        return Ok(());
    }
    let reset = setup.proto == TCP && flags == RST;
    if of_flow && setup.recorded(peer) {
        // What answers a living flow belongs to it, and to none of its own.
        expected.by[peer as usize].answer(setup.proto, reset);
    } else if opens && as_itself && !(setup.proto == UDP && own.lives) {
        expected.by[at].begin(setup.proto);
    } else if own.lives && setup.recorded(end) {
        expected.by[at].go_on(setup.proto, reset);
    }
    Ok(())
}

fn setups() -> Vec<Setup> {
    let mut all = Vec::new();
    for proto in [TCP, UDP] {
        for bits in 0..64u32 {
            let bit = |n: u32| bits >> n & 1 == 1;
            let setup = Setup {
                local: [false, bit(4), bit(5)],
                ingress: [false, bit(0), bit(1)],
                egress: [false, bit(2), bit(3)],
                proto,
            };
            let ghost = |end: usize| !setup.local[end] && (setup.ingress[end] || setup.egress[end]);
            // Remote to remote is not ours; an outside end has no isolation here.
            if (setup.local[1] || setup.local[2]) && !ghost(1) && !ghost(2) {
                all.push(setup);
            }
        }
    }
    all
}

/// What has happened before: nothing, half a handshake, all of it, and both at once.
const BEGINNINGS: [&[Event]; 5] = [
    &[],
    &[Event::Open(A), Event::Data(B)],
    &[Event::Open(A), Event::Data(B), Event::Data(A)],
    &[Event::Open(A), Event::Reset(B)],
    &[Event::Open(A), Event::Open(B), Event::Data(A), Event::Data(B)],
];

#[test]
fn every_short_history_gets_the_verdicts_that_the_policy_gives() {
    let depth: u32 = std::env::var("NETPOL_MODEL_DEPTH")
        .ok()
        .and_then(|d| d.parse().ok())
        .unwrap_or(4);
    let mut histories = 0u64;
    for setup in setups() {
        for start in [[false; 3], [false, true, false], [false, true, true]] {
            for beginning in BEGINNINGS {
                // What was there before makes up for a step.
                let depth = if beginning.is_empty() { depth } else { depth - 1 };
                for number in 0..EVENTS.len().pow(depth) {
                    play(&setup, start, beginning, number, depth);
                    histories += 1;
                }
            }
        }
    }
    let events = EVENTS.len() as u64;
    let each = events.pow(depth) + (BEGINNINGS.len() as u64 - 1) * events.pow(depth - 1);
    assert_eq!(histories, setups().len() as u64 * 3 * each);
    assert_eq!(OUTSIDE, 0);
}

/// `beginning`, then the history that `number` encodes.
fn play(setup: &Setup, start: [bool; 3], beginning: &[Event], number: usize, depth: u32) {
    setup.install();
    setup.allow(start);
    let mut expected = Expected {
        allowed: start,
        ..Expected::default()
    };
    let rest = (0..depth).map(|at| EVENTS[number / EVENTS.len().pow(at) % EVENTS.len()]);
    let mut history = Vec::new();
    for event in beginning.iter().copied().chain(rest) {
        history.push(event);
        if let Err(wrong) = step(setup, &mut expected, event) {
            panic!("{wrong}\nsetup: {setup:?}\nallowed at first: {start:?}\nhistory: {history:?}");
        }
    }
}
