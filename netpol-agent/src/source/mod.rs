//! Where objects come from.
//!
//! [`parse`] turns one untyped object into the model and says what is wrong with it; [`manifests`] finds such
//! objects in a directory and watches it, [`kubernetes`] lists and watches them at the API server.

pub mod effect;
mod intern;
mod key;
pub mod kubernetes;
pub mod manifests;
pub mod parse;
mod problem;

use netpol_policy::model::{Event, Snapshot};

pub use problem::{Problem, Severity};

/// What a source holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// Everything that is in force.
    pub snapshot: Snapshot,
    /// What is wrong, by file and line or by object.
    pub problems: Vec<Problem>,
}

impl Loaded {
    /// Whether something of the source is not in force.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.problems.iter().any(Problem::is_error)
    }
}

/// What has changed in a source.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// What leads from the snapshot before to the one now; may be empty.
    pub events: Vec<Event>,
    /// *All* that is wrong now, not only what is new.
    pub problems: Vec<Problem>,
    /// `false`: a part of what is listed first, from which nothing may be concluded before the rest has come.
    pub complete: bool,
}
