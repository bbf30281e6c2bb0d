//! Flags, environment and file say the same: one definition (clap's), three ways to it.
//!
//! Flags outrank the environment, which outranks the file, which outranks the defaults. What the file says becomes the
//! flags' defaults before the command line is parsed, so that a new flag needs no code here.

mod environment;
mod file;
mod show;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
};

use clap::{ArgMatches, Command, CommandFactory as _, FromArgMatches as _, parser::ValueSource};

use self::file::Given;
pub(super) use self::show::{Args, run};
use super::{BadInput, Cli};

/// The verbs that a file is read for.
const VERBS: [&str; 2] = ["run", "config"];
/// Each says where objects come from: the one of the highest rank counts.
const SOURCES: [&str; 2] = ["manifests", "kubeconfig"];
const CONFIG: &str = "NETPOL_CONFIG";

/// One flag's value and where it is from.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(super) struct Effective {
    /// Its long name.
    pub(super) key: String,
    /// As they would be typed; none where it is not set.
    pub(super) values: Vec<String>,
    /// `flag`, `environment NETPOL_X`, `file PATH:LINE` or `default`.
    pub(super) origin: String,
    /// It may have many.
    #[serde(skip)]
    pub(super) many: bool,
}

/// The command line, and what of it is in effect where a file may have a say.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) cli: Cli,
    pub(super) effective: Vec<Effective>,
    /// Variables that look like ours and are not read.
    pub(super) unread: Vec<String>,
}

/// Why there is no command line.
#[derive(Debug)]
pub(super) enum Refused {
    /// clap has words for it, which may be its help.
    Clap(clap::Error),
    /// The file or the environment is wrong.
    Input(BadInput),
}

/// Parses the command line with what environment and file add to it.
pub(super) fn parse(args: &[OsString], variables: &[(OsString, OsString)]) -> Result<Parsed, Refused> {
    let root = Cli::command();
    let Some(verb) = verb(&root, args) else {
        let matches = root.try_get_matches_from(args).map_err(Refused::Clap)?;
        let cli = Cli::from_arg_matches(&matches).map_err(Refused::Clap)?;
        return Ok(Parsed {
            cli,
            effective: Vec::new(),
            unread: Vec::new(),
        });
    };
    let run = root.find_subcommand("run").cloned().unwrap_or_default();
    let names = variables
        .iter()
        .filter_map(|(name, _)| name.to_str().map(str::to_owned));
    let unread = environment::check(names, &root, &run).map_err(Refused::Input)?;
    let path = path(args, variables);
    let mut given = match &path {
        Some(path) => file::read(path, &root, &run).map_err(Refused::Input)?,
        None => BTreeMap::new(),
    };
    one_source(&mut given, args, variables, path.as_deref()).map_err(Refused::Input)?;
    let with_file = with_defaults(root, verb, &given);
    let matches = with_file
        .clone()
        .try_get_matches_from(args)
        .map_err(Refused::Clap)?;
    let cli = Cli::from_arg_matches(&matches).map_err(Refused::Clap)?;
    let effective = effective(&with_file, &run, &matches, &given, path.as_deref());
    Ok(Parsed {
        cli,
        effective,
        unread,
    })
}

/// The verb, where it is one that reads a file. Asked of clap: a namespace may be called `config`, too.
fn verb(root: &Command, args: &[OsString]) -> Option<&'static str> {
    let matches = root.clone().ignore_errors(true).try_get_matches_from(args).ok()?;
    VERBS
        .into_iter()
        .find(|verb| Some(*verb) == matches.subcommand_name())
}

/// The configuration file: by the flag, else by the environment.
fn path(args: &[OsString], variables: &[(OsString, OsString)]) -> Option<PathBuf> {
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--config" {
            return args.next().map(PathBuf::from);
        }
        if let Some(path) = arg.to_str().and_then(|arg| arg.strip_prefix("--config=")) {
            return Some(path.into());
        }
    }
    let variable = variables
        .iter()
        .find(|(name, value)| name == CONFIG && !value.is_empty());
    variable.map(|(_, value)| value.into())
}

/// A source of the file gives way to one of the command line or the environment.
fn one_source(
    given: &mut BTreeMap<String, Given>,
    args: &[OsString],
    variables: &[(OsString, OsString)],
    path: Option<&Path>,
) -> Result<(), BadInput> {
    if SOURCES.iter().all(|source| given.contains_key(*source)) {
        let path = path.unwrap_or(Path::new("")).display();
        return Err(BadInput(format!(
            "configuration {path}: has both manifests and kubeconfig; help: keep the one that is meant"
        )));
    }
    let typed = |source: &str| {
        let flag = format!("--{source}");
        args.iter()
            .filter_map(|arg| arg.to_str())
            .any(|arg| arg.split('=').next() == Some(&flag))
            || variables.iter().any(|(name, value)| {
                name == format!("NETPOL_{}", source.to_uppercase()).as_str() && !value.is_empty()
            })
    };
    if SOURCES.into_iter().any(typed) {
        SOURCES.iter().for_each(|source| drop(given.remove(*source)));
    }
    if typed("manifests") && !typed("kubeconfig") {
        // It chooses from the kubeconfig, which has given way.
        given.remove("context");
    }
    Ok(())
}

/// `root` with the file's values as defaults.
fn with_defaults(root: Command, verb: &str, given: &BTreeMap<String, Given>) -> Command {
    let set = |mut command: Command| {
        let ids: Vec<String> = command
            .get_arguments()
            .map(|arg| arg.get_id().to_string())
            .collect();
        for id in ids {
            if let Some(given) = given.get(&id) {
                let values = given.values.clone();
                command = command.mut_arg(id, |arg| arg.default_values(values).required(false));
            }
        }
        command
    };
    set(root.mut_subcommand(verb, set))
}

fn effective(
    root: &Command,
    run: &Command,
    matches: &ArgMatches,
    given: &BTreeMap<String, Given>,
    path: Option<&Path>,
) -> Vec<Effective> {
    let Some((_, of_verb)) = matches.subcommand() else {
        return Vec::new();
    };
    let one = |arg: &clap::Arg| {
        let id = arg.get_id().as_str();
        let raw = of_verb
            .get_raw(id)
            .into_iter()
            .flatten()
            .map(|value| value.to_string_lossy().into_owned());
        let origin = match of_verb.value_source(id) {
            Some(ValueSource::CommandLine) => "flag".to_owned(),
            Some(ValueSource::EnvVariable) => {
                format!(
                    "environment {}",
                    arg.get_env().unwrap_or_default().to_string_lossy()
                )
            }
            _ => match (given.get(id), path) {
                (Some(given), Some(path)) => {
                    let line = given.line.map_or_else(String::new, |line| format!(":{line}"));
                    format!("file {}{line}", path.display())
                }
                _ => "default".to_owned(),
            },
        };
        let values: Vec<String> = match arg.get_action() {
            clap::ArgAction::SetTrue => vec![of_verb.get_flag(id).to_string()],
            _ => raw.collect(),
        };
        Effective {
            key: arg.get_long().unwrap_or_default().to_owned(),
            values,
            origin,
            many: matches!(arg.get_action(), clap::ArgAction::Append),
        }
    };
    file::settable(root, run).map(one).collect()
}

#[cfg(test)]
mod tests;
