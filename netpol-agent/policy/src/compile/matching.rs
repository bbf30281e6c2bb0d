//! Which ids of new tables mean exactly what ids in the kernel mean already.
//!
//! Whatever differs in anything is no match: a class by the entries that lead to it, a port set by its ports, a ruleset by
//! all its cells. So a cell that both tables have under one key is the same in both, which is what a plan rests on.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use netpol_common::tables::{CLASS_ANY, CLASS_OTHER, Cell, PortsChunk, RULESET_HAS_ANY, RULESET_NONE};

use super::slab::ByNumber;
use crate::{
    prefix::Prefix,
    tables::{PodRules, Tables},
};

/// New id → id in the kernel.
type Ids = HashMap<u32, u32, ByNumber>;

/// What is matched; everything else keeps its new id.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Matches {
    classes: Ids,
    rulesets: Ids,
    ports: Ids,
}

impl Matches {
    /// Of `actual` (what the kernel holds) and `desired`, whose ids are all others.
    pub(super) fn new(actual: &Tables, desired: &Tables) -> Self {
        let classes = classes(actual, desired);
        let ports = port_sets(actual, desired);
        let rulesets = Rulesets::new(actual, desired, &classes, &ports).pair(actual, desired);
        Self {
            classes,
            rulesets,
            ports,
        }
    }

    pub(super) fn class(&self, id: u32) -> u32 {
        self.classes.get(&id).copied().unwrap_or(id)
    }

    pub(super) fn ruleset(&self, id: u32) -> u32 {
        self.rulesets.get(&id).copied().unwrap_or(id)
    }

    pub(super) fn port_set(&self, id: u32) -> u32 {
        self.ports.get(&id).copied().unwrap_or(id)
    }
}

/// The classes to which the same entries lead: exact addresses, and prefixes with the same other classes' prefixes cut out.
fn classes(actual: &Tables, desired: &Tables) -> Ids {
    let mut pairing = Pairing::default();
    pairing.add(&actual.hosts4, &desired.hosts4);
    pairing.add(&actual.hosts6, &desired.hosts6);
    pairing.add(&actual.nets4, &desired.nets4);
    pairing.add(&actual.nets6, &desired.nets6);
    pairing.add(&holes(&actual.nets4), &holes(&desired.nets4));
    pairing.add(&holes(&actual.nets6), &holes(&desired.nets6));
    pairing.exact()
}

/// Prefix → the class of the prefix around it, where that is another.
fn holes<N: Prefix>(nets: &BTreeMap<N, u32>) -> BTreeMap<N, u32> {
    let mut around: Vec<(&N, u32)> = Vec::new();
    let mut holes = BTreeMap::new();
    for (net, &class) in nets {
        while around.last().is_some_and(|(outer, _)| !outer.covers(net)) {
            around.pop();
        }
        if let Some(&(_, outer)) = around.last()
            && outer != class
        {
            holes.insert(*net, outer);
        }
        around.push((net, class));
    }
    holes
}

/// Which class stands in one table where a class stands in the other.
#[derive(Default)]
struct Pairing {
    /// New class → the old class at all its places so far; `None`: not one.
    pairs: HashMap<u32, Option<u32>, ByNumber>,
    /// How many places each has.
    old: HashMap<u32, usize, ByNumber>,
    new: HashMap<u32, usize, ByNumber>,
}

impl Pairing {
    fn add<K: Ord>(&mut self, old: &BTreeMap<K, u32>, new: &BTreeMap<K, u32>) {
        for class in old.values() {
            *self.old.entry(*class).or_default() += 1;
        }
        for (place, class) in new {
            *self.new.entry(*class).or_default() += 1;
            let there = old.get(place).copied();
            let pair = self.pairs.entry(*class).or_insert(there);
            if *pair != there {
                *pair = None;
            }
        }
    }

    /// The pairs with the same places: those of the new class are places of the old one, and as many.
    fn exact(self) -> Ids {
        let Self { pairs, old, new } = self;
        let pairs = pairs
            .into_iter()
            .filter_map(|(class, there)| Some((class, there?)));
        let real = pairs.filter(|pair| pair.0 != CLASS_OTHER && pair.1 != CLASS_OTHER);
        real.filter(|(class, there)| new.get(class) == old.get(there))
            .collect()
    }
}

/// The ports of a set.
type Content = Vec<((u16, u16), PortsChunk)>;

fn port_sets(actual: &Tables, desired: &Tables) -> Ids {
    let mut known: HashMap<Content, u32> = HashMap::new();
    for (id, content) in contents(actual) {
        // An agent that was killed may have left one set under two ids.
        known.entry(content).or_insert(id);
    }
    let matched = |(id, content)| Some((id, known.remove(&content)?));
    contents(desired).into_iter().filter_map(matched).collect()
}

fn contents(tables: &Tables) -> BTreeMap<u32, Content> {
    let mut contents = BTreeMap::<u32, Content>::new();
    for (key, chunk) in &tables.ports {
        let content = contents.entry(key.set).or_default();
        content.push(((key.chunk, key.proto), *chunk));
    }
    contents
}

/// All cells of a ruleset by class, sorted, and whether its id says that a default cell is among them.
type Row = (bool, Vec<(u32, Cell)>);

/// The rulesets of both tables, with the number of their row: equal rows have one number.
struct Rulesets {
    old: BTreeMap<u32, usize>,
    new: BTreeMap<u32, usize>,
}

impl Rulesets {
    fn new(actual: &Tables, desired: &Tables, classes: &Ids, ports: &Ids) -> Self {
        let mut numbers: HashMap<Row, usize> = HashMap::new();
        let mut old = BTreeMap::new();
        for (id, row) in rows(actual, Some, Some) {
            let next = numbers.len();
            old.extend(row.map(|row| (id, *numbers.entry(row).or_insert(next))));
        }
        let class = |class| match class {
            CLASS_ANY | CLASS_OTHER => Some(class),
            _ => classes.get(&class).copied(),
        };
        let set = |set| {
            if set == 0 {
                Some(0)
            } else {
                ports.get(&set).copied()
            }
        };
        let known = |(id, row): (u32, Option<Row>)| Some((id, *numbers.get(&row?)?));
        let new = rows(desired, class, set).into_iter().filter_map(known).collect();
        Self { old, new }
    }

    /// Many rulesets have equal rows (that of *nothing*, say): a pod's own goes before any other, so that the pod keeps it.
    fn pair(self, actual: &Tables, desired: &Tables) -> Ids {
        let mut pairs = Ids::default();
        let mut taken = HashSet::<u32, ByNumber>::default();
        for (name, new) in &desired.pods {
            let Some(old) = actual.pods.get(name) else {
                continue;
            };
            for (old, new) in [(old.ingress, new.ingress), (old.egress, new.egress)] {
                let row = self.new.get(&new);
                if row.is_some()
                    && row == self.old.get(&old)
                    && !pairs.contains_key(&new)
                    && taken.insert(old)
                {
                    pairs.insert(new, old);
                }
            }
        }
        let mut spare: HashMap<usize, BTreeSet<u32>> = HashMap::new();
        for (&old, row) in self.old.iter().filter(|(old, _)| !taken.contains(old)) {
            spare.entry(*row).or_default().insert(old);
        }
        for (&new, row) in &self.new {
            if !pairs.contains_key(&new)
                && let Some(old) = spare.get_mut(row).and_then(BTreeSet::pop_first)
            {
                pairs.insert(new, old);
            }
        }
        pairs
    }
}

/// The row of each ruleset that has cells or pods, with other ids in it; `None` where an id has no other.
fn rows(
    tables: &Tables,
    class: impl Fn(u32) -> Option<u32>,
    set: impl Fn(u32) -> Option<u32>,
) -> BTreeMap<u32, Option<Row>> {
    let empty = |id: u32| Some((id & RULESET_HAS_ANY != 0, Vec::new()));
    let used = tables
        .pods
        .values()
        .flat_map(|PodRules { ingress, egress }| [*ingress, *egress]);
    let used = used.filter(|id| *id != RULESET_NONE);
    let mut rows: BTreeMap<u32, Option<Row>> = used.map(|id| (id, empty(id))).collect();
    for (key, cell) in &tables.cells {
        let row = rows.entry(key.ruleset).or_insert_with(|| empty(key.ruleset));
        let entry = class(key.class).zip(set(cell.ports));
        let entry = entry.map(|(class, ports)| (class, Cell { ports, ..*cell }));
        match (row.as_mut(), entry) {
            (Some((_, cells)), Some(entry)) => cells.push(entry),
            _ => *row = None,
        }
    }
    for (_, cells) in rows.values_mut().flatten() {
        cells.sort_unstable();
    }
    rows
}

#[cfg(test)]
#[path = "matching_tests.rs"]
mod tests;
