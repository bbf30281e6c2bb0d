//! The netpol agent: sources of objects, the index, the data path and the command line.

pub mod agent;
pub mod cli;
pub mod datapath;
pub mod query;
mod serve;
pub mod source;
