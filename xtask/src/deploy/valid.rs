//! What every rendering must be, whatever it says: the API server would take it, and a pod of it would start.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{compare::Objects, probes};

/// Each fault in one line: the object, the field, what is wrong.
pub(super) fn faults(of: &str, objects: &Objects) -> Vec<String> {
    let mut found = Vec::new();
    for (id, object) in objects {
        let mut add = |fault: String| found.push(format!("{id} in {of}: {fault}"));
        if object["apiVersion"].as_str().is_none_or(str::is_empty) {
            add("no apiVersion".to_owned());
        }
        strings(object, &mut add);
        if object["kind"] == "DaemonSet" {
            daemon_set(&object["spec"], &mut add);
        }
    }
    found
}

/// Labels, annotations, selectors: the API takes strings alone.
fn strings(value: &Value, add: &mut impl FnMut(String)) {
    const STRINGS: [&str; 4] = ["labels", "annotations", "matchLabels", "nodeSelector"];
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let inner = value.as_object().filter(|_| STRINGS.contains(&name.as_str()));
                for (key, text) in inner.into_iter().flatten() {
                    if !text.is_string() {
                        add(format!("{name}.{key} is {text}, not a string"));
                    }
                }
                strings(value, add);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| strings(item, add)),
        _ => {}
    }
}

fn daemon_set(spec: &Value, add: &mut impl FnMut(String)) {
    let labels = &spec["template"]["metadata"]["labels"];
    let selector = spec["selector"]["matchLabels"].as_object();
    if selector.is_none_or(|selector| selector.is_empty()) {
        add("spec.selector selects nothing".to_owned());
    }
    for (label, value) in selector.into_iter().flatten() {
        if labels[label] != *value {
            add(format!(
                "spec.selector wants {label}={value}, its pods have {}",
                labels[label]
            ));
        }
    }
    let pod = &spec["template"]["spec"];
    let volumes = names(&pod["volumes"], "name", "volumes", add);
    if list(&pod["containers"]).is_empty() {
        add("no containers".to_owned());
    }
    for container in list(&pod["containers"])
        .iter()
        .chain(list(&pod["initContainers"]))
    {
        self::container(container, &volumes, add);
    }
}

fn container(container: &Value, volumes: &BTreeSet<String>, add: &mut impl FnMut(String)) {
    for field in ["name", "image"] {
        if container[field].as_str().is_none_or(str::is_empty) {
            add(format!("a container without {field}"));
        }
    }
    for mount in list(&container["volumeMounts"]) {
        let name = mount["name"].as_str().unwrap_or_default();
        if !volumes.contains(name) {
            add(format!("the volume {name} is mounted, but there is none"));
        }
    }
    names(&container["volumeMounts"], "mountPath", "volumeMounts", add);
    names(&container["ports"], "name", "ports", add);
    names(&container["env"], "name", "env", add);
    let capabilities = list(&container["securityContext"]["capabilities"]["add"]);
    let different: BTreeSet<String> = capabilities.iter().map(Value::to_string).collect();
    if different.len() < capabilities.len() {
        add("a capability is added twice".to_owned());
    }
    expansions(list(&container["env"]), add);
    probes::faults(container, add);
}

/// `$(X)` stands for what it says where no variable before it is called X.
fn expansions(env: &[Value], add: &mut impl FnMut(String)) {
    let mut before = BTreeSet::new();
    for variable in env {
        let (name, value) = (&variable["name"], variable["value"].as_str());
        for part in value.unwrap_or_default().split("$(").skip(1) {
            let meant = part.split(')').next().unwrap_or_default();
            if !before.contains(meant) {
                add(format!("{name} is made of {meant}, which is not set before it"));
            }
        }
        if variable.get("value").is_some_and(|value| !value.is_string()) {
            add(format!("{name} is {}, not a string", variable["value"]));
        }
        before.extend(name.as_str());
    }
}

/// The values of `field`, each of which may be there once.
fn names(items: &Value, field: &str, what: &str, add: &mut impl FnMut(String)) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for item in list(items) {
        match item[field].as_str() {
            None | Some("") => add(format!("one of {what} has no {field}")),
            Some(name) if !names.insert(name.to_owned()) => {
                add(format!("{what} has {name} twice"));
            }
            Some(_) => {}
        }
    }
    names
}

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults_of(object: &Value) -> Vec<String> {
        let objects = Objects::from([("X".to_owned(), object.clone())]);
        let found = faults("f", &objects);
        found
            .iter()
            .map(|fault| fault.trim_start_matches("X in f: ").to_owned())
            .collect()
    }

    fn daemon_set() -> Value {
        json!({
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": { "labels": { "a": "b" } },
            "spec": {
                "selector": { "matchLabels": { "a": "b" } },
                "template": {
                    "metadata": { "labels": { "a": "b" } },
                    "spec": {
                        "containers": [{
                            "name": "c",
                            "image": "i",
                            "env": [{ "name": "X", "value": "1" }, { "name": "Y", "value": "$(X)" }],
                            "volumeMounts": [{ "name": "v", "mountPath": "/v" }],
                        }],
                        "volumes": [{ "name": "v" }],
                    },
                },
            },
        })
    }

    #[test]
    fn each_fault_is_named() {
        assert_eq!(faults_of(&daemon_set()), [""; 0]);
        let with = |path: &str, value: Value| {
            let mut object = daemon_set();
            *object.pointer_mut(path).expect("a field") = value;
            faults_of(&object).join("; ")
        };
        let container = "/spec/template/spec/containers/0";
        for (path, value, fault) in [
            ("/apiVersion".to_owned(), json!(""), "no apiVersion"),
            (
                "/metadata/labels/a".to_owned(),
                json!(1),
                "labels.a is 1, not a string",
            ),
            (
                "/spec/template/metadata/labels/a".to_owned(),
                json!("c"),
                "spec.selector wants a=\"b\", its pods have \"c\"",
            ),
            (
                format!("{container}/image"),
                json!(""),
                "a container without image",
            ),
            (format!("{container}/env/1/name"), json!("X"), "env has X twice"),
            (
                format!("{container}/env/0/name"),
                json!("Z"),
                "\"Y\" is made of X, which is not set before it",
            ),
            (
                "/spec/template/spec/volumes/0/name".to_owned(),
                json!("w"),
                "the volume v is mounted, but there is none",
            ),
        ] {
            assert_eq!(with(&path, value), fault);
        }
    }
}
