//! The flow table: which tuples were allowed at a way out, so that their replies are known at their way in.
//!
//! Two tables a family: openings, with a quota for each pod, and answered flows. A flow moves from one to the other by its
//! first reply; one of TCP or SCTP only when its opener goes on after the answer (a SYN-ACK alone costs the answerer
//! nothing and proves nothing). So no flood of openings, answered or not, can evict what is established.

mod opening;
mod table;

use netpol_common::{
    flow::{
        self, DENIED, Flow, Key4, Key6, STATE_ANSWERED, STATE_FIN_FORWARD, STATE_FIN_REPLY, STATE_RESET,
        has_handshake, verdict,
    },
    mark::OUTSIDE,
    pod::Config,
    reason::is_drop,
};

use opening::payer;
pub use opening::{adopt, record};
use table::Table;

use crate::{
    judge::{Ends, judge},
    maps,
    packet::{FLAG_FIN, FLAG_RESET, Packet},
    scratch::Scratch,
};

/// What the table says about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// No entry that counts.
    Unknown,
    /// A known flow, allowed in this epoch.
    Known,
    /// A known flow that is no longer allowed.
    Revoked,
}

/// How a packet belongs to the flow that is looked for: its own `FLAG_*` bits in the low byte, and these.
/// (One word, as a BPF function takes five arguments.)
pub mod course {
    /// It travels to the initiator.
    pub const REPLY: u32 = 1 << 8;
    /// The tuple is that of the answer: the key is its reverse.
    pub const REVERSED: u32 = 1 << 9;
    /// It was not sent in this flow, an ICMP error quotes it: it keeps nothing alive and changes no state.
    pub const QUOTED: u32 = 1 << 10;
}

/// One packet's view of the table: when it is, and under which policy.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The policy epoch, read before any other table.
    pub epoch: u32,
    /// `FLAG_*` bits.
    pub flags: u64,
}

/// Looks for the flow that the packet belongs to, or what it quotes (`course::QUOTED`), judges it again where the epoch has
/// moved, and notes what the packet does to it. `how`: see [`course`]. `ends` are those of the packet; at a way in, where the
/// initiator is not known yet, `ends.receiver` is filled in from the entry.
#[inline(always)]
pub fn look_up(_scratch: &mut Scratch, how: u32, ends: &mut Ends, moment: &Moment) -> Lookup {
    let Ends { sender, receiver } = *ends;
    let answer = netpol_look_up(how, sender, receiver, moment.epoch, moment.flags);
    ends.receiver = answer as u32;
    match answer >> 32 {
        KNOWN => Lookup::Known,
        REVOKED => Lookup::Revoked,
        _ => Lookup::Unknown,
    }
}

const KNOWN: u64 = 1;
const REVOKED: u64 = 2;

/// [`look_up`], verified on its own: the receiver in the low half.
#[cfg_attr(target_arch = "bpf", unsafe(no_mangle))]
#[inline(never)]
extern "C" fn netpol_look_up(how: u32, sender: u32, receiver: u32, epoch: u32, flags: u64) -> u64 {
    let mut ends = Ends { sender, receiver };
    let moment = Moment { epoch, flags };
    let found = Scratch::get().map_or(Lookup::Unknown, |mut scratch| {
        if scratch.tuple(how & course::QUOTED != 0).family == 4 {
            find::<Key4>(&mut scratch, how, &mut ends, &moment)
        } else {
            find::<Key6>(&mut scratch, how, &mut ends, &moment)
        }
    });
    let found = match found {
        Lookup::Known => KNOWN,
        Lookup::Revoked => REVOKED,
        Lookup::Unknown => 0,
    };
    found << 32 | u64::from(ends.receiver)
}

#[inline(always)]
fn find<T: Table>(scratch: &mut Scratch, how: u32, ends: &mut Ends, moment: &Moment) -> Lookup {
    let tuple = scratch.tuple(how & course::QUOTED != 0);
    let proto = tuple.proto;
    let key = if how & course::REVERSED != 0 {
        T::of_answer(tuple)
    } else {
        T::of(tuple)
    };
    let (flow, opening) = match key.answered() {
        Some(flow) => (flow, false),
        None => match key.opening() {
            Some(flow) => (flow, true),
            None => return Lookup::Unknown,
        },
    };
    // SAFETY: a live map value; see `maps`.
    let flow = unsafe { &mut *flow };
    if !ends_match(flow, how, ends) {
        return Lookup::Unknown;
    }
    let Some(config) = maps::config() else {
        return Lookup::Unknown;
    };
    let now = maps::jiffies();
    let age = now.saturating_sub(flow.seen);
    if age > lifetime(config, flow.state, opening, proto) {
        return Lookup::Unknown;
    }
    let mut judged = flow.verdict;
    if judged | DENIED != verdict(moment.epoch, true) {
        judged = judge_again(scratch, flow, how, moment);
        flow.verdict = judged;
    }
    if judged & DENIED != 0 {
        return if how & (course::REPLY | course::QUOTED) == course::REPLY
            && goes_on::<T>(scratch.packet(), ends, moment)
        {
            Lookup::Unknown
        } else {
            Lookup::Revoked
        };
    }
    if how & course::QUOTED != 0 {
        return Lookup::Known;
    }
    if age >= config.hz {
        flow.seen = now;
    }
    note(flow, how);
    if opening && establishes(flow, how, proto) {
        promote(&key, flow, now);
    }
    Lookup::Known
}

/// Whether the packet may belong to a flow of its own sender's, too: after the other end's connection was revoked it has
/// opened one on the same ports. Its way out judges it then.
#[inline(always)]
fn goes_on<T: Table>(packet: &Packet, ends: &Ends, moment: &Moment) -> bool {
    let key = T::of(packet);
    let Some(flow) = key.answered().or_else(|| key.opening()) else {
        return false;
    };
    // SAFETY: a live map value; see `maps`.
    let flow = unsafe { &*flow };
    flow.from == ends.sender
        && flow.to == ends.receiver
        && lives(flow.from, flow.from_inc)
        && lives(flow.to, flow.to_inc)
        && flow.verdict != verdict(moment.epoch, true)
}

/// An entry counts only for the ends it names, each in the incarnation that it names.
#[inline(always)]
fn ends_match(flow: &Flow, how: u32, ends: &mut Ends) -> bool {
    let reply = how & course::REPLY != 0;
    let named = if reply {
        flow.to == ends.sender
    } else {
        flow.from == ends.sender && flow.to == ends.receiver
    };
    if !named || !lives(flow.from, flow.from_inc) || !lives(flow.to, flow.to_inc) {
        return false;
    }
    if reply {
        ends.receiver = flow.from;
    }
    true
}

#[inline(always)]
fn lives(index: u32, incarnation: u32) -> bool {
    index == OUTSIDE || maps::pod(index).is_some_and(|pod| pod.incarnation == incarnation)
}

/// How long a flow in this state may be silent, in jiffies.
#[inline(always)]
fn lifetime(config: &Config, state: u32, opening: bool, proto: u8) -> u64 {
    config.timeouts[flow::lifetime(state, opening, proto)]
}

/// The verdict of this epoch about a flow of an older one, from the identities in its entry.
#[inline(always)]
fn judge_again(scratch: &mut Scratch, flow: &Flow, how: u32, moment: &Moment) -> u32 {
    let ends = Ends {
        sender: flow.from,
        receiver: flow.to,
    };
    let reason = judge(scratch, how, ends, moment.flags);
    verdict(moment.epoch, is_drop(reason))
}

/// What a packet's flags do to its flow; stores only what changes. A later packet proves a reset to have
/// been blind.
#[inline(always)]
fn note(flow: &mut Flow, how: u32) {
    let reply = how & course::REPLY != 0;
    let mut state = flow.state;
    if how & u32::from(FLAG_RESET) != 0 {
        state |= STATE_RESET;
    } else {
        state &= !STATE_RESET;
    }
    if how & u32::from(FLAG_FIN) != 0 {
        state |= if reply { STATE_FIN_REPLY } else { STATE_FIN_FORWARD };
    }
    if reply && how & u32::from(FLAG_RESET) == 0 {
        state |= STATE_ANSWERED;
    }
    if state != flow.state {
        flow.state = state;
    }
}

/// Whether this packet of an opening makes it a flow that is worth a place among the answered ones.
#[inline(always)]
fn establishes(flow: &Flow, how: u32, proto: u8) -> bool {
    if has_handshake(proto) {
        // The opener goes on after an answer; what begins anew is never looked up.
        how & (course::REPLY | u32::from(FLAG_RESET)) == 0 && flow.state & STATE_ANSWERED != 0
    } else {
        how & course::REPLY != 0
    }
}

/// Moves a flow to the answered table and gives its place in the quota back.
#[inline(always)]
fn promote<T: Table>(key: &T, flow: &Flow, now: u64) {
    let mut copy = *flow;
    copy.seen = now;
    // Of two packets on two CPUs one removes the opening, and gives back one place.
    if key.put_answered(&copy)
        && key.remove_opening()
        && let Some(quota) = maps::quota(payer(flow.from, flow.to))
    {
        // SAFETY: a live map value; a lost update only shifts the bound of a window a little.
        unsafe { (*quota).open = (*quota).open.saturating_sub(1) };
    }
}
