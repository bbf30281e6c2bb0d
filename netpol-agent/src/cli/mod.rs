//! The command line: one verb a file, each `run(&Args) -> anyhow::Result<Exit>`.
//!
//! To add a verb: a file with `pub(super) struct Args` (clap) and `pub(super) fn run`, a variant of
//! [`Command`] and its arm in [`dispatch`].

mod check;
mod cleanup;
mod config;
mod explain;
mod input;
mod matrix;
mod paint;
mod run;
mod status;
mod table;

use std::{
    fmt,
    io::{self, IsTerminal as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Parser, Subcommand, ValueEnum};

/// Enforces Kubernetes NetworkPolicy in the kernel, beside any veth CNI.
#[derive(Debug, Parser)]
#[command(name = "netpol-agent", version, after_help = EXIT_CODES)]
struct Cli {
    /// How to write the log (to standard error).
    #[arg(
        long,
        global = true,
        env = "NETPOL_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text"
    )]
    log_format: LogFormat,

    /// What to log: a level, or `target=level` pairs.
    #[arg(
        long,
        global = true,
        env = "NETPOL_LOG",
        value_name = "FILTER",
        default_value = "info",
        value_parser = log_filter
    )]
    log: String,

    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, allowed or no difference; 1 denied or a difference; \
    2 bad input or something missing on this machine; 3 an error of netpol's own.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Say all that is wrong with a directory of manifests, without enforcing it.
    Check(check::Args),
    /// Say whether X may reach Y, and which policies decide.
    Explain(explain::Args),
    /// Enforce the policies for the pods of this node.
    Run(run::Args),
    /// Print what `run` would run with, each value with its origin.
    Config(config::Args),
    /// Show what is enforced.
    Status(status::Args),
    /// Remove everything that netpol has put on this machine: nothing is enforced any more.
    Cleanup(cleanup::Args),
    /// Show who may reach whom, and by which policies.
    Matrix(matrix::Args),
}

fn dispatch(command: Command, effective: &[config::Effective]) -> anyhow::Result<Exit> {
    match command {
        Command::Config(args) => config::run(args, effective),
        Command::Check(args) => check::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Run(args) => run::run(args),
        Command::Status(args) => status::run(&args),
        Command::Cleanup(args) => cleanup::run(&args),
        Command::Matrix(args) => matrix::run(&args),
    }
}

/// How a verb ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done; allowed; no difference.
    Ok = 0,
    /// Denied; a difference.
    No = 1,
    /// Bad input, or something that this machine lacks.
    BadInput = 2,
    /// An error of our own.
    Own = 3,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Marks an error as the user's or the machine's ([`Exit::BadInput`]): `.context(BadInput("…"))` or
/// `bail!(BadInput("…"))`. Errors without this mark end with [`Exit::Own`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadInput(
    /// What is wrong and what to do.
    pub String,
);

impl fmt::Display for BadInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadInput {}

/// `-o`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// `--manifests DIR`, for every verb that reads one.
#[derive(Clone, Debug, clap::Args)]
pub struct Manifests {
    /// Directory of YAML and JSON manifests, read with all its subdirectories.
    #[arg(long = "manifests", env = "NETPOL_MANIFESTS", value_name = "DIR")]
    pub dir: PathBuf,
}

/// `1 policy`, `2 policies`
fn count(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// Parses the arguments and runs the verb; clap itself ends usage errors with exit code 2.
#[must_use]
pub fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    let variables: Vec<_> = std::env::vars_os().collect();
    let config::Parsed {
        cli,
        effective,
        unread,
    } = match config::parse(&args, &variables) {
        Ok(parsed) => parsed,
        Err(config::Refused::Clap(error)) => error.exit(),
        Err(config::Refused::Input(error)) => {
            eprintln!("error: {error}");
            return Exit::BadInput.into();
        }
    };
    start_log(&cli);
    for name in unread {
        tracing::warn!("the environment has {name}, which is not read");
    }
    match dispatch(cli.command, &effective) {
        Ok(exit) => exit.into(),
        Err(error) if is_broken_pipe(&error) => Exit::Ok.into(),
        Err(error) => {
            eprintln!("error: {error:#}");
            exit_of(&error).into()
        }
    }
}

fn exit_of(error: &anyhow::Error) -> Exit {
    // `downcast_ref` also sees a `BadInput` that was attached as context.
    let missing = |cause: &(dyn std::error::Error + 'static)| {
        cause
            .downcast_ref::<crate::datapath::Error>()
            .is_some_and(crate::datapath::Error::is_environment)
    };
    if error.downcast_ref::<BadInput>().is_some()
        || error
            .chain()
            .any(|cause| cause.is::<BadInput>() || missing(cause))
    {
        Exit::BadInput
    } else {
        Exit::Own
    }
}

/// The reader of our output went away (`| head`): nobody is left to be told.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = |cause: &(dyn std::error::Error + 'static)| match cause.downcast_ref::<serde_json::Error>() {
        // Does not give the error of the writer as its source.
        Some(error) => error.io_error_kind(),
        None => cause.downcast_ref::<io::Error>().map(io::Error::kind),
    };
    error
        .chain()
        .any(|cause| kind(cause) == Some(io::ErrorKind::BrokenPipe))
}

/// Refuses what [`start_log`] could not use.
fn log_filter(text: &str) -> Result<String, String> {
    match tracing_subscriber::EnvFilter::builder().parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("{error}; help: try `info` or `netpol_agent=debug`")),
    }
}

fn start_log(cli: &Cli) {
    // What kube logs of failures we say ourselves, with what follows; `--log kube_client=debug` brings it back.
    let filter = format!("kube_client=off,kube_runtime=off,{}", cli.log);
    // Its directives were read one by one before.
    let filter = tracing_subscriber::EnvFilter::builder().parse_lossy(filter);
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    match cli.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_reader_that_went_away_is_no_error() {
        struct Gone;
        impl io::Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let json = serde_json::to_writer(Gone, "x").unwrap_err();
        let plain: io::Error = io::ErrorKind::BrokenPipe.into();
        assert!(is_broken_pipe(&anyhow::Error::from(json).context("printing")));
        assert!(is_broken_pipe(&anyhow::Error::from(plain).context("printing")));
        assert!(!is_broken_pipe(&anyhow::anyhow!("bug")));
    }

    #[test]
    fn bad_input_is_found_at_any_depth() {
        let inner: anyhow::Result<()> = Err(BadInput("no such file".into())).context("reading");
        let outer: anyhow::Result<()> = Err(anyhow::anyhow!("os error"))
            .context(BadInput("need root".into()))
            .context("loading");
        assert_eq!(exit_of(&inner.unwrap_err()), Exit::BadInput);
        assert_eq!(exit_of(&outer.unwrap_err()), Exit::BadInput);
        assert_eq!(exit_of(&anyhow::anyhow!("bug")), Exit::Own);
    }
}
