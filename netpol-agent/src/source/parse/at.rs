//! A value together with the way to it, so that every message can name its field.

use std::num::NonZeroU32;

use netpol_policy::model::Str;

use super::{
    Bad, Node, Report, Value,
    node::{Entry, Quoted},
};

/// What is said of a field that is not known.
pub(super) const NO_FIELD: &str = "the API has no such field";

/// What to do about it.
pub(super) fn no_field_help(meant: Option<&str>, known: &[&str]) -> String {
    match meant {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("the fields here are {}", known.join(", ")),
    }
}

/// A value and the way to it from the object's root.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    pub(super) node: &'a Node,
    parent: Option<&'a At<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    /// A field, and the line of its name: that is where people look.
    Field(&'a str, Option<NonZeroU32>),
    Item(usize),
}

impl<'a> At<'a> {
    pub(super) fn root(node: &'a Node) -> Self {
        Self {
            node,
            parent: None,
            step: Step::Root,
        }
    }

    /// `spec.ingress[0].from`, or nothing for the root.
    pub(super) fn path(&self) -> String {
        let mut path = self.parent.map(At::path).unwrap_or_default();
        match self.step {
            Step::Root => {}
            // Keys of labels and annotations contain dots and slashes.
            Step::Field(key, _) if key.len() > 63 || key.contains(['.', '/', '[', ' ']) => {
                path.push_str(&format!("[{}]", Quoted(key)));
            }
            Step::Field(key, _) => {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(key);
            }
            Step::Item(index) => path.push_str(&format!("[{index}]")),
        }
        path
    }

    pub(super) fn line(&self) -> Option<NonZeroU32> {
        match self.step {
            Step::Field(_, line) => line,
            Step::Root | Step::Item(_) => self.node.line,
        }
    }

    /// The fields, or nothing where this is no mapping.
    pub(super) fn fields(&'a self) -> impl Iterator<Item = At<'a>> {
        let entries: &[Entry] = match &self.node.value {
            Value::Map(entries) => entries,
            _ => &[],
        };
        entries.iter().map(|entry| At {
            node: &entry.value,
            parent: Some(self),
            step: Step::Field(&entry.key, entry.line),
        })
    }

    /// The name of this field.
    pub(super) fn name(&self) -> &'a str {
        match self.step {
            Step::Field(name, _) => name,
            Step::Root | Step::Item(_) => "",
        }
    }

    /// The field `key`, also where it is null.
    pub(super) fn raw(&'a self, key: &str) -> Option<At<'a>> {
        self.fields().find(|field| field.name() == key)
    }

    /// The field `key`; as in the API, null is the same as absent.
    pub(super) fn get(&'a self, key: &str) -> Option<At<'a>> {
        self.raw(key).filter(|field| field.node.value != Value::Null)
    }

    /// A mapping is expected here.
    pub(super) fn expect_map(&self, report: &mut Report) -> Result<(), Bad> {
        match &self.node.value {
            Value::Map(_) => Ok(()),
            other => Err(report.error(
                self,
                format!("{other} where a mapping belongs"),
                "write fields here, or {} for none",
            )),
        }
    }

    /// A mapping with no other fields than `known` is expected here. Any other field might have been meant
    /// to narrow what is allowed.
    pub(super) fn expect_fields(&'a self, known: &[&str], report: &mut Report) -> Result<(), Bad> {
        self.expect_map(report)?;
        let mut result = Ok(());
        for (field, meant) in self.unknown_fields(known) {
            result = Err(report.error(&field, NO_FIELD, no_field_help(meant, known)));
        }
        result
    }

    /// The fields that are not `known`, and which one was probably meant.
    pub(super) fn unknown_fields<'k>(
        &'a self,
        known: &[&'k str],
    ) -> impl Iterator<Item = (At<'a>, Option<&'k str>)> {
        let unknown = self.fields().filter(|field| !known.contains(&field.name()));
        unknown.map(|field| (field, closest(field.name(), known)))
    }

    /// Says which fields are those of `read` but for upper and lower case, which the API does not know. Other fields are
    /// none of our business: objects have many that decide nothing here.
    pub(super) fn misspelt(&'a self, read: &[&str], report: &mut Report) {
        for field in self.fields() {
            let meant = read.iter().find(|name| name.eq_ignore_ascii_case(field.name()));
            if let Some(meant) = meant.filter(|meant| **meant != field.name()) {
                report.error(&field, NO_FIELD, no_field_help(Some(meant), read));
            }
        }
    }

    /// The items of a list; none where the field is absent.
    pub(super) fn items(
        &'a self,
        report: &mut Report,
    ) -> Result<impl Iterator<Item = At<'a>> + use<'a>, Bad> {
        let Value::List(items) = &self.node.value else {
            return Err(report.error(
                self,
                format!("{} where a list belongs", self.node.value),
                "write a list: each item on a line of its own that begins with `- `",
            ));
        };
        Ok(items.iter().enumerate().map(|(index, node)| At {
            node,
            parent: Some(self),
            step: Step::Item(index),
        }))
    }

    /// A string is expected here.
    pub(super) fn string(&self, report: &mut Report) -> Result<&'a Str, Bad> {
        match &self.node.value {
            Value::String(text) => Ok(text),
            other => Err(report.error(
                self,
                format!("{other} where a string belongs"),
                match other.text() {
                    Some(text) => format!("put it in quotes: {}", Quoted(&text)),
                    None => "write a string".to_owned(),
                },
            )),
        }
    }

    /// A string is expected here. Where another scalar stands, it is reported and its text is used: what was
    /// meant is clear, and an object without its name or label would be judged as another.
    pub(super) fn text(&self, report: &mut Report) -> Option<Str> {
        match self.string(report) {
            Ok(text) => Some(text.clone()),
            Err(Bad) => self.node.value.text(),
        }
    }

    /// A boolean is expected here.
    pub(super) fn bool(&self, report: &mut Report) -> Result<bool, Bad> {
        match &self.node.value {
            Value::Bool(value, _) => Ok(*value),
            other => Err(report.error(
                self,
                format!("{other} where a boolean belongs"),
                "write true or false, without quotes",
            )),
        }
    }
}

/// The entry of `known` that `word` was most probably meant to be.
pub(crate) fn closest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let (distance, name) = known.iter().map(|name| (distance(word, name), *name)).min()?;
    let most = if word.len() < 5 { 1 } else { 2 };
    (distance <= most).then_some(name)
}

/// How many letters must be inserted, removed, replaced or swapped; case does not count.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<u8>, Vec<u8>) = (
        a.to_ascii_lowercase().into_bytes(),
        b.to_ascii_lowercase().into_bytes(),
    );
    if a.len().abs_diff(b.len()) > 2 {
        return usize::MAX;
    }
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typo_finds_its_word_and_another_word_does_not() {
        let known = ["from", "ports"];
        assert_eq!(closest("form", &known), Some("from"));
        assert_eq!(closest("port", &known), Some("ports"));
        assert_eq!(closest("From", &known), Some("from"));
        assert_eq!(closest("to", &known), None);
        assert_eq!(closest("peers", &known), None);
        assert_eq!(closest("everything", &known), None);
    }
}
