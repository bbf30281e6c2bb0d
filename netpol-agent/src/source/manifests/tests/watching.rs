//! Live edits. Nothing here is timed: each test waits for the change it has caused.

use std::{fs, os::unix::fs::symlink, path::Path};

use netpol_policy::model::{Event, Pod};

use super::directory::{bare, directory, pod_text, said, write};
use crate::source::{
    Change, Loaded,
    manifests::{Watcher, load},
};

fn start(dir: &Path) -> (Loaded, Watcher) {
    Watcher::start(dir).expect("watched")
}

/// The changes until `done` holds of all events and the problems as they are then.
fn until(watcher: &mut Watcher, done: impl Fn(&[Event], &Change) -> bool) -> Change {
    let mut events = Vec::new();
    loop {
        let change = watcher.blocking_next().expect("the thread runs");
        events.extend(change.events.iter().cloned());
        if done(&events, &change) {
            return Change {
                events,
                problems: change.problems,
                complete: true,
            };
        }
    }
}

/// Waits for exactly these events.
#[track_caller]
fn expect(watcher: &mut Watcher, expected: &[Event]) -> Change {
    let change = until(watcher, |events, _| events.len() >= expected.len());
    assert_eq!(change.events, expected);
    change
}

fn is(name: &str, address: &str) -> Event {
    Event::Pod(bare(name, address))
}

fn gone(name: &str) -> Event {
    Event::PodGone(bare(name, "10.0.0.1").name)
}

#[test]
fn files_come_change_and_go() {
    let dir = directory(&[("a.yaml", &pod_text("a", "10.0.0.1"))]);
    let (loaded, mut watcher) = start(dir.path());
    assert_eq!(
        loaded.snapshot.pods.into_values().collect::<Vec<_>>(),
        [bare("a", "10.0.0.1")]
    );
    write(dir.path(), "a.yaml", &pod_text("a", "10.0.0.2"));
    expect(&mut watcher, &[is("a", "10.0.0.2")]);
    write(dir.path(), "new/sub/b.yaml", &pod_text("b", "10.0.0.3"));
    expect(&mut watcher, &[is("b", "10.0.0.3")]);
    // An editor's atomic save.
    write(dir.path(), "new/sub/.b.yaml.tmp", &pod_text("b", "10.0.0.4"));
    fs::rename(
        dir.path().join("new/sub/.b.yaml.tmp"),
        dir.path().join("new/sub/b.yaml"),
    )
    .unwrap();
    expect(&mut watcher, &[is("b", "10.0.0.4")]);
    fs::rename(dir.path().join("a.yaml"), dir.path().join("a.old")).unwrap();
    expect(&mut watcher, &[gone("a")]);
    fs::remove_dir_all(dir.path().join("new")).unwrap();
    expect(&mut watcher, &[gone("b")]);
}

#[test]
fn a_renamed_file_changes_nothing() {
    let dir = directory(&[("a.yaml", &pod_text("a", "10.0.0.1"))]);
    let (_, mut watcher) = start(dir.path());
    fs::rename(dir.path().join("a.yaml"), dir.path().join("b.yaml")).unwrap();
    write(dir.path(), "c.yaml", &pod_text("c", "10.0.0.2"));
    expect(&mut watcher, &[is("c", "10.0.0.2")]);
}

#[test]
fn a_broken_edit_keeps_the_version_before() {
    let good = pod_text("a", "10.0.0.1");
    let dir = directory(&[("a.yaml", &good)]);
    let (_, mut watcher) = start(dir.path());
    // The second document is well, but the file is not: all of it stays as it was.
    write(
        dir.path(),
        "a.yaml",
        &format!("kind: [\n---\n{}", pod_text("b", "10.0.0.2")),
    );
    let change = watcher.blocking_next().unwrap();
    assert_eq!(change.events, []);
    assert_eq!(
        said(dir.path(), &change.problems),
        [
            "error: a.yaml: has new errors: the version read before stays in force (1 object); help: correct the errors \
             of this file",
            "error: a.yaml:2: not valid YAML: while parsing a node, did not find expected node content: this \
             document is not read; help: correct it; `netpol-agent check` says when it is well",
        ]
    );
    write(dir.path(), "a.yaml", &pod_text("a", "10.0.0.3"));
    let change = expect(&mut watcher, &[is("a", "10.0.0.3")]);
    assert_eq!(change.problems, []);
}

#[test]
fn an_old_error_does_not_hold_up_an_edit() {
    let text = |address: &str| format!("{}---\n{{x: 1}}\n", pod_text("a", address));
    let dir = directory(&[("a.yaml", &text("10.0.0.1"))]);
    let (loaded, mut watcher) = start(dir.path());
    assert_eq!(loaded.problems.len(), 1);
    write(dir.path(), "a.yaml", &format!("\n\n{}", text("10.0.0.2")));
    expect(&mut watcher, &[is("a", "10.0.0.2")]);
}

#[test]
fn a_pod_created_again_under_its_name() {
    let text = |uid: &str| format!("{{apiVersion: v1, kind: Pod, metadata: {{name: a, uid: {uid}}}}}\n");
    let dir = directory(&[("a.yaml", &text("one"))]);
    let (loaded, mut watcher) = start(dir.path());
    let one = loaded.snapshot.pods.into_values().next().unwrap();
    write(dir.path(), "a.yaml", &text("two"));
    let two = Pod {
        uid: "two".into(),
        ..one
    };
    expect(&mut watcher, &[Event::PodGone(two.name.clone()), Event::Pod(two)]);
}

#[test]
fn a_mirror_pod_is_its_static_pod() {
    let text = "{apiVersion: v1, kind: Pod, metadata: {name: a, uid: of-the-api, annotations: \
                {kubernetes.io/config.mirror: of-the-kubelet, other: x}}}\n";
    let dir = directory(&[("a.yaml", text)]);
    let (loaded, _watcher) = start(dir.path());
    assert_eq!(loaded.problems.len(), 0);
    let pod = loaded.snapshot.pods.into_values().next().unwrap();
    assert_eq!(&*pod.uid, "of-the-kubelet");
}

#[test]
fn an_address_that_moves_is_free_before_it_is_taken() {
    let dir = directory(&[("z.yaml", &pod_text("z", "10.0.0.1"))]);
    let (_, mut watcher) = start(dir.path());
    write(dir.path(), ".b", &pod_text("b", "10.0.0.1"));
    fs::remove_file(dir.path().join("z.yaml")).unwrap();
    fs::rename(dir.path().join(".b"), dir.path().join("b.yaml")).unwrap();
    expect(&mut watcher, &[gone("z"), is("b", "10.0.0.1")]);
}

#[test]
fn a_mounted_config_map() {
    let dir = directory(&[
        ("..v1/a.yaml", &pod_text("a", "10.0.0.1")),
        ("..v2/a.yaml", &pod_text("a", "10.0.0.2")),
    ]);
    let at = |name: &str| dir.path().join(name);
    symlink("..v1", at("..data")).unwrap();
    symlink("..data/a.yaml", at("a.yaml")).unwrap();
    let (loaded, mut watcher) = start(dir.path());
    assert_eq!(
        loaded.snapshot.pods.into_values().collect::<Vec<_>>(),
        [bare("a", "10.0.0.1")]
    );
    symlink("..v2", at("..data_tmp")).unwrap();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    fs::remove_dir_all(at("..v1")).unwrap();
    expect(&mut watcher, &[is("a", "10.0.0.2")]);
    // The kubelet may also write into the target.
    write(dir.path(), "..v2/a.yaml", &pod_text("a", "10.0.0.3"));
    expect(&mut watcher, &[is("a", "10.0.0.3")]);
}

#[test]
fn a_directory_that_vanishes_and_comes_back() {
    let above = directory(&[
        ("m/a.yaml", &pod_text("a", "10.0.0.1")),
        ("new/a.yaml", &pod_text("a", "10.0.0.2")),
    ]);
    let dir = above.path().join("m");
    let (_, mut watcher) = start(&dir);
    fs::rename(&dir, above.path().join("away")).unwrap();
    let change = watcher.blocking_next().unwrap();
    assert_eq!(change.events, []);
    assert_eq!(
        change
            .problems
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        [format!(
            "error: {}: the directory can not be read: No such file or directory (os error 2); what was read before \
             stays in force; help: bring it back; netpol reads it again then",
            dir.display()
        )]
    );
    fs::rename(above.path().join("new"), &dir).unwrap();
    let change = expect(&mut watcher, &[is("a", "10.0.0.2")]);
    assert_eq!(change.problems, []);
    write(&dir, "a.yaml", &pod_text("a", "10.0.0.3"));
    expect(&mut watcher, &[is("a", "10.0.0.3")]);
}

#[test]
fn a_linked_directory_that_vanishes_stays_in_force() {
    let above = directory(&[("far/a.yaml", &pod_text("a", "10.0.0.1")), ("m/b.yaml", "")]);
    let dir = above.path().join("m");
    symlink("../far", dir.join("linked")).unwrap();
    let (_, mut watcher) = start(&dir);
    fs::rename(above.path().join("far"), above.path().join("away")).unwrap();
    write(&dir, "b.yaml", &pod_text("b", "10.0.0.2"));
    let change = expect(&mut watcher, &[is("b", "10.0.0.2")]);
    assert_eq!(
        said(&dir, &change.problems),
        [
            "warning: linked: the symbolic link can not be followed: No such file or directory (os error 2); what was read \
             through it stays in force; help: correct or remove it"
        ]
    );
}

/// A restart must not change what is in force, so the order of edits does not count.
#[test]
fn of_two_objects_of_one_name_the_first_path_counts_also_in_a_live_edit() {
    let dir = directory(&[("b.yaml", &pod_text("a", "10.0.0.1"))]);
    let (_, mut watcher) = start(dir.path());
    let said_of = |at: &str, first: &str| {
        format!(
            "error: {at}: Pod default/a: there is another object of this name at {first}, which comes first and is in force; this one is \
             ignored; help: rename or remove one of the two"
        )
    };
    write(dir.path(), "c.yaml", &pod_text("a", "10.0.0.2"));
    let change = watcher.blocking_next().unwrap();
    assert_eq!(change.events, []);
    assert_eq!(
        said(dir.path(), &change.problems),
        [said_of("c.yaml:1", "b.yaml:1")]
    );
    write(dir.path(), "a.yaml", &pod_text("a", "10.0.0.3"));
    let change = expect(&mut watcher, &[is("a", "10.0.0.3")]);
    let expected = ["b.yaml:1", "c.yaml:1"].map(|at| said_of(at, "a.yaml:1"));
    assert_eq!(said(dir.path(), &change.problems), expected);
    assert_eq!(
        load(dir.path())
            .unwrap()
            .snapshot
            .pods
            .into_values()
            .collect::<Vec<_>>(),
        [bare("a", "10.0.0.3")]
    );
}

#[test]
fn a_directory_that_is_made_anew_with_everything_above_it() {
    let above = directory(&[("up/m/a.yaml", &pod_text("a", "10.0.0.1"))]);
    let dir = above.path().join("up/m");
    let (_, mut watcher) = start(&dir);
    fs::remove_dir_all(above.path().join("up")).unwrap();
    let change = until(&mut watcher, |_, change| !change.problems.is_empty());
    let events_of_removal = change.events;
    write(&dir, "a.yaml", &pod_text("a", "10.0.0.2"));
    let change = until(&mut watcher, |events, _| events.contains(&is("a", "10.0.0.2")));
    assert_eq!(change.problems, []);
    // The files may be seen to go before the directory does: an edit like any other. Nothing else happens.
    assert!(events_of_removal.is_empty() || events_of_removal == [gone("a")]);
    write(&dir, "a.yaml", &pod_text("a", "10.0.0.3"));
    expect(&mut watcher, &[is("a", "10.0.0.3")]);
}
