//! `status`: what is enforced, as the agent last said and as the kernel says now.

mod text;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use netpol_common::ABI;
use serde::Serialize;

use self::text::text;
use super::{
    BadInput, Exit, Output,
    run::{PIN, STATE},
};
use crate::datapath::{
    object::Pins,
    report::{Live, Report},
    waiting::{self, Waiting},
};

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where `run` has pinned.
    #[arg(long, env = "NETPOL_PIN", value_name = "DIR", default_value = PIN)]
    pin: PathBuf,

    /// Where an agent that waits keeps its files, if not where the one before did.
    #[arg(long, env = "NETPOL_STATE", value_name = "DIR", default_value = STATE)]
    state: PathBuf,

    /// How to print.
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

/// `-o json`
#[derive(Debug, Serialize)]
struct Status {
    /// What the agent wrote last that has brought anything in force.
    agent: Option<Report>,
    /// Agents of which nothing is in force yet.
    waiting: Vec<Waiting>,
    /// What is pinned.
    kernel: Option<Live>,
}

/// Exit 0: everything is in force; 1: something is not, be it that the manifests have errors, or no agent runs; 2: nothing
/// is pinned.
pub(super) fn run(args: &Args) -> anyhow::Result<Exit> {
    let pins = Pins::in_force(&args.pin)?;
    let pins = pins.unwrap_or_else(|| Pins::new(args.pin.join(format!("v{ABI}"))));
    let kernel = Live::read(&pins)?;
    let path = kernel.as_ref().map(|_| pins.report()).transpose()?.flatten();
    let waiting = waiting(args, path.as_deref())?;
    if kernel.is_none() && waiting.is_empty() {
        let pin = args.pin.display();
        return Err(BadInput(format!(
            "nothing is pinned below {pin}, and no agent waits: none has run here, or --pin or --state is another"
        ))
        .into());
    }
    let agent = path.map(|path| Report::read(&path)).transpose()?.flatten();
    let exit = match &kernel {
        None => Exit::BadInput,
        Some(kernel) if kernel.running && agent.as_ref().is_some_and(Report::is_well) => Exit::Ok,
        Some(_) => Exit::No,
    };
    let status = Status {
        agent,
        waiting,
        kernel,
    };
    let mut out = std::io::stdout().lock();
    match args.output {
        Output::Json => {
            serde_json::to_writer_pretty(&mut out, &status)?;
            writeln!(out)?;
        }
        Output::Text => out.write_all(text(&status, now()).as_bytes())?,
    }
    Ok(exit)
}

/// Who waits, by what is in `--state` and in the directory of the last `report`.
fn waiting(args: &Args, report: Option<&Path>) -> anyhow::Result<Vec<Waiting>> {
    let pin = std::path::absolute(&args.pin)?;
    let mut found = waiting::all(&args.state, &pin)?;
    if let Some(other) = report.and_then(Path::parent).filter(|other| *other != args.state) {
        found.extend(waiting::all(other, &pin)?);
    }
    Ok(found)
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
