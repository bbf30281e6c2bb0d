//! Each bad input gives exactly this problem and leaves exactly this in force.

mod directory;
mod documents;
mod mutations;
mod objects;
mod policies;
mod rules;
mod watching;

use std::path::Path;

use super::version::Version;
use crate::source::intern::Interner;
use crate::source::parse::Object;

/// The objects of `f.yaml` and what is said about it.
fn read(text: &str) -> (Vec<Object>, Vec<String>) {
    let version = Version::parse(Path::new("f.yaml"), text, &mut Interner::default());
    let objects = version
        .objects
        .iter()
        .map(|placed| (*placed.object).clone())
        .collect();
    (
        objects,
        version.problems.iter().map(ToString::to_string).collect(),
    )
}
