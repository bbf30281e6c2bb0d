//! What processes of a cluster leave when they are gone: cgroups, the directory, and the link if they are not quite gone.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    cgroups,
    record::{BASE, Process, Record, dir},
};
use crate::ui;

/// How long processes that were killed may take to end: with pods' network namespaces and mounts, on a machine that builds.
pub(super) const LIMIT: Duration = Duration::from_secs(60);

/// Removes everything of the cluster `name`; its supervisor is the caller or dead.
///
/// # Errors
/// Something can't be removed.
pub(super) fn remove(name: &str) -> Result<()> {
    let dir = dir(name);
    if let Ok(record) = Record::read(&dir) {
        end(record.init, Signal::SIGKILL, LIMIT)?;
    }
    remove_link(&format!("npc-{name}"))?;
    cgroups::remove(name)?;
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Removes the directory of all clusters where there is none.
pub(super) fn remove_base() {
    // It is not empty while there is another cluster.
    let _ = fs::remove_dir(BASE);
}

/// Ends a process and waits until it, and with it its PID namespace, is gone, at most for `limit`.
///
/// # Errors
/// It does not end.
pub(super) fn end(process: Process, signal: Signal, limit: Duration) -> Result<()> {
    let proc = Path::new("/proc");
    let start = Instant::now();
    if process.is_alive(proc) {
        match kill(Pid::from_raw(process.pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error).with_context(|| format!("ending process {}", process.pid)),
        }
    }
    while process.is_alive(proc) {
        if start.elapsed() > limit {
            bail!("process {} does not end", process.pid);
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The link goes with the cluster's network namespace, which the kernel removes a moment after its last process.
fn remove_link(link: &str) -> Result<()> {
    let path = PathBuf::from(format!("/sys/class/net/{link}"));
    if path.exists() {
        let mut ip = Command::new("ip");
        ip.args(["link", "delete", link]).env("PATH", ui::path());
        let done = ip.output().context("starting ip")?;
        if !done.status.success() && path.exists() {
            bail!(
                "removing the link {link}: {}",
                String::from_utf8_lossy(&done.stderr)
            );
        }
    }
    Ok(())
}
