//! Which pods change their rulesets.

use std::collections::BTreeSet;

use netpol_common::tables::{CELL_ALL, CLASS_ANY, Cell, CellKey, RULESET_HAS_ANY, RULESET_NONE};

use super::{Adoption, keys::Keys};
use crate::{
    ids::IdSource,
    model::ObjectName,
    tables::{PodRules, Tables},
};

type Entry = (ObjectName, PodRules);

/// The local pods that differ.
#[derive(Default)]
pub(super) struct Changes {
    /// Only in the actual tables.
    pub(super) gone: Vec<ObjectName>,
    /// Only in the desired tables.
    pub(super) born: Vec<Entry>,
    /// In both, with their new rulesets.
    pub(super) flips: Vec<Entry>,
    /// As `flips`, with their old ones.
    before: Vec<Entry>,
    /// Rulesets that some pod has and will not have.
    pub(super) left: BTreeSet<u32>,
    /// Rulesets that some pod has not and will have.
    pub(super) entered: BTreeSet<u32>,
}

impl Changes {
    pub(super) fn new(actual: &Tables, desired: &Tables, keys: &Keys) -> Self {
        let mut changes = Self::default();
        for name in &keys.pods {
            match (actual.pods.get(name).copied(), desired.pods.get(name).copied()) {
                (None, None) => {}
                (Some(_), None) => changes.gone.push(name.clone()),
                (None, Some(after)) => {
                    changes.born.push((name.clone(), after));
                    changes.entered.extend([after.ingress, after.egress]);
                }
                (Some(before), Some(after)) => {
                    let directions = [(before.ingress, after.ingress), (before.egress, after.egress)];
                    for (before, after) in directions.into_iter().filter(|(before, after)| before != after) {
                        changes.left.insert(before);
                        changes.entered.insert(after);
                    }
                    changes.before.push((name.clone(), before));
                    changes.flips.push((name.clone(), after));
                }
            }
        }
        changes.left.remove(&RULESET_NONE);
        changes.entered.remove(&RULESET_NONE);
        changes
    }
}

/// What has to happen before a direction that was open is enforced.
pub(super) struct Recording {
    /// The ruleset that allows everything.
    pub(super) cells: Vec<(CellKey, Cell)>,
    pub(super) pods: Vec<Entry>,
    pub(super) adopt: Vec<Adoption>,
}

impl Recording {
    pub(super) fn new(actual: &Tables, changes: &Changes, fresh: &IdSource) -> Self {
        let mut recording = Self {
            cells: Vec::new(),
            pods: Vec::new(),
            adopt: Vec::new(),
        };
        let mut ruleset = RULESET_NONE;
        for ((name, before), (_, after)) in changes.before.iter().zip(&changes.flips) {
            let begins = |before, after| before != after && after != RULESET_NONE && is_open(actual, before);
            let (ingress, egress) = (
                begins(before.ingress, after.ingress),
                begins(before.egress, after.egress),
            );
            if !ingress && !egress {
                continue;
            }
            recording.adopt.push(Adoption {
                pod: name.clone(),
                ingress,
                egress,
            });
            let mut record = |begins: bool, before: u32| {
                if begins && before == RULESET_NONE {
                    if ruleset == RULESET_NONE {
                        ruleset = fresh.take() | RULESET_HAS_ANY;
                    }
                    return ruleset;
                }
                before
            };
            let meanwhile = PodRules {
                ingress: record(ingress, before.ingress),
                egress: record(egress, before.egress),
            };
            if meanwhile != *before {
                recording.pods.push((name.clone(), meanwhile));
            }
        }
        if ruleset != RULESET_NONE {
            recording.cells.push((default_cell(ruleset), EVERYTHING));
        }
        recording
    }
}

const EVERYTHING: Cell = Cell {
    flags: CELL_ALL,
    ports: 0,
    ranges: [netpol_common::tables::Range::UNUSED; 3],
};

fn default_cell(ruleset: u32) -> CellKey {
    CellKey {
        ruleset,
        class: CLASS_ANY,
    }
}

/// Whether a direction is not enforced yet: not isolated, or left recording by an agent that was killed then.
fn is_open(actual: &Tables, ruleset: u32) -> bool {
    ruleset == RULESET_NONE
        || ruleset & RULESET_HAS_ANY != 0 && actual.cells.get(&default_cell(ruleset)) == Some(&EVERYTHING)
}
