//! netpol's verbs.
fn main() {}
