//! Ctrl-C: the run ends at its next step and cleans up; a second Ctrl-C, or ten seconds, cleans up from outside.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

use crate::net::{Owner, Residue};

static STOPPED: AtomicBool = AtomicBool::new(false);

/// The exit code of a run that a signal ended.
pub const CODE: u8 = 130;

/// Installs the handler for everything of `kind` that this process makes.
///
/// # Errors
/// The handler can not be installed.
pub fn install(kind: &'static str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime for signals")?;
    let _entered = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    drop(_entered);
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            STOPPED.store(true, Ordering::Relaxed);
            eprintln!("\nstopping: removing what was built");
            let _ = tokio::time::timeout(Duration::from_secs(10), interrupt.recv()).await;
        });
        let left = Owner::this_process().and_then(|owner| Residue::of(kind, owner));
        if let Err(error) = left.and_then(|left| left.remove()) {
            eprintln!("error: {error:#}");
        }
        std::process::exit(CODE.into());
    });
    Ok(())
}

/// Fails once a signal has come.
///
/// # Errors
/// A signal has come.
pub fn check() -> Result<()> {
    if stopped() {
        bail!("stopped");
    }
    Ok(())
}

/// Whether a signal has come.
#[must_use]
pub fn stopped() -> bool {
    STOPPED.load(Ordering::Relaxed)
}
