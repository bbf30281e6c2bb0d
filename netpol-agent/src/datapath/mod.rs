//! Everything that talks to the kernel: maps, programs, links, devices, conntrack.
//!
//! All aya, netlink and `bpf(2)` calls of the agent are below this module; what it decides from is plain
//! data, so that the deciding parts ([`devices`], [`cni`], [`conntrack`], [`pods`]) are tested without a kernel.

mod abi;
pub mod adopt;
mod apply;
pub mod attach;
mod binder;
pub mod cleanup;
pub mod cni;
pub mod conntrack;
pub mod devices;
mod elsewhere;
pub mod error;
mod grace;
pub mod kernel;
mod links;
pub(crate) mod lock;
mod maps;
mod namespaces;
pub mod netlink;
mod node;
pub mod object;
mod pins;
pub mod pods;
mod qdisc;
pub mod report;
pub mod settings;
pub mod sweep;
mod takeover;
pub mod waiting;
pub mod wakeups;
mod words;

pub use binder::LocalPod;
pub use error::{Error, Result};
pub use node::{Datapath, Guard, Options, UnknownPods};
