//! Random damage: nothing panics, and no mistake allows more.

use netpol_policy::{
    generate::{Shape, manifests, snapshots},
    model::{Peers, Policy, Ports, Rule, Snapshot},
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
        snapshot in snapshots(Shape { pods: 1, policies: 1, ..shape() }),
        line in any::<prop::sample::Index>(),
        wrong in prop::sample::select(vec!["[7]", "\"-\"", "{x: 1}", "7.5", "!!str ''", "-7"]),
    ) {
        let before = snapshot.policies.into_values().next();
        let Some(before) = before else { return Ok(()) };
        let only = netpol_policy::build::snapshot([], [], [], [before.clone()]);
        let text = manifests(&only);
        let damaged = damage(&text, line, wrong);
        let (objects, problems) = read(&damaged);
        let Some(Object::Policy(after)) = objects.into_iter().next() else { return Ok(()) };
        if problems.iter().any(|problem| problem.starts_with("error")) {
            prop_assert!(allows_no_more(&before, &after), "{damaged}\n{problems:#?}\n{after:#?}");
        }
    }
}

/// Replaces the value behind a colon on one line of the spec.
fn damage(text: &str, line: prop::sample::Index, wrong: &str) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let spec = lines
        .iter()
        .position(|line| line.starts_with("spec:"))
        .map_or(0, |at| at + 1);
    let values: Vec<usize> = (spec..lines.len())
        .filter(|at| lines[*at].contains(": "))
        .collect();
    if let Some(&at) = values.get(line.index(values.len().max(1))) {
        let colon = lines[at].find(": ").unwrap_or(0);
        lines[at].replace_range(colon + 2.., wrong);
    }
    lines.join("\n")
}

fn allows_no_more(before: &Policy, after: &Policy) -> bool {
    let pairs = [(&before.ingress, &after.ingress), (&before.egress, &after.egress)];
    pairs.into_iter().all(|pair| match pair {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(before), Some(after)) => after.iter().all(|rule| {
            let old = before.iter().find(|old| old.index == rule.index);
            old.is_some_and(|old| is_within(old, rule))
        }),
    })
}

/// Whether no list that had entries has become one without restriction.
fn is_within(old: &Rule, new: &Rule) -> bool {
    (old.peers == Peers::Any || new.peers != Peers::Any)
        && (old.ports == Ports::Any || new.ports != Ports::Any)
}
