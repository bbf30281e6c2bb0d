//! What is known of a cluster: a directory each, with `cluster.json`, from which a fresh process finds everything.

use std::{
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::{Options, addresses::Network};

/// Where the directories of all clusters are: not in `/run`, as containers' file systems may be larger than memory.
pub(super) const BASE: &str = "/var/lib/netpol-cluster";

/// The directory of the cluster `name`.
pub(super) fn dir(name: &str) -> PathBuf {
    Path::new(BASE).join(name)
}

/// What `up` hands to the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) name: String,
    pub(super) options: Options,
    /// The directory of the built components.
    pub(super) components: PathBuf,
}

/// A process by its id and start time, so that a reused id is another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    pub(super) pid: i32,
    /// Field 22 of `/proc/PID/stat`: clock ticks since boot.
    pub(super) start: u64,
}

impl Process {
    /// The running process `pid` as `proc` shows it.
    pub(super) fn find(proc: &Path, pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(proc.join(format!("{pid}/stat"))).ok()?;
        let start = start_time(&stat)?;
        Some(Self { pid, start })
    }

    /// Whether it still runs; a zombie does not.
    pub(super) fn is_alive(self, proc: &Path) -> bool {
        Self::find(proc, self.pid) == Some(self)
    }
}

fn start_time(stat: &str) -> Option<u64> {
    // The second field, the command, may hold anything, brackets and spaces included.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    let start = fields.nth(18)?.parse().ok()?;
    (state != "Z").then_some(start)
}

/// One node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct NodeRecord {
    /// `n1`
    pub(super) name: String,
    pub(super) address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) address6: Option<String>,
    /// The process whose network, mount and UTS namespaces are the node; an id of the cluster's PID namespace.
    pub(super) holder: Process,
}

/// One component.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct DaemonRecord {
    /// `kubelet`
    pub(super) name: String,
    /// `n1`, or nothing for what belongs to the control plane.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) node: Option<String>,
    /// With an id of the cluster's PID namespace.
    pub(super) process: Process,
    pub(super) log: PathBuf,
}

/// `cluster.json`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) name: String,
    pub(super) options: Options,
    pub(super) components: PathBuf,
    /// `overlayfs`, or `native` where overlays can't be stacked.
    pub(super) snapshotter: String,
    pub(super) kubeconfig: PathBuf,
    pub(super) network: Network,
    /// Its parent removes what it leaves.
    pub(super) supervisor: Process,
    /// The first process of the PID namespace, by its id on this machine.
    pub(super) init: Process,
    /// All nodes are ready.
    pub(super) ready: bool,
    pub(super) nodes: Vec<NodeRecord>,
    pub(super) daemons: Vec<DaemonRecord>,
}

impl Record {
    /// Reads the record in `dir`.
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("cluster.json");
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))
    }

    /// Writes it in one step.
    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        let (path, part) = (dir.join("cluster.json"), dir.join("cluster.json.part"));
        fs::write(&part, serde_json::to_vec_pretty(self)?)
            .and_then(|()| fs::rename(&part, &path))
            .with_context(|| format!("writing {}", path.display()))
    }

    /// `/proc` of the cluster's PID namespace, as this machine reaches it.
    pub(super) fn proc(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root/proc", self.init.pid))
    }

    /// Whether init lives.
    pub(super) fn is_alive(&self) -> bool {
        self.init.is_alive(Path::new("/proc"))
    }

    /// The cluster `name`, which runs.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn running(name: &str) -> Result<Self> {
        let record = match Self::read(&dir(name)) {
            Ok(record) => record,
            Err(_) if !dir(name).join("cluster.json").exists() => {
                bail!("there is no cluster {name}: `cargo xtask cluster up --name {name}` makes it")
            }
            Err(error) => return Err(error),
        };
        if !record.is_alive() {
            bail!(
                "the cluster {name} was killed: `cargo xtask cluster down --name {name}` removes what it left"
            );
        }
        Ok(record)
    }

    /// The node `name`.
    ///
    /// # Errors
    /// There is none, or the cluster is still being made.
    pub(super) fn node(&self, name: &str) -> Result<&NodeRecord> {
        let known: Vec<_> = self.nodes.iter().map(|node| &*node.name).collect();
        self.nodes.iter().find(|node| node.name == name).with_context(|| {
            let nodes = known.join(", ");
            format!("the cluster {} has no node {name}; it has: {nodes}", self.name)
        })
    }
}

/// A lock on a directory: it ends with the process, whatever ends it, and leaves no file behind.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "held, not read")] Flock<OwnedFd>);

impl Lock {
    /// The lock of `dir`; nothing where another process holds it.
    pub(super) fn try_on(dir: &Path) -> Result<Option<Self>> {
        match Flock::lock(open(dir)?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(Self(lock))),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, error)) => Err(error).with_context(|| format!("locking {}", dir.display())),
        }
    }

    /// Waits for the lock of `dir`, which is made if need be; the directory may be removed by who had the lock.
    pub(super) fn wait_on(dir: &Path) -> Result<Self> {
        loop {
            fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
            let file = match File::open(dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => file.with_context(|| format!("opening {}", dir.display()))?,
            };
            let lock = Flock::lock(OwnedFd::from(file), FlockArg::LockExclusive)
                .map_err(|(_, error)| error)
                .with_context(|| format!("locking {}", dir.display()))?;
            let same =
                |one: &nix::sys::stat::FileStat, other: &nix::sys::stat::FileStat| one.st_ino == other.st_ino;
            let locked = nix::sys::stat::fstat(&*lock)?;
            if nix::sys::stat::stat(dir).is_ok_and(|now| same(&now, &locked)) {
                return Ok(Self(lock));
            }
        }
    }
}

fn open(dir: &Path) -> Result<OwnedFd> {
    let file = File::open(dir).with_context(|| format!("opening {}", dir.display()))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_its_id_and_start() {
        let proc = Path::new("/proc");
        let me = Process::find(proc, std::process::id() as i32).expect("this process runs");
        assert!(me.is_alive(proc));
        let reused = Process {
            start: me.start + 1,
            ..me
        };
        assert!(!reused.is_alive(proc));
    }

    #[test]
    fn the_start_is_found_behind_any_command_and_zombies_do_not_run() {
        let stat = |command: &str, state: &str| {
            format!("7 ({command}) {state} 1 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4711 0 0")
        };
        assert_eq!(start_time(&stat("sh", "S")), Some(4711));
        assert_eq!(start_time(&stat("a) S (b", "S")), Some(4711));
        assert_eq!(start_time(&stat("sh", "Z")), None);
    }

    #[test]
    fn one_at_a_time_holds_a_lock() {
        let dir = std::env::temp_dir().join(format!("netpol-lock-{}", std::process::id()));
        let lock = Lock::wait_on(&dir).expect("a new directory is locked");
        assert!(Lock::try_on(&dir).expect("the directory is there").is_none());
        drop(lock);
        assert!(Lock::try_on(&dir).expect("the directory is there").is_some());
        fs::remove_dir(&dir).expect("nothing is in it");
    }
}
