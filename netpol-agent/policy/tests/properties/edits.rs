//! Any sequence of changes ends where the computation from nothing does.

use std::fmt;

use netpol_policy::{
    generate::{self, Shape, manifests},
    model::{Event, Snapshot},
    tables::Tables,
};
use proptest::{collection::vec, prelude::*, sample::Index};

use crate::{
    run,
    walk::{Compilers, Tally, agree},
};

/// Flows after every change.
const FLOWS: usize = 40;

/// Changes one by one, then some more as one.
#[derive(Clone)]
struct Edits {
    single: Vec<Event>,
    batch: Vec<Event>,
}

impl fmt::Debug for Edits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "one by one:")?;
        self.single.iter().try_for_each(|event| write_event(f, event))?;
        writeln!(f, "and then as one change:")?;
        self.batch.iter().try_for_each(|event| write_event(f, event))
    }
}

fn write_event(f: &mut fmt::Formatter<'_>, event: &Event) -> fmt::Result {
    match event {
        Event::NamespaceGone(name) => writeln!(f, "--- # namespace {name} is gone"),
        Event::NodeGone(name) => writeln!(f, "--- # node {name} is gone"),
        Event::PodGone(name) => writeln!(f, "--- # pod {name} is gone"),
        Event::PolicyGone(name) => writeln!(f, "--- # policy {name} is gone"),
        object => {
            let mut snapshot = Snapshot::default();
            snapshot.apply(object.clone());
            f.write_str(&manifests(&snapshot))
        }
    }
}

/// The objects of `snapshot` as changes.
fn objects(snapshot: Snapshot) -> Vec<Event> {
    let namespaces = snapshot.namespaces.into_values().map(Event::Namespace);
    let nodes = snapshot.nodes.into_values().map(Event::Node);
    let pods = snapshot.pods.into_values().map(Event::Pod);
    let policies = snapshot.policies.into_values().map(Event::Policy);
    namespaces.chain(nodes).chain(pods).chain(policies).collect()
}

/// A cluster that arrives in any order, and edits of it.
fn edits() -> impl Strategy<Value = Edits> {
    let shape = Shape {
        policies: 4,
        rules: 3,
        ..Shape::default()
    };
    let cluster = generate::snapshots(shape).prop_map(objects).prop_shuffle();
    let event = || generate::events(shape);
    (cluster, vec(event(), 0..=12), vec(event(), 0..=6), any::<Index>()).prop_map(
        |(mut first, then, mut batch, split)| {
            // Some of the cluster comes one by one, the rest with the batch.
            let rest = first.split_off(split.index(first.len() + 1));
            first.extend(then);
            batch.extend(rest);
            Edits { single: first, batch }
        },
    )
}

/// How much `tables` hold: what an edit leaves behind shows here.
fn sizes(tables: &Tables) -> [usize; 7] {
    [
        tables.hosts4.len(),
        tables.hosts6.len(),
        tables.nets4.len(),
        tables.nets6.len(),
        tables.cells.len(),
        tables.ports.len(),
        tables.pods.len(),
    ]
}

#[test]
fn after_every_edit_the_tables_say_what_the_oracle_says() {
    let tally = Tally::default();
    run::check(run::cases(60), (edits(), any::<u64>()), |(edits, seed)| {
        let mut snapshot = Snapshot::default();
        let mut compilers = Compilers::empty();
        let whole = |compilers: &Compilers, snapshot: &Snapshot| {
            agree(
                snapshot,
                compilers,
                &generate::flows(snapshot, FLOWS, *seed),
                &tally,
            )?;
            let full = Compilers::new(snapshot);
            for (incremental, full) in compilers.tables().zip(full.tables()) {
                let (incremental, full) = (sizes(incremental), sizes(full));
                if incremental != full {
                    return Err(format!(
                        "entries after edits {incremental:?}, from nothing {full:?}"
                    ));
                }
            }
            Ok(())
        };
        for (at, event) in edits.single.iter().enumerate() {
            snapshot.apply(event.clone());
            compilers.each(|compiler| compiler.apply(event.clone()));
            whole(&compilers, &snapshot).map_err(|error| format!("after edit {at}: {error}"))?;
        }
        edits.batch.iter().for_each(|event| snapshot.apply(event.clone()));
        compilers.each(|compiler| compiler.apply_all(edits.batch.iter().cloned()));
        whole(&compilers, &snapshot).map_err(|error| format!("after the batch: {error}"))
    });
    tally.assert_balanced();
}
