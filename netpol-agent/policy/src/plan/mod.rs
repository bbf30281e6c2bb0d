//! From the tables that are to the tables that should be, without a wrong packet in between.
//!
//! A packet is judged by what one program run reads: a pod's ruleset, the peer's class, the cell of both. The steps
//! of a [`Plan`] are such that each run, whenever it began, finds the old verdict or the new one:
//!
//! 1. What nothing points at yet is written: port sets, cells.
//! 2. A direction that becomes isolated is pointed at a ruleset that allows everything, so that flows are
//!    recorded; then the connections that exist are adopted.
//! 3. Addresses move to an intermediate class `i`, for which a ruleset that pods leave says what it said for the old
//!    class, and one that pods enter what it shall say for the new one. If no pod changes its ruleset, addresses
//!    move to the new class at once.
//! 4. Pods change their rulesets; the epoch moves.
//! 5. Addresses move from `i` to their new class.
//! 6. What nothing points at any more is removed.
//!
//! [`Step::Grace`] stands wherever a run that began before the last writes must not see the next ones.
//! The guarantee is for one end (a pod, a direction, a peer): of a packet between two local pods each end is judged by
//! the old or the new tables.

mod addresses;
mod capacity;
mod intermediate;
mod keys;
mod pods;
#[cfg(test)]
mod properties;
#[cfg(test)]
pub(crate) mod restart;
mod step;
#[cfg(test)]
pub(crate) mod tests;

use self::{addresses::Moves, intermediate::Intermediate, keys::Keys, pods::Changes};
pub use self::{
    capacity::{Map, MapFull, Sizes},
    step::{Adoption, Step, flags},
};
use crate::{compile::Dirty, ids::IdSource, tables::Tables};

/// Where the two tables may differ.
#[derive(Clone, Copy, Debug)]
pub enum Scope<'a> {
    /// Anywhere: after a restart, or after a write failed half way.
    Everything,
    /// Only at these keys: `actual` is what `desired` was when the compiler's dirty keys were taken last.
    Dirty(&'a Dirty),
}

/// Ordered writes, and how full they make the tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order, each after the one before is done.
    pub steps: Vec<Step>,
    /// The most entries that each table has at any moment.
    pub peak: Sizes,
}

impl Plan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    fn push(&mut self, step: Step) {
        if !step.is_void() {
            self.steps.push(step);
        }
    }

    /// A grace period, unless nothing was written since the last one.
    fn grace(&mut self) {
        if self.steps.last().is_some_and(|last| *last != Step::Grace) {
            self.steps.push(Step::Grace);
        }
    }
}

/// The writes that turn `actual` into `desired`. `fresh` gives ids that neither uses (the compiler's
/// [`crate::compile::Compiler::ids`]).
///
/// A pod that only `desired` has was never judged before: it gets its rulesets at once. A pod that runs already
/// when its isolation begins must be in `actual`, with no rulesets, to have its connections adopted.
#[must_use]
pub fn plan(actual: &Tables, desired: &Tables, scope: Scope<'_>, fresh: &mut IdSource) -> Plan {
    let keys = Keys::new(actual, desired, scope);
    let changes = Changes::new(actual, desired, &keys);
    let moves = Moves::new(actual, desired, &keys);
    let intermediate = Intermediate::new(actual, desired, &keys, &changes, &moves, fresh);
    let recording = pods::Recording::new(actual, &changes, fresh);

    let mut plan = Plan::default();
    plan.push(Step::RemovePods(changes.gone.clone()));
    plan.push(Step::PutPorts(keys.new_ports.clone()));
    let cells = [&keys.new_cells[..], &intermediate.cells, &recording.cells].concat();
    plan.push(Step::PutCells(cells));
    let (flags_before, flags_after) = (flags(actual), flags(desired));
    if flags_before != flags_after || matches!(scope, Scope::Everything) && !keys.is_empty() {
        plan.push(Step::Flags(flags_before | flags_after));
    }
    if !recording.adopt.is_empty() {
        plan.push(Step::PutPods(recording.pods.clone()));
        plan.grace();
        plan.push(Step::Adopt(recording.adopt.clone()));
    }
    let moved = moves.push_first(&mut plan, |pair| intermediate.class(pair));
    flip(&mut plan, moved, &changes, &moves, &intermediate);
    remove(&mut plan, &keys, &moves, &intermediate, &recording);
    if plan.steps.iter().any(|step| matches!(step, Step::Flags(_))) {
        plan.push(Step::Flags(flags_after));
    }
    plan.peak = capacity::peak(actual, &moves, &plan.steps);
    plan
}

/// Steps 4 and 5.
fn flip(plan: &mut Plan, moved: bool, changes: &Changes, moves: &Moves, intermediate: &Intermediate) {
    if changes.flips.is_empty() {
        if moved {
            plan.push(Step::Epoch);
            plan.grace();
        }
        plan.push(Step::PutPods(changes.born.clone()));
        return;
    }
    if moved {
        plan.grace();
    }
    let pods = changes.flips.iter().chain(&changes.born).cloned();
    plan.push(Step::PutPods(intermediate.with_aliases(pods)));
    plan.push(Step::Epoch);
    let second = moves.second(|pair| intermediate.class(pair));
    if !second.is_empty() {
        plan.grace();
        let late = intermediate.late;
        second.into_iter().for_each(|step| plan.push(step));
        if late {
            plan.push(Step::Epoch);
        }
    }
    let back = intermediate.aliased(changes);
    if !back.is_empty() {
        plan.grace();
        plan.push(Step::PutPods(back));
    }
}

/// Step 6.
fn remove(
    plan: &mut Plan,
    keys: &Keys,
    moves: &Moves,
    intermediate: &Intermediate,
    recording: &pods::Recording,
) {
    let mut cells = keys.old_cells.clone();
    cells.extend(intermediate.temporary_cells());
    cells.extend(recording.cells.iter().map(|(key, _)| *key));
    cells.sort_unstable();
    cells.dedup();
    let [hosts, nets] = moves.removals();
    let steps = [
        hosts,
        nets,
        Step::RemoveCells(cells),
        Step::RemovePorts(keys.old_ports.clone()),
    ];
    if steps.iter().any(|step| !step.is_void()) {
        plan.grace();
    }
    steps.into_iter().for_each(|step| plan.push(step));
}
