//! How flows begin: what a way out records, and what a pod may have open at once.

use netpol_common::{
    flow::{
        DENIED, Flow, Key4, Key6, STATE_ANSWERED, STATE_FIN_FORWARD, STATE_FIN_REPLY, STATE_RESET, verdict,
    },
    mark::OUTSIDE,
    pod::Config,
};

use super::{Moment, lifetime, table::Table};
use crate::{judge::Ends, maps, packet::Packet, scratch::Scratch};

/// A connection that has ended: what begins on its tuple is another.
const OVER: u32 = STATE_FIN_FORWARD | STATE_FIN_REPLY | STATE_RESET;

/// Whose quota an unanswered flow counts against: the local initiator's, else the responder's.
#[inline(always)]
pub(super) fn payer(from: u32, to: u32) -> u32 {
    if from == OUTSIDE { to } else { from }
}

/// Records that the packet was allowed to open (or, without beginnings, to continue) a flow between `ends`.
#[inline(always)]
pub fn record(_scratch: &mut Scratch, ends: Ends, moment: &Moment) {
    netpol_record(ends.sender, ends.receiver, moment.epoch);
}

/// [`record`], verified on its own. (Such a function has to return a number.)
#[cfg_attr(target_arch = "bpf", unsafe(no_mangle))]
#[inline(never)]
extern "C" fn netpol_record(sender: u32, receiver: u32, epoch: u32) -> u32 {
    let Some(scratch) = Scratch::get() else { return 0 };
    let (packet, ends) = (scratch.packet(), Ends { sender, receiver });
    if packet.family == 4 {
        put(&Key4::of(packet), packet, ends, epoch);
    } else {
        put(&Key6::of(packet), packet, ends, epoch);
    }
    0
}

#[inline(always)]
fn put<T: Table>(key: &T, packet: &Packet, ends: Ends, epoch: u32) {
    let now = maps::jiffies();
    let fresh = fresh(ends, epoch, now);
    let Some(config) = maps::config() else { return };
    if let Some(old) = key.answered() {
        // SAFETY: a live map value; see `maps`.
        let old = unsafe { &mut *old };
        let alive = now.saturating_sub(old.seen) <= lifetime(config, old.state, false, packet.proto);
        let over = old.state & OVER != 0 || old.verdict & DENIED != 0;
        if alive && same_ends(old, &fresh) && !over {
            // A beginning within a living connection (a blind SYN, or one side has forgotten it): it goes on, and
            // the replies of either are wanted.
            old.verdict = fresh.verdict;
            old.seen = now;
            return;
        }
        // The tuple begins again, and has to be answered again.
        key.remove_answered();
    }
    if let Some(old) = key.opening() {
        // SAFETY: a live map value; see `maps`.
        let old = unsafe { &mut *old };
        let age = now.saturating_sub(old.seen);
        if same_ends(old, &fresh) && age <= lifetime(config, old.state, true, packet.proto) {
            old.state = 0;
            old.verdict = fresh.verdict;
            if age >= config.hz {
                old.seen = now;
            }
            return;
        }
    }
    if within_quota(config, payer(ends.sender, ends.receiver), now) {
        key.put_opening(&fresh);
    }
}

#[inline(always)]
fn fresh(ends: Ends, epoch: u32, now: u64) -> Flow {
    Flow {
        from: ends.sender,
        from_inc: incarnation(ends.sender),
        to: ends.receiver,
        to_inc: incarnation(ends.receiver),
        seen: now,
        verdict: verdict(epoch, false),
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
fn within_quota(config: &Config, payer: u32, now: u64) -> bool {
    let Some(quota) = maps::quota(payer) else {
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
#[inline(always)]
pub fn adopt(answer: &Packet, ends: Ends, epoch: u32) {
    let flow = Flow {
        state: STATE_ANSWERED,
        ..fresh(ends, epoch, maps::jiffies())
    };
    if answer.family == 4 {
        Key4::of_answer(answer).put_answered(&flow);
    } else {
        Key6::of_answer(answer).put_answered(&flow);
    }
}
