//! What can go wrong between the agent and the kernel.

use std::{io, path::PathBuf};

use aya::{EbpfError, maps::MapError, programs::ProgramError};

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
    /// Memory that BPF maps may lock ran out (kernels before 5.11).
    #[error(
        "{operation}: the kernel refused the memory; on kernels before 5.11 raise RLIMIT_MEMLOCK (`ulimit -l unlimited`, or LimitMEMLOCK=infinity in the unit), else choose smaller maps with --map-size"
    )]
    NoMemory {
        /// What was tried.
        operation: String,
    },
    /// Another agent runs on the same pins.
    #[error("another netpol-agent holds {}: stop it first, or give this one its own --pin", .0.display())]
    Locked(PathBuf),
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
            _ => Self::Io { operation, source },
        }
    }

    /// An [`Error::Program`], with the two causes that have a remedy told apart.
    pub(crate) fn program(operation: impl Into<String>) -> impl FnOnce(ProgramError) -> Self {
        let operation = operation.into();
        move |source| match os_error(&source) {
            Some(libc::EPERM | libc::EACCES) if !is_verifier(&source) => Self::NotPermitted { operation },
            Some(libc::ENOMEM) => Self::NoMemory { operation },
            _ => Self::Program { operation, source },
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

    /// Whether the user or the machine has to change something (exit code 2), rather than us.
    #[must_use]
    pub fn is_environment(&self) -> bool {
        !matches!(
            self,
            Self::Map { .. } | Self::Load(_) | Self::Program { .. } | Self::Io { .. }
        )
    }
}

fn is_verifier(error: &ProgramError) -> bool {
    matches!(error, ProgramError::LoadError { verifier_log, .. } if !verifier_log.to_string().trim().is_empty())
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
