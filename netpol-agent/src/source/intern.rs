//! One copy of every string: a hundred thousand pods have few different labels.

use std::collections::HashSet;

use netpol_policy::model::Str;

#[derive(Debug, Default)]
pub(in crate::source) struct Interner(HashSet<Str>);

impl Interner {
    pub(in crate::source) fn get(&mut self, text: &str) -> Str {
        if let Some(known) = self.0.get(text) {
            return known.clone();
        }
        let new = Str::from(text);
        self.0.insert(new.clone());
        new
    }

    /// Forgets what nobody else holds.
    pub(in crate::source) fn purge(&mut self) {
        self.0.retain(|text| Str::strong_count(text) > 1);
        self.0.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_strings_are_one_and_unused_ones_go() {
        let mut interner = Interner::default();
        let (one, two) = (interner.get("app"), interner.get("app"));
        assert!(Str::ptr_eq(&one, &two));
        drop(interner.get("gone"));
        interner.purge();
        assert_eq!(interner.0.into_iter().collect::<Vec<_>>(), [one]);
    }
}
