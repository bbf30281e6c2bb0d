//! A configuration file: YAML whose keys are the long names of `run`'s flags.

use std::{collections::BTreeMap, path::Path};

use clap::{Arg, ArgAction, Command};

use crate::{
    cli::BadInput,
    source::{
        manifests,
        parse::{Entry, Node, Value, closest},
    },
};

/// What a file says of one flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Given {
    /// As they would be typed.
    pub(super) values: Vec<String>,
    /// Where.
    pub(super) line: Option<u32>,
}

/// Reads the file for `run`'s and the global flags: by the flag's id.
pub(super) fn read(path: &Path, root: &Command, run: &Command) -> Result<BTreeMap<String, Given>, BadInput> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| {
        BadInput(format!(
            "configuration {shown}: {error}; help: name a file that exists, or none"
        ))
    })?;
    let node = manifests::one(&text)
        .map_err(|(line, message)| BadInput(format!("configuration {shown}{}: {message}", at(line))))?;
    let Some(node) = node else {
        return Ok(BTreeMap::new());
    };
    let Value::Map(entries) = &node.value else {
        return Err(BadInput(format!(
            "configuration {shown}: is {}, not a mapping of flags to values; help: write `node: NAME`, a line a flag",
            node.value
        )));
    };
    let mut given = BTreeMap::new();
    for entry in entries {
        let fault = |message: String| {
            BadInput(format!(
                "configuration {shown}{}: {message}",
                at(entry.line.map(Into::into))
            ))
        };
        let arg = find(&entry.key, root, run).map_err(fault)?;
        let values = values(arg, entry).map_err(fault)?;
        check(arg, &values).map_err(fault)?;
        let line = entry.line.map(Into::into);
        given.insert(arg.get_id().to_string(), Given { values, line });
    }
    Ok(given)
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

/// The values as they would be typed.
fn values(arg: &Arg, entry: &Entry) -> Result<Vec<String>, String> {
    let key = &entry.key;
    let many = matches!(arg.get_action(), ArgAction::Append);
    let scalar = |node: &Node| {
        node.value
            .text()
            .map(|text| text.to_string())
            .ok_or_else(|| node.value.to_string())
    };
    match (&entry.value.value, arg.get_action()) {
        (Value::Twice, _) => Err(format!("`{key}` is given twice; help: remove one of them")),
        (Value::Null, _) => Err(format!(
            "`{key}` has no value; help: remove the line, or give it one"
        )),
        (Value::Bool(on, _), ArgAction::SetTrue) => Ok(vec![on.to_string()]),
        (other, ArgAction::SetTrue) => Err(format!("`{key}` is {other}; help: write true or false")),
        (Value::List(items), _) if many => items
            .iter()
            .map(scalar)
            .collect::<Result<_, _>>()
            .map_err(|what| format!("`{key}` has {what} in its list")),
        (Value::Map(fields), _) if many && has_names(arg) => fields
            .iter()
            .map(|field| Ok(format!("{}={}", field.key, scalar(&field.value)?)))
            .collect::<Result<_, String>>()
            .map_err(|what| format!("`{key}` has {what} as a value")),
        (value, _) => value.text().map(|text| vec![text.to_string()]).ok_or_else(|| {
            let wanted = if many {
                "a value or a list of values"
            } else {
                "one value"
            };
            format!("`{key}` is {value}; help: write {wanted}")
        }),
    }
}

/// Whether its values are `NAME=VALUE`, for which a file may write a mapping.
fn has_names(arg: &Arg) -> bool {
    let mut names = arg.get_value_names().unwrap_or_default().iter();
    names.any(|name| name.contains('='))
}

/// Whether the flag takes the values, by its own parser.
fn check(arg: &Arg, values: &[String]) -> Result<(), String> {
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        return Ok(());
    }
    let long = arg.get_long().unwrap_or_default();
    let typed = values.iter().map(|value| format!("--{long}={value}"));
    let alone = Command::new("file")
        .disable_help_flag(true)
        .arg(arg.clone().required(false));
    match alone.try_get_matches_from(std::iter::once("file".to_owned()).chain(typed)) {
        Ok(_) => Ok(()),
        Err(error) => {
            let text = error.to_string();
            let mut lines = text
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty() && !line.starts_with("For more"));
            let first = lines
                .next()
                .unwrap_or_default()
                .trim_start_matches("error: ")
                .to_owned();
            Err(std::iter::once(first)
                .chain(lines.map(str::to_owned))
                .collect::<Vec<_>>()
                .join("; "))
        }
    }
}
