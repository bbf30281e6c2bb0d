//! How long compiling and planning take in a large cluster, and what they keep:
//! `cargo run --release -p netpol-policy --features workload --example compile`.

use netpol_policy::workload::{Cluster, measure};

fn main() {
    let (full, events) = measure(&Cluster::LARGE, 9);
    println!("{full:#?}");
    for event in events {
        println!(
            "{:32} compile {:>10.1?} (most {:>10.1?})  plan {:>10.1?}  hosts {:>6} prefixes {:>5} cells {:>5}",
            event.what,
            event.compile,
            event.compile_most,
            event.plan,
            event.hosts,
            event.prefixes,
            event.cells
        );
    }
}
