//! Labels as small numbers, and selectors over them.
//!
//! A hundred thousand pods share few labels. Each (key, value) is one number while somebody refers to it, so a pod's
//! labels are a few words and a selector's test compares numbers.

use std::collections::HashMap;

use crate::model::{Labels, Operator, Selector, Str};

/// A (key, value) in use.
pub(super) type Pair = u32;
type Key = u32;

#[derive(Default)]
struct KeySlot {
    name: Option<Str>,
    values: HashMap<Str, Pair>,
    refs: u32,
}

#[derive(Default)]
struct PairSlot {
    key: Key,
    value: Option<Str>,
    refs: u32,
}

/// The labels in use, counted.
#[derive(Default)]
pub(super) struct LabelStore {
    keys: HashMap<Str, Key>,
    key_slots: Vec<KeySlot>,
    free_keys: Vec<Key>,
    pair_slots: Vec<PairSlot>,
    free_pairs: Vec<Pair>,
}

impl LabelStore {
    /// The numbers of `labels`; given back by [`Self::release`].
    pub(super) fn acquire(&mut self, labels: &Labels) -> Box<[Pair]> {
        labels
            .pairs()
            .map(|(key, value)| self.acquire_pair(key, value))
            .collect()
    }

    /// Whether `pairs` are the numbers of `labels`.
    pub(super) fn are(&self, pairs: &[Pair], labels: &Labels) -> bool {
        let same = |(pair, (key, value)): (&Pair, (&str, &str))| self.find_pair(key, value) == Some(*pair);
        pairs.len() == labels.iter().len() && pairs.iter().zip(labels.iter()).all(same)
    }

    fn find_pair(&self, key: &str, value: &str) -> Option<Pair> {
        let key = *self.keys.get(key)?;
        self.key_slots[key as usize].values.get(value).copied()
    }

    pub(super) fn release(&mut self, pairs: &[Pair]) {
        for &pair in pairs {
            let slot = &mut self.pair_slots[pair as usize];
            slot.refs -= 1;
            if slot.refs == 0 {
                let (key, value) = (slot.key, slot.value.take().expect("a slot in use has a value"));
                self.key_slots[key as usize].values.remove(&value);
                self.free_pairs.push(pair);
                self.release_key(key);
            }
        }
    }

    fn acquire_pair(&mut self, key: &Str, value: &Str) -> Pair {
        if let Some(pair) = self.find_pair(key, value) {
            self.pair_slots[pair as usize].refs += 1;
            return pair;
        }
        let key = self.acquire_key(key);
        // The source's own string: there is one copy of each in the agent.
        let slot = PairSlot {
            key,
            value: Some(value.clone()),
            refs: 1,
        };
        let pair = take_slot(&mut self.pair_slots, &mut self.free_pairs, slot);
        self.key_slots[key as usize].values.insert(value.clone(), pair);
        pair
    }

    fn acquire_key(&mut self, name: &Str) -> Key {
        if let Some(&key) = self.keys.get(name) {
            self.key_slots[key as usize].refs += 1;
            return key;
        }
        let slot = KeySlot {
            name: Some(name.clone()),
            values: HashMap::new(),
            refs: 1,
        };
        let key = take_slot(&mut self.key_slots, &mut self.free_keys, slot);
        self.keys.insert(name.clone(), key);
        key
    }

    fn release_key(&mut self, key: Key) {
        let slot = &mut self.key_slots[key as usize];
        slot.refs -= 1;
        if slot.refs == 0 {
            let name = slot.name.take().expect("a slot in use has a name");
            self.keys.remove(&name);
            self.free_keys.push(key);
        }
    }

    #[cfg(test)]
    pub(super) fn is_vacant(&self) -> bool {
        self.keys.is_empty() && self.free_pairs.len() == self.pair_slots.len()
    }

    fn has_key(&self, labels: &[Pair], key: Key) -> bool {
        labels
            .iter()
            .any(|&pair| self.pair_slots[pair as usize].key == key)
    }
}

fn take_slot<T>(slots: &mut Vec<T>, free: &mut Vec<u32>, slot: T) -> u32 {
    if let Some(at) = free.pop() {
        slots[at as usize] = slot;
        return at;
    }
    slots.push(slot);
    u32::try_from(slots.len() - 1).expect("fewer than 2^32 labels")
}

enum Test {
    AnyOf(Box<[Pair]>),
    NoneOf(Box<[Pair]>),
    Has(Key),
    Lacks(Key),
}

/// A selector over numbered labels. What [`Self::new`] makes holds references: [`Self::release`] it.
pub(super) struct Matcher(Box<[Test]>);

impl Matcher {
    pub(super) fn new(selector: &Selector, store: &mut LabelStore) -> Self {
        let tests = selector.requirements.iter().map(|requirement| {
            let key = &requirement.key;
            let mut pairs = |values: &[Str]| values.iter().map(|v| store.acquire_pair(key, v)).collect();
            match &requirement.operator {
                Operator::In(values) => Test::AnyOf(pairs(values)),
                Operator::NotIn(values) => Test::NoneOf(pairs(values)),
                Operator::Exists => Test::Has(store.acquire_key(key)),
                Operator::DoesNotExist => Test::Lacks(store.acquire_key(key)),
            }
        });
        Self(tests.collect())
    }

    /// For a moment in which `store` does not change: without references. What no object has matches none.
    pub(super) fn find(selector: &Selector, store: &LabelStore) -> Self {
        let tests = selector.requirements.iter().map(|requirement| {
            let key = &requirement.key;
            let pairs = |values: &[Str]| values.iter().filter_map(|v| store.find_pair(key, v)).collect();
            match (&requirement.operator, store.keys.get(key)) {
                (Operator::In(values), _) => Test::AnyOf(pairs(values)),
                (Operator::NotIn(values), _) => Test::NoneOf(pairs(values)),
                (Operator::Exists, Some(key)) => Test::Has(*key),
                (Operator::DoesNotExist, Some(key)) => Test::Lacks(*key),
                (Operator::Exists, None) => Test::AnyOf(Box::default()),
                (Operator::DoesNotExist, None) => Test::NoneOf(Box::default()),
            }
        });
        Self(tests.collect())
    }

    /// Gives the references back; the matcher must not be asked afterwards.
    pub(super) fn release(&self, store: &mut LabelStore) {
        for test in &self.0 {
            match test {
                Test::AnyOf(pairs) | Test::NoneOf(pairs) => store.release(pairs),
                Test::Has(key) | Test::Lacks(key) => store.release_key(*key),
            }
        }
    }

    pub(super) fn matches(&self, labels: &[Pair], store: &LabelStore) -> bool {
        self.0.iter().all(|test| match test {
            Test::AnyOf(pairs) => labels.iter().any(|pair| pairs.contains(pair)),
            Test::NoneOf(pairs) => !labels.iter().any(|pair| pairs.contains(pair)),
            Test::Has(key) => store.has_key(labels, *key),
            Test::Lacks(key) => !store.has_key(labels, *key),
        })
    }

    /// Labels one of which everything matched has, the fewest; `None` where no requirement names values.
    pub(super) fn needs(&self) -> Option<&[Pair]> {
        let needed = self.0.iter().filter_map(|test| match test {
            Test::AnyOf(pairs) => Some(&**pairs),
            _ => None,
        });
        needed.min_by_key(|pairs| pairs.len())
    }
}
