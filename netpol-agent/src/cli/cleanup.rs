//! `cleanup`: removes everything that netpol has put on this machine.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use netpol_common::ABI;
use nix::sys::signal::{SigSet, Signal};

use super::{Exit, Output, count, run::PIN};
use crate::datapath::{Error, cleanup, kernel::Kernel, lock::Locks, object::Pins};

/// Arguments of `cleanup`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where `run` has pinned.
    #[arg(long, env = "NETPOL_PIN", value_name = "DIR", default_value = PIN)]
    pin: PathBuf,

    /// The network namespace that the pins are for is gone, and its devices with it.
    #[arg(long)]
    force: bool,

    /// When everything is gone, stay until a signal comes, and let no agent start meanwhile: for a DaemonSet, which starts
    /// again what ends.
    #[arg(long)]
    wait: bool,

    /// How to print.
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

/// From then on nothing is enforced.
pub(super) fn run(args: &Args) -> anyhow::Result<Exit> {
    if !args.wait {
        clean(args)?;
        return Ok(Exit::Ok);
    }
    // From before there is anything to lose: who sends a signal early is heard, too.
    let signals = ending();
    signals.thread_block().context("blocking signals")?;
    let hold = loop {
        clean(args)?;
        let hold = Hold::new(&args.pin)?;
        // An agent may have come and gone before the pins were ours.
        if hold.as_ref().is_none_or(Hold::is_empty) {
            break hold;
        }
    };
    let signal = signals.wait().context("waiting for a signal")?;
    tracing::info!(signal = signal.as_str(), "ended by a signal");
    if let Some(hold) = hold {
        hold.end();
    }
    Ok(Exit::Ok)
}

/// What can be removed is, and told, before what was not named is refused.
fn clean(args: &Args) -> anyhow::Result<()> {
    print(args, &cleanup::cleanup(&args.pin, args.force)?)?;
    cleanup::refuse_others(&args.pin)?;
    Ok(())
}

fn ending() -> SigSet {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals
}

/// The place where an agent would pin, taken as an agent takes it: one that starts is refused and says so.
struct Hold {
    root: PathBuf,
    _locks: Locks,
}

impl Hold {
    /// `None` where no agent could pin anything.
    fn new(root: &Path) -> anyhow::Result<Option<Self>> {
        match Kernel::probe(root) {
            Err(Error::NoBpffs(_)) => return Ok(None),
            other => other.map(drop)?,
        }
        let locks = Locks::take(&Pins::new(root.join(format!("v{ABI}"))))?;
        Ok(Some(Self {
            root: root.to_path_buf(),
            _locks: locks,
        }))
    }

    /// Whether nothing was pinned; what can't be read is taken for a pin.
    fn is_empty(&self) -> bool {
        Pins::versions(&self.root).is_ok_and(|trees| trees.is_empty())
    }

    /// Leaves nothing behind: not the directory that an agent makes before it is refused either.
    fn end(self) {
        // Somebody else's files in there stay, and so does the directory then.
        let _not_empty = fs::remove_dir(&self.root);
    }
}

fn print(args: &Args, removed: &cleanup::Removed) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if args.output == Output::Json {
        serde_json::to_writer_pretty(&mut out, removed)?;
        writeln!(out)?;
    } else if *removed == cleanup::Removed::default() {
        writeln!(out, "nothing of netpol's is below {}", args.pin.display())?;
    } else {
        writeln!(
            out,
            "removed {}, {}, {} and {}: nothing below {} is enforced any more",
            count(removed.attachments, "attachment", "attachments"),
            count(removed.programs, "program", "programs"),
            count(removed.maps, "map", "maps"),
            count(removed.files.len(), "file", "files"),
            args.pin.display()
        )?;
    }
    out.flush()?;
    Ok(())
}
