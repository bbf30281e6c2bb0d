//! The four hooks. The ways in say who; the ways out judge.

mod forbidden;
mod fragments;
mod ways_in;
mod ways_out;

use netpol_common::{
    pod::{
        BARE_INDEX,
        state::{EPOCH, FLAG_BARE, FLAG_UNKNOWN_PASS, FLAGS},
    },
    reason::{NOT_ISOLATED, UNKNOWN_POD},
};
pub use ways_in::{arrive, from_pod};
pub use ways_out::{settle, to_pod};

use crate::{flows::Moment, judge::Ends, maps, report::Decision, skb::Skb};

impl Moment {
    /// The epoch is read before any other table: a flow judged while the policy changes carries the older
    /// epoch, and is judged again.
    #[inline(always)]
    fn now() -> Self {
        let epoch = maps::state(EPOCH) as u32;
        Self {
            epoch,
            flags: maps::state(FLAGS),
        }
    }
}

/// Notes whether the outside device has a link layer; only where some have none is it looked up.
#[inline(always)]
fn note_link<S: Skb>(skb: &mut S, flags: u64) {
    if flags & FLAG_BARE != 0 && maps::iface(&skb.ifindex()) == Some(BARE_INDEX) {
        skb.set_bare();
    }
}

/// A pod's device whose pod is not known: `--unknown-pods` decides.
#[inline(always)]
fn unknown_pod(flags: u64) -> Decision {
    let reason = if flags & FLAG_UNKNOWN_PASS != 0 {
        NOT_ISOLATED
    } else {
        UNKNOWN_POD
    };
    Decision::unread(reason, Ends::default())
}
