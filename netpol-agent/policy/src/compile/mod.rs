//! Snapshot → tables, kept up to date event by event.
//!
//! ```text
//! local pods ─select─ policies ⇒ rulesets ⇒ peer sets ⇒ members of each address and prefix ⇒ classes
//!                                    └───────────── × ─────────────────────────────────────────┘ ⇒ cells
//! ```
//!
//! Each arrow is counted: what no local pod leads to is not there. An event touches objects; [`Compiler::apply`] then
//! *settles*: from left to right it recomputes what the touched objects lead to, and only that.
//! The same events give the same tables, ids included. After a restart [`Compiler::keep`] takes up the ids that are in the kernel.

mod classes;
mod desired;
mod effect;
mod entities;
mod explain;
mod held;
mod index;
mod labels;
mod matching;
mod nets;
mod objects;
mod peers;
mod ports;
#[cfg(test)]
mod properties;
mod rename;
mod rulesets;
mod settle;
mod settle_classes;
mod shared;
mod slab;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use ipnet::IpNet;

use self::{
    classes::Classes, desired::Desired, nets::Region, objects::Objects, peers::Peers, rulesets::Rulesets,
};
pub use self::{desired::Dirty, effect::Idle, explain::Stats};
use crate::{
    ids::IdSource,
    model::{Event, Snapshot, Str},
    tables::Tables,
};

/// The tables of one node, kept up to date.
pub struct Compiler {
    ids: IdSource,
    objects: Objects,
    rulesets: Rulesets,
    peers: Peers,
    classes: Classes,
    regions: BTreeMap<IpNet, Region>,
    desired: Desired,
}

impl Compiler {
    /// An empty cluster, seen from `node`. `first_id` is above every id in use (or see [`IdSource::pass`]).
    #[must_use]
    pub fn new(node: Str, first_id: u32) -> Self {
        Self::with_ids(node, IdSource::new(first_id))
    }

    /// As [`Self::new`], with ids from `ids`.
    #[must_use]
    pub fn with_ids(node: Str, ids: IdSource) -> Self {
        Self {
            ids,
            objects: Objects::new(node),
            rulesets: Rulesets::default(),
            peers: Peers::default(),
            classes: Classes::default(),
            regions: BTreeMap::new(),
            desired: Desired::default(),
        }
    }

    /// The ids of this compiler, for the plan's intermediate classes.
    #[must_use]
    pub fn ids(&self) -> IdSource {
        self.ids.clone()
    }

    /// Applies one change.
    pub fn apply(&mut self, event: Event) {
        self.stage(event);
        self.settle();
    }

    /// Applies many changes as one: cheaper, and what they undo again never shows.
    pub fn apply_all(&mut self, events: impl IntoIterator<Item = Event>) {
        events.into_iter().for_each(|event| self.stage(event));
        self.settle();
    }

    /// Applies everything in `snapshot`.
    pub fn load(&mut self, snapshot: &Snapshot) {
        self.apply_all(snapshot.clone().into_events());
    }

    /// What the kernel should hold.
    #[must_use]
    pub fn tables(&self) -> &Tables {
        &self.desired.tables
    }

    /// The keys of [`Self::tables`] that changed since this was asked last.
    #[must_use]
    pub fn take_dirty(&mut self) -> Dirty {
        self.desired.take_dirty()
    }

    /// Whether nothing at all is kept: what tests ask after everything went.
    #[cfg(test)]
    fn is_vacant(&self) -> bool {
        self.objects.is_vacant()
            && self.peers.sets.is_empty()
            && self.rulesets.live.is_empty()
            && self.classes.live.is_empty()
            && self.regions.is_empty()
    }

    /// Takes in one change, of which [`Self::holds`] knows at once; the tables follow with [`Self::settle`].
    pub fn stage(&mut self, event: Event) {
        let objects = &mut self.objects;
        match event {
            Event::Namespace(object) => objects.put_namespace(&object),
            Event::Pod(object) => objects.put_pod(object),
            Event::Policy(object) => objects.put_policy(object),
            Event::NamespaceGone(name) => objects.remove_namespace(&name),
            Event::PodGone(name) => objects.remove_pod(&name),
            Event::PolicyGone(name) => objects.remove_policy(&name),
            // A node's addresses decide nothing here: selectors do not mean nodes, and ipBlocks do not ask.
            Event::Node(_) | Event::NodeGone(_) => {}
        }
    }
}

/// The tables of `snapshot`, seen from `node`, with ids from 1.
#[must_use]
pub fn full(snapshot: &Snapshot, node: &str) -> Tables {
    let mut compiler = Compiler::new(node.into(), 1);
    compiler.load(snapshot);
    compiler.desired.tables
}
