//! The pure core of netpol: no I/O, no clock, no runtime (its manifest proves it).
//!
//! ```text
//! Event → Snapshot → compile → Tables → plan → ordered writes
//!                  ↘ oracle (an independent reading of the API, for tests and `explain`)
//! ```
#[cfg(feature = "generate")]
pub mod build;
pub mod compile;
#[cfg(feature = "generate")]
pub mod generate;
pub mod ids;
pub mod model;
pub mod oracle;
pub mod plan;
mod prefix;
pub mod tables;
#[cfg(feature = "workload")]
pub mod workload;
