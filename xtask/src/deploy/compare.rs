//! Two renderings, object by object and field by field.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use serde_json::Value;

/// What Helm writes on everything that is its own.
const HELMS_LABELS: &[&str] = &[
    "app.kubernetes.io/instance",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/version",
    "helm.sh/chart",
];

/// Objects by `KIND NAMESPACE/NAME`.
pub(super) type Objects = BTreeMap<String, Value>;

/// The objects of a rendering, without what only Helm writes.
///
/// # Errors
/// One has no kind or name, or is there twice.
pub(super) fn objects(documents: Vec<Value>) -> Result<Objects> {
    let mut objects = Objects::new();
    for mut document in documents {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let kind = text(&document["kind"]).context("an object without a kind")?;
        let name = text(&document["metadata"]["name"]).with_context(|| format!("a {kind} without a name"))?;
        let namespace = text(&document["metadata"]["namespace"]).unwrap_or_default();
        if let Some(labels) = document["metadata"]["labels"].as_object_mut() {
            labels.retain(|label, _| !HELMS_LABELS.contains(&label.as_str()));
        }
        let id = format!("{kind} {namespace}/{name}");
        let twice = objects.insert(id.clone(), document).is_some();
        anyhow::ensure!(!twice, "{id} is there twice");
    }
    Ok(objects)
}

/// Puts containers' variables in the order of their names: kustomize puts those that it changes first. Where the order has a
/// meaning, [`super::valid`] looks at it.
pub(super) fn sort_variables(objects: &mut Objects) {
    for object in objects.values_mut() {
        for containers in ["containers", "initContainers"] {
            let containers = object.pointer_mut(&format!("/spec/template/spec/{containers}"));
            for container in containers.and_then(Value::as_array_mut).into_iter().flatten() {
                if let Some(env) = container.get_mut("env").and_then(Value::as_array_mut) {
                    env.sort_by_key(|variable| variable["name"].to_string());
                }
            }
        }
    }
}

/// Each difference in one line: the object, the field, both values.
pub(super) fn differences(one: (&str, &Objects), other: (&str, &Objects)) -> Vec<String> {
    let mut found = Vec::new();
    let ids: BTreeSet<&String> = one.1.keys().chain(other.1.keys()).collect();
    for id in ids {
        match (one.1.get(id), other.1.get(id)) {
            (Some(left), Some(right)) => {
                let mut fields = Vec::new();
                fields_of(left, right, "", &mut fields);
                found.extend(fields.into_iter().map(|(field, left, right)| {
                    format!("{id}: {field} is {left} in {}, {right} in {}", one.0, other.0)
                }));
            }
            (Some(_), None) => found.push(format!("{id} is in {}, not in {}", one.0, other.0)),
            (None, _) => found.push(format!("{id} is in {}, not in {}", other.0, one.0)),
        }
    }
    found
}

fn fields_of(left: &Value, right: &Value, at: &str, found: &mut Vec<(String, String, String)>) {
    const ABSENT: &Value = &Value::Null;
    match (left, right) {
        (Value::Object(left), Value::Object(right)) => {
            let names: BTreeSet<&String> = left.keys().chain(right.keys()).collect();
            for name in names {
                let value =
                    |from: &'_ serde_json::Map<String, Value>| from.get(name).unwrap_or(ABSENT).clone();
                fields_of(&value(left), &value(right), &format!("{at}.{name}"), found);
            }
        }
        (Value::Array(left), Value::Array(right)) => {
            for index in 0..left.len().max(right.len()) {
                let value = |from: &[Value]| from.get(index).unwrap_or(ABSENT).clone();
                fields_of(&value(left), &value(right), &format!("{at}[{index}]"), found);
            }
        }
        _ if left == right => {}
        _ => found.push((at.to_owned(), left.to_string(), right.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(image: &str) -> Value {
        json!({
            "kind": "Pod",
            "metadata": { "name": "a", "labels": { "helm.sh/chart": image, "app": "b" } },
            "spec": { "containers": [{ "image": image }] },
        })
    }

    #[test]
    fn a_difference_names_the_object_and_the_field() {
        let one = objects(vec![
            pod("x:1"),
            json!({ "kind": "Node", "metadata": { "name": "n" } }),
        ]);
        let other = objects(vec![pod("x:2")]);
        let (one, other) = (one.expect("objects"), other.expect("objects"));
        let found = differences(("plain", &one), ("helm", &other));
        let expected = [
            "Node /n is in plain, not in helm",
            "Pod /a: .spec.containers[0].image is \"x:1\" in plain, \"x:2\" in helm",
        ];
        assert_eq!(found, expected);
        assert!(differences(("plain", &one), ("plain", &one)).is_empty());
    }

    #[test]
    fn nothing_is_compared_that_has_no_name_or_is_there_twice() {
        assert!(objects(vec![json!({ "kind": "Pod" })]).is_err());
        assert!(objects(vec![pod("x"), pod("x")]).is_err());
    }
}
