//! What is known of the cluster, from what four watches say, each in its own time.
//!
//! Pure: events in, a [`Change`] out. Two things make the order of four independent watches harmless:
//! - An object of a namespace that is not known yet waits for it. Without its labels, a namespace would match every
//!   `NotIn` and `DoesNotExist`, so that a pod could for a moment be a peer that it is not.
//! - A namespace stays until the last object in it is gone, for the same reason.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map},
    hash::{BuildHasher as _, RandomState},
    mem,
};

use netpol_policy::model::{Event, Str};

use super::object::Kind;
use crate::source::{
    Change, Problem,
    key::{Key, event},
    parse::{self, ListOf, Node, Object, Parsed, Report},
};

/// The kinds, for what is counted by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Which {
    Namespaces,
    Nodes,
    Pods,
    Policies,
}

impl Which {
    pub(super) const ALL: [Self; 4] = [Self::Namespaces, Self::Nodes, Self::Pods, Self::Policies];

    fn of(key: &Key) -> Self {
        match key {
            Key::Namespace(_) => Self::Namespaces,
            Key::Node(_) => Self::Nodes,
            Key::Pod(_) => Self::Pods,
            Key::Policy(_) => Self::Policies,
        }
    }

    /// The plural in the API.
    pub(super) const fn plural(self) -> &'static str {
        match self {
            Self::Namespaces => "namespaces",
            Self::Nodes => "nodes",
            Self::Pods => "pods",
            Self::Policies => "networkpolicies",
        }
    }
}

/// What a watch says, for any kind.
#[derive(Debug)]
pub(super) enum Heard {
    /// A list begins.
    Init,
    /// An item of it.
    InitApply(Node),
    /// It is complete: what was known and is not in it is gone.
    InitDone,
    /// An object is there, new or changed.
    Apply(Node),
    /// An object is gone.
    Delete(Node),
    /// A list was broken off; another begins.
    Broken,
}

/// So many events of a first list are given out before it is complete: whoever gets them keeps less of an object than an event holds.
const PART: usize = 500;

/// Everything known.
#[derive(Debug, Default)]
pub(super) struct Store {
    /// What the agent has been told is there; a pod with the [`Self::life`] that its UID means.
    known: BTreeMap<Key, u64>,
    /// With keys of its own: nobody can choose UIDs that agree.
    hasher: RandomState,
    /// Objects whose namespace is not known yet.
    waiting: BTreeMap<Str, BTreeMap<Key, Object>>,
    /// How many pods and policies each namespace holds.
    held: BTreeMap<Str, usize>,
    /// Namespaces that are gone, but not what was in them.
    leaving: BTreeSet<Str>,
    /// What a list under way has named so far.
    listed: BTreeMap<Which, BTreeSet<Key>>,
    /// What is wrong with each object.
    problems: BTreeMap<Key, Vec<Problem>>,
    /// What could not even be named, the last of each kind.
    nameless: BTreeMap<Which, Vec<Problem>>,
    events: Vec<Event>,
    problems_changed: bool,
}

impl Store {
    /// Takes in what the watch of `K` says.
    pub(super) fn hear<K: Kind>(&mut self, which: Which, heard: Heard) {
        match heard {
            Heard::Init => drop(self.listed.insert(which, BTreeSet::new())),
            Heard::Broken => drop(self.listed.remove(&which)),
            Heard::InitApply(node) => {
                if let Some(key) = self.put::<K>(which, &node) {
                    self.listed.entry(which).or_default().insert(key);
                }
            }
            Heard::InitDone => {
                let listed = self.listed.remove(&which).unwrap_or_default();
                let waiting = self.waiting.values().flat_map(BTreeMap::keys);
                let gone: BTreeSet<Key> = self
                    .known
                    .keys()
                    .chain(waiting)
                    .filter(|key| Which::of(key) == which && !listed.contains(*key))
                    .cloned()
                    .collect();
                gone.iter().for_each(|key| self.remove(key));
            }
            Heard::Apply(node) => drop(self.put::<K>(which, &node)),
            Heard::Delete(node) => {
                // What was not understood when it came is named by its deletion all the same.
                if let Some(object) = self.parse::<K>(which, &node) {
                    self.remove(&Key::of(&object));
                }
            }
        }
    }

    /// What has changed since this was asked last, perhaps nothing; `complete` says whether everything was listed by now.
    pub(super) fn take(&mut self, complete: bool) -> Change {
        self.problems_changed = false;
        let all = self.problems.values().chain(self.nameless.values()).flatten();
        Change {
            events: mem::take(&mut self.events),
            problems: all.cloned().collect(),
            complete,
        }
    }

    /// Whether [`Self::take`] has something to give.
    pub(super) fn has_changed(&self) -> bool {
        !self.events.is_empty() || self.problems_changed
    }

    /// Whether a list is under way.
    pub(super) fn is_listing(&self) -> bool {
        !self.listed.is_empty()
    }

    /// Whether so much has changed that it should not wait for the rest of a list.
    pub(super) fn is_much(&self) -> bool {
        self.events.len() >= PART
    }

    fn parse<K: Kind>(&mut self, which: Which, node: &Node) -> Option<Object> {
        let mut report = Report::new(None);
        let of = ListOf {
            items: Some((K::API_VERSION.into(), K::KIND.into())),
        };
        let parsed = parse::typed(node, Some(&of), &mut report);
        let problems = report.into_problems();
        match parsed {
            Parsed::Object(object) => {
                let key = Key::of(&object);
                let changed = match problems.is_empty() {
                    true => self.problems.remove(&key).is_some(),
                    false => self
                        .problems
                        .insert(key, problems.clone())
                        .is_none_or(|old| old != problems),
                };
                self.problems_changed |= changed;
                Some(object)
            }
            Parsed::Ignored(..) | Parsed::Unusable => {
                self.problems_changed |= !problems.is_empty();
                self.nameless.insert(which, problems);
                None
            }
        }
    }

    fn put<K: Kind>(&mut self, which: Which, node: &Node) -> Option<Key> {
        let object = self.parse::<K>(which, node)?;
        let key = Key::of(&object);
        if let Some(namespace) = key.namespace()
            && !self.known.contains_key(&Key::Namespace(namespace.clone()))
        {
            self.waiting
                .entry(namespace.clone())
                .or_default()
                .insert(key.clone(), object);
            return Some(key);
        }
        self.publish(key.clone(), object);
        if let Key::Namespace(name) = &key {
            self.leaving.remove(name);
            let waiting = self.waiting.remove(name).unwrap_or_default();
            // A policy before the pods that it isolates.
            let (pods, others): (Vec<_>, Vec<_>) = waiting
                .into_iter()
                .partition(|(key, _)| matches!(key, Key::Pod(_)));
            others
                .into_iter()
                .chain(pods)
                .for_each(|(key, object)| self.publish(key, object));
        }
        Some(key)
    }

    /// A number for the UID, which is longer and of no other use: two of a name have one in 2^64 times the same.
    fn life(&self, object: &Object) -> u64 {
        match object {
            Object::Pod(pod) => self.hasher.hash_one(&pod.uid),
            Object::Namespace(_) | Object::Node(_) | Object::Policy(_) => 0,
        }
    }

    fn publish(&mut self, key: Key, object: Object) {
        let life = self.life(&object);
        let gone = key.gone();
        let namespace = key.namespace().cloned();
        match self.known.entry(key) {
            btree_map::Entry::Vacant(entry) => {
                entry.insert(life);
                if let Some(namespace) = namespace {
                    *self.held.entry(namespace).or_default() += 1;
                }
            }
            btree_map::Entry::Occupied(mut entry) => {
                // Deleted and created again while we were not looking.
                if *entry.get() != life {
                    self.events.push(gone);
                    entry.insert(life);
                }
            }
        }
        self.events.push(event(object));
    }

    fn remove(&mut self, key: &Key) {
        self.problems_changed |= self.problems.remove(key).is_some();
        if let Some(namespace) = key.namespace()
            && let Some(waiting) = self.waiting.get_mut(namespace)
        {
            waiting.remove(key);
            if waiting.is_empty() {
                self.waiting.remove(namespace);
            }
        }
        if let Key::Namespace(name) = key
            && self.held.contains_key(name)
        {
            self.leaving.insert(name.clone());
            return;
        }
        if self.known.remove(key).is_none() {
            return;
        }
        self.events.push(key.gone());
        let Some(namespace) = key.namespace().cloned() else {
            return;
        };
        if let btree_map::Entry::Occupied(mut held) = self.held.entry(namespace.clone()) {
            *held.get_mut() -= 1;
            if *held.get() == 0 {
                held.remove();
                if self.leaving.remove(&namespace) {
                    self.remove(&Key::Namespace(namespace));
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
