//! `cleanup`: removes everything that netpol has put on this machine.

use std::{io::Write as _, path::PathBuf};

use super::{Exit, Output, count, run::PIN};
use crate::datapath::cleanup;

/// Arguments of `cleanup`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where `run` has pinned.
    #[arg(long, env = "NETPOL_PIN", value_name = "DIR", default_value = PIN)]
    pin: PathBuf,

    /// The network namespace that the pins are for is gone, and its devices with it.
    #[arg(long)]
    force: bool,

    /// How to print.
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

/// From then on nothing is enforced.
pub(super) fn run(args: &Args) -> anyhow::Result<Exit> {
    let removed = cleanup::cleanup(&args.pin, args.force)?;
    let mut out = std::io::stdout().lock();
    if args.output == Output::Json {
        serde_json::to_writer_pretty(&mut out, &removed)?;
        writeln!(out)?;
    } else if removed == cleanup::Removed::default() {
        writeln!(out, "nothing of netpol's is below {}", args.pin.display())?;
    } else {
        writeln!(
            out,
            "removed {}, {}, {} and {}: no policy is enforced any more",
            count(removed.attachments, "attachment", "attachments"),
            count(removed.programs, "program", "programs"),
            count(removed.maps, "map", "maps"),
            count(removed.files.len(), "file", "files")
        )?;
    }
    Ok(Exit::Ok)
}
