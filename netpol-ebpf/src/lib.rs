//! netpol's data path: packet parser, flow table, classification, verdict and the four hooks.
//!
//! The same code is the kernel object (`main.rs`, target `bpfel-unknown-none`) and a host library whose maps
//! are plain hash maps (`maps/host.rs`), so that the parser is fuzzed and the verdict core is checked
//! exhaustively without a kernel. What differs between the two is only [`maps`] and the [`skb::Skb`] trait.
#![cfg_attr(target_arch = "bpf", no_std)]

pub mod classify;
pub mod flows;
pub mod hooks;
pub mod icmp_error;
pub mod judge;
pub mod maps;
pub mod packet;
pub mod report;
pub mod scratch;
pub mod skb;
