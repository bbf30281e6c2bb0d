//! The licence texts of what is linked into the agent: they must go where the binary goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::test;

/// Linked by the compiler, not by cargo.
const TOOLCHAIN: &str = "The Rust standard library: MIT OR Apache-2.0, https://github.com/rust-lang/rust\n\
    The GNU C library, linked statically: LGPL-2.1-or-later, https://sourceware.org/glibc;\n\
    to link another, change netpol's sources or the library and run `cargo xtask image`.\n";

/// Every package that the agent is made of, with its licence and the texts that it carries.
///
/// # Errors
/// cargo's, or a text can't be read.
pub(super) fn texts(machine: &str) -> Result<String> {
    let metadata = test::metadata(&["--filter-platform", &format!("{machine}-unknown-linux-gnu")])?;
    let wanted = linked(&metadata, "netpol-agent")?;
    let mut list = String::new();
    // Most packages carry the same texts.
    let mut by_text: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut packages: Vec<&Value> = array(&metadata["packages"])
        .filter(|package| wanted.contains(string(&package["id"])))
        // Ours are under LICENSE.
        .filter(|package| !package["source"].is_null())
        .collect();
    packages.sort_by_key(|package| (string(&package["name"]), string(&package["version"])));
    for package in packages {
        let name = format!("{} {}", string(&package["name"]), string(&package["version"]));
        list += &format!(
            "{name}: {}, {}\n",
            string(&package["license"]),
            string(&package["repository"])
        );
        let dir = Path::new(string(&package["manifest_path"])).parent();
        for text in carried(dir.context("a manifest has a directory")?)? {
            by_text.entry(text).or_default().insert(name.clone());
        }
    }
    let mut all = format!("{TOOLCHAIN}\n{list}");
    for (text, names) in by_text {
        let names: Vec<_> = names.into_iter().collect();
        all += &format!("\n---- {}\n\n{}\n", names.join(", "), text.trim());
    }
    Ok(all)
}

/// The ids of `root` and of everything that it links: its dependencies, and theirs, but for those that only build or test.
fn linked<'a>(metadata: &'a Value, root: &str) -> Result<BTreeSet<&'a str>> {
    let root = array(&metadata["packages"])
        .find(|package| package["name"] == root)
        .with_context(|| format!("cargo metadata knows no {root}"))?;
    let nodes: BTreeMap<&str, &Value> = array(&metadata["resolve"]["nodes"])
        .map(|node| (string(&node["id"]), node))
        .collect();
    let mut wanted = BTreeSet::new();
    let mut next = vec![string(&root["id"])];
    while let Some(id) = next.pop() {
        if !wanted.insert(id) {
            continue;
        }
        let node = nodes
            .get(id)
            .with_context(|| format!("cargo metadata resolves no {id}"))?;
        let normal =
            array(&node["deps"]).filter(|dep| array(&dep["dep_kinds"]).any(|kind| kind["kind"].is_null()));
        next.extend(normal.map(|dep| string(&dep["pkg"])));
    }
    Ok(wanted)
}

/// The licence texts in a package's directory.
fn carried(dir: &Path) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry
            .with_context(|| format!("reading {}", dir.display()))?
            .path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .to_uppercase();
        let is_text = [
            "LICENSE",
            "LICENCE",
            "COPYING",
            "COPYRIGHT",
            "NOTICE",
            "UNLICENSE",
        ]
        .iter()
        .any(|start| name.starts_with(start));
        if is_text && path.is_file() {
            let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            texts.push(String::from_utf8_lossy(&bytes).replace("\r\n", "\n"));
        }
    }
    texts.sort();
    Ok(texts)
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn string(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_builds_is_not_linked() {
        let metadata = serde_json::json!({
            "packages": [{"name": "a", "id": "a#1"}],
            "resolve": {"nodes": [
                {"id": "a#1", "deps": [
                    {"pkg": "b#1", "dep_kinds": [{"kind": null}]},
                    {"pkg": "c#1", "dep_kinds": [{"kind": "build"}]},
                    {"pkg": "d#1", "dep_kinds": [{"kind": "dev"}]},
                ]},
                {"id": "b#1", "deps": [{"pkg": "e#1", "dep_kinds": [{"kind": "build"}, {"kind": null}]}]},
                {"id": "e#1", "deps": []},
            ]},
        });
        let linked = linked(&metadata, "a").expect("complete");
        assert_eq!(linked, BTreeSet::from(["a#1", "b#1", "e#1"]));
    }
}
