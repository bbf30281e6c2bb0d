//! The files of a directory, each with the last version of it that was good.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use netpol_policy::model::{Event, Snapshot};

use super::{
    files::{self, Stamp, Visit, problem},
    version::Version,
    view::View,
};
use crate::source::{Change, Problem, Severity, intern::Interner};

/// A directory and what of it is in force.
#[derive(Debug)]
pub(super) struct Store {
    root: PathBuf,
    files: BTreeMap<OsString, Kept>,
    view: View,
    problems: Vec<Problem>,
    interner: Interner,
}

/// A file.
#[derive(Debug)]
struct Kept {
    /// `None`: read it again next time.
    stamp: Option<Stamp>,
    /// The version in force.
    version: Version,
    /// What is wrong with a newer version that is therefore not in force.
    newer: Option<Vec<Problem>>,
}

impl Store {
    pub(super) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            files: BTreeMap::new(),
            view: View::default(),
            problems: Vec::new(),
            interner: Interner::default(),
        }
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        self.view.snapshot()
    }

    pub(super) fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Reads what has changed since the last time; `None` where nothing has. `visit` as in [`files::find`].
    /// Fails where the directory itself can not be read: everything stays as it was.
    pub(super) fn scan(&mut self, visit: Visit<'_>) -> io::Result<Option<Change>> {
        let found = files::find(&self.root, visit)?;
        let now = SystemTime::now();
        self.files
            .retain(|path, _| found.files.contains_key(path) || found.is_lost(path));
        for (path, stamp) in &found.files {
            let kept = self.files.get_mut(path);
            if kept.as_ref().is_some_and(|kept| kept.stamp == Some(*stamp)) {
                continue;
            }
            let version = Version::read(Path::new(path), &mut self.interner);
            let stamp = Some(*stamp).filter(|stamp| stamp.is_settled(now));
            match kept {
                Some(kept) => kept.replace(version, stamp, Path::new(path)),
                None => drop(self.files.insert(
                    path.clone(),
                    Kept {
                        stamp,
                        version,
                        newer: None,
                    },
                )),
            }
        }
        Ok(self.publish(found.problems))
    }

    /// The directory can not be read: everything stays in force, and that is said.
    pub(super) fn vanished(&mut self, error: &io::Error) -> Option<Change> {
        let message = format!("the directory can not be read: {error}; what was read before stays in force");
        let problem = problem(
            Severity::Error,
            &self.root,
            message,
            "bring it back; netpol reads it again then",
        );
        self.publish(vec![problem])
    }

    fn publish(&mut self, mut problems: Vec<Problem>) -> Option<Change> {
        let files = self
            .files
            .iter()
            .map(|(path, kept)| (Path::new(path), &kept.version));
        let (view, between) = View::join(files);
        problems.extend(between);
        for kept in self.files.values() {
            problems.extend(
                kept.newer
                    .as_ref()
                    .unwrap_or(&kept.version.problems)
                    .iter()
                    .cloned(),
            );
        }
        problems.sort();
        problems.dedup();
        let events: Vec<Event> = self.view.events_to(&view);
        self.view = view;
        self.interner.purge();
        let changed = !events.is_empty() || problems != self.problems;
        self.problems = problems;
        changed.then(|| Change {
            events,
            problems: self.problems.clone(),
            complete: true,
        })
    }
}

impl Kept {
    /// Puts `new` in force unless it breaks something that the version in force does well.
    fn replace(&mut self, new: Version, stamp: Option<Stamp>, path: &Path) {
        self.stamp = stamp;
        if !new.breaks(&self.version) {
            self.version = new;
            self.newer = None;
            return;
        }
        let count = self.version.objects.len();
        let plural = if count == 1 { "" } else { "s" };
        let message =
            format!("has new errors: the version read before stays in force ({count} object{plural})");
        let mut problems = new.problems;
        problems.push(problem(
            Severity::Error,
            path,
            message,
            "correct the errors of this file",
        ));
        self.newer = Some(problems);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use netpol_policy::generate::{Shape, manifests, snapshots};
    use proptest::prelude::*;

    use super::*;
    use crate::source::manifests::load;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Whatever happens to the files, the events lead to what a fresh look finds.
        #[test]
        fn events_lead_to_what_a_fresh_look_finds(
            edits in prop::collection::vec(
                (prop::sample::select(vec!["a.yaml", "b.yaml", "d/c.yaml"]), prop::option::of(snapshots(Shape {
                    pods: 3,
                    policies: 2,
                    rules: 1,
                    left_out: false,
                }))),
                1..8,
            ),
        ) {
            let dir = tempfile::TempDir::new()?;
            fs::create_dir(dir.path().join("d"))?;
            let mut store = Store::new(dir.path());
            let mut snapshot = Snapshot::default();
            for (name, content) in edits {
                let path = dir.path().join(name);
                match content {
                    Some(content) => fs::write(&path, manifests(&content))?,
                    None => drop(fs::remove_file(&path)),
                }
                let change = store.scan(&mut |_| None)?;
                change.into_iter().flat_map(|change| change.events).for_each(|event| snapshot.apply(event));
                let fresh = load(dir.path()).map_err(|error| TestCaseError::fail(error.to_string()))?;
                prop_assert_eq!(&snapshot, &fresh.snapshot);
                prop_assert_eq!(store.problems(), fresh.problems);
                prop_assert_eq!(store.scan(&mut |_| None)?, None);
            }
        }
    }
}
