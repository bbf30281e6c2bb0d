//! One tuple in the two tables of its family.

use netpol_common::flow::{Flow, Key4, Key6};

use crate::{maps, packet::Packet};

/// A key of one family, with what its tables can do.
pub(super) trait Table: Sized {
    /// The tuple of `packet`.
    fn of(packet: &Packet) -> Self;
    /// The tuple of what `packet` answers.
    fn of_answer(packet: &Packet) -> Self;
    /// The entry among the answered flows.
    fn answered(&self) -> Option<*mut Flow>;
    /// The entry among the openings.
    fn opening(&self) -> Option<*mut Flow>;
    /// Writes an answered flow; false where the kernel refused.
    fn put_answered(&self, flow: &Flow) -> bool;
    /// Writes an opening; false where the kernel refused.
    fn put_opening(&self, flow: &Flow) -> bool;
    /// False where somebody else has removed it.
    fn remove_answered(&self) -> bool;
    /// False where somebody else has removed it.
    fn remove_opening(&self) -> bool;
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
            fn remove_answered(&self) -> bool {
                maps::$rm_answered(self)
            }
            #[inline(always)]
            fn remove_opening(&self) -> bool {
                maps::$rm_opening(self)
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
