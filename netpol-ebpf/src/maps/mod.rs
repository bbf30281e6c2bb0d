//! The maps, behind functions that the kernel object and the host library both have.
//!
//! Pointers to map values stay valid for one run of a program (the kernel frees elements after an RCU grace
//! period); two CPUs may write one flow at once, which only ever stores words that either would store.

#[cfg(not(target_arch = "bpf"))]
mod host;
#[cfg(target_arch = "bpf")]
mod kernel;

#[cfg(not(target_arch = "bpf"))]
pub use host::*;
#[cfg(target_arch = "bpf")]
pub use kernel::*;

/// Default capacities; user space may raise or lower each when it creates the maps.
pub mod capacity {
    /// Local pods.
    pub const PODS: u32 = 4096;
    /// Exact addresses of one family.
    pub const HOSTS: u32 = 262_144;
    /// Prefixes of one family.
    pub const NETS: u32 = 65_536;
    /// Cells.
    pub const CELLS: u32 = 262_144;
    /// Chunks of port sets.
    pub const PORTS: u32 = 16_384;
    /// Answered flows of one family.
    pub const FLOWS: u32 = 131_072;
    /// Unanswered flows of one family.
    pub const OPENING: u32 = 65_536;
    /// Packets in fragments.
    pub const FRAGS: u32 = 8_192;
    /// Drop counters.
    pub const DROPS: u32 = 16_384;
    /// Bytes of the event ring.
    pub const EVENTS: u32 = 1 << 20;
}
