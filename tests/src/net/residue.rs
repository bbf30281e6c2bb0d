//! What dead owners left: namespaces, pins, directories, processes.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{BPF_DIR, NETNS_DIR};

/// A process by its id and start time, so that a reused id is another owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pid: i32,
    /// Field 22 of `/proc/PID/stat`: clock ticks since boot.
    start: u64,
}

impl Owner {
    /// The environment variable that names the owner of a process.
    pub const VARIABLE: &str = "NPTEST_OWNER";

    /// The calling process.
    ///
    /// # Errors
    /// Where `/proc` can not be read.
    pub fn this_process() -> Result<Self> {
        let pid = std::process::id() as i32;
        let start = start_time(pid).context("read /proc/self/stat")?;
        Ok(Self { pid, start })
    }

    /// The beginning of all names of this owner.
    pub(super) fn prefix(self, kind: &str) -> String {
        format!("{kind}-{self}")
    }

    /// The owner of something called `name`, where it is a name of that kind.
    fn of_name(kind: &str, name: &str) -> Option<Self> {
        Self::parse(name.strip_prefix(kind)?.strip_prefix('-')?)
    }

    /// Whether something called `name` belonged to an owner that has ended.
    pub(super) fn is_dead(kind: &str, name: &str) -> bool {
        Self::of_name(kind, name).is_some_and(|owner| !owner.is_alive())
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        Some(Self {
            pid: parts.next()?.parse().ok()?,
            start: parts.next()?.parse().ok()?,
        })
    }

    fn is_alive(self) -> bool {
        start_time(self.pid) == Some(self.start)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.pid, self.start)
    }
}

fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the command, may hold anything, brackets and spaces included.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    let start = fields.nth(18)?.parse().ok()?;
    (state != "Z").then_some(start)
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Residue {
    /// Processes by id.
    pub processes: Vec<i32>,
    /// Named network namespaces (their links go with them).
    pub namespaces: Vec<PathBuf>,
    /// Directories in bpffs and in the temporary directory.
    pub directories: Vec<PathBuf>,
}

impl Residue {
    /// What owners that no longer run left behind.
    ///
    /// # Errors
    /// Where a directory exists and can not be read.
    pub fn of_dead_owners(kind: &str) -> Result<Self> {
        Self::find(kind, |owner| !owner.is_alive())
    }

    /// What there is of `owner`, alive or not.
    ///
    /// # Errors
    /// Where a directory exists and can not be read.
    pub fn of(kind: &str, owner: Owner) -> Result<Self> {
        Self::find(kind, |found| found == owner)
    }

    /// Whether nothing was found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn find(kind: &str, wanted: impl Fn(Owner) -> bool) -> Result<Self> {
        let named = |directory: &Path| -> Result<Vec<PathBuf>> {
            Ok(list(directory)?
                .into_iter()
                .filter(|path| {
                    let name = path.file_name().and_then(|name| name.to_str());
                    name.and_then(|name| Owner::of_name(kind, name))
                        .is_some_and(&wanted)
                })
                .collect())
        };
        let mut directories = named(Path::new(BPF_DIR))?;
        directories.extend(named(&std::env::temp_dir())?);
        Ok(Self {
            processes: processes(&wanted)?,
            namespaces: named(Path::new(NETNS_DIR))?,
            directories,
        })
    }

    /// Ends the processes and removes the rest.
    ///
    /// # Errors
    /// Where something is still there afterwards.
    pub fn remove(&self) -> Result<()> {
        for pid in &self.processes {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        for path in &self.namespaces {
            let _ = umount2(path, MntFlags::MNT_DETACH);
            let _ = fs::remove_file(path);
        }
        self.directories.iter().for_each(|path| remove_tree(path));
        let left: Vec<_> = self
            .namespaces
            .iter()
            .chain(&self.directories)
            .filter(|path| path.exists())
            .collect();
        anyhow::ensure!(left.is_empty(), "can not remove what a killed run left: {left:?}");
        Ok(())
    }
}

/// Removes a directory and what is in it; another process may be doing the same.
pub(super) fn remove_tree(path: &Path) {
    let _ = fs::remove_dir_all(path);
}

fn processes(wanted: impl Fn(Owner) -> bool) -> Result<Vec<i32>> {
    let me = std::process::id() as i32;
    let marker = format!("{}=", Owner::VARIABLE);
    let owned = |pid: &i32| {
        let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else {
            return false;
        };
        environment
            .split(|byte| *byte == 0)
            .filter_map(|variable| std::str::from_utf8(variable).ok()?.strip_prefix(&marker))
            .filter_map(Owner::parse)
            .any(&wanted)
    };
    Ok(list(Path::new("/proc"))?
        .iter()
        .filter_map(|path| path.file_name()?.to_str()?.parse().ok())
        .filter(|pid| *pid != me)
        .filter(owned)
        .collect())
}

fn list(directory: &Path) -> Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Ok(entries) => {
            let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
            paths.sort();
            Ok(paths)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("list {}", directory.display())),
    }
}
