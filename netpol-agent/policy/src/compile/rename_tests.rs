//! Ids are kept exactly where the meaning is the same, and what a compiler does afterwards is what any does.

use std::collections::{BTreeMap, BTreeSet};

use netpol_common::tables::{CLASS_ANY, Cell, PortsChunk};
use proptest::{collection::vec, prelude::*};

use super::super::{
    full,
    properties::{canonical, check_against_oracle, edit},
};
use super::*;
use crate::{
    generate::{self, LOCAL_NODE, Readable, Shape},
    model::{Event, Snapshot},
    plan::restart::restarted,
};

fn edited(snapshot: &Snapshot, edits: &[Event]) -> Snapshot {
    let mut snapshot = snapshot.clone();
    edits.iter().cloned().for_each(|event| snapshot.apply(event));
    snapshot
}

type Meanings<T> = BTreeMap<u32, BTreeSet<T>>;

/// Where each class stands, as text, with what cuts into its prefixes.
fn classes(tables: &Tables) -> Meanings<String> {
    fn nets<N: crate::prefix::Prefix + std::fmt::Display>(
        nets: &BTreeMap<N, u32>,
        found: &mut Meanings<String>,
    ) {
        for (net, class) in nets {
            let places = found.entry(*class).or_default();
            places.insert(net.to_string());
            let within = nets
                .iter()
                .filter(|(inner, _)| *inner != net && net.covers(inner));
            let other = within.filter(|(_, its)| *its != class);
            let nearest = other.filter(|(inner, _)| {
                let between = |middle: &&N| middle.covers(inner) && net.covers(middle);
                nets.keys().filter(between).count() == 2
            });
            places.extend(nearest.map(|(inner, _)| format!("{net} less {inner}")));
        }
    }
    let mut found = Meanings::new();
    let hosts4 = tables.hosts4.iter().map(|(a, class)| (a.to_string(), class));
    let hosts6 = tables.hosts6.iter().map(|(a, class)| (a.to_string(), class));
    for (place, class) in hosts4.chain(hosts6) {
        found.entry(*class).or_default().insert(place);
    }
    nets(&tables.nets4, &mut found);
    nets(&tables.nets6, &mut found);
    found.remove(&0);
    found
}

fn port_sets(tables: &Tables) -> Meanings<(u16, u16, PortsChunk)> {
    let mut found = Meanings::new();
    for (key, chunk) in &tables.ports {
        let chunks = found.entry(key.set).or_default();
        chunks.insert((key.chunk, key.proto, *chunk));
    }
    found
}

fn rulesets(tables: &Tables) -> Meanings<(u32, Cell)> {
    let pods = tables.pods.values();
    let used = pods.flat_map(|rules| [rules.ingress, rules.egress]);
    let mut found: Meanings<_> = used
        .filter(|id| *id != 0)
        .map(|id| (id, BTreeSet::new()))
        .collect();
    for (key, cell) in &tables.cells {
        found.entry(key.ruleset).or_default().insert((key.class, *cell));
    }
    found
}

/// Every id that both have means the same, and no meaning has two ids that only one of them has each.
fn check_same<T: Ord + std::fmt::Debug + Clone>(
    old: &Meanings<T>,
    new: &Meanings<T>,
) -> Result<(), TestCaseError> {
    for (id, meaning) in new {
        if let Some(was) = old.get(id) {
            prop_assert_eq!(was, meaning, "{}", id);
        }
    }
    let only = |one: &Meanings<T>, other: &Meanings<T>| -> BTreeSet<BTreeSet<T>> {
        let only = one.iter().filter(|(id, _)| !other.contains_key(*id));
        only.map(|(_, meaning)| meaning.clone()).collect()
    };
    let missed: Vec<_> = only(old, new).intersection(&only(new, old)).cloned().collect();
    prop_assert_eq!(missed, Vec::new());
    Ok(())
}

/// Ids that a reading of the meanings would take for equal are equal: those of cells name classes and port sets.
fn check_kept(old: &Tables, new: &Tables) -> Result<(), TestCaseError> {
    check_same(&classes(old), &classes(new))?;
    check_same(&port_sets(old), &port_sets(new))?;
    check_same(&rulesets(old), &rulesets(new))?;
    let known = classes(new);
    for key in new.cells.keys() {
        prop_assert!(key.class == CLASS_ANY || known.contains_key(&key.class));
    }
    Ok(())
}

proptest! {
    #[test]
    fn ids_are_kept_exactly_where_the_meaning_is(
        first in generate::snapshots(Shape::default()).prop_map(Readable),
        edits in vec(generate::events(Shape::default()), 0..4),
        other in generate::snapshots(Shape::default()).prop_map(Readable),
    ) {
        let mut before = Compiler::new(LOCAL_NODE.into(), 1);
        before.load(&first.0);
        for after in [edited(&first.0, &edits), other.0] {
            let compiler = restarted(&after, before.tables());
            prop_assert_eq!(canonical(compiler.tables()), canonical(&full(&after, LOCAL_NODE)));
            check_kept(before.tables(), compiler.tables())?;
            let again = restarted(&after, before.tables());
            prop_assert_eq!(again.tables(), compiler.tables(), "the same each time");
        }
    }

    #[test]
    fn where_nothing_has_changed_every_id_is_kept(
        snapshot in generate::snapshots(Shape::default()).prop_map(Readable),
        edits in vec(generate::events(Shape::default()), 0..12),
    ) {
        // Ids of a long life, not those of one reading.
        let mut before = Compiler::new(LOCAL_NODE.into(), 1);
        before.load(&snapshot.0);
        edits.iter().cloned().for_each(|event| before.apply(event));
        let compiler = restarted(&edited(&snapshot.0, &edits), before.tables());
        prop_assert_eq!(compiler.tables(), before.tables());
    }

    #[test]
    fn a_restarted_compiler_edited_has_what_a_new_one_has(
        first in generate::snapshots(Shape::default()).prop_map(Readable),
        missed in vec(generate::events(Shape::default()), 0..6),
        batches in vec(vec(generate::events(Shape::default()), 1..4), 1..8),
        seed: u64,
    ) {
        let mut before = Compiler::new(LOCAL_NODE.into(), 1);
        before.load(&first.0);
        let mut snapshot = edited(&first.0, &missed);
        let mut compiler = restarted(&snapshot, before.tables());
        let mut mirror = compiler.tables().clone();
        prop_assert!(compiler.take_dirty().is_empty());
        for batch in batches {
            edit(&mut compiler, &mut mirror, &mut snapshot, batch)?;
        }
        check_against_oracle(&snapshot, &compiler, &generate::flows(&snapshot, 100, seed))?;
        let pods = snapshot.pods.into_keys().map(Event::PodGone);
        let policies = snapshot.policies.into_keys().map(Event::PolicyGone);
        let namespaces = snapshot.namespaces.into_keys().map(Event::NamespaceGone);
        compiler.apply_all(pods.chain(policies).chain(namespaces));
        prop_assert_eq!(compiler.tables(), &Tables::default());
        prop_assert!(compiler.is_vacant());
    }
}
