//! Random damage: nothing panics, and no mistake allows more.

use std::ops::Range;

use netpol_policy::{
    generate::{Shape, manifests, policy, snapshots},
    model::{Policy, Snapshot},
};
use proptest::prelude::*;

use super::read;
use crate::source::parse::Object;

fn shape() -> Shape {
    // YAML can not say what a source has left out.
    Shape {
        left_out: false,
        ..Shape::default()
    }
}

fn snapshot_of(objects: Vec<Object>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for object in objects {
        match object {
            Object::Namespace(object) => drop(snapshot.namespaces.insert(object.name.clone(), object)),
            Object::Node(object) => drop(snapshot.nodes.insert(object.name.clone(), object)),
            Object::Pod(object) => drop(snapshot.pods.insert(object.name.clone(), object)),
            Object::Policy(object) => drop(snapshot.policies.insert(object.name.clone(), object)),
        }
    }
    snapshot
}

/// Words that mean something in manifests, or are wrong where another stands.
fn words() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "null",
        "[]",
        "{}",
        "0",
        "-1",
        "65536",
        "\"80\"",
        "yes",
        "~",
        "TCP",
        "tcp",
        "10.0.0.1/33",
        "::/0",
        "[{}]",
        "- ",
        "---\n",
        "'",
        "\"",
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "#",
        "&a",
        "*a",
        "<<",
        "\t",
        "\n",
        " ",
        "x: 1",
        "ä",
    ])
}

proptest! {
    #[test]
    fn manifests_mean_their_snapshot(mut snapshot in snapshots(shape())) {
        for node in snapshot.nodes.values_mut() {
            // A node's address that is listed twice is one address.
            node.addresses.sort_unstable();
            node.addresses.dedup();
        }
        let (objects, problems) = read(&manifests(&snapshot));
        let mut found = snapshot_of(objects);
        found.nodes.values_mut().for_each(|node| node.addresses.sort_unstable());
        prop_assert_eq!(found, snapshot, "{:?}", problems);
    }

    #[test]
    fn damage_never_panics(
        snapshot in snapshots(shape()),
        damage in prop::collection::vec((any::<prop::sample::Index>(), 0..12_usize, words()), 1..6),
    ) {
        let mut text: Vec<char> = manifests(&snapshot).chars().collect();
        for (at, remove, word) in damage {
            let at = at.index(text.len() + 1);
            let end = (at + remove).min(text.len());
            text.splice(at..end, word.chars());
        }
        let _whatever = read(&text.into_iter().collect::<String>());
    }

    #[test]
    fn noise_never_panics(text in any::<String>()) {
        let _whatever = read(&text);
    }

    /// A policy with one value replaced by something wrong: each rule is the one it was or is gone.
    #[test]
    fn a_mistake_only_takes_rules_away(
        before in policy(shape()),
        target in any::<prop::sample::Index>(),
        wrong in prop::sample::select(vec!["[7]", "\"-\"", "{x: 1}", "7.5", "!!str ''", "-7"]),
    ) {
        let mut text = manifests(&netpol_policy::build::snapshot([], [], [], [before.clone()]));
        let targets = values_of_spec(&text);
        text.replace_range(targets[target.index(targets.len())].clone(), wrong);
        let (objects, problems) = read(&text);
        prop_assert!(problems.iter().any(|problem| problem.starts_with("error")), "no error in\n{text}");
        match objects.into_iter().next() {
            Some(Object::Policy(after)) => {
                prop_assert!(allows_no_more(&before, &after), "{text}\n{problems:#?}\n{after:#?}");
            }
            other => prop_assert!(false, "{other:?} {problems:?}\n{text}"),
        }
    }
}

/// Every value in the spec: what stands behind a colon or a dash.
fn values_of_spec(text: &str) -> Vec<Range<usize>> {
    let spec = text.find("\nspec:").map_or(0, |at| at + 1);
    let marks = text[spec..]
        .match_indices(": ")
        .chain(text[spec..].match_indices("- "));
    let starts = marks.map(|(at, mark)| spec + at + mark.len());
    starts
        .filter_map(|start| Some(start..start + length_of_value(&text[start..])?))
        .collect()
}

/// The length of the value in flow style at the beginning of `text`; `None` where a block begins.
fn length_of_value(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' if depth > 0 => depth -= 1,
            ',' | '}' | ']' if depth == 0 => return Some(at),
            // `from:` and its like: the value is on the next lines.
            ':' if depth == 0 && text[at + 1..].starts_with([' ', '\n']) => return None,
            '\n' => return Some(at),
            _ => {}
        }
    }
    Some(text.len())
}

/// Whether every direction that was isolated is, and every rule is one that was there.
fn allows_no_more(before: &Policy, after: &Policy) -> bool {
    let pairs = [(&before.ingress, &after.ingress), (&before.egress, &after.egress)];
    pairs.into_iter().all(|pair| match pair {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(before), Some(after)) => after.iter().all(|rule| before.contains(rule)),
    })
}
