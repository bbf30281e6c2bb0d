//! The ids of a compiler that goes on where another one has ended.

use netpol_common::tables::RULESET_HAS_ANY;

use super::{Compiler, matching::Matches};
use crate::{ids::highest, tables::Tables};

impl Compiler {
    /// Gives every class, ruleset and port set that means exactly what one in `actual` (what the kernel holds) means the id
    /// that it has there, so that a plan has nothing to write for it. What is new keeps its id. Once, after the first
    /// [`Self::settle`] and before the first plan: what was dirty is forgotten, so that plan is of
    /// [`Scope::Everything`](crate::plan::Scope::Everything).
    ///
    /// # Panics
    /// In debug builds, where the ids did not begin above those of `actual` ([`IdSource::pass`](crate::ids::IdSource::pass)).
    pub fn keep(&mut self, actual: &Tables) {
        debug_assert!(
            self.lowest_id().is_none_or(|lowest| lowest > highest(actual)),
            "an id would have two meanings"
        );
        let matches = Matches::new(actual, &self.desired.tables);
        for (_, address) in self.objects.addresses.iter_mut() {
            address.class = matches.class(address.class);
        }
        for region in self.regions.values_mut() {
            region.class = matches.class(region.class);
        }
        self.classes.rename(|class| matches.class(class));
        self.rulesets.rename(|ruleset| matches.ruleset(ruleset));
        for (_, set) in self.peers.sets.iter_mut() {
            let classes = std::mem::take(&mut set.classes).into_iter();
            set.classes = classes.map(|class| matches.class(class)).collect();
            let rulesets = std::mem::take(&mut set.rulesets).into_iter();
            set.rulesets = rulesets.map(|ruleset| matches.ruleset(ruleset)).collect();
        }
        self.desired.rename(&matches);
    }

    fn lowest_id(&self) -> Option<u32> {
        let rulesets = self.rulesets.live.keys().map(|id| id & !RULESET_HAS_ANY);
        let ids = self.classes.live.keys().copied().chain(rulesets);
        ids.chain(self.desired.tables.ports.keys().map(|key| key.set))
            .min()
    }
}

#[cfg(test)]
#[path = "rename_tests.rs"]
mod tests;
