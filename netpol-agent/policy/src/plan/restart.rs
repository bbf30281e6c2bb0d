//! A restart keeps the ids of what has not changed: nothing is written for it, and what is written is as right as any plan.

use proptest::prelude::*;

use super::{
    properties::{batches, compiled, config, follow, probes, shape},
    *,
};
use crate::{
    compile::Compiler,
    generate::{self, Readable},
    model::{Event, Snapshot},
};

/// The compiler of an agent that begins where the kernel holds `actual`.
pub(crate) fn restarted(snapshot: &Snapshot, actual: &Tables) -> Compiler {
    let beside = IdSource::new(1);
    beside.pass(actual);
    let mut compiler = compiled(snapshot, beside);
    compiler.keep(actual);
    compiler
}

fn whole(actual: &Tables, compiler: &Compiler) -> Plan {
    plan(actual, compiler.tables(), Scope::Everything, &mut compiler.ids())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_restart_without_a_change_writes_nothing(
        snapshot in generate::snapshots(shape()).prop_map(Readable),
        edits in batches(),
    ) {
        let mut snapshot = snapshot.0;
        let mut before = compiled(&snapshot, IdSource::new(1));
        for event in edits.into_iter().flatten() {
            snapshot.apply(event.clone());
            before.apply(event);
        }
        let plan = whole(before.tables(), &restarted(&snapshot, before.tables()));
        prop_assert_eq!(plan, Plan { steps: Vec::new(), peak: before.tables().sizes() });
    }

    #[test]
    fn a_restart_and_what_follows_show_the_old_or_the_new_policy(
        first in generate::snapshots(shape()).prop_map(Readable),
        missed in prop::collection::vec(generate::events(shape()), 0..4),
        other in prop::option::weighted(0.2, generate::snapshots(shape()).prop_map(Readable)),
        batches in batches(),
    ) {
        let before = compiled(&first.0, IdSource::new(1));
        let mut snapshot = other.map_or_else(|| first.0.clone(), |other| other.0);
        missed.into_iter().for_each(|event: Event| snapshot.apply(event));
        let mut compiler = restarted(&snapshot, before.tables());
        let first_plan = whole(before.tables(), &compiler);
        follow(&first_plan, before.tables(), compiler.tables(), &probes(&first.0, &snapshot), usize::MAX);
        for batch in batches {
            let (earlier, old) = (snapshot.clone(), compiler.tables().clone());
            batch.iter().cloned().for_each(|event| snapshot.apply(event));
            compiler.apply_all(batch);
            let dirty = compiler.take_dirty();
            let next = plan(&old, compiler.tables(), Scope::Dirty(&dirty), &mut compiler.ids());
            follow(&next, &old, compiler.tables(), &probes(&earlier, &snapshot), usize::MAX);
        }
    }
}
