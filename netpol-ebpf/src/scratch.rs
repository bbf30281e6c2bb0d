//! What one run works on: the packet, what an ICMP error quotes, and what the rules said.
//!
//! It lies in a per-CPU map. What is read from a map is unknown to the verifier, so the many ways through the parser join
//! again behind it; and the functions that the verifier takes one by one, which may be given nothing but numbers, find it there.
//!
//! Those are `extern "C"`, exported, and take and return integers only. BTF then calls them global: the kernel verifies each
//! once, for any arguments, instead of once for every way that leads to a call. (5.10 takes no other pointer than that of the
//! context, and that only where the kernel describes its own types.) An argument that is not used must not be there: LLVM
//! then passes nothing, which the verifier refuses.

use core::ptr::NonNull;

use crate::{
    judge::Ruling,
    maps,
    packet::{Packet, parse},
    skb::Skb,
};

/// The value of the `scratch` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Slots {
    /// The packet of this run.
    pub packet: Packet,
    /// What it quotes, where it is an ICMP error.
    pub quote: Packet,
    /// What the rules said when they were asked last.
    pub ruling: Ruling,
}

/// This run's slots. Whoever holds it borrows from it anew after a call that may have written there.
pub struct Scratch {
    slots: NonNull<Slots>,
}

impl Scratch {
    /// `None` never happens; the verifier wants it looked at.
    #[inline(always)]
    #[must_use]
    pub fn get() -> Option<Self> {
        maps::scratch().map(|slots| Self { slots })
    }

    /// As [`Scratch::get`], with the packet of `skb` parsed into it.
    #[inline(always)]
    #[must_use]
    pub fn read<S: Skb>(skb: &S) -> Option<Self> {
        let mut scratch = Self::get()?;
        parse(skb, scratch.packet_mut());
        Some(scratch)
    }

    /// The packet of this run.
    #[inline(always)]
    #[must_use]
    pub fn packet(&self) -> &Packet {
        // SAFETY: this CPU's own value, alive for the whole run, which nothing else on this CPU interrupts; the borrow ends with that of `self`.
        unsafe { &(*self.slots.as_ptr()).packet }
    }

    /// The packet of this run.
    #[inline(always)]
    pub fn packet_mut(&mut self) -> &mut Packet {
        // SAFETY: as in `packet`.
        unsafe { &mut (*self.slots.as_ptr()).packet }
    }

    /// The packet of this run, and where to put what it quotes.
    #[inline(always)]
    pub fn packet_and_quote(&mut self) -> (&Packet, &mut Packet) {
        // SAFETY: as in `packet`; two fields.
        unsafe { (&(*self.slots.as_ptr()).packet, &mut (*self.slots.as_ptr()).quote) }
    }

    /// The packet itself, or what it quotes.
    #[inline(always)]
    #[must_use]
    pub fn tuple(&self, quoted: bool) -> &Packet {
        // SAFETY: as in `packet`.
        unsafe {
            if quoted {
                &(*self.slots.as_ptr()).quote
            } else {
                &(*self.slots.as_ptr()).packet
            }
        }
    }

    /// What the rules said.
    #[inline(always)]
    #[must_use]
    pub fn ruling(&self) -> Ruling {
        // SAFETY: as in `packet`.
        unsafe { (*self.slots.as_ptr()).ruling }
    }

    /// Writes down what the rules say.
    #[inline(always)]
    pub fn set_ruling(&mut self, ruling: Ruling) {
        // SAFETY: as in `packet`.
        unsafe { (*self.slots.as_ptr()).ruling = ruling }
    }
}
