//! Ctrl-C: the case under way ends at its next step, what it made is removed, and the run ends with 130.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static STOPPED: AtomicBool = AtomicBool::new(false);

/// The exit code of a run that a signal ended.
pub(crate) const CODE: u8 = 130;

extern "C" fn note(_: nix::libc::c_int) {
    STOPPED.store(true, Ordering::Relaxed);
}

/// Installs the handler.
///
/// # Errors
/// The kernel does not want it.
pub(crate) fn install() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler stores one atomic flag, which is safe in a signal handler.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("handling {signal}"))?;
    }
    Ok(())
}

/// Whether a signal came.
pub(crate) fn stopped() -> bool {
    STOPPED.load(Ordering::Relaxed)
}

/// Fails once a signal came.
///
/// # Errors
/// One came.
pub(crate) fn check() -> Result<()> {
    if stopped() {
        bail!("stopped by a signal");
    }
    Ok(())
}
