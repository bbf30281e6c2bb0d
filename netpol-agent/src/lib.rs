//! The netpol agent: sources of objects, the index, the data path and the command line.

pub mod cli;
pub mod query;
pub mod source;
