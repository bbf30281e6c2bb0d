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

use clap::{
    Arg, ArgMatches, Command, CommandFactory as _, FromArgMatches as _, builder::Resettable,
    parser::ValueSource,
};

pub(super) use self::show::{Args, run};
use super::{BadInput, Cli};

/// The verbs that a file is read for.
const VERBS: [&str; 2] = ["run", "config"];
/// The verbs that change something, or tell what would: variables that they do not read are told.
const WARNED: [&str; 3] = ["run", "config", "cleanup"];
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

/// What the environment or a file says of one flag.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Given {
    /// As they would be typed.
    values: Vec<String>,
    /// As [`Effective`] has it.
    origin: String,
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

/// Parses the command line with what environment and file add to it. All mistakes of these two are told at once.
pub(super) fn parse(args: &[OsString], variables: &[(OsString, OsString)]) -> Result<Parsed, Refused> {
    let root = Cli::command();
    // Help, and what is no verb, are clap's.
    let Some((verb, typed)) = verb(&root, args) else {
        let matches = root.try_get_matches_from(args).map_err(Refused::Clap)?;
        let cli = Cli::from_arg_matches(&matches).map_err(Refused::Clap)?;
        return Ok(Parsed {
            cli,
            effective: Vec::new(),
            unread: Vec::new(),
        });
    };
    let mut mistakes = Vec::new();
    let reads_file = VERBS.contains(&verb.get_name());
    let run = root.find_subcommand("run").cloned().unwrap_or_default();
    let of_verb = verb.get_arguments().filter(|arg| arg.get_id() != "config");
    let global = root.get_arguments().filter(|arg| arg.is_global_set());
    let mut of_environment = environment::read(variables, of_verb.chain(global), &mut mistakes);
    let names = variables
        .iter()
        .filter_map(|(name, _)| name.to_str().map(str::to_owned));
    // A slip is one for every verb: `cleanup` with NETPOL_PINS would look in the wrong place and call it clean.
    let mut unread = environment::unread(names, &root, &mut mistakes);
    unread.retain(|_| WARNED.contains(&verb.get_name()));
    let mut given = BTreeMap::new();
    if reads_file {
        let path = path(args, variables);
        given = path
            .as_deref()
            .map(|path| file::read(path, &root, &run, &mut mistakes))
            .unwrap_or_default();
        one_source(
            &typed,
            &mut of_environment,
            &mut given,
            path.as_deref(),
            &mut mistakes,
        );
    }
    refuse(mistakes).map_err(Refused::Input)?;
    given.extend(of_environment);
    let with_defaults = with_defaults(root, verb.get_name(), &given);
    let matches = with_defaults
        .clone()
        .try_get_matches_from(args)
        .map_err(Refused::Clap)?;
    let cli = Cli::from_arg_matches(&matches).map_err(Refused::Clap)?;
    let effective = match reads_file {
        true => effective(&with_defaults, &run, &matches, &given),
        false => Vec::new(),
    };
    Ok(Parsed {
        cli,
        effective,
        unread,
    })
}

fn refuse(mistakes: Vec<String>) -> Result<(), BadInput> {
    match &*mistakes {
        [] => Ok(()),
        [one] => Err(BadInput(one.clone())),
        many => {
            let lines: String = many.iter().map(|mistake| format!("\n  {mistake}")).collect();
            Err(BadInput(format!("{} mistakes:{lines}", many.len())))
        }
    }
}

/// The verb and what is typed of its flags. Asked of clap: a namespace may be called `config`, too.
fn verb(root: &Command, args: &[OsString]) -> Option<(Command, ArgMatches)> {
    let without_variables = |command: Command| command.mut_args(without_variable);
    let mut lenient = without_variables(root.clone()).ignore_errors(true);
    for verb in root.get_subcommands() {
        lenient = lenient.mut_subcommand(verb.get_name(), without_variables);
    }
    let matches = lenient.try_get_matches_from(args).ok()?;
    let (name, typed) = matches.subcommand()?;
    Some((root.find_subcommand(name)?.clone(), typed.clone()))
}

/// We read it ourselves, to name it where it is wrong.
fn without_variable(arg: Arg) -> Arg {
    arg.env(Resettable::Reset)
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

/// The source of the highest rank counts: a flag, else a variable, else the file's. With its kubeconfig goes the context,
/// where a directory of a higher rank takes their place.
fn one_source(
    typed: &ArgMatches,
    of_environment: &mut BTreeMap<String, Given>,
    of_file: &mut BTreeMap<String, Given>,
    path: Option<&Path>,
    mistakes: &mut Vec<String>,
) {
    let is_typed = |source: &&str| typed.value_source(source) == Some(ValueSource::CommandLine);
    let mut above: Vec<&str> = SOURCES
        .iter()
        .filter(|source| is_typed(source))
        .copied()
        .collect();
    let path = path.unwrap_or(Path::new("")).display();
    let ranks = [
        (of_environment, "the environment".to_owned()),
        (of_file, format!("configuration {path}")),
    ];
    for (given, rank) in ranks {
        if !above.is_empty() {
            SOURCES.iter().for_each(|source| drop(given.remove(*source)));
            if above == ["manifests"] {
                given.remove("context");
            }
            continue;
        }
        above = SOURCES
            .iter()
            .filter(|source| given.contains_key(**source))
            .copied()
            .collect();
        if above.len() == SOURCES.len() {
            mistakes.push(format!(
                "{rank}: has both manifests and kubeconfig; help: keep the one that is meant"
            ));
        }
    }
}

/// `root` with what is given as defaults, so that only flags outrank it.
fn with_defaults(root: Command, verb: &str, given: &BTreeMap<String, Given>) -> Command {
    let set = |command: Command| {
        command.mut_args(|arg| match given.get(arg.get_id().as_str()) {
            Some(given) => {
                let values = given.values.clone();
                without_variable(arg).default_values(values).required(false)
            }
            None => without_variable(arg),
        })
    };
    set(root.mut_subcommand(verb, set))
}

fn effective(
    root: &Command,
    run: &Command,
    matches: &ArgMatches,
    given: &BTreeMap<String, Given>,
) -> Vec<Effective> {
    let Some((_, of_verb)) = matches.subcommand() else {
        return Vec::new();
    };
    let one = |arg: &Arg| {
        let id = arg.get_id().as_str();
        let raw = of_verb
            .get_raw(id)
            .into_iter()
            .flatten()
            .map(|value| value.to_string_lossy().into_owned());
        let origin = match of_verb.value_source(id) {
            Some(ValueSource::CommandLine) => "flag".to_owned(),
            _ => given.get(id).map_or("default", |given| &given.origin).to_owned(),
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
mod mistakes_tests;
#[cfg(test)]
mod tests;
