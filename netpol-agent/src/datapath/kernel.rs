//! What this kernel offers.

use std::path::{Path, PathBuf};

use aya::{
    programs::{SchedClassifier, TcAttachType},
    util::KernelVersion,
};
use nix::{
    sys::{
        resource::{RLIM_INFINITY, Resource, setrlimit},
        statfs::{BPF_FS_MAGIC, statfs},
    },
    unistd::geteuid,
};
use serde::{Deserialize, Serialize};

use super::error::{Error, Result, os_error};

/// The oldest kernel that has what the programs use (ring buffer 5.8, mmapable arrays 5.5, and the LTS that
/// distributions carry).
const FLOOR: KernelVersion = KernelVersion::new(5, 10, 0);
/// Since here BPF memory is charged to the memory cgroup instead of `RLIMIT_MEMLOCK`.
const NO_MEMLOCK: KernelVersion = KernelVersion::new(5, 11, 0);

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// `uname -r`
    pub release: String,
    /// TCX links (6.6): attached programs outlive the agent and are replaced atomically.
    pub tcx: bool,
    /// The kernel describes its own types (`/sys/kernel/btf/vmlinux`); not needed, told for support.
    pub btf: bool,
}

impl Kernel {
    /// Looks, without changing anything.
    ///
    /// # Errors
    /// [`Error::KernelTooOld`], [`Error::NoBpffs`].
    pub fn probe(pin: &Path) -> Result<Self> {
        let uname = nix::sys::utsname::uname().map_err(|errno| Error::io("uname")(errno.into()))?;
        let release = uname.release().to_string_lossy().into_owned();
        if KernelVersion::current().is_ok_and(|version| version < FLOOR) {
            return Err(Error::KernelTooOld { found: release });
        }
        on_bpffs(pin)?;
        Ok(Self {
            release,
            tcx: has_tcx(),
            btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        })
    }

    /// `clsact` or `tcx`, as used unless forced.
    #[must_use]
    pub fn attach(&self) -> &'static str {
        if self.tcx { "tcx" } else { "clsact" }
    }
}

/// By trying: asking `lo` for its TCX programs fails with `EINVAL` where the kernel has no TCX. (Any other
/// error says that the kernel understood the question.)
fn has_tcx() -> bool {
    match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
        Ok(_) => true,
        Err(error) => os_error(&error) != Some(libc::EINVAL),
    }
}

fn on_bpffs(pin: &Path) -> Result<()> {
    let existing = pin
        .ancestors()
        .find(|path| path.exists())
        .map_or_else(|| PathBuf::from("/"), Path::to_path_buf);
    let found = statfs(&existing)
        .map_err(|errno| Error::io(format!("statfs {}", existing.display()))(errno.into()))?;
    if found.filesystem_type() == BPF_FS_MAGIC {
        Ok(())
    } else {
        Err(Error::NoBpffs(pin.to_path_buf()))
    }
}

/// Lifts the limit that kernels before 5.11 count BPF memory against. It takes CAP_SYS_RESOURCE, which we
/// do not ask for: a limit that is too low shows as [`Error::NoMemory`].
pub(crate) fn lift_memlock() {
    if memlock_counts()
        && let Err(errno) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY)
    {
        tracing::warn!(%errno, root = geteuid().is_root(), "RLIMIT_MEMLOCK stays as it is; this kernel counts BPF maps against it");
    }
}

/// Waits until every program that started before this call has returned.
///
/// TC programs run inside an RCU read-side section; `MEMBARRIER_CMD_GLOBAL` returns after
/// `synchronize_rcu()` (kernel/sched/membarrier.c). It is refused where CPUs run tickless for good
/// (`nohz_full=`): then we wait longer than any packet takes through a program.
pub(crate) fn grace() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: membarrier takes three integers and touches no memory of ours.
    let done = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if done != 0 {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

/// Whether this kernel counts BPF memory against `RLIMIT_MEMLOCK`.
pub(crate) fn memlock_counts() -> bool {
    KernelVersion::current().is_ok_and(|version| version < NO_MEMLOCK)
}
