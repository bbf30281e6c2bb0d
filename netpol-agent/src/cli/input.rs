//! The manifests that a question is asked about.

use netpol_policy::model::Snapshot;

use super::{BadInput, Exit, Manifests};
use crate::source::manifests;

/// What the manifests say, and whether all of it could be understood.
#[derive(Debug)]
pub(super) struct Input {
    /// The objects; what could not be understood allows nothing.
    pub(super) snapshot: Snapshot,
    broken: bool,
}

impl Input {
    /// The exit code of an answer: one that rests on broken manifests never passes for a sound one.
    pub(super) fn exit(&self, answer: Exit) -> Exit {
        match answer {
            Exit::Ok | Exit::No if self.broken => Exit::BadInput,
            answer => answer,
        }
    }
}

/// Reads the directory; every problem goes to standard error.
///
/// # Errors
/// The directory can not be read.
pub(super) fn read(from: &Manifests) -> anyhow::Result<Input> {
    let loaded = manifests::load(&from.dir).map_err(|error| BadInput(error.to_string()))?;
    for problem in &loaded.problems {
        eprintln!("{problem}");
    }
    Ok(Input {
        broken: loaded.has_errors(),
        snapshot: loaded.snapshot,
    })
}
