//! JSON, cut into its values, and lists in JSON, cut into their items.
//!
//! The YAML parser must see the end of a flow mapping before it knows its beginning (it might be a key), so it
//! would hold the whole of a large list in memory.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

/// A list of objects.
pub(super) struct List<'t> {
    /// The list's text without its items.
    pub(super) head: String,
    /// The number of lines before each item, and its text.
    pub(super) items: Vec<(usize, &'t str)>,
}

#[derive(Deserialize)]
struct Fields<'t> {
    #[serde(borrow)]
    kind: Cow<'t, str>,
    #[serde(borrow)]
    items: &'t RawValue,
}

/// `None` where `text` is no list in JSON, whatever else it is.
pub(super) fn list(text: &str) -> Option<List<'_>> {
    if !text.trim_start().starts_with('{') {
        return None;
    }
    let fields: Fields<'_> = serde_json::from_str(text)
        .ok()
        .filter(|fields: &Fields<'_>| fields.kind.ends_with("List"))?;
    let items: Vec<&RawValue> = serde_json::from_str(fields.items.get()).ok()?;
    let (before, after) = around(text, fields.items.get())?;
    let (mut lines, mut counted) = (0, 0);
    let items = items.into_iter().map(|item| {
        let start = around(text, item.get())?.0.len();
        lines += newlines(&text[counted..start]);
        counted = start;
        Some((lines, item.get()))
    });
    Some(List {
        items: items.collect::<Option<_>>()?,
        head: format!("{before}[]{after}"),
    })
}

/// The number of lines before each value, and its text, where `text` is JSON values one after the other, as
/// `kubectl get -o json` prints them; `None` where it is anything else, or one value only.
pub(super) fn values(text: &str) -> Option<Vec<(usize, &str)>> {
    if !text.trim_start().starts_with('{') {
        return None;
    }
    let stream = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
    let (mut lines, mut counted) = (0, 0);
    let mut values = Vec::new();
    for value in stream {
        let value = value.ok()?.get();
        let start = around(text, value)?.0.len();
        lines += newlines(&text[counted..start]);
        counted = start;
        values.push((lines, value));
    }
    (values.len() > 1).then_some(values)
}

/// What stands before and after `part`, which is a part of `text`.
fn around<'t>(text: &'t str, part: &str) -> Option<(&'t str, &'t str)> {
    let start = (part.as_ptr() as usize).checked_sub(text.as_ptr() as usize)?;
    Some((text.get(..start)?, text.get(start + part.len()..)?))
}

fn newlines(text: &str) -> usize {
    text.bytes().filter(|b| *b == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_cut_into_its_items() {
        let text = "{\n \"items\": [\n{\"a\": 1}, {\"b\":\n[2]},\n7\n], \"kind\": \"PodList\"\n}\n";
        let List { head, items } = list(text).expect("a list");
        assert_eq!(head, "{\n \"items\": [], \"kind\": \"PodList\"\n}\n");
        assert_eq!(items, [(2, "{\"a\": 1}"), (2, "{\"b\":\n[2]}"), (4, "7")]);
    }

    #[test]
    fn values_one_after_the_other() {
        let text = "\n{\"a\":\n1}\n{\"b\": 2} {\"c\": 3}\n\n";
        let expected = [(1, "{\"a\":\n1}"), (3, "{\"b\": 2}"), (3, "{\"c\": 3}")];
        assert_eq!(values(text), Some(expected.to_vec()));
        for text in [
            "{\"a\": 1}\n",
            "{\"a\": 1}\n{b: 2}",
            "{\"a\": 1}\n{\"b\":",
            "a: 1",
            "",
        ] {
            assert_eq!(values(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_no_list_is_left_alone() {
        for text in [
            "{\"kind\": \"Pod\", \"items\": []}",
            "{\"kind\": \"List\"}",
            "{\"kind\": \"List\", \"items\": 7}",
            "{\"kind\": \"List\", \"items\": [], \"items\": []}",
            "{kind: List, items: []}",
            "kind: List\nitems: []",
        ] {
            assert!(list(text).is_none(), "{text}");
        }
    }
}
