//! Where objects come from.
//!
//! [`parse`] turns one untyped object into the model and says what is wrong with it; [`manifests`] finds such
//! objects in a directory and watches it. A source for the API server shares `parse`.

pub mod manifests;
pub mod parse;
mod problem;

pub use problem::{Problem, Severity};
