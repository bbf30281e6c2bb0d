//! All files together: what is in force, and what is wrong between files.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, btree_map},
    net::IpAddr,
    path::Path,
    sync::Arc,
};

use netpol_policy::model::{Event, Snapshot, Str};

use super::{
    files::problem,
    version::{Placed, Version},
};
use crate::source::{
    Problem, Severity,
    key::{Key, event},
    parse::Object,
};

/// Namespaces that every cluster has without anybody's manifest.
const BUILT_IN: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

/// What is in force.
#[derive(Debug, Default)]
pub(super) struct View {
    objects: BTreeMap<Key, Arc<Object>>,
}

/// Where an object stands.
#[derive(Clone, Copy)]
struct Origin<'f> {
    file: &'f Path,
    placed: &'f Placed,
}

impl Origin<'_> {
    fn problem(
        &self,
        severity: Severity,
        key: &Key,
        field: Option<&str>,
        message: String,
        help: &str,
    ) -> Problem {
        Problem {
            line: self.placed.line.map(Into::into),
            object: Some(key.to_string()),
            field: field.map(str::to_owned),
            ..problem(severity, self.file, message, help)
        }
    }
}

impl std::fmt::Display for Origin<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.placed.line {
            Some(line) => write!(f, "{}:{line}", self.file.display()),
            None => write!(f, "{}", self.file.display()),
        }
    }
}

impl View {
    /// Joins files, given in order of their paths.
    pub(super) fn join<'f>(files: impl Iterator<Item = (&'f Path, &'f Version)>) -> (Self, Vec<Problem>) {
        let mut problems = Vec::new();
        let mut owners: BTreeMap<Key, Origin<'f>> = BTreeMap::new();
        let mut order = Vec::new();
        let mut ignored: BTreeMap<&'f (Str, Str), (&'f Path, Option<u32>, usize)> = BTreeMap::new();
        for (file, version) in files {
            for (kind, line) in &version.ignored {
                ignored.entry(kind).or_insert((file, line.map(Into::into), 0)).2 += 1;
            }
            for placed in &version.objects {
                let origin = Origin { file, placed };
                match owners.entry(Key::of(&placed.object)) {
                    btree_map::Entry::Vacant(entry) => {
                        order.push(entry.key().clone());
                        entry.insert(origin);
                    }
                    btree_map::Entry::Occupied(entry) => {
                        problems.push(duplicate(entry.key(), entry.get(), &origin));
                    }
                }
            }
        }
        undefined_namespaces(&owners, &order, &mut problems);
        shared_addresses(&owners, &order, &mut problems);
        problems.extend(
            ignored
                .into_iter()
                .map(|(kind, (file, line, files))| ignored_kind(kind, file, line, files)),
        );
        let objects = owners
            .into_iter()
            .map(|(key, origin)| (key, Arc::clone(&origin.placed.object)))
            .collect();
        (Self { objects }, problems)
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for object in self.objects.values() {
            snapshot.apply(event(Object::clone(object)));
        }
        snapshot
    }

    /// What leads from `self` to `new`. Pods that are gone come first, so that their addresses are free, and what
    /// isolates before the pods that it isolates; the rest that is gone comes last.
    pub(super) fn events_to(&self, new: &Self) -> Vec<Event> {
        let mut events = Vec::new();
        let gone = |key: &&Key| !new.objects.contains_key(*key);
        events.extend(
            self.objects
                .keys()
                .rev()
                .filter(gone)
                .filter(|key| matches!(key, Key::Pod(_)))
                .map(Key::gone),
        );
        for (key, object) in &new.objects {
            let old = self.objects.get(key);
            if old.is_some_and(|old| Arc::ptr_eq(old, object) || old == object) {
                continue;
            }
            if old.is_some_and(|old| is_another(old, object)) {
                events.push(key.gone());
            }
            events.push(event(Object::clone(object)));
        }
        events.extend(
            self.objects
                .keys()
                .rev()
                .filter(gone)
                .filter(|key| !matches!(key, Key::Pod(_)))
                .map(Key::gone),
        );
        events
    }
}

/// Whether a pod was deleted and created again under its name.
fn is_another(old: &Object, new: &Object) -> bool {
    matches!((old, new), (Object::Pod(old), Object::Pod(new)) if old.uid != new.uid)
}

fn duplicate(key: &Key, first: &Origin<'_>, second: &Origin<'_>) -> Problem {
    let message = format!(
        "there is another object of this name at {first}, which comes first and is in force; this one is ignored"
    );
    second.problem(
        Severity::Error,
        key,
        None,
        message,
        "rename or remove one of the two",
    )
}

fn ignored_kind((version, kind): &(Str, Str), file: &Path, line: Option<u32>, files: usize) -> Problem {
    let more = if files > 1 {
        format!(" (in {files} files; this is the first)")
    } else {
        String::new()
    };
    let (effect, help) = match &**kind {
        "Deployment"
        | "ReplicaSet"
        | "StatefulSet"
        | "DaemonSet"
        | "Job"
        | "CronJob"
        | "ReplicationController" => (
            "are ignored",
            "nothing to do; only Pod objects are pods, so add those that it has created",
        ),
        kind if kind.ends_with("NetworkPolicy") => (
            "are ignored: they neither isolate nor allow",
            "write it as a NetworkPolicy of networking.k8s.io/v1, the only kind of policy that netpol enforces",
        ),
        _ => ("are ignored", "nothing to do"),
    };
    Problem {
        line,
        ..problem(
            Severity::Warning,
            file,
            format!("objects of kind {kind} ({version}) {effect}{more}"),
            help,
        )
    }
}

/// Once for each namespace, at its first object.
fn undefined_namespaces(owners: &BTreeMap<Key, Origin<'_>>, order: &[Key], problems: &mut Vec<Problem>) {
    let mut said: BTreeSet<&Str> = BTreeSet::new();
    for key in order {
        let Some(namespace) = key.namespace() else {
            continue;
        };
        let known =
            BUILT_IN.contains(&&**namespace) || owners.contains_key(&Key::Namespace(namespace.clone()));
        if known || !said.insert(namespace) {
            continue;
        }
        problems.push(owners[key].problem(
            Severity::Warning,
            key,
            Some("metadata.namespace"),
            format!("no manifest defines the namespace {namespace}: its only label is its name"),
            "add a Namespace object with its labels",
        ));
    }
}

/// Two running pods can not have one address at a time. Both stay: the model then lets the address count as a
/// peer only where both match. A terminating pod loses its address to a running one without being a mistake.
fn shared_addresses(owners: &BTreeMap<Key, Origin<'_>>, order: &[Key], problems: &mut Vec<Problem>) {
    let mut first: HashMap<IpAddr, &Key> = HashMap::new();
    for key in order {
        let origin = &owners[key];
        let Object::Pod(pod) = &*origin.placed.object else {
            continue;
        };
        if !pod.is_endpoint() || pod.terminating {
            continue;
        }
        for address in &pod.addresses {
            let owner = *first.entry(*address).or_insert(key);
            if owner == key {
                continue;
            }
            let message = format!(
                "{owner} at {} has the address {address}, too: rules allow it only where they allow both pods",
                owners[owner]
            );
            let help = "correct the address, or the status.phase of a pod that has ended";
            problems.push(origin.problem(Severity::Error, key, Some("status.podIPs"), message, help));
        }
    }
}
