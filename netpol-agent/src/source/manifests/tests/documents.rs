//! Documents, lists, kinds and YAML itself.

use netpol_policy::{
    build::{namespace, pod},
    model::Pod,
};

use super::read;
use crate::source::{intern::Interner, manifests::yaml, parse::Object};

fn bare(name: &str) -> Object {
    Object::Pod(Pod {
        uid: "".into(),
        node: None,
        ..pod(name, "", &[])
    })
}

#[test]
fn many_documents_and_lists() {
    let (objects, problems) = read(
        "# only a comment
---
---
{apiVersion: v1, kind: Pod, metadata: {name: a}}
--- # with a comment
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Pod, metadata: {name: b}}
- apiVersion: v1
  kind: PodList
  items: [{metadata: {name: c}}]
---
{apiVersion: v1, kind: PodList, items: [{metadata: {name: d}}, {apiVersion: v1, kind: Namespace, metadata: {name: ns}}]}
---
{apiVersion: v1, kind: PodList, items: null}
...
---
null
",
    );
    let pods = ["a", "b", "c", "d"].map(|name| bare(&format!("default/{name}")));
    assert_eq!(
        objects,
        pods.into_iter()
            .chain([Object::Namespace(namespace("ns", ""))])
            .collect::<Vec<_>>()
    );
    assert_eq!(problems, Vec::<String>::new());
}

#[test]
fn a_list_in_json_names_lines_and_types() {
    let (objects, problems) = read(
        "
{\"items\": [
  {\"metadata\": {\"name\": \"a\"}},
  {
    \"metadata\": {\"name\": \"b\", \"name\": \"c\"}
  },
  {\"metadata\": {\"name\": \"d\", \"labels\": {\"x\": true}}}
], \"kind\": \"PodList\", \"apiVersion\": \"v1\"}
",
    );
    assert_eq!(objects.len(), 2);
    assert_eq!(objects[0], bare("default/a"));
    assert_eq!(
        problems,
        [
            "error: f.yaml:5: the field \"name\" is given twice, first on line 5: neither is used; help: remove one of \
             them",
            "error: f.yaml:5: Pod: metadata.name: a value given twice where a string belongs: the object is ignored; help: write a string",
            "error: f.yaml:7: Pod default/d: metadata.labels.x: the boolean true where a string belongs; help: put it \
             in quotes: \"true\"",
        ]
    );
}

#[test]
fn json_with_tabs_and_windows_line_ends() {
    let json = "{\r\n\t\"apiVersion\": \"v1\",\r\n\t\"kind\": \"Pod\",\r\n\t\"metadata\": {\r\n\t\t\"name\":\"a\",\"labels\":{}\r\n\t}\r\n}\r\n";
    assert_eq!(read(json), (vec![bare("default/a")], vec![]));
    let yaml = "\u{feff}apiVersion: v1\r\nkind: Pod\r\nmetadata:\r\n  name: a\r\n---\r\napiVersion: v1\r\nkind: Pod\r\nmetadata: {name: b}\r\n";
    assert_eq!(read(yaml), (vec![bare("default/a"), bare("default/b")], vec![]));
}

#[test]
fn a_broken_document_takes_no_other_with_it() {
    let (objects, problems) = read(
        "{apiVersion: v1, kind: Pod, metadata: {name: a}}
---
apiVersion: v1
kind: [Pod
metadata: {name: b}
---
{apiVersion: v1, kind: Pod, metadata: {name: c}}
",
    );
    assert_eq!(objects, [bare("default/a"), bare("default/c")]);
    assert_eq!(
        problems,
        [
            "error: f.yaml:5: not valid YAML: illegal placement of ':' indicator: this document is not \
          read; help: correct it; `netpol-agent check` says when it is well"
        ]
    );
}

#[test]
fn directives_and_anchors() {
    let (objects, problems) = read(
        "%YAML 1.1
---
apiVersion: v1
kind: List
items:
- &pod
  apiVersion: v1
  kind: Pod
  metadata: &meta {name: a, namespace: x}
- <<: *pod
  metadata:
    <<: *meta
    name: b
",
    );
    assert_eq!((objects, problems), (vec![bare("x/a"), bare("x/b")], vec![]));
}

#[test]
fn documents_that_are_no_objects() {
    let (objects, problems) = read(
        "replicas: 3\n---\n- a\n---\n{apiVersion: 1, kind: Pod}\n---\n{apiVersion: v1, kind: Pods, metadata: {name: a}}\n",
    );
    assert_eq!(objects, []);
    let help = "help: add apiVersion and kind, or move the file out of the directory";
    assert_eq!(
        problems,
        [
            format!("error: f.yaml:1: not a Kubernetes object: it has no apiVersion; {help}"),
            "error: f.yaml:3: a list where a mapping belongs; help: write fields here, or {} for none"
                .to_owned(),
            "error: f.yaml:5: apiVersion: the number 1 where a string belongs; help: put it in quotes: \"1\""
                .to_owned(),
            "error: f.yaml:7: v1 has no kind \"Pods\": ignored; help: did you mean Pod?".to_owned(),
        ]
    );
}

/// What is wrong with a document that is not read at all.
fn refused(text: &str) -> String {
    let mut items = Vec::new();
    yaml::documents(text, &mut Interner::default(), |item, _| items.push(item));
    match items.pop() {
        Some(yaml::Item::Broken(syntax)) if items.is_empty() => syntax.message,
        other => panic!("{other:?} after {items:?}"),
    }
}

#[test]
fn alias_bombs_and_deep_nesting_are_refused() {
    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for level in 1..9 {
        let items = vec![format!("*a{}", level - 1); 10].join(",");
        bomb.push_str(&format!("a{level}: &a{level} [{items}]\n"));
    }
    assert_eq!(
        refused(&bomb),
        "aliases add more than 100000 values: this document is not read"
    );
    let deep = "nested deeper than 64 levels: this document is not read";
    assert_eq!(refused(&format!("{}x", "- ".repeat(65))), deep);
    assert_eq!(refused(&format!("{}{}", "[".repeat(65), "]".repeat(65))), deep);
    assert_eq!(
        refused(&"[".repeat(100_000)),
        "not valid YAML: recursion limit exceeded: this document is not read"
    );
    assert_eq!(
        refused("a: &a [*a]"),
        "the alias stands within its own anchor: this document is not read"
    );
}

#[test]
fn a_million_mistakes_are_counted() {
    let (_, problems) = read(&"---\nx: 1\n".repeat(3000));
    assert_eq!(problems.len(), 1001);
    assert_eq!(
        problems[1000],
        "error: f.yaml: 2000 more problems in this file are not listed; help: correct those listed first"
    );
}
