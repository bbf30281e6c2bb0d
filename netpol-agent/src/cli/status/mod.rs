//! `status`: what is enforced, as the agent last said and as the kernel says now.

mod text;

use std::{
    io::Write as _,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use netpol_common::ABI;
use serde::Serialize;

use self::text::text;
use super::{BadInput, Exit, Output, run::PIN};
use crate::datapath::{
    object::Pins,
    report::{Live, Report},
};

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where `run` has pinned.
    #[arg(long, env = "NETPOL_PIN", value_name = "DIR", default_value = PIN)]
    pin: PathBuf,

    /// How to print.
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

/// `-o json`
#[derive(Debug, Serialize)]
struct Status {
    /// What the agent wrote last.
    agent: Option<Report>,
    /// What is pinned.
    kernel: Live,
}

/// Exit 0: everything is in force; 1: something is not, be it that the manifests have errors, or no agent runs; 2: nothing
/// is pinned.
pub(super) fn run(args: &Args) -> anyhow::Result<Exit> {
    let pins = Pins::in_force(&args.pin)?;
    let pins = pins.unwrap_or_else(|| Pins::new(args.pin.join(format!("v{ABI}"))));
    let Some(kernel) = Live::read(&pins)? else {
        let pin = args.pin.display();
        return Err(BadInput(format!(
            "nothing is pinned below {pin}: no agent has run here, one waits for its first list (its log and /readyz say for what), \
             or --pin is another"
        ))
        .into());
    };
    let agent = match pins.report()? {
        Some(path) => Report::read(&path)?,
        None => None,
    };
    let well = kernel.running && agent.as_ref().is_some_and(Report::is_well);
    let status = Status { agent, kernel };
    let mut out = std::io::stdout().lock();
    match args.output {
        Output::Json => {
            serde_json::to_writer_pretty(&mut out, &status)?;
            writeln!(out)?;
        }
        Output::Text => out.write_all(text(&status, now()).as_bytes())?,
    }
    Ok(if well { Exit::Ok } else { Exit::No })
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
