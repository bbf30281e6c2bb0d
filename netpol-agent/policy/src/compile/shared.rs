//! One copy of values that many objects have.

use std::{collections::HashSet, hash::Hash, sync::Arc};

/// The values in use.
pub(super) struct Shared<T: ?Sized>(HashSet<Arc<T>>);

impl<T: ?Sized> Default for Shared<T> {
    fn default() -> Self {
        Self(HashSet::new())
    }
}

impl<T: ?Sized + Hash + Eq> Shared<T> {
    pub(super) fn get<'a>(&mut self, value: &'a T) -> Arc<T>
    where
        Arc<T>: From<&'a T>,
    {
        if let Some(known) = self.0.get(value) {
            return known.clone();
        }
        let new = Arc::from(value);
        self.0.insert(Arc::clone(&new));
        new
    }

    /// Gives one back; the last one goes.
    pub(super) fn release(&mut self, value: Arc<T>) {
        if Arc::strong_count(&value) == 2 {
            self.0.remove(&value);
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
