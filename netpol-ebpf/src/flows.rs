//! The flow table: which tuples were allowed at a way out, so that their replies are known at their way in.
//!
//! Two tables a family: unanswered flows, with a quota for each pod, and answered ones. The first reply moves a flow
//! from one to the other, so that no flood of openings can evict what is established.

use netpol_common::{
    flow::{
        Flow, Key4, Key6, STATE_ANSWERED, STATE_FIN_FORWARD, STATE_FIN_REPLY, STATE_RESET, STATE_REVOKED,
        timeout,
    },
    mark::OUTSIDE,
    pod::Config,
    proto::{SCTP, TCP},
};

use crate::{
    judge::{Ends, Ruling, judge},
    maps,
    packet::{FLAG_FIN, FLAG_RESET, Packet},
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
}

/// One packet's view of the table: when it is, and under which policy.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The policy epoch, read before any other table.
    pub epoch: u32,
    /// `FLAG_*` bits.
    pub flags: u64,
}

trait Table: Sized {
    fn of(packet: &Packet) -> Self;
    fn of_answer(packet: &Packet) -> Self;
    fn answered(&self) -> Option<*mut Flow>;
    fn opening(&self) -> Option<*mut Flow>;
    fn put_answered(&self, flow: &Flow) -> bool;
    fn put_opening(&self, flow: &Flow) -> bool;
    fn remove_answered(&self);
    fn remove_opening(&self);
}

macro_rules! table {
    ($key:ty, $address:expr, $answered:ident, $opening:ident, $put_answered:ident, $put_opening:ident, $rm_answered:ident, $rm_opening:ident) => {
        impl Table for $key {
            #[inline(always)]
            fn of(packet: &Packet) -> Self {
                Self {
                    src: $address(&packet.src),
                    dst: $address(&packet.dst),
                    sport: packet.sport,
                    dport: packet.dport,
                    proto: packet.proto.into(),
                }
            }
            #[inline(always)]
            fn of_answer(packet: &Packet) -> Self {
                Self {
                    src: $address(&packet.dst),
                    dst: $address(&packet.src),
                    sport: packet.dport,
                    dport: packet.sport,
                    proto: packet.proto.into(),
                }
            }
            #[inline(always)]
            fn answered(&self) -> Option<*mut Flow> {
                maps::$answered(self)
            }
            #[inline(always)]
            fn opening(&self) -> Option<*mut Flow> {
                maps::$opening(self)
            }
            #[inline(always)]
            fn put_answered(&self, flow: &Flow) -> bool {
                maps::$put_answered(self, flow)
            }
            #[inline(always)]
            fn put_opening(&self, flow: &Flow) -> bool {
                maps::$put_opening(self, flow)
            }
            #[inline(always)]
            fn remove_answered(&self) {
                maps::$rm_answered(self);
            }
            #[inline(always)]
            fn remove_opening(&self) {
                maps::$rm_opening(self);
            }
        }
    };
}

table!(
    Key4,
    |address: &[u32; 4]| address[0],
    answered4,
    opening4,
    put_answered4,
    put_opening4,
    remove_answered4,
    remove_opening4
);
table!(
    Key6,
    |address: &[u32; 4]| *address,
    answered6,
    opening6,
    put_answered6,
    put_opening6,
    remove_answered6,
    remove_opening6
);

/// Looks for the flow that `tuple` belongs to, judges it again where the epoch has moved, and notes what the packet
/// does to it. `how`: see [`course`]. `ends` are those of the packet; at a way in, where the initiator is not
/// known yet, `ends.receiver` is filled in from the entry.
#[inline(never)]
pub fn look_up(tuple: &Packet, how: u32, ends: &mut Ends, moment: &Moment) -> Lookup {
    if tuple.family == 4 {
        find::<Key4>(tuple, how, ends, moment)
    } else {
        find::<Key6>(tuple, how, ends, moment)
    }
}

#[inline(always)]
fn find<T: Table>(tuple: &Packet, how: u32, ends: &mut Ends, moment: &Moment) -> Lookup {
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
    if age > lifetime(config, flow.state, tuple.proto) {
        return Lookup::Unknown;
    }
    if flow.epoch != moment.epoch && !still_allowed(flow, tuple, how, moment) {
        flow.state |= STATE_REVOKED;
        flow.epoch = moment.epoch;
    }
    if flow.state & STATE_REVOKED != 0 {
        return Lookup::Revoked;
    }
    if age >= config.hz {
        flow.seen = now;
    }
    note(flow, how);
    if opening && how & course::REPLY != 0 {
        promote(&key, flow, ends, now);
    }
    Lookup::Known
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

/// How long a flow in this state may be silent, in jiffies; never longer than conntrack's defaults.
#[inline(always)]
fn lifetime(config: &Config, state: u32, proto: u8) -> u64 {
    let answered = state & STATE_ANSWERED != 0;
    let which = if proto != TCP && proto != SCTP {
        if answered {
            timeout::ANSWERED
        } else {
            timeout::UNANSWERED
        }
    } else if state & STATE_RESET != 0 {
        timeout::RESET
    } else if state & (STATE_FIN_FORWARD | STATE_FIN_REPLY) != 0 {
        timeout::CLOSING
    } else if answered {
        timeout::ESTABLISHED
    } else {
        timeout::OPENING
    };
    config.timeouts[which]
}

/// Judges a flow of an older epoch again, from the identities in its entry.
#[inline(never)]
fn still_allowed(flow: &mut Flow, tuple: &Packet, how: u32, moment: &Moment) -> bool {
    let mut ruling = Ruling::default();
    let ends = Ends {
        sender: flow.from,
        receiver: flow.to,
    };
    judge(
        tuple,
        how & course::REVERSED != 0,
        &ends,
        moment.flags,
        &mut ruling,
    );
    if netpol_common::reason::is_drop(ruling.reason) {
        return false;
    }
    flow.state &= !STATE_REVOKED;
    flow.epoch = moment.epoch;
    true
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
    if reply {
        state |= STATE_ANSWERED;
    }
    if state != flow.state {
        flow.state = state;
    }
}

/// The first reply moves the flow to the answered table.
#[inline(always)]
fn promote<T: Table>(key: &T, flow: &mut Flow, ends: &Ends, now: u64) {
    let mut copy = *flow;
    copy.seen = now;
    if key.put_answered(&copy) {
        key.remove_opening();
        // `ends` are the reply's: the initiator is its receiver.
        if let Some(quota) = maps::quota(payer(&ends.reversed())) {
            // SAFETY: a live map value; a lost update only shifts the bound of a window a little.
            unsafe { (*quota).open = (*quota).open.saturating_sub(1) };
        }
    }
}

/// Whose quota an unanswered flow counts against: the local initiator's, else the responder's.
#[inline(always)]
fn payer(ends: &Ends) -> u32 {
    if ends.sender == OUTSIDE {
        ends.receiver
    } else {
        ends.sender
    }
}

/// Records that `packet` was allowed to open (or, without beginnings, to continue) a flow between `ends`.
#[inline(never)]
pub fn record(packet: &Packet, ends: &Ends, moment: &Moment) {
    if packet.family == 4 {
        put(&Key4::of(packet), packet, ends, moment);
    } else {
        put(&Key6::of(packet), packet, ends, moment);
    }
}

#[inline(always)]
fn put<T: Table>(key: &T, packet: &Packet, ends: &Ends, moment: &Moment) {
    let now = maps::jiffies();
    let fresh = fresh(ends, moment, now);
    let Some(config) = maps::config() else { return };
    if let Some(old) = key.answered() {
        // SAFETY: a live map value; see `maps`.
        let old = unsafe { &mut *old };
        let alive = now.saturating_sub(old.seen) <= lifetime(config, old.state, packet.proto);
        if alive && same_ends(old, &fresh) {
            // A SYN on a living tuple (its reuse, or a blind one): the replies of either are wanted.
            old.state = STATE_ANSWERED;
            old.epoch = fresh.epoch;
            old.seen = now;
            return;
        }
        key.remove_answered();
    }
    if let Some(old) = key.opening() {
        // SAFETY: a live map value; see `maps`.
        let old = unsafe { &mut *old };
        if same_ends(old, &fresh) && now.saturating_sub(old.seen) <= lifetime(config, old.state, packet.proto)
        {
            old.state = 0;
            old.epoch = fresh.epoch;
            if now.saturating_sub(old.seen) >= config.hz {
                old.seen = now;
            }
            return;
        }
    }
    if within_quota(config, ends, now) {
        key.put_opening(&fresh);
    }
}

#[inline(always)]
fn fresh(ends: &Ends, moment: &Moment, now: u64) -> Flow {
    Flow {
        from: ends.sender,
        from_inc: incarnation(ends.sender),
        to: ends.receiver,
        to_inc: incarnation(ends.receiver),
        seen: now,
        epoch: moment.epoch,
        state: 0,
    }
}

#[inline(always)]
fn incarnation(index: u32) -> u32 {
    if index == OUTSIDE {
        0
    } else {
        maps::pod(index).map_or(0, |pod| pod.incarnation)
    }
}

#[inline(always)]
fn same_ends(a: &Flow, b: &Flow) -> bool {
    a.from == b.from && a.from_inc == b.from_inc && a.to == b.to && a.to_inc == b.to_inc
}

/// Takes one unanswered flow from the pod's quota of this window. Past it the flow is not recorded: its own
/// replies suffer, nobody else's.
#[inline(always)]
fn within_quota(config: &Config, ends: &Ends, now: u64) -> bool {
    let Some(quota) = maps::quota(payer(ends)) else {
        return false;
    };
    // SAFETY: a live map value; a lost update only shifts the bound of a window a little.
    unsafe {
        if now.saturating_sub((*quota).since) > config.quota_window {
            (*quota).since = now;
            (*quota).open = 0;
        }
        if (*quota).open >= config.quota {
            (*quota).refused = (*quota).refused.wrapping_add(1);
            return false;
        }
        (*quota).open += 1;
    }
    true
}

/// Records, as established, the flow that `answer` was found to answer in the first moments of isolation. `ends` are
/// the flow's.
#[inline(never)]
pub fn adopt(answer: &Packet, ends: &Ends, moment: &Moment) {
    let flow = Flow {
        state: STATE_ANSWERED,
        ..fresh(ends, moment, maps::jiffies())
    };
    if answer.family == 4 {
        Key4::of_answer(answer).put_answered(&flow);
    } else {
        Key6::of_answer(answer).put_answered(&flow);
    }
}
