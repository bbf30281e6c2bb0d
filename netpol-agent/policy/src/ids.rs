//! Ids of classes, rulesets and port sets.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use netpol_common::tables::{CLASS_ANY, RULESET_HAS_ANY};

use crate::tables::Tables;

/// Hands out ids that no live table uses, each once. Clones share the counter, so that the compiler and the
/// plan's intermediate classes never give one id two meanings.
#[derive(Clone, Debug)]
pub struct IdSource(Arc<AtomicU32>);

impl IdSource {
    /// Ids from `first` up (0 is never an id).
    #[must_use]
    pub fn new(first: u32) -> Self {
        Self(Arc::new(AtomicU32::new(first.max(1))))
    }

    /// Goes on above every id that `tables` uses, if it is not there yet; before any id is taken. So a restarted agent goes on
    /// beside what is pinned.
    pub fn pass(&self, tables: &Tables) {
        self.0.fetch_max(highest(tables) + 1, Ordering::Relaxed);
    }

    /// The next id.
    ///
    /// # Panics
    /// After 2³¹ - 1 ids, that is, years of changes; a restarted agent begins again above the ids in use.
    #[must_use]
    pub fn take(&self) -> u32 {
        let id = self.0.fetch_add(1, Ordering::Relaxed);
        assert!(
            id < RULESET_HAS_ANY,
            "all 2^31 table ids are used up: restart the agent"
        );
        id
    }
}

/// The highest id in `tables`, or 0.
pub(crate) fn highest(tables: &Tables) -> u32 {
    let hosts = tables.hosts4.values().chain(tables.hosts6.values());
    let nets = tables.nets4.values().chain(tables.nets6.values());
    let cells = tables.cells.iter().flat_map(|(key, cell)| {
        let class = if key.class == CLASS_ANY { 0 } else { key.class };
        [key.ruleset & !RULESET_HAS_ANY, class, cell.ports]
    });
    let pods = tables
        .pods
        .values()
        .flat_map(|rules| [rules.ingress, rules.egress]);
    hosts
        .chain(nets)
        .copied()
        .chain(cells)
        .chain(pods.map(|ruleset| ruleset & !RULESET_HAS_ANY))
        .chain(tables.ports.keys().map(|key| key.set))
        .max()
        .unwrap_or(0)
}
