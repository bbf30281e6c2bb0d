//! A directory of manifests as a source: found, read, joined and watched.
//!
//! Every `*.yaml`, `*.yml` and `*.json` beneath it counts, in byte order of the paths; hidden files and
//! directories do not. Files may hold several documents and lists. A file that a live edit breaks stays in
//! force as it was.

mod builder;
mod files;
mod json;
mod scalar;
mod store;
#[cfg(test)]
mod tests;
mod version;
mod view;
mod watch;
mod yaml;

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{
    Loaded,
    intern::Interner,
    parse::{Entry, Node, Value},
};
use store::Store;
pub use watch::Watcher;

/// Why a directory can not be used at all.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It can not be read.
    #[error("reading the directory of manifests {}: {error}; help: name a directory that exists and is readable", .dir.display())]
    Directory {
        /// Which.
        dir: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It can not be watched.
    #[error("watching the directory of manifests {}: {error}; help: raise fs.inotify.max_user_instances", .dir.display())]
    Watch {
        /// Which.
        dir: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// Every object of `dir` as it is written, in order, lists taken apart; for readers of kinds that are no source's.
/// Nothing is checked: what is wrong is [`load`]'s to say, and what can not be read is left out.
///
/// # Errors
/// The directory itself can not be read.
pub fn objects(dir: &Path) -> Result<Vec<(PathBuf, Node)>, LoadError> {
    let found = files::find(dir, &mut |_| None).map_err(|error| LoadError::Directory {
        dir: dir.to_owned(),
        error,
    })?;
    let (mut objects, mut interner) = (Vec::new(), Interner::default());
    for path in found.files.keys().map(PathBuf::from) {
        let Ok(text) = files::read(&path) else { continue };
        let mut of = None;
        yaml::documents(&text, &mut interner, |item, _| match item {
            yaml::Item::Document(node) => flatten(&path, node, &mut objects),
            yaml::Item::List(list) => of = Some(list),
            yaml::Item::Element(node) => {
                let node = of.as_ref().map_or(node.clone(), |list| typed(node, list));
                flatten(&path, node, &mut objects);
            }
            yaml::Item::Broken(_) => {}
        });
    }
    Ok(objects)
}

/// The one document of `text`; `None` where it is empty. An error is a line and what is wrong there.
pub(crate) fn one(text: &str) -> Result<Option<Node>, (Option<u32>, String)> {
    let (mut found, mut broken) = (Vec::new(), None);
    yaml::documents(text, &mut Interner::default(), |item, _| match item {
        yaml::Item::Document(node) | yaml::Item::List(node) | yaml::Item::Element(node) => found.push(node),
        yaml::Item::Broken(syntax) => drop(broken.get_or_insert((
            syntax.line.map(Into::into),
            format!("{}; help: {}", syntax.message, syntax.help),
        ))),
    });
    match (broken, found.len()) {
        (Some(broken), _) => Err(broken),
        (None, 0 | 1) => Ok(found.pop()),
        (None, _) => Err((
            found[1].line.map(Into::into),
            "a second document; help: keep one".to_owned(),
        )),
    }
}

fn flatten(path: &Path, node: Node, objects: &mut Vec<(PathBuf, Node)>) {
    let kind = node.field("kind").and_then(|kind| kind.value.text());
    match node.field("items").map(|items| &items.value) {
        Some(Value::List(items)) if kind.is_some_and(|kind| kind.ends_with("List")) => {
            let items = items.iter().map(|item| typed(item.clone(), &node));
            items.for_each(|item| flatten(path, item, objects));
        }
        _ => objects.push((path.to_owned(), node)),
    }
}

/// Items of a `PodList` and its like need not say what they are.
fn typed(mut item: Node, list: &Node) -> Node {
    let kind = list.field("kind").and_then(|kind| kind.value.text());
    let kind = kind.as_deref().and_then(|kind| kind.strip_suffix("List"));
    let missing = item.field("kind").is_none();
    if let (Some(kind), Value::Map(entries), true) =
        (kind.filter(|kind| !kind.is_empty()), &mut item.value, missing)
    {
        let line = item.line;
        let field = |key: &str, value: Value| Entry {
            key: key.into(),
            line,
            value: Node { value, line },
        };
        entries.push(field("kind", Value::String(kind.into())));
        if let Some(version) = list.field("apiVersion") {
            entries.push(field("apiVersion", version.value.clone()));
        }
    }
    item
}

/// Reads `dir` once.
pub fn load(dir: &Path) -> Result<Loaded, LoadError> {
    let mut store = Store::new(dir);
    match store.scan(&mut |_| None) {
        Ok(_) => Ok(Loaded {
            snapshot: store.snapshot(),
            problems: store.problems().to_vec(),
        }),
        Err(error) => Err(LoadError::Directory {
            dir: dir.to_owned(),
            error,
        }),
    }
}
