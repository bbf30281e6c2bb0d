//! Classes: addresses that are in exactly the same peer sets.

use std::{collections::HashMap, sync::Arc};

use netpol_common::tables::CLASS_OTHER;

use super::{peers::Member, slab::ByNumber};
use crate::ids::IdSource;

/// One class.
pub(super) struct Class {
    /// What its addresses are members of, sorted; not empty.
    pub(super) members: Arc<[Member]>,
    /// How many addresses and prefixes are in it.
    refs: u32,
}

/// The live classes.
#[derive(Default)]
pub(super) struct Classes {
    pub(super) live: HashMap<u32, Class, ByNumber>,
    ids: HashMap<Arc<[Member]>, u32>,
    /// Made since the last look.
    fresh: Vec<u32>,
    /// Lost their last address at least once since the last look.
    idle: Vec<u32>,
}

impl Classes {
    /// What a class is a member of.
    pub(super) fn members(&self, class: u32) -> &[Member] {
        self.live.get(&class).map_or(&[], |class| &class.members)
    }

    /// The class of exactly `members` (sorted). It lives only if [`Self::hold`] follows.
    pub(super) fn intern(&mut self, members: &[Member], ids: &IdSource) -> u32 {
        if members.is_empty() {
            return CLASS_OTHER;
        }
        if let Some(&id) = self.ids.get(members) {
            return id;
        }
        let id = ids.take();
        let members: Arc<[Member]> = members.into();
        self.ids.insert(members.clone(), id);
        self.live.insert(id, Class { members, refs: 0 });
        self.fresh.push(id);
        self.idle.push(id);
        id
    }

    /// Moves one address (or prefix) from class `from` to class `to`.
    pub(super) fn shift(&mut self, from: u32, to: u32) {
        if let Some(class) = self.live.get_mut(&to) {
            class.refs += 1;
        }
        if let Some(class) = self.live.get_mut(&from) {
            class.refs -= 1;
            if class.refs == 0 {
                self.idle.push(from);
            }
        }
    }

    /// Gives every class the id that `to` says; no two the same.
    pub(super) fn rename(&mut self, to: impl Fn(u32) -> u32) {
        let live = std::mem::take(&mut self.live).into_iter();
        self.live = live.map(|(id, class)| (to(id), class)).collect();
        self.ids.values_mut().for_each(|id| *id = to(*id));
    }

    /// Takes out the classes without an address, and says which of the living are new; both sorted. A class that
    /// was made and lost since the last look is in neither.
    pub(super) fn sweep(&mut self) -> (Vec<(u32, Class)>, Vec<u32>) {
        let mut fresh = std::mem::take(&mut self.fresh);
        let mut idle = std::mem::take(&mut self.idle);
        idle.sort_unstable();
        idle.dedup();
        let mut dead = Vec::new();
        for id in idle {
            if self.live[&id].refs == 0
                && let Some(class) = self.live.remove(&id)
            {
                self.ids.remove(&class.members);
                if fresh.binary_search(&id).is_err() {
                    dead.push((id, class));
                }
            }
        }
        fresh.retain(|id| self.live.contains_key(id));
        (dead, fresh)
    }
}
