//! The classes over which addresses go while pods change their rulesets.
//!
//! For a region that goes from class `a` to class `d`, its intermediate class `i` needs for each ruleset one cell that
//! is right for every pod that has the ruleset meanwhile. Pods that *leave* it need the old cell (a), pods that *enter*
//! it the new one (d); those that keep it take either. A ruleset that is both left and entered, and differs, cannot
//! have one cell for both: the entering pods then use a copy of it until the addresses have arrived.

use std::collections::{BTreeMap, BTreeSet};

use netpol_common::tables::{CLASS_ANY, CLASS_OTHER, Cell, CellKey, RULESET_HAS_ANY};

use super::{
    addresses::{Moves, Pair},
    keys::Keys,
    pods::Changes,
};
use crate::{
    ids::IdSource,
    model::ObjectName,
    tables::{PodRules, Tables},
};

#[derive(Default)]
pub(super) struct Intermediate {
    classes: BTreeMap<Pair, u32>,
    /// Cells to write before any address moves.
    pub(super) cells: Vec<(CellKey, Cell)>,
    /// Those of `cells` that the desired tables do not have.
    temporary: BTreeSet<CellKey>,
    /// Ruleset → its copy for the pods that enter it.
    aliases: BTreeMap<u32, u32>,
    /// Pods that keep their ruleset see the new verdicts only when addresses leave the intermediate class.
    pub(super) late: bool,
}

/// What decides which intermediate class is possible.
struct Choice<'a> {
    actual: &'a Tables,
    desired: &'a Tables,
    changes: &'a Changes,
    /// Every ruleset with cells.
    rulesets: BTreeSet<u32>,
    one_sided: &'a BTreeSet<u32>,
    taken: BTreeSet<u32>,
}

impl Intermediate {
    pub(super) fn new(
        actual: &Tables,
        desired: &Tables,
        keys: &Keys,
        changes: &Changes,
        moves: &Moves,
        fresh: &IdSource,
    ) -> Self {
        let mut this = Self::default();
        if changes.flips.is_empty() {
            return this;
        }
        let mut rulesets = with_cells(actual);
        rulesets.append(&mut with_cells(desired));
        let mut choice = Choice {
            actual,
            desired,
            changes,
            rulesets,
            one_sided: &keys.one_sided_classes,
            taken: BTreeSet::new(),
        };
        let mut pairs: Vec<_> = moves.pairs().into_iter().collect();
        this.make_aliases(&choice, &pairs, fresh);
        // What most addresses share should cost one write an address.
        pairs.sort_by_key(|(_, regions)| std::cmp::Reverse(*regions));
        for (pair, _) in pairs {
            this.choose(&mut choice, pair, fresh);
        }
        this.cells.sort_unstable();
        this
    }

    fn choose(&mut self, choice: &mut Choice<'_>, pair: Pair, fresh: &IdSource) {
        let (a, d) = pair;
        let class = if choice.new_class_will_do(pair) {
            d
        } else if choice.old_class_will_do(pair) {
            self.late = true;
            a
        } else {
            fresh.take()
        };
        choice.taken.insert(class);
        self.classes.insert(pair, class);
        let rulesets = if class == d {
            &choice.changes.left
        } else if class == a {
            &choice.changes.entered
        } else {
            &choice.rulesets
        };
        for &ruleset in rulesets {
            let waits = choice.changes.left.contains(&ruleset) && has_cells(choice.desired, ruleset);
            if waits && choice.old_cell(ruleset, a) != choice.new_cell(ruleset, d) {
                self.late = true;
            }
            let key = CellKey { ruleset, class };
            if let Some(cell) = choice.meanwhile(ruleset, pair)
                && !choice.desired.cells.contains_key(&key)
                && choice.actual.cells.get(&key) != Some(&cell)
            {
                self.cells.push((key, cell));
                self.temporary.insert(key);
            }
        }
        for (&ruleset, &alias) in &self.aliases {
            let key = CellKey {
                ruleset: alias,
                class,
            };
            // The copy has the cell of `d` already.
            if class != d
                && let Some(cell) = choice.new_cell(ruleset, d)
            {
                self.cells.push((key, cell));
                self.temporary.insert(key);
            }
        }
    }

    fn make_aliases(&mut self, choice: &Choice<'_>, pairs: &[(Pair, usize)], fresh: &IdSource) {
        for &ruleset in choice.changes.left.intersection(&choice.changes.entered) {
            let differs =
                |((a, d), _): &(Pair, usize)| choice.old_cell(ruleset, *a) != choice.new_cell(ruleset, *d);
            if !pairs.iter().any(differs) {
                continue;
            }
            let alias = fresh.take() | ruleset & RULESET_HAS_ANY;
            self.aliases.insert(ruleset, alias);
            for (key, cell) in cells_of(choice.desired, ruleset) {
                let key = CellKey {
                    ruleset: alias,
                    ..key
                };
                self.cells.push((key, cell));
                self.temporary.insert(key);
            }
        }
    }

    /// Where regions of `pair` are while pods change.
    pub(super) fn class(&self, pair: Pair) -> u32 {
        self.classes.get(&pair).copied().unwrap_or(pair.1)
    }

    /// The cells that nothing needs in the end.
    pub(super) fn temporary_cells(&self) -> impl Iterator<Item = CellKey> + '_ {
        self.temporary.iter().copied()
    }

    /// `pods` with copies in place of the rulesets that have one.
    pub(super) fn with_aliases(
        &self,
        pods: impl Iterator<Item = (ObjectName, PodRules)>,
    ) -> Vec<(ObjectName, PodRules)> {
        let alias = |ruleset: u32| self.aliases.get(&ruleset).copied().unwrap_or(ruleset);
        let rules = |rules: PodRules| PodRules {
            ingress: alias(rules.ingress),
            egress: alias(rules.egress),
        };
        pods.map(|(name, entry)| (name, rules(entry))).collect()
    }

    /// The pods that [`Self::with_aliases`] changed, with their real rulesets.
    pub(super) fn aliased(&self, changes: &Changes) -> Vec<(ObjectName, PodRules)> {
        let has_alias = |rules: &PodRules| {
            self.aliases.contains_key(&rules.ingress) || self.aliases.contains_key(&rules.egress)
        };
        let pods = changes.flips.iter().chain(&changes.born);
        pods.filter(|(_, rules)| has_alias(rules)).cloned().collect()
    }
}

impl Choice<'_> {
    fn old_cell(&self, ruleset: u32, a: u32) -> Option<Cell> {
        self.actual.cells.get(&CellKey { ruleset, class: a }).copied()
    }

    fn new_cell(&self, ruleset: u32, d: u32) -> Option<Cell> {
        self.desired.cells.get(&CellKey { ruleset, class: d }).copied()
    }

    /// What `ruleset` must say meanwhile.
    fn meanwhile(&self, ruleset: u32, (a, d): Pair) -> Option<Cell> {
        if self.changes.left.contains(&ruleset) {
            self.old_cell(ruleset, a)
        } else {
            self.new_cell(ruleset, d)
        }
    }

    /// Whether `d` can be the intermediate class: nothing has it yet, and where the ruleset stays, the cell that it
    /// will have for `d` is the one that is needed meanwhile.
    fn new_class_will_do(&self, pair: Pair) -> bool {
        let d = pair.1;
        let will_do = |ruleset: u32| {
            let needed = self.meanwhile(ruleset, pair);
            let stays = has_cells(self.desired, ruleset);
            let there = if stays {
                self.new_cell(ruleset, d)
            } else {
                self.old_cell(ruleset, d)
            };
            there == needed || there.is_none() && !stays
        };
        d != CLASS_OTHER
            && self.one_sided.contains(&d)
            && !self.taken.contains(&d)
            && self.changes.left.iter().all(|&ruleset| will_do(ruleset))
    }

    /// Whether `a` can be: nothing will have it, and it has no other cell of a ruleset that pods enter.
    fn old_class_will_do(&self, pair: Pair) -> bool {
        let a = pair.0;
        a != CLASS_OTHER
            && self.one_sided.contains(&a)
            && !self.taken.contains(&a)
            && self.changes.entered.iter().all(|&ruleset| {
                let there = self.old_cell(ruleset, a);
                let needed = self.meanwhile(ruleset, pair);
                there == needed || there.is_none() && !has_cells(self.actual, ruleset)
            })
    }
}

fn has_cells(tables: &Tables, ruleset: u32) -> bool {
    cells_of(tables, ruleset).next().is_some()
}

fn cells_of(tables: &Tables, ruleset: u32) -> impl Iterator<Item = (CellKey, Cell)> + '_ {
    let first = CellKey { ruleset, class: 0 };
    let last = CellKey {
        ruleset,
        class: CLASS_ANY,
    };
    tables.cells.range(first..=last).map(|(key, cell)| (*key, *cell))
}

/// The rulesets that have cells, by leaping over them.
fn with_cells(tables: &Tables) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    let mut next = Some(0);
    while let Some(first) = next {
        let from = CellKey {
            ruleset: first,
            class: 0,
        };
        let ruleset = tables.cells.range(from..).next().map(|(key, _)| key.ruleset);
        found.extend(ruleset);
        next = ruleset.and_then(|ruleset| ruleset.checked_add(1));
    }
    found
}
