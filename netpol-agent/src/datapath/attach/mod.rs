//! Programs on devices: TCX links pinned in bpffs, or clsact filters where the kernel has no TCX.
//!
//! Either way the program on a device outlives the agent, and is replaced in one step: nothing runs
//! without one in between. A TCX link is pinned at `links/IFINDEX-DIRECTION`; for a clsact filter there is
//! a symbolic link of that name instead (bpffs knows no other files), so that `cleanup` knows what is ours.

mod clsact;
mod detach;
mod hook;
mod others;
mod tcx;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use aya::Ebpf;
use serde::{Deserialize, Serialize};

pub(crate) use self::detach::{detach_all, has_filters};
pub use self::hook::Hook;
use self::{clsact::attach_clsact, detach::detach_one, hook::Direction, tcx::attach_tcx};
use super::{
    error::{Error, Result},
    object::{Pins, classifier},
};

/// How programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// TCX links (kernel 6.6 and newer).
    Tcx,
    /// Filters of a clsact qdisc.
    Clsact,
}

/// A device by index, and the name that it has now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target<'a> {
    /// Its ifindex.
    pub(crate) index: u32,
    /// Its name: aya attaches by name.
    pub(crate) name: &'a str,
}

/// Puts programs on devices and remembers which.
#[derive(Debug)]
pub(crate) struct Attachments {
    mode: Mode,
    links: PathBuf,
    attached: BTreeMap<(u32, Direction), Hook>,
    /// Where other versions have their links, which are ours to take.
    others: Vec<PathBuf>,
    /// What is theirs stays theirs for now.
    held: bool,
}

impl Attachments {
    /// `others`: where other versions have their links; with `held` they are left alone until [`Self::release`].
    pub(crate) fn new(pins: &Pins, mode: Mode, others: Vec<PathBuf>, held: bool) -> Self {
        Self {
            mode,
            links: pins.links(),
            attached: BTreeMap::new(),
            others,
            held,
        }
    }

    /// The programs on device `index` that this process has attached or replaced.
    pub(crate) fn on(&self, index: u32) -> Vec<Hook> {
        [Direction::Ingress, Direction::Egress]
            .iter()
            .filter_map(|direction| self.attached.get(&(index, *direction)).copied())
            .collect()
    }

    /// Forgets what is no longer there, so that it is attached again: pins that somebody has removed; everything on a device
    /// that is not the one it was (`same` tells), as its index may be another's by now; and with `closely`, which asks the
    /// kernel about every device, filters that somebody has removed.
    pub(crate) fn verify(&mut self, closely: bool, same: impl Fn(u32) -> bool) -> Result<()> {
        let mut lost = Vec::new();
        for (key, hook) in &self.attached {
            // `exists` follows the marker of a filter, which points nowhere.
            let pinned = fs::symlink_metadata(self.path(*key)).is_ok();
            let there = pinned && same(key.0) && (!closely || self.is_attached(*key)?);
            if !there {
                tracing::warn!(
                    device = key.0,
                    program = hook.program(),
                    "no longer attached: attaching again"
                );
                lost.push(*key);
            }
        }
        for key in lost {
            self.attached.remove(&key);
        }
        Ok(())
    }

    fn is_attached(&self, (index, direction): (u32, Direction)) -> Result<bool> {
        match self.mode {
            // A link is attached as long as it is pinned.
            Mode::Tcx => Ok(true),
            Mode::Clsact => clsact::is_attached(index, direction),
        }
    }

    /// Devices that something is pinned for, by this process or an earlier one.
    pub(crate) fn pinned(&self) -> Result<Vec<u32>> {
        devices_of(entries(&self.links)?)
    }

    /// Devices that have the programs of what leads outside.
    pub(crate) fn outside(&self) -> BTreeSet<u32> {
        let outside = self.attached.iter().filter(|(_, hook)| **hook == Hook::Arrive);
        outside.map(|((index, _), _)| *index).collect()
    }

    /// As [`Self::pinned`], with those of other versions.
    pub(crate) fn pinned_by_any(&self) -> Result<Vec<u32>> {
        let mut names = entries(&self.links)?;
        for other in &self.others {
            names.extend(entries(other)?);
        }
        devices_of(names)
    }

    /// Puts `hook`'s program on `target`, in the place of whichever of ours is there.
    pub(crate) fn attach(&mut self, ebpf: &mut Ebpf, target: Target<'_>, hook: Hook) -> Result<()> {
        let key = (target.index, hook.direction());
        if self.attached.get(&key) == Some(&hook) {
            return Ok(());
        }
        let path = self.path(key);
        if !self.fetch(&path)? {
            return Ok(());
        }
        let program = classifier(ebpf, hook.program())?;
        match self.mode {
            Mode::Tcx => attach_tcx(program, target, hook, &path)?,
            Mode::Clsact => attach_clsact(program, target, hook, &path)?,
        }
        self.attached.insert(key, hook);
        Ok(())
    }

    /// Takes ours off device `index`, which may be gone (`name` is `None`).
    pub(crate) fn detach(&mut self, index: u32, name: Option<&str>) -> Result<()> {
        for direction in [Direction::Egress, Direction::Ingress] {
            detach_one(&self.path((index, direction)), direction, name)?;
            self.attached.remove(&(index, direction));
        }
        Ok(())
    }

    fn path(&self, (index, direction): (u32, Direction)) -> PathBuf {
        self.links.join(format!("{index}-{}", direction.name()))
    }
}

/// The devices of links, each once.
fn devices_of(links: Vec<String>) -> Result<Vec<u32>> {
    let mut devices: Vec<u32> = links
        .iter()
        .filter_map(|name| name.split_once('-')?.0.parse().ok())
        .collect();
    devices.sort_unstable();
    devices.dedup();
    Ok(devices)
}

/// Names in a directory; none where it does not exist.
pub(crate) fn entries(directory: &Path) -> Result<Vec<String>> {
    let failed = || format!("reading {}", directory.display());
    match fs::read_dir(directory) {
        Ok(found) => found
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<_>>()
            .map_err(Error::io(failed())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Error::io(failed())(error)),
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("removing {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}

/// The name still means the device: nobody has renamed one meanwhile.
fn same_device(target: Target<'_>) -> Result<()> {
    let gone = || {
        format!(
            "device {} (index {}) was renamed or removed meanwhile",
            target.name, target.index
        )
    };
    match nix::net::if_::if_nametoindex(target.name) {
        Ok(index) if index == target.index => Ok(()),
        Ok(_) => Err(Error::io(gone())(io::ErrorKind::NotFound.into())),
        Err(errno) => Err(Error::io(gone())(errno.into())),
    }
}
