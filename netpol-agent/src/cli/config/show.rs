//! `config`: what `run` would run with, and why.

use std::io::Write as _;

use super::Effective;
use crate::cli::{Exit, Output, run};

/// Arguments of `config`.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    pub(in crate::cli) run: run::Args,

    /// How to print; text is a configuration file.
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

/// Prints the effective configuration.
pub(in crate::cli) fn run(args: Args, effective: &[Effective]) -> anyhow::Result<Exit> {
    // What `run` would refuse is no configuration.
    run::resolve(args.run)?;
    let mut out = std::io::stdout().lock();
    match args.output {
        Output::Json => {
            serde_json::to_writer_pretty(&mut out, effective)?;
            writeln!(out)?;
        }
        Output::Text => out.write_all(text(effective).as_bytes())?,
    }
    Ok(Exit::Ok)
}

/// A configuration file that says the same, each line with its origin.
pub(super) fn text(effective: &[Effective]) -> String {
    let lines: Vec<(String, &str)> = effective
        .iter()
        .map(|entry| (line(entry), entry.origin.as_str()))
        .collect();
    let width = lines
        .iter()
        .map(|(line, _)| line.chars().count())
        .max()
        .unwrap_or(0);
    lines
        .iter()
        .map(|(line, origin)| format!("{line:width$}  # {origin}\n"))
        .collect()
}

fn line(entry: &Effective) -> String {
    let key = &entry.key;
    match (&*entry.values, entry.many) {
        ([], true) => format!("{key}: []"),
        ([], false) => format!("# {key}: not set"),
        (values, true) => format!(
            "{key}: [{}]",
            values
                .iter()
                .map(|value| quoted(value))
                .collect::<Vec<_>>()
                .join(", ")
        ),
        (values, false) => format!("{key}: {}", quoted(&values[0])),
    }
}

/// Plain where no reader of YAML could take it for something else.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_' | '=');
    let begins = value.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/');
    let word = matches!(
        value.to_ascii_lowercase().as_str(),
        "y" | "n" | "yes" | "no" | "on" | "off" | "null"
    );
    if begins && value.chars().all(plain) && !word {
        return value.to_owned();
    }
    // A string of JSON is one of YAML.
    serde_json::Value::from(value).to_string()
}
