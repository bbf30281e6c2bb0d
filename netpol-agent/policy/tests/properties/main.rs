//! Properties of the pure core over random clusters. `NETPOL_CASES` (100) scales them all; the nightly size is
//! 2000, `NETPOL_SEED` chooses other ones.
//!
//! A failure prints the flow, what each side says about it, and the smallest cluster found, as manifests.

mod corners;
mod edits;
mod run;
mod walk;

use netpol_policy::generate::{self, Readable, Shape};
use proptest::prelude::*;

use crate::walk::{Compilers, Tally, agree};

/// Flows for each snapshot: all there are in a small one.
const FLOWS: usize = 400;

#[test]
fn tables_say_what_the_oracle_says() {
    let tally = Tally::default();
    let clusters = generate::snapshots(Shape::default()).prop_map(Readable);
    run::check(
        run::cases(300),
        (clusters, any::<u64>()),
        |(Readable(snapshot), seed)| {
            let flows = generate::flows(snapshot, FLOWS, *seed);
            agree(snapshot, &Compilers::new(snapshot), &flows, &tally)
        },
    );
    tally.assert_balanced();
}

#[test]
fn a_ruleset_of_two_thousand_rules_says_what_the_oracle_says() {
    let tally = Tally::default();
    let clusters = generate::large_rulesets(2000).prop_map(Readable);
    run::check(
        run::cases(2),
        (clusters, any::<u64>()),
        |(Readable(snapshot), seed)| {
            let flows = generate::flows(snapshot, FLOWS, *seed);
            agree(snapshot, &Compilers::new(snapshot), &flows, &tally)
        },
    );
    tally.assert_balanced();
}
