//! The manifests as the agents read them: what the sandbox chose (nodes, addresses) written into the objects.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::{Value as Json, json};

use super::{
    layout::Layout,
    manifest::{Raw, name_of},
};

/// Writes the objects of `raw` to the directory `to`; what `held_back` names is left out.
///
/// Files with Pods or Nodes become JSON; all others are copied as they are, mistakes included.
///
/// # Errors
/// A file can not be read or written.
pub fn write(raw: &Raw, layout: &Layout, held_back: &[PathBuf], to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("create {}", to.display()))?;
    let mut files: BTreeMap<&Path, Vec<&Json>> = BTreeMap::new();
    for (path, object) in &raw.objects {
        files.entry(path).or_default().push(object);
    }
    let mut defined = Vec::new();
    for (path, objects) in files
        .into_iter()
        .filter(|(path, _)| !held_back.iter().any(|held| held == path))
    {
        let target = to.join(file_name(path));
        if objects
            .iter()
            .any(|object| matches!(object["kind"].as_str(), Some("Pod" | "Node")))
        {
            let items: Vec<Json> = objects
                .iter()
                .map(|object| complete((*object).clone(), layout, &mut defined))
                .collect();
            put(&target.with_extension("json"), &items)?;
        } else {
            fs::copy(path, &target)
                .with_context(|| format!("copy {} to {}", path.display(), target.display()))?;
        }
    }
    let rest = layout.nodes.iter().filter(|node| !defined.contains(&node.name));
    let rest: Vec<Json> = rest
        .map(|node| node_object(json!({"metadata": {"name": node.name}}), layout))
        .collect();
    put(&to.join("sandbox-nodes.json"), &rest)
}

/// One name for a path, so that files of several directories stay apart and in order.
#[must_use]
pub fn file_name(path: &Path) -> String {
    path.to_string_lossy()
        .trim_start_matches(['/', '.'])
        .replace('/', "__")
}

fn put(path: &Path, items: &[Json]) -> Result<()> {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    fs::write(path, format!("{list:#}\n")).with_context(|| format!("write {}", path.display()))
}

fn complete(mut object: Json, layout: &Layout, nodes: &mut Vec<String>) -> Json {
    match object["kind"].as_str() {
        Some("Node") => {
            nodes.push(name_of(&object).name.to_string());
            node_object(object, layout)
        }
        Some("Pod") => {
            let name = name_of(&object);
            let Some(place) = layout.pods.iter().find(|pod| pod.name == name) else {
                return object;
            };
            object["spec"]["nodeName"] = json!(layout.nodes[place.node].name);
            let ips: Vec<Json> = place.addresses.iter().map(|ip| json!({"ip": ip})).collect();
            object["status"]["phase"] = json!("Running");
            object["status"]["podIP"] = json!(place.addresses.first());
            object["status"]["podIPs"] = json!(ips);
            object
        }
        _ => object,
    }
}

fn node_object(mut object: Json, layout: &Layout) -> Json {
    let name = name_of(&object).name;
    let Some(place) = layout.nodes.iter().find(|node| *node.name == *name) else {
        return object;
    };
    let addresses = place
        .addresses
        .iter()
        .map(|address| json!({"type": "InternalIP", "address": address}));
    object["apiVersion"] = json!("v1");
    object["kind"] = json!("Node");
    object["status"]["addresses"] = addresses.collect();
    object
}
