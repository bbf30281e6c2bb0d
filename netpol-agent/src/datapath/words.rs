//! Words of mmapped arrays, changed by one aligned 8-byte store each.
//!
//! The `bpf(2)` update of an array element copies it without any guarantee of atomicity; what the programs
//! read as one value (both rulesets of a pod, the epoch) must change at once. Hence these arrays carry
//! `BPF_F_MMAPABLE` and the agent stores through the mapping.

use std::{
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::error::{Error, Result};

const WORD: usize = size_of::<AtomicU64>();

/// An mmapped array of `len` elements of `stride / 8` words.
#[derive(Debug)]
pub(crate) struct Words {
    base: NonNull<libc::c_void>,
    bytes: usize,
    len: u32,
    stride: usize,
}

impl Words {
    /// Maps the array behind `fd`: `len` elements of `value` bytes (a multiple of 8, as the kernel lays
    /// array elements out at multiples of 8).
    pub(crate) fn map(name: &str, fd: impl AsFd, len: u32, value: usize) -> Result<Self> {
        assert!(
            value > 0 && value.is_multiple_of(WORD),
            "{name}: elements are whole words"
        );
        let bytes = value * len as usize;
        let length = NonZeroUsize::new(bytes).expect("neither is zero");
        // SAFETY: a new shared mapping at an address of the kernel's choice; `MAP_SHARED` file mappings
        // alias no Rust object.
        let base = unsafe {
            mmap(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                fd,
                0,
            )
        }
        .map_err(|errno| Error::io(format!("mapping array `{name}`"))(errno.into()))?;
        Ok(Self {
            base,
            bytes,
            len,
            stride: value,
        })
    }

    /// Reads word `word` of element `index`.
    pub(crate) fn load(&self, index: u32, word: usize) -> u64 {
        self.word(index, word).load(Ordering::SeqCst)
    }

    /// Stores word `word` of element `index`; programs see the old or the new value, and every earlier
    /// store of this thread before this one.
    pub(crate) fn store(&self, index: u32, word: usize, value: u64) {
        self.word(index, word).store(value, Ordering::SeqCst);
    }

    fn word(&self, index: u32, word: usize) -> &AtomicU64 {
        assert!(
            index < self.len && (word + 1) * WORD <= self.stride,
            "within the array"
        );
        // SAFETY: within the mapping (asserted), which lives as long as `self`; page-aligned base and
        // whole words keep it aligned; everybody who touches these words does so with whole-word accesses.
        unsafe {
            self.base
                .byte_add(index as usize * self.stride + word * WORD)
                .cast::<AtomicU64>()
                .as_ref()
        }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: exactly what `map` mapped; no reference outlives `self`.
        let unmapped = unsafe { munmap(self.base, self.bytes) };
        debug_assert!(unmapped.is_ok());
    }
}
