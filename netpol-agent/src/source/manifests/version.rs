//! One state of one file: its objects and what is wrong with them.

use std::{collections::BTreeMap, num::NonZeroU32, path::Path, sync::Arc};

use netpol_policy::model::Str;

use super::{
    files::{self, problem},
    yaml::{self, Item},
};
use crate::source::{
    Problem, Severity,
    intern::Interner,
    parse::{self, ListOf, Node, Object, Parsed, Report},
};

/// Problems of one file that are kept.
const MAX_PROBLEMS: usize = 1000;

/// An object and where it begins.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Placed {
    pub(super) object: Arc<Object>,
    pub(super) line: Option<NonZeroU32>,
}

/// What a file holds.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Version {
    /// In the order of the file.
    pub(super) objects: Vec<Placed>,
    pub(super) problems: Vec<Problem>,
    /// `apiVersion` and `kind` of what decides nothing, and where the first of them stands.
    pub(super) ignored: BTreeMap<(Str, Str), Option<NonZeroU32>>,
}

impl Version {
    /// Reads a file.
    pub(super) fn read(path: &Path, interner: &mut Interner) -> Self {
        match files::read(path) {
            Ok(text) => Self::parse(path, &text, interner),
            Err(problem) => Self {
                problems: vec![*problem],
                ..Self::default()
            },
        }
    }

    /// Parses a file's text.
    pub(super) fn parse(path: &Path, text: &str, interner: &mut Interner) -> Self {
        let mut version = Self::default();
        let mut report = Report::new(Some(path.to_owned()));
        let mut list = None;
        yaml::documents(text, interner, |item, _| match item {
            Item::Document(node) => version.add(&node, None, &mut report),
            Item::List(node) => list = parse::list_items(&node, &mut report).map(|(list, _)| list),
            Item::Element(node) => version.add(&node, list.as_ref(), &mut report),
            Item::Broken(syntax) => version.problems.push(Problem {
                line: syntax.line.map(Into::into),
                ..problem(Severity::Error, path, syntax.message, syntax.help)
            }),
        });
        version.problems.extend(report.into_problems());
        version.problems.sort_by_key(|problem| problem.line);
        version.limit(path);
        version.objects.shrink_to_fit();
        version
    }

    fn add(&mut self, node: &Node, list: Option<&ListOf>, report: &mut Report) {
        if let Some((list, items)) = parse::list_items(node, report) {
            for item in items {
                self.add(item, Some(&list), report);
            }
            return;
        }
        match parse::typed(node, list, report) {
            Parsed::Object(object) => self.objects.push(Placed {
                object: Arc::new(object),
                line: node.line,
            }),
            Parsed::Ignored(version, kind) => drop(self.ignored.entry((version, kind)).or_insert(node.line)),
            Parsed::Unusable => {}
        }
    }

    /// A generated file may have the same mistake a million times.
    fn limit(&mut self, path: &Path) {
        let more = self.problems.len().saturating_sub(MAX_PROBLEMS);
        if more == 0 {
            return;
        }
        // Errors first: none may be hidden by warnings.
        self.problems.sort_by_key(|problem| problem.severity);
        self.problems.truncate(MAX_PROBLEMS);
        let message = format!("{more} more problems in this file are not listed");
        self.problems.push(problem(
            Severity::Error,
            path,
            message,
            "correct those listed first",
        ));
    }

    /// Whether something is wrong here that was not in `before`.
    pub(super) fn breaks(&self, before: &Self) -> bool {
        let errors = self.problems.iter().filter(|problem| problem.is_error());
        errors
            .into_iter()
            .any(|error| !before.problems.iter().any(|known| known.is_same(error)))
    }
}
