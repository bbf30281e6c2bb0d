//! Variables that begin with `NETPOL_` and mean nothing.

use clap::Command;

use super::file::settable;
use crate::{cli::BadInput, source::parse::closest};

/// Variables of the project's own tests and build.
const OTHERS: [&str; 5] = [
    "NETPOL_CONFIG",
    "NETPOL_AGENT",
    "NETPOL_EBPF_OBJECT",
    "NETPOL_NIGHTLY",
    "NETPOL_SEED",
];

/// Refuses a variable that is nearly one of ours, and returns all others that nobody reads. (A Service named
/// `netpol` puts variables into every pod of its namespace: `NETPOL_SERVICE_HOST`, `NETPOL_PORT_9478_TCP`.)
pub(super) fn check(
    names: impl Iterator<Item = String>,
    root: &Command,
    run: &Command,
) -> Result<Vec<String>, BadInput> {
    let known: Vec<&str> = settable(root, run)
        .filter_map(|arg| arg.get_env()?.to_str())
        .chain(OTHERS)
        .collect();
    let mut unread = Vec::new();
    let mut names: Vec<String> = names
        .filter(|name| name.starts_with("NETPOL_") && !is_service_link(name))
        .collect();
    names.sort_unstable();
    for name in names.into_iter().filter(|name| !known.contains(&name.as_str())) {
        if let Some(meant) = meant(&name, &known) {
            return Err(BadInput(format!(
                "the environment has {name}, which is not read; help: did you mean {meant}?"
            )));
        }
        unread.push(name);
    }
    Ok(unread)
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

    fn found(names: &[&str]) -> Result<Vec<String>, String> {
        let root = Cli::command();
        let run = root.find_subcommand("run").unwrap().clone();
        check(names.iter().map(|name| (*name).to_owned()), &root, &run).map_err(|error| error.0)
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
        assert_eq!(found(&links), Ok(vec![]));
        assert_eq!(
            found(&["NETPOL_NODE", "NETPOL_LOG", "NETPOL_CONFIG", "PATH"]),
            Ok(vec![])
        );
        // Of this repository's tests, which run the agent.
        for name in ["NETPOL_SLOW", "NETPOL_CASES", "NETPOL_EXAMPLES"] {
            assert_eq!(found(&[name]), Ok(vec![name.to_owned()]));
        }
        assert_eq!(
            found(&["NETPOL_WHATEVER"]),
            Ok(vec!["NETPOL_WHATEVER".to_owned()])
        );
        assert_eq!(
            found(&["NETPOL_UNKNOWN_POD"]),
            Err("the environment has NETPOL_UNKNOWN_POD, which is not read; help: did you mean NETPOL_UNKNOWN_PODS?".to_owned())
        );
    }
}
