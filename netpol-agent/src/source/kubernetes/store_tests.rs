//! Unit tests of the store.

use netpol_policy::model::{Event, Namespace, Node as NodeObject, ObjectName, Pod, Policy};

use super::{super::object::*, *};

fn json<K: Kind>(text: &str) -> Node {
    serde_json::from_str::<Raw<K>>(text).unwrap().node
}

fn namespace(name: &str) -> Node {
    json::<Namespaces>(&format!(
        r#"{{"metadata":{{"name":"{name}","labels":{{"env":"dev"}}}}}}"#
    ))
}

fn pod(name: &str, uid: &str) -> Node {
    json::<Pods>(&format!(
        r#"{{"metadata":{{"name":"{name}","namespace":"prod","uid":"{uid}"}},"status":{{"podIP":"10.0.0.5"}}}}"#
    ))
}

fn policy(name: &str) -> Node {
    json::<Policies>(&format!(
        r#"{{"metadata":{{"name":"{name}","namespace":"prod"}},"spec":{{"podSelector":{{}}}}}}"#
    ))
}

/// What a change says, in words.
fn words(store: &mut Store) -> Vec<String> {
    let events = store.take(true).events;
    let word = |event: Event| match event {
        Event::Namespace(Namespace { name, .. }) => format!("namespace {name}"),
        Event::Node(NodeObject { name, .. }) => format!("node {name}"),
        Event::Pod(Pod { name, uid, .. }) => format!("pod {name} {uid}"),
        Event::Policy(Policy { name, .. }) => format!("policy {name}"),
        Event::NamespaceGone(name) => format!("no namespace {name}"),
        Event::NodeGone(name) => format!("no node {name}"),
        Event::PodGone(name) => format!("no pod {name}"),
        Event::PolicyGone(name) => format!("no policy {name}"),
    };
    events.into_iter().map(word).collect()
}

fn listed() -> Store {
    let mut store = Store::default();
    store.hear::<Namespaces>(Which::Namespaces, Heard::InitApply(namespace("prod")));
    store.hear::<Namespaces>(Which::Namespaces, Heard::InitDone);
    for name in ["a", "b"] {
        store.hear::<Pods>(Which::Pods, Heard::InitApply(pod(name, "1")));
    }
    store.hear::<Pods>(Which::Pods, Heard::InitDone);
    assert_eq!(
        words(&mut store),
        ["namespace prod", "pod prod/a 1", "pod prod/b 1"]
    );
    store
}

#[test]
fn what_a_new_list_does_not_name_is_gone() {
    let mut store = listed();
    store.hear::<Pods>(Which::Pods, Heard::Init);
    store.hear::<Pods>(Which::Pods, Heard::InitApply(pod("b", "1")));
    assert_eq!(words(&mut store), ["pod prod/b 1"]);
    store.hear::<Pods>(Which::Pods, Heard::InitDone);
    assert_eq!(words(&mut store), ["no pod prod/a"]);
}

#[test]
fn a_list_that_breaks_off_names_nobody() {
    let mut store = listed();
    store.hear::<Pods>(Which::Pods, Heard::InitApply(pod("a", "1")));
    store.hear::<Pods>(Which::Pods, Heard::Broken);
    words(&mut store);
    // A streamed list has no beginning of its own.
    store.hear::<Pods>(Which::Pods, Heard::InitApply(pod("b", "1")));
    store.hear::<Pods>(Which::Pods, Heard::InitDone);
    assert_eq!(words(&mut store), ["pod prod/b 1", "no pod prod/a"]);
}

#[test]
fn a_pod_created_again_while_nobody_looked_is_another() {
    let mut store = listed();
    store.hear::<Pods>(Which::Pods, Heard::Apply(pod("a", "2")));
    assert_eq!(words(&mut store), ["no pod prod/a", "pod prod/a 2"]);
}

#[test]
fn objects_wait_for_their_namespace() {
    let mut store = Store::default();
    store.hear::<Pods>(Which::Pods, Heard::Apply(pod("a", "1")));
    store.hear::<Pods>(Which::Pods, Heard::Apply(pod("b", "1")));
    store.hear::<Policies>(Which::Policies, Heard::Apply(policy("p")));
    store.hear::<Pods>(Which::Pods, Heard::Delete(pod("b", "1")));
    assert_eq!(words(&mut store), [""; 0]);
    store.hear::<Namespaces>(Which::Namespaces, Heard::Apply(namespace("prod")));
    assert_eq!(
        words(&mut store),
        ["namespace prod", "policy prod/p", "pod prod/a 1"]
    );
}

#[test]
fn what_waits_is_gone_when_a_list_does_not_name_it() {
    let mut store = Store::default();
    store.hear::<Pods>(Which::Pods, Heard::InitApply(pod("a", "1")));
    store.hear::<Pods>(Which::Pods, Heard::InitDone);
    store.hear::<Pods>(Which::Pods, Heard::Init);
    store.hear::<Pods>(Which::Pods, Heard::InitDone);
    store.hear::<Namespaces>(Which::Namespaces, Heard::Apply(namespace("prod")));
    assert_eq!(words(&mut store), ["namespace prod"]);
}

#[test]
fn a_namespace_stays_until_it_is_empty() {
    let mut store = listed();
    store.hear::<Namespaces>(Which::Namespaces, Heard::Delete(namespace("prod")));
    assert_eq!(words(&mut store), [""; 0]);
    store.hear::<Pods>(Which::Pods, Heard::Delete(pod("a", "1")));
    store.hear::<Pods>(Which::Pods, Heard::Delete(pod("b", "1")));
    assert_eq!(
        words(&mut store),
        ["no pod prod/a", "no pod prod/b", "no namespace prod"]
    );

    // One that comes back meanwhile stays.
    let mut store = listed();
    store.hear::<Namespaces>(Which::Namespaces, Heard::Delete(namespace("prod")));
    store.hear::<Namespaces>(Which::Namespaces, Heard::Apply(namespace("prod")));
    store.hear::<Pods>(Which::Pods, Heard::Delete(pod("a", "1")));
    store.hear::<Pods>(Which::Pods, Heard::Delete(pod("b", "1")));
    assert_eq!(
        words(&mut store),
        ["namespace prod", "no pod prod/a", "no pod prod/b"]
    );
}

#[test]
fn what_is_not_understood_is_said_and_allows_nothing() {
    let mut store = listed();
    let bad = json::<Policies>(
        r#"{"metadata":{"name":"p","namespace":"prod"},"spec":{"podSelector":{},"ingress":[{"from":[{"ipBlock":{"cidr":"10.0.0.0/99"}}]}]}}"#,
    );
    store.hear::<Policies>(Which::Policies, Heard::Apply(bad));
    let change = store.take(true);
    let Event::Policy(policy) = &change.events[0] else {
        panic!("{change:?}")
    };
    assert_eq!(
        (policy.name.clone(), policy.ingress.clone()),
        (ObjectName::new("prod", "p"), Some(vec![]))
    );
    let said: Vec<_> = change
        .problems
        .iter()
        .map(|problem| (problem.object.as_deref(), problem.field.as_deref()))
        .collect();
    assert_eq!(
        said,
        [(
            Some("NetworkPolicy prod/p"),
            Some("spec.ingress[0].from[0].ipBlock.cidr")
        )]
    );
    // Mended: nothing is wrong any more.
    store.hear::<Policies>(Which::Policies, Heard::Apply(super::tests::policy("p")));
    assert_eq!(store.take(true).problems, []);
    // An object without a name is said, too, and takes nobody along.
    store.hear::<Pods>(Which::Pods, Heard::Apply(json::<Pods>(r#"{"metadata":{}}"#)));
    let change = store.take(true);
    assert_eq!((change.events, change.problems.is_empty()), (vec![], false));
}
