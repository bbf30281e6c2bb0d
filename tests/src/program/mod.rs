//! The real object under `BPF_PROG_TEST_RUN`: real maps, real programs, packets as bytes, and the event that says why.

mod abi;
pub mod foreign;
mod lab;
mod machine;
mod rotor;

pub use lab::{FLOWS, Lab, NODE, in_namespace, within};
pub use machine::{Hook, Input, Machine, Run, object_path};
pub use rotor::{Next, Packet, Rotor};
