//! What can go wrong between the agent and the kernel.

use std::{io, path::PathBuf};

use aya::{EbpfError, maps::MapError, programs::ProgramError};
use netpol_policy::plan::MapFull;

/// A failed operation of the data path. Each names the operation, the object and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The binary holds no eBPF object.
    #[error("built without the eBPF object: run `cargo xtask build`")]
    NoObject,
    /// Below the floor.
    #[error("kernel {found} is too old: netpol needs 5.10 or newer")]
    KernelTooOld {
        /// `major.minor.patch`
        found: String,
    },
    /// TCX was asked for.
    #[error("this kernel has no TCX links (they came with 6.6): use --attach auto or clsact")]
    NoTcx,
    /// The pin path is not on a BPF file system.
    #[error(
        "{} is not on a BPF file system: `mount -t bpf bpf /sys/fs/bpf` (in a pod: mount the host's /sys/fs/bpf), or choose another --pin",
        .0.display()
    )]
    NoBpffs(PathBuf),
    /// A capability or root is missing.
    #[error(
        "{operation}: not permitted; run as root, or grant CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (docs/capabilities.md)"
    )]
    NotPermitted {
        /// What was tried.
        operation: String,
    },
    /// Nothing but the far ends' addresses could say whose some veths are, and we may not look there.
    #[error(
        "{pods} pods have no device yet and {devices} veths no pod: neither CNI results (--cni-cache), nor a route, nor an alias names them, and asking the far ends needs CAP_SYS_ADMIN (docs/capabilities.md)"
    )]
    FarEnds {
        /// Pods without a device.
        pods: usize,
        /// Veths without a pod.
        devices: usize,
    },
    /// The kernel describes devices in a way that we do not understand.
    #[error(
        "devices {} (ifindex) are described by the kernel in a way that netpol does not understand (a name that is no text?): what they have stays on them, and they get nothing new; rename them, or tell us your kernel",
        .0.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
    )]
    Unread(std::collections::BTreeSet<u32>),
    /// The verifier refused a program.
    #[error("the kernel's verifier refuses {operation}: {reason}")]
    Verifier {
        /// What was tried.
        operation: String,
        /// The end of its log.
        reason: String,
    },
    /// Memory ran out: what BPF maps may lock (kernels before 5.11), the container's, or the machine's.
    #[error(
        "{operation}: the kernel refused the memory; on kernels before 5.11 raise RLIMIT_MEMLOCK (`ulimit -l unlimited`, or LimitMEMLOCK=infinity in the unit), else give the agent's container more memory, or choose smaller maps with --map-size"
    )]
    NoMemory {
        /// What was tried.
        operation: String,
    },
    /// Without its files a restarted agent does not find each pod where its flows are.
    #[error("the state directory {} can not be written: {source}; choose another --state", .directory.display())]
    State {
        /// Where the files belong.
        directory: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file system is read-only or full, or a directory is none.
    #[error("{operation}: {source}; make the file system writable, or choose another --pin or --state")]
    Storage {
        /// What was tried, with the object.
        operation: String,
        /// Why it failed.
        source: io::Error,
    },
    /// Another agent runs on the same pins.
    #[error("another netpol-agent{holder} holds {}: stop it first, or give this one its own --pin", .path.display())]
    Locked {
        /// What it holds.
        path: PathBuf,
        /// Who, as far as its report says.
        holder: String,
    },
    /// Another version's programs can not be replaced without a gap.
    #[error(
        "{} is pinned by a version whose `{what}` means something else to its programs than to ours: run `netpol-agent cleanup` (this removes enforcement until the next run)",
        .path.display()
    )]
    Incompatible {
        /// Its tree.
        path: PathBuf,
        /// What differs.
        what: &'static str,
    },
    /// The pins belong to devices of another network namespace.
    #[error(
        "{} belongs to the network namespace {theirs}, this is {ours}: use another --pin, or run `netpol-agent cleanup --pin {}` first",
        .path.display(), .path.display()
    )]
    OtherNamespace {
        /// The pin path.
        path: PathBuf,
        /// What the pins say.
        theirs: String,
        /// Where we are.
        ours: String,
    },
    /// There are pins for this network namespace that `cleanup` was not told of.
    #[error(
        "policy is still enforced here by what is pinned below {}, which --pin does not name: run `netpol-agent cleanup --pin DIR` for each of them (in a pod: NETPOL_PIN, or Helm's `pin`, as the agents had it)",
        .0.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    Elsewhere(Vec<PathBuf>),
    /// A pinned map is not what this version expects.
    #[error(
        "the pinned map {} has {found}, this version needs {expected}: run `netpol-agent cleanup` (this removes enforcement until the next run)",
        .path.display()
    )]
    Shape {
        /// Where it is pinned.
        path: PathBuf,
        /// Type and sizes found.
        found: String,
        /// Type and sizes needed.
        expected: String,
    },
    /// The object lacks a map or a program.
    #[error(
        "the eBPF object has no {kind} `{name}`: it was built from another version, run `cargo xtask build`"
    )]
    Missing {
        /// `map` or `program`
        kind: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// A map is full.
    #[error(
        "map `{map}` is full ({capacity} entries): the policy in force stays; raise it with `--map-size {map}=N` after `netpol-agent cleanup`, or reduce what the policies of this node's pods name"
    )]
    MapFull {
        /// The map.
        map: &'static str,
        /// Its `max_entries`.
        capacity: u32,
    },
    /// A map is too small for the change; nothing was written.
    #[error(
        "{0}: `netpol-agent cleanup`, then `run` with `--map-size {name}={room}`",
        name = .0.map.name(), room = (2 * .0.need).next_power_of_two()
    )]
    TooSmall(Box<MapFull>),
    /// No pod index is free.
    #[error("more than {0} local pods: pod `{1}` gets no index and its packets are dropped")]
    TooManyPods(u32, String),
    /// Reading or writing a map failed.
    #[error("{operation} of map `{map}`")]
    Map {
        /// The map.
        map: &'static str,
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: MapError,
    },
    /// The object could not be loaded.
    #[error("loading the eBPF object")]
    Load(#[source] EbpfError),
    /// A program could not be loaded, pinned or attached.
    #[error("{operation}")]
    Program {
        /// What was tried, with the program and device.
        operation: String,
        /// Why it failed.
        source: ProgramError,
    },
    /// An `ingress` qdisc is in the way of clsact.
    #[error(
        "{device} has an `ingress` qdisc (often the CNI's bandwidth plugin), which excludes clsact on kernels before 6.6: nothing can be enforced at its egress; remove it (`tc qdisc del dev {device} ingress`) or use a kernel with TCX"
    )]
    IngressQdisc {
        /// The device's name.
        device: String,
    },
    /// Any other system call.
    #[error("{operation}")]
    Io {
        /// What was tried, with the object.
        operation: String,
        /// Why it failed.
        source: io::Error,
    },
}

/// Result of the data path.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::Io`].
    pub(crate) fn io(operation: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let operation = operation.into();
        move |source| match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted { operation },
            Some(libc::EROFS | libc::ENOSPC | libc::EDQUOT | libc::ENOTDIR) => {
                Self::Storage { operation, source }
            }
            _ => Self::Io { operation, source },
        }
    }

    /// An [`Error::io`] for a library's error with a system call's somewhere among its causes.
    pub(crate) fn caused<E>(operation: impl Into<String>) -> impl FnOnce(E) -> Self
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let operation = operation.into();
        move |error| {
            let number = os_error(&error);
            Self::io(operation)(number.map_or_else(|| io::Error::other(error), io::Error::from_raw_os_error))
        }
    }

    /// An [`Error::Program`], with the causes that can be told apart.
    pub(crate) fn program(operation: impl Into<String>) -> impl FnOnce(ProgramError) -> Self {
        let operation = operation.into();
        move |source| {
            if let Some(reason) = verifier_says(&source).filter(|_| may_load()) {
                tracing::debug!(operation, error = %source, "the verifier's log");
                return Self::Verifier { operation, reason };
            }
            match os_error(&source) {
                Some(libc::EPERM | libc::EACCES) => Self::NotPermitted { operation },
                Some(libc::ENOMEM) => Self::NoMemory { operation },
                Some(number @ libc::EROFS) => Self::Storage {
                    operation,
                    source: io::Error::from_raw_os_error(number),
                },
                _ => Self::Program { operation, source },
            }
        }
    }

    /// An [`Error::Map`]; `capacity` is told where the map is full.
    pub(crate) fn map(
        map: &'static str,
        operation: &'static str,
        capacity: u32,
    ) -> impl FnOnce(MapError) -> Self {
        move |source| match os_error(&source) {
            // E2BIG: hash and LPM at max_entries. ENOSPC: LPM before 6.x.
            Some(libc::E2BIG | libc::ENOSPC) => Self::MapFull { map, capacity },
            Some(libc::ENOMEM) => Self::NoMemory {
                operation: format!("{operation} of map `{map}`"),
            },
            _ => Self::Map {
                map,
                operation,
                source,
            },
        }
    }

    /// What [`Self::kind`] gives.
    pub const KINDS: [&str; 3] = ["capacity", "environment", "kernel"];

    /// For metrics: one of [`Self::KINDS`].
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::MapFull { .. } | Self::TooSmall(_) | Self::TooManyPods(..) => "capacity",
            error if error.is_environment() => "environment",
            _ => "kernel",
        }
    }

    /// Whether the user or the machine has to change something (exit code 2), rather than us.
    #[must_use]
    pub fn is_environment(&self) -> bool {
        !matches!(
            self,
            Self::Map { .. } | Self::Load(_) | Self::Program { .. } | Self::Verifier { .. } | Self::Io { .. }
        )
    }
}

/// Whether we have what the verifier asks for besides a good program: without CAP_PERFMON (or CAP_SYS_ADMIN) it
/// refuses good ones, too. Where it can not be told, yes.
fn may_load() -> bool {
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    const CAP_PERFMON: u64 = 1 << 38;
    let effective = std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
            u64::from_str_radix(line.trim(), 16).ok()
        });
    effective.is_none_or(|effective| effective & (CAP_PERFMON | CAP_SYS_ADMIN) != 0)
}

/// The line of the verifier's log that says what it minds: the last before its statistics.
fn verifier_says(error: &ProgramError) -> Option<String> {
    let ProgramError::LoadError { verifier_log, .. } = error else {
        return None;
    };
    let log = verifier_log.to_string();
    let statistics = ["processed ", "verification time", "stack depth"];
    log.lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty() && !statistics.iter().any(|start| line.starts_with(start)))
        .map(str::to_owned)
}

/// The error number somewhere in the chain of causes.
pub(crate) fn os_error(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>()
            && let Some(number) = io.raw_os_error()
        {
            return Some(number);
        }
        cause = error.source();
    }
    None
}
