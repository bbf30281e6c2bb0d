//! The netpol agent.
fn main() {}
