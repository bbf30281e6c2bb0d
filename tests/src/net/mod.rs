//! Network namespaces, links, sockets and probes, and the removal of everything that a run created.
//!
//! All links live in namespaces that the rig made, so the machine's own network is never touched. Every
//! name (namespaces, pin directories, temporary directories) begins with the owner's process id and start
//! time, and every process started carries them in its environment: what belongs to a dead owner is removed
//! when the next [`Rig`] starts, so a killed run does not poison the next.

mod bound;
mod command;
mod memory;
mod namespace;
mod probe;
mod residue;
mod responder;
mod sctp;
mod tun;
mod wire;

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::sys::statfs::BPF_FS_MAGIC;

pub use command::{TIMEOUT, run, run_with_input};
pub use memory::MemoryGroup;
pub use namespace::{Child, Namespace};
pub use probe::{Outcome, Probe, Transport, probe, probe_all};
pub use residue::{Owner, Residue};
pub use responder::Responder;
pub use sctp::kernel_has_sctp;
pub use tun::Tunnel;
pub use wire::Wire;

/// Where named network namespaces are.
pub const NETNS_DIR: &str = "/run/netns";
/// Where pins are.
pub const BPF_DIR: &str = "/sys/fs/bpf";

/// `limit`, as many times over as `NETPOL_SLOW` says that this machine is slower than usual (an emulated one). For
/// limits that only tell *late* from *never*.
#[must_use]
pub fn patience(limit: Duration) -> Duration {
    let factor = std::env::var("NETPOL_SLOW")
        .ok()
        .and_then(|text| text.parse().ok());
    limit * factor.unwrap_or(1)
}

/// Waits until `done`, asking again after as long as the last question took, so that asking leaves the asked half of
/// the time. Whether it came true within `limit`.
///
/// # Errors
/// Those of `done`.
pub fn wait_until(limit: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<bool> {
    let end = Instant::now() + patience(limit);
    loop {
        let asked = Instant::now();
        if done()? {
            return Ok(true);
        }
        if asked > end {
            return Ok(false);
        }
        std::thread::sleep(asked.elapsed().max(Duration::from_millis(10)));
    }
}

/// The owner of everything that one test (or one sandbox) creates. Dropping it removes its directories;
/// namespaces and processes have guards of their own.
#[derive(Debug)]
pub struct Rig {
    prefix: String,
    directory: PathBuf,
    pins: PathBuf,
}

impl Rig {
    /// A rig whose names begin with `kind` (letters and digits; `nptest` for tests), and removes what dead owners of the
    /// same kind left.
    ///
    /// # Errors
    /// Where the residue can not be removed or the temporary directory can not be made (not root).
    pub fn new(kind: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        mount_bpffs()?;
        Residue::of_dead_owners(kind)?.remove()?;
        let owner = Owner::this_process()?;
        let prefix = format!("{}-{}", owner.prefix(kind), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(&prefix);
        std::fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        let pins = Path::new(BPF_DIR).join(&prefix);
        Ok(Self {
            prefix,
            directory,
            pins,
        })
    }

    /// A new network namespace with `lo` up, named after the owner and `label`.
    ///
    /// # Errors
    /// Where `ip netns add` fails.
    pub fn namespace(&self, label: &str) -> Result<Namespace> {
        Namespace::create(&format!("{}-{label}", self.prefix), label)
    }

    /// A temporary directory of this rig.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A directory in bpffs for this rig's pins; nobody has created it yet.
    #[must_use]
    pub fn pins(&self) -> &Path {
        &self.pins
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        residue::remove_tree(&self.directory);
        residue::remove_tree(&self.pins);
    }
}

/// Mounts bpffs where no init system has done so, as `bpftool` does.
fn mount_bpffs() -> Result<()> {
    let magic = nix::sys::statfs::statfs(BPF_DIR).with_context(|| format!("look at {BPF_DIR}"))?;
    if magic.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    nix::mount::mount(
        Some("bpf"),
        BPF_DIR,
        Some("bpf"),
        nix::mount::MsFlags::empty(),
        None::<&str>,
    )
    .with_context(|| format!("mount bpffs on {BPF_DIR}"))
}
