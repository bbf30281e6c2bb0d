//! Collects what is wrong with one object.

use std::path::PathBuf;

use super::at::At;
use crate::source::{Problem, Severity};

/// Something was not understood, and the report says what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bad;

/// Problems of the object that is being parsed.
#[derive(Debug, Default)]
pub struct Report {
    file: Option<PathBuf>,
    object: Option<String>,
    /// What an error here leads to, said with each.
    effect: Option<&'static str>,
    problems: Vec<Problem>,
}

impl Report {
    /// An empty report about objects of `file`.
    #[must_use]
    pub fn new(file: Option<PathBuf>) -> Self {
        Self {
            file,
            ..Self::default()
        }
    }

    /// What was reported.
    #[must_use]
    pub fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    /// The file that the objects come from.
    pub(super) fn file(&self) -> Option<&PathBuf> {
        self.file.as_ref()
    }

    /// From now on problems are about `object`.
    pub(super) fn set_object(&mut self, object: Option<String>) {
        self.object = object;
    }

    /// Runs `parse`; every error in it says that it leads to `effect`.
    pub(super) fn with_effect<T>(&mut self, effect: &'static str, parse: impl FnOnce(&mut Self) -> T) -> T {
        let outer = self.effect.replace(effect);
        let result = parse(self);
        self.effect = outer;
        result
    }

    pub(super) fn error(&mut self, at: &At<'_>, message: impl Into<String>, help: impl Into<String>) -> Bad {
        let mut message = message.into();
        if let Some(effect) = self.effect {
            message.push_str(": ");
            message.push_str(effect);
        }
        self.push(Severity::Error, at, message, help.into());
        Bad
    }

    /// The field `path` of the object is not there; `at`: what is, nearest to it.
    pub(super) fn missing(&mut self, at: &At<'_>, path: &str, help: &str) -> Bad {
        let bad = self.error(at, "is missing", help);
        if let Some(problem) = self.problems.last_mut() {
            problem.field = Some(path.to_owned());
        }
        bad
    }

    pub(super) fn warn(&mut self, at: &At<'_>, message: impl Into<String>, help: impl Into<String>) {
        self.push(Severity::Warning, at, message.into(), help.into());
    }

    fn push(&mut self, severity: Severity, at: &At<'_>, message: String, help: String) {
        self.problems.push(Problem {
            file: self.file.clone(),
            line: at.line().map(Into::into),
            severity,
            object: self.object.clone(),
            field: Some(at.path()).filter(|path| !path.is_empty()),
            message,
            help,
        });
    }
}
