//! Directories: which files count, and what is wrong between them.

use std::{
    fs,
    os::unix::{fs::symlink, net::UnixListener},
    path::Path,
};

use netpol_policy::{
    build::{name, namespace, pod, policy, snapshot},
    model::{Pod, Selector, Snapshot},
};
use tempfile::TempDir;

use crate::source::manifests::{LoadError, load};

/// A directory with these files.
pub(super) fn directory(files: &[(&str, &str)]) -> TempDir {
    let dir = TempDir::new().expect("a temporary directory");
    for (name, text) in files {
        write(dir.path(), name, text);
    }
    dir
}

pub(super) fn write(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
    fs::write(path, text).expect("written");
}

/// A pod on one line.
pub(super) fn pod_text(name: &str, address: &str) -> String {
    format!("{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, status: {{podIP: {address}}}}}\n")
}

/// The same.
pub(super) fn bare(name: &str, address: &str) -> Pod {
    Pod {
        uid: "".into(),
        node: None,
        ..pod(&format!("default/{name}"), "", &[address])
    }
}

/// What is in force, and what is said with the directory's name cut off.
fn loaded(dir: &Path) -> (Snapshot, Vec<String>) {
    let loaded = load(dir).expect("readable");
    (loaded.snapshot, said(dir, &loaded.problems))
}

pub(super) fn said(dir: &Path, problems: &[crate::source::Problem]) -> Vec<String> {
    let prefix = format!("{}/", dir.display());
    problems
        .iter()
        .map(|problem| problem.to_string().replace(&prefix, ""))
        .collect()
}

fn only(pods: impl IntoIterator<Item = Pod>) -> Snapshot {
    snapshot([], [], pods, [])
}

#[test]
fn files_that_count() {
    let dir = directory(&[
        ("a.yaml", &pod_text("a", "10.0.0.1")),
        ("sub/deep/b.yml", &pod_text("b", "10.0.0.2")),
        ("c.json", &pod_text("c", "10.0.0.3")),
        ("README.md", "# not YAML: ["),
        (".hidden.yaml", "["),
        (".git/x.yaml", "["),
    ]);
    let expected = only([
        bare("a", "10.0.0.1"),
        bare("b", "10.0.0.2"),
        bare("c", "10.0.0.3"),
    ]);
    assert_eq!(loaded(dir.path()), (expected, vec![]));
}

#[test]
fn symbolic_links_are_followed_but_not_for_ever() {
    let elsewhere = directory(&[
        ("far.yaml", &pod_text("a", "10.0.0.1")),
        ("d/b.yaml", &pod_text("b", "10.0.0.2")),
    ]);
    let dir = directory(&[]);
    symlink(elsewhere.path().join("far.yaml"), dir.path().join("a.yaml")).unwrap();
    symlink(elsewhere.path().join("d"), dir.path().join("d")).unwrap();
    symlink(".", dir.path().join("loop")).unwrap();
    symlink("nowhere", dir.path().join("gone.yaml")).unwrap();
    symlink("nowhere", dir.path().join("gone")).unwrap();
    let (found, problems) = loaded(dir.path());
    assert_eq!(found, only([bare("a", "10.0.0.1"), bare("b", "10.0.0.2")]));
    assert_eq!(
        problems,
        [
            "warning: gone: the symbolic link can not be followed: No such file or directory (os error 2); what was read \
             through it stays in force; help: correct or remove it",
            "error: gone.yaml: the symbolic link can not be followed: No such file or directory (os error 2); help: \
             correct or remove it",
            "warning: loop: leads back to a directory above it: ignored; help: remove the symbolic link",
        ]
    );
}

#[test]
fn files_that_can_not_be_read() {
    let dir = directory(&[("good.yaml", &pod_text("a", "10.0.0.1"))]);
    fs::write(dir.path().join("latin.yaml"), b"a: 1\nb: \xe4\n").unwrap();
    let _socket = UnixListener::bind(dir.path().join("socket.yaml")).unwrap();
    let large = fs::File::create(dir.path().join("large.yaml")).unwrap();
    large.set_len((64 << 20) + 1).unwrap();
    let (found, problems) = loaded(dir.path());
    assert_eq!(found, only([bare("a", "10.0.0.1")]));
    assert_eq!(
        problems,
        [
            "error: large.yaml: is larger than 64 MiB: not read; help: split the file",
            "error: latin.yaml:2: is not UTF-8 text: not read; help: save it as UTF-8",
            "warning: socket.yaml: is not a regular file: ignored; help: remove it",
        ]
    );
}

#[test]
fn a_file_of_20_mb_is_read() {
    // Comments, so that the test is not slow; a file full of objects takes a few seconds.
    let filler = format!("# {}\n", "x".repeat(998)).repeat(20_000);
    let dir = directory(&[(
        "large.yaml",
        &format!("{filler}---\n{}", pod_text("a", "10.0.0.1")),
    )]);
    assert_eq!(loaded(dir.path()), (only([bare("a", "10.0.0.1")]), vec![]));
}

/// The parser would need a gigabyte for it.
#[test]
fn a_value_in_braces_of_20_mb_is_refused() {
    let items = "{apiVersion: v1, kind: Pod, metadata: {name: b}}, ".repeat(400_000);
    let text = format!(
        "{}---\n{{apiVersion: v1, kind: List, items: [{items}]}}\n",
        pod_text("a", "10.0.0.1")
    );
    let dir = directory(&[("large.yaml", &text)]);
    let (found, problems) = loaded(dir.path());
    assert_eq!(found, only([bare("a", "10.0.0.1")]));
    assert_eq!(
        problems,
        [
            "error: large.yaml:2: a value in braces that is larger than any object in a cluster: this document is not \
             read; help: split it; write large lists with each item on a line of its own that begins with `- `"
        ]
    );
}

#[test]
fn a_directory_that_is_not_there() {
    let dir = directory(&[("file", "")]);
    for (name, why) in [
        ("none", "No such file or directory (os error 2)"),
        ("file", "not a directory"),
    ] {
        let path = dir.path().join(name);
        let error = load(&path).unwrap_err();
        assert!(matches!(&error, LoadError::Directory { dir, .. } if *dir == path));
        assert_eq!(
            error.to_string(),
            format!(
                "reading the directory of manifests {}: {why}; help: name a directory that exists and is readable",
                path.display()
            )
        );
    }
}

#[test]
fn the_first_of_two_objects_of_one_name_stays() {
    // Byte order of paths: '-' before '.' before '/'.
    let dir = directory(&[
        ("a/x.yaml", &pod_text("a", "10.0.0.3")),
        ("a.yaml", &format!("\n{}", pod_text("a", "10.0.0.2"))),
        ("a-b.yaml", &pod_text("a", "10.0.0.1")),
    ]);
    let (found, problems) = loaded(dir.path());
    assert_eq!(found, only([bare("a", "10.0.0.1")]));
    let said = |at: &str| {
        format!(
            "error: {at}: Pod default/a: there is another object of this name at a-b.yaml:1, which comes first and is in force; \
             this one is ignored; help: rename or remove one of the two"
        )
    };
    assert_eq!(problems, [said("a/x.yaml:1"), said("a.yaml:2")]);
}

#[test]
fn two_running_pods_with_one_address() {
    let dir = directory(&[
        ("a.yaml", &pod_text("a", "10.0.0.1")),
        ("b.yaml", &pod_text("b", "10.0.0.1")),
        (
            "c.yaml",
            "{apiVersion: v1, kind: Pod, metadata: {name: c}, status: {phase: Failed, podIP: 10.0.0.1}}",
        ),
        (
            "d.yaml",
            "{apiVersion: v1, kind: Pod, metadata: {name: d, deletionTimestamp: x}, status: {podIP: 10.0.0.1}}",
        ),
        (
            "e.yaml",
            "{apiVersion: v1, kind: Pod, metadata: {name: e}, spec: {hostNetwork: true}, status: {podIP: 10.0.0.1}}",
        ),
    ]);
    let (found, problems) = loaded(dir.path());
    let one = |name| bare(name, "10.0.0.1");
    assert_eq!(
        found,
        only([
            one("a"),
            one("b"),
            Pod {
                completed: true,
                ..one("c")
            },
            Pod {
                terminating: true,
                ..one("d")
            },
            Pod {
                host_network: true,
                ..one("e")
            },
        ])
    );
    assert_eq!(
        problems,
        [
            "error: b.yaml:1: Pod default/b: status.podIPs: Pod default/a at a.yaml:1 has the address 10.0.0.1, too: rules \
          allow it only where they allow both pods; help: correct the address, or the status.phase of a pod that has \
          ended"
        ]
    );
}

#[test]
fn namespaces_that_nobody_defines_are_said_once() {
    let text = |namespace: &str, name: &str| {
        format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}, namespace: {namespace}}}, spec: {{}}}}\n---\n"
        )
    };
    let all = [
        text("a", "x"),
        text("a", "z"),
        text("kube-system", "x"),
        text("b", "x"),
    ]
    .concat();
    let dir = directory(&[
        ("p.yaml", &all),
        ("n.yaml", "{apiVersion: v1, kind: Namespace, metadata: {name: b}}"),
    ]);
    let (found, problems) = loaded(dir.path());
    let isolating = |name| policy(name, Selector::default(), Some(vec![]), None);
    let policies = ["a/x", "a/z", "kube-system/x", "b/x"].map(isolating);
    assert_eq!(found, snapshot([namespace("b", "")], [], [], policies));
    assert_eq!(
        problems,
        [
            "warning: p.yaml:1: NetworkPolicy a/x: metadata.namespace: no manifest defines the namespace a: its only label \
          is its name; help: add a Namespace object with its labels"
        ]
    );
    assert!(found.policies.contains_key(&name("kube-system/x")));
}

#[test]
fn kinds_that_decide_nothing_are_said_once() {
    let service = "{apiVersion: v1, kind: Service, metadata: {name: s}}\n";
    let dir = directory(&[
        (
            "a.yaml",
            &format!("{service}---\n{service}---\n{{apiVersion: apps/v1, kind: Deployment}}\n"),
        ),
        ("b.yaml", service),
    ]);
    assert_eq!(
        loaded(dir.path()),
        (
            Snapshot::default(),
            vec![
                "warning: a.yaml:1: objects of kind Service (v1) are ignored (in 2 files; this is the first); help: \
                 nothing to do"
                    .to_owned(),
                "warning: a.yaml:5: objects of kind Deployment (apps/v1) are ignored; help: nothing to do; only Pod \
                 objects are pods, so add those that it has created"
                    .to_owned(),
            ]
        )
    );
}
