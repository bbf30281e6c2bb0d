//! A configuration file: YAML whose keys are the long names of `run`'s flags.

use std::{collections::BTreeMap, path::Path};

use clap::{Arg, ArgAction, Command};

use super::Given;
use crate::source::{
    manifests,
    parse::{Entry, Node, Value, closest},
};

/// What is wrong, and on which line if not that of the key.
type Fault = (Option<u32>, String);

/// Reads the file for `run`'s and the global flags, by the flag's id. Each mistake is told.
pub(super) fn read(
    path: &Path,
    root: &Command,
    run: &Command,
    mistakes: &mut Vec<String>,
) -> BTreeMap<String, Given> {
    let shown = path.display();
    let entries = match entries(path) {
        Ok(entries) => entries,
        Err((line, message)) => {
            mistakes.push(format!("configuration {shown}{}: {message}", at(line)));
            return BTreeMap::new();
        }
    };
    let mut given = BTreeMap::new();
    for entry in &entries {
        let line = entry.line.map(Into::into);
        match one(entry, root, run) {
            Ok((id, values)) => {
                let origin = format!("file {shown}{}", at(line));
                given.insert(id, Given { values, origin });
            }
            Err(faults) => mistakes.extend(
                faults
                    .into_iter()
                    .map(|(own, message)| format!("configuration {shown}{}: {message}", at(own.or(line)))),
            ),
        }
    }
    given
}

fn entries(path: &Path) -> Result<Vec<Entry>, Fault> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| (None, format!("{error}; help: name a file that exists, or none")))?;
    match manifests::one(&text)?.map(|node| node.value) {
        None => Ok(Vec::new()),
        Some(Value::Map(entries)) => Ok(entries),
        Some(other) => Err((
            None,
            format!("is {other}, not a mapping of flags to values; help: write `node: NAME`, a line a flag"),
        )),
    }
}

/// The flag's id and its values, all of which the flag takes.
fn one(entry: &Entry, root: &Command, run: &Command) -> Result<(String, Vec<String>), Vec<Fault>> {
    let alone = |message| vec![(None, message)];
    let arg = find(&entry.key, root, run).map_err(alone)?;
    let values = values(arg, entry)?;
    let faults: Vec<Fault> = values
        .iter()
        .filter_map(|(value, line)| Some((*line, format!("`{}`: {}", entry.key, check(arg, value).err()?))))
        .collect();
    if faults.is_empty() {
        Ok((
            arg.get_id().to_string(),
            values.into_iter().map(|(value, _)| value).collect(),
        ))
    } else {
        Err(faults)
    }
}

fn at(line: Option<u32>) -> String {
    line.map_or_else(String::new, |line| format!(":{line}"))
}

/// The flags that a file may set.
pub(super) fn settable<'c>(root: &'c Command, run: &'c Command) -> impl Iterator<Item = &'c Arg> {
    let is = |arg: &&Arg| {
        arg.get_long()
            .is_some_and(|long| !matches!(long, "help" | "version" | "config" | "output"))
    };
    run.get_arguments()
        .chain(root.get_arguments().filter(|arg| arg.is_global_set()))
        .filter(is)
}

fn find<'c>(key: &str, root: &'c Command, run: &'c Command) -> Result<&'c Arg, String> {
    if let Some(arg) = settable(root, run).find(|arg| arg.get_long() == Some(key)) {
        return Ok(arg);
    }
    let names: Vec<&str> = settable(root, run).filter_map(Arg::get_long).collect();
    let underscored = key.replace('_', "-");
    let meant = names
        .iter()
        .find(|name| **name == underscored)
        .copied()
        .or_else(|| closest(key, &names));
    let other = root
        .get_subcommands()
        .find(|verb| verb.get_arguments().any(|arg| arg.get_long() == Some(key)));
    Err(match (meant, other) {
        // First, as it is written exactly like that: `force` is no slip of `once`.
        (_, Some(verb)) => format!(
            "`{key}` is a flag of `{}`, not of `run`; help: remove it",
            verb.get_name()
        ),
        (Some(name), None) => format!("there is no `{key}`; help: did you mean `{name}`?"),
        (None, None) => format!("there is no `{key}`; help: the keys are {}", names.join(", ")),
    })
}

/// The values as they would be typed, and their lines.
fn values(arg: &Arg, entry: &Entry) -> Result<Vec<(String, Option<u32>)>, Vec<Fault>> {
    let key = &entry.key;
    let many = matches!(arg.get_action(), ArgAction::Append);
    let line = |node: &Node| node.line.map(Into::into);
    let fault = |message: String| Err(vec![(None, message)]);
    match (&entry.value.value, arg.get_action()) {
        (Value::Twice, _) => fault(format!("`{key}` is given twice; help: remove one of them")),
        (Value::Null, _) => fault(format!(
            "`{key}` has no value; help: remove the line, or give it one"
        )),
        (Value::Bool(on, _), ArgAction::SetTrue) => Ok(vec![(on.to_string(), None)]),
        (other, ArgAction::SetTrue) => fault(format!("`{key}` is {other}; help: write true or false")),
        (Value::List(items), _) if many => all(items.iter().map(|item| {
            let text =
                scalar(item).map_err(|what| (line(item), format!("`{key}` has {what} in its list")))?;
            Ok((text, line(item)))
        })),
        (Value::Map(fields), _) if many && has_names(arg) => all(fields.iter().map(|field| {
            let at = field.line.map(Into::into);
            let text = scalar(&field.value).map_err(|what| (at, format!("`{key}` has {what} as a value")))?;
            Ok((format!("{}={text}", field.key), at))
        })),
        (value, _) => match value.text() {
            Some(text) => Ok(vec![(text.to_string(), None)]),
            None if many => fault(format!(
                "`{key}` is {value}; help: write a value or a list of values"
            )),
            None => fault(format!("`{key}` is {value}; help: write one value")),
        },
    }
}

fn scalar(node: &Node) -> Result<String, String> {
    let text = node.value.text();
    text.map(|text| text.to_string())
        .ok_or_else(|| node.value.to_string())
}

/// All values, or all faults.
fn all<T>(items: impl Iterator<Item = Result<T, Fault>>) -> Result<Vec<T>, Vec<Fault>> {
    let (mut values, mut faults) = (Vec::new(), Vec::new());
    for item in items {
        match item {
            Ok(value) => values.push(value),
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() {
        Ok(values)
    } else {
        Err(faults)
    }
}

/// Whether its values are `NAME=VALUE`, for which a file may write a mapping.
fn has_names(arg: &Arg) -> bool {
    let mut names = arg.get_value_names().unwrap_or_default().iter();
    names.any(|name| name.contains('='))
}

/// Whether the flag takes the value, by its own parser; else what is wrong with it, without the flag's name.
pub(super) fn check(arg: &Arg, value: &str) -> Result<(), String> {
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        return Ok(());
    }
    let typed = format!("--{}={value}", arg.get_long().unwrap_or_default());
    let mut alone = Command::new("file")
        .disable_help_flag(true)
        .arg(super::without_variable(arg.clone()).required(false));
    // An argument knows how it is shown only then.
    alone.build();
    let shown: String = alone.get_arguments().map(|arg| format!(" for '{arg}'")).collect();
    let Err(error) = alone.try_get_matches_from(["file".to_owned(), typed]) else {
        return Ok(());
    };
    let text = error.to_string().replace(&shown, "");
    let lines: Vec<&str> = text
        .lines()
        .map(|line| line.trim().trim_start_matches("error: "))
        .filter(|line| !line.is_empty() && !line.starts_with("For more"))
        .collect();
    Err(lines.join("; "))
}
