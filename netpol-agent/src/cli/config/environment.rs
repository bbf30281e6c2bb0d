//! Variables that begin with `NETPOL_`: what they say of flags, and those that mean nothing.

use std::{collections::BTreeMap, ffi::OsString};

use clap::{Arg, ArgAction, Command};

use super::{Given, file::check};
use crate::source::parse::closest;

/// Variables of the project's own tests and build.
const OTHERS: [&str; 5] = [
    "NETPOL_CONFIG",
    "NETPOL_AGENT",
    "NETPOL_EBPF_OBJECT",
    "NETPOL_NIGHTLY",
    "NETPOL_SEED",
];

/// What the variables say of `args`, by the flag's id. An empty variable is an empty list where a list belongs, and as if
/// it were not there otherwise.
pub(super) fn read<'c>(
    variables: &[(OsString, OsString)],
    args: impl Iterator<Item = &'c Arg>,
    mistakes: &mut Vec<String>,
) -> BTreeMap<String, Given> {
    let mut given = BTreeMap::new();
    for arg in args {
        let Some(name) = arg.get_env() else { continue };
        let Some((_, value)) = variables.iter().find(|(known, _)| known == name) else {
            continue;
        };
        let name = name.to_string_lossy();
        match values(arg, value) {
            Ok(Some(values)) => {
                let origin = format!("environment {name}");
                given.insert(arg.get_id().to_string(), Given { values, origin });
            }
            Ok(None) => {}
            Err(faults) => mistakes.extend(faults.into_iter().map(|fault| format!("{name}: {fault}"))),
        }
    }
    given
}

/// The values as they would be typed; `None` where the variable says nothing.
fn values(arg: &Arg, value: &OsString) -> Result<Option<Vec<String>>, Vec<String>> {
    let Some(text) = value.to_str() else {
        return Err(vec![format!("{} is not UTF-8", value.display())]);
    };
    match arg.get_action() {
        ArgAction::Append => {
            let values: Vec<String> = match arg.get_value_delimiter() {
                _ if text.is_empty() => Vec::new(),
                Some(delimiter) => text.split(delimiter).map(str::to_owned).collect(),
                None => vec![text.to_owned()],
            };
            let faults: Vec<String> = values
                .iter()
                .filter_map(|value| check(arg, value).err())
                .collect();
            if faults.is_empty() {
                Ok(Some(values))
            } else {
                Err(faults)
            }
        }
        _ if text.is_empty() => Ok(None),
        ArgAction::SetTrue if !matches!(text, "true" | "false") => {
            Err(vec![format!("invalid value '{text}'; help: write true or false")])
        }
        _ => check(arg, text)
            .map(|()| Some(vec![text.to_owned()]))
            .map_err(|fault| vec![fault]),
    }
}

/// Finds variables that are nearly one of ours, which are mistakes, and returns all others that nobody reads. (A Service
/// named `netpol` puts variables into every pod of its namespace: `NETPOL_SERVICE_HOST`, `NETPOL_PORT_9478_TCP`.)
pub(super) fn unread(
    names: impl Iterator<Item = String>,
    root: &Command,
    mistakes: &mut Vec<String>,
) -> Vec<String> {
    // Of every verb: a variable that another verb reads is no slip.
    let known: Vec<&str> = root
        .get_subcommands()
        .flat_map(Command::get_arguments)
        .chain(root.get_arguments())
        .filter_map(|arg| arg.get_env()?.to_str())
        .chain(OTHERS)
        .collect();
    let mut unread = Vec::new();
    let mut names: Vec<String> = names
        .filter(|name| name.starts_with("NETPOL_") && !is_service_link(name))
        .collect();
    names.sort_unstable();
    for name in names.into_iter().filter(|name| !known.contains(&name.as_str())) {
        match meant(&name, &known) {
            Some(meant) => mistakes.push(format!(
                "the environment has {name}, which is not read; help: did you mean {meant}?"
            )),
            None => unread.push(name),
        }
    }
    unread
}

/// Compared without what all have in common, or two letters of a short name would be nothing: `NETPOL_SLOW` is no
/// slip of `NETPOL_LOG`.
fn meant<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let end = |name: &'k str| name.strip_prefix("NETPOL_");
    let ends: Vec<&str> = known.iter().filter_map(|name| end(name)).collect();
    let closest = closest(name.strip_prefix("NETPOL_")?, &ends)?;
    known.iter().find(|name| end(name) == Some(closest)).copied()
}

/// Kubernetes' variables for a Service, and Docker's for a link.
fn is_service_link(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let port = |rest: &str| {
        let mut parts = rest.split('_').skip(1);
        let (number, protocol) = (parts.next(), parts.next());
        rest.is_empty() || number.is_some_and(is_number) && matches!(protocol, Some("TCP" | "UDP" | "SCTP"))
    };
    name.contains("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name
            .match_indices("_PORT")
            .any(|(at, word)| port(&name[at + word.len()..]))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    fn found(names: &[&str]) -> (Vec<String>, Vec<String>) {
        let root = Cli::command();
        let mut mistakes = Vec::new();
        let names = names.iter().map(|name| (*name).to_owned());
        (unread(names, &root, &mut mistakes), mistakes)
    }

    #[test]
    fn slips_are_refused_and_services_are_not() {
        let links = [
            "NETPOL_SERVICE_HOST",
            "NETPOL_AGENT_SERVICE_PORT_METRICS",
            "NETPOL_PORT",
            "NETPOL_PORT_9478_TCP",
            "NETPOL_PORT_9478_TCP_ADDR",
        ];
        assert_eq!(found(&links), (vec![], vec![]));
        assert_eq!(
            found(&["NETPOL_NODE", "NETPOL_LOG", "NETPOL_CONFIG", "PATH"]),
            (vec![], vec![])
        );
        // Of this repository's tests, which run the agent.
        for name in ["NETPOL_SLOW", "NETPOL_CASES", "NETPOL_EXAMPLES"] {
            assert_eq!(found(&[name]), (vec![name.to_owned()], vec![]));
        }
        let slip = |name: &str, meant: &str| {
            format!("the environment has {name}, which is not read; help: did you mean {meant}?")
        };
        assert_eq!(
            found(&["NETPOL_WHATEVER", "NETPOL_UNKNOWN_POD", "NETPOL_QUOTAS"]),
            (
                vec!["NETPOL_WHATEVER".to_owned()],
                vec![
                    slip("NETPOL_QUOTAS", "NETPOL_QUOTA"),
                    slip("NETPOL_UNKNOWN_POD", "NETPOL_UNKNOWN_PODS")
                ]
            )
        );
    }
}
