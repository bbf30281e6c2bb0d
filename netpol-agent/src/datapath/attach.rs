//! Programs on devices: TCX links pinned in bpffs, or clsact filters where the kernel has no TCX.
//!
//! Either way the program on a device outlives the agent, and is replaced in one step: nothing runs
//! without one in between. A TCX link is pinned at `links/IFINDEX-DIRECTION`; for a clsact filter there is
//! a symbolic link of that name instead (bpffs knows no other files), so that `cleanup` knows what is ours.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, SchedClassifier, TcAttachType,
        links::{FdLink, LinkError, PinnedLink},
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
    },
};
use serde::{Deserialize, Serialize};

use super::{
    error::{Error, Result, os_error},
    object::{Pins, classifier},
    qdisc::{self, Qdisc},
};

/// Ours come before other filters: one that ends the chain must not skip them.
const PRIORITY: u16 = 1;
/// Handle of our filters: "np".
const HANDLE: TcHandle = TcHandle::new(0, 0x6e70);
/// What the marker of a clsact filter points at; the second where the qdisc is ours, too.
const MARK_FILTER: &str = "clsact";
const MARK_FILTER_AND_QDISC: &str = "clsact+qdisc";

/// One of the four programs, with its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hook {
    /// A pod's way in.
    FromPod,
    /// A pod's way out.
    ToPod,
    /// The outside's way in.
    Arrive,
    /// The outside's way out.
    Settle,
}

impl Hook {
    /// All four.
    pub const ALL: [Self; 4] = [Self::FromPod, Self::ToPod, Self::Arrive, Self::Settle];

    /// The program's name in the object.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::ToPod => "to_pod",
            Self::Arrive => "arrive",
            Self::Settle => "settle",
        }
    }

    /// Whether it marks who sends (a way in), rather than judges.
    #[must_use]
    pub const fn is_way_in(self) -> bool {
        matches!(self, Self::FromPod | Self::Arrive)
    }

    const fn direction(self) -> Direction {
        if self.is_way_in() {
            Direction::Ingress
        } else {
            Direction::Egress
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    const fn tc(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

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
}

impl Attachments {
    pub(crate) fn new(pins: &Pins, mode: Mode) -> Self {
        Self {
            mode,
            links: pins.links(),
            attached: BTreeMap::new(),
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
            Mode::Clsact => qdisc::has_filter(index, direction == Direction::Egress, PRIORITY, HANDLE.into()),
        }
    }

    /// Devices that something is pinned for, by this process or an earlier one.
    pub(crate) fn pinned(&self) -> Result<Vec<u32>> {
        let mut devices: Vec<u32> = entries(&self.links)?
            .iter()
            .filter_map(|name| name.split_once('-')?.0.parse().ok())
            .collect();
        devices.sort_unstable();
        devices.dedup();
        Ok(devices)
    }

    /// Puts `hook`'s program on `target`, in the place of whichever of ours is there.
    pub(crate) fn attach(&mut self, ebpf: &mut Ebpf, target: Target<'_>, hook: Hook) -> Result<()> {
        let key = (target.index, hook.direction());
        if self.attached.get(&key) == Some(&hook) {
            return Ok(());
        }
        let path = self.path(key);
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

fn attach_tcx(program: &mut SchedClassifier, target: Target<'_>, hook: Hook, path: &Path) -> Result<()> {
    let what = || format!("attaching `{}` to {}", hook.program(), target.name);
    let was_clsact = fs::read_link(path).is_ok();
    if !was_clsact && replace_tcx(program, hook, path)? {
        return Ok(());
    }
    // First of the device's programs: one before ours that passes a packet for good would skip us.
    let options = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program
        .attach_with_options(target.name, hook.direction().tc(), options)
        .map_err(Error::program(what()))?;
    let link = program.take_link(id).map_err(Error::program(what()))?;
    same_device(target)?;
    if was_clsact {
        // The link is in force: the filter of an earlier run with --attach clsact may go.
        detach_one(path, hook.direction(), Some(target.name))?;
    }
    let link: FdLink = link
        .try_into()
        .map_err(|error: LinkError| Error::io(what())(io::Error::other(error)))?;
    link.pin(path)
        .map(drop)
        .map_err(|error| Error::io(format!("pinning {}", path.display()))(io::Error::other(error)))
}

/// Swaps the program on the link pinned at `path`; false where there is none, or where its device is gone.
fn replace_tcx(program: &mut SchedClassifier, hook: Hook, path: &Path) -> Result<bool> {
    let what = || {
        format!(
            "replacing the program on {} by `{}`",
            path.display(),
            hook.program()
        )
    };
    if !path.exists() {
        return Ok(false);
    }
    let failed = |error: LinkError| Error::io(what())(io::Error::other(error));
    let pinned = PinnedLink::from_pin(path).map_err(failed)?;
    let link = SchedClassifierLink::try_from(FdLink::from(pinned)).map_err(failed)?;
    match program.attach_to_link(link) {
        // Dropping the link closes its descriptor; the pin keeps it.
        Ok(id) => program
            .take_link(id)
            .map(drop)
            .map(|()| true)
            .map_err(Error::program(what())),
        Err(error) if os_error(&error) == Some(libc::ENOLINK) => remove(path).map(|()| false),
        Err(error) => Err(Error::program(what())(error)),
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

fn attach_clsact(program: &mut SchedClassifier, target: Target<'_>, hook: Hook, path: &Path) -> Result<()> {
    let what = || format!("attaching `{}` to {} (clsact)", hook.program(), target.name);
    same_device(target)?;
    let direction = hook.direction();
    // A TCX link of an earlier run stays until the filter is there.
    let replaces_link = path.exists() && fs::read_link(path).is_err();
    let present = qdisc::ingress_qdisc(target.index)?;
    let late_mark = marker_for(path, target.index, present);
    ensure_clsact(target, direction, present, (!replaces_link).then_some(path))?;

    let old = SchedClassifierLink::attached(target.name, direction.tc(), PRIORITY, HANDLE, None)
        .map_err(Error::io(what()))?;
    // Without NLM_F_CREATE the filter of this priority and handle is replaced in one step; this fails
    // where there is none yet.
    let id = match program.attach_to_link(old) {
        Ok(id) => id,
        Err(_) => {
            let options = NlOptions {
                priority: PRIORITY,
                handle: HANDLE,
                classid: None,
            };
            program
                .attach_with_options(target.name, direction.tc(), TcAttachOptions::Netlink(options))
                .map_err(Error::program(what()))?
        }
    };
    // Dropped, it would detach. It holds numbers only, so that nothing leaks.
    std::mem::forget(program.take_link(id).map_err(Error::program(what()))?);
    if replaces_link {
        remove(path)?;
        mark(path, late_mark)?;
    }
    Ok(())
}

/// Makes sure that filters can be attached. `marker` is written before anything is changed, so that a run
/// killed in between leaves nothing that `cleanup` would not know.
fn ensure_clsact(
    target: Target<'_>,
    direction: Direction,
    present: Option<Qdisc>,
    marker: Option<&Path>,
) -> Result<()> {
    if present == Some(Qdisc::Ingress) && direction == Direction::Egress {
        // Its only block takes filters for packets that come in.
        return Err(Error::IngressQdisc {
            device: target.name.to_owned(),
        });
    }
    if let Some(path) = marker.filter(|path| fs::read_link(path).is_err()) {
        mark(path, marker_for(path, target.index, present))?;
    }
    if present.is_some() {
        return Ok(());
    }
    tc::qdisc_add_clsact(target.name).map_err(|error| {
        let number = os_error(&error).unwrap_or(libc::EIO);
        Error::io(format!("adding a clsact qdisc to {}", target.name))(io::Error::from_raw_os_error(number))
    })
}

/// The qdisc is ours if we are about to add it, or if the other direction's marker says so: whichever direction goes
/// last removes it.
fn marker_for(path: &Path, index: u32, present: Option<Qdisc>) -> &'static str {
    let marked = |direction: Direction| {
        let sibling = path.with_file_name(format!("{index}-{}", direction.name()));
        fs::read_link(sibling).is_ok_and(|mark| mark == Path::new(MARK_FILTER_AND_QDISC))
    };
    if present.is_none() || marked(Direction::Ingress) || marked(Direction::Egress) {
        MARK_FILTER_AND_QDISC
    } else {
        MARK_FILTER
    }
}

fn mark(path: &Path, mark: &str) -> Result<()> {
    symlink(mark, path).map_err(Error::io(format!("creating {}", path.display())))
}

/// Removes what the pin or marker at `path` stands for. The marker goes last, so that a killed run leaves it.
fn detach_one(path: &Path, direction: Direction, name: Option<&str>) -> Result<()> {
    let Ok(mark) = fs::read_link(path) else {
        return remove(path);
    };
    if let Some(name) = name {
        let index = nix::net::if_::if_nametoindex(name).unwrap_or(0);
        if let Some(kind) = qdisc::ingress_qdisc(index)? {
            if let Ok(link) = SchedClassifierLink::attached(name, direction.tc(), PRIORITY, HANDLE, None) {
                // Already gone is as good. Dropping the link detaches it.
                drop(link);
            }
            if kind == Qdisc::Clsact
                && mark == Path::new(MARK_FILTER_AND_QDISC)
                && !qdisc::has_filters(index)?
            {
                qdisc::delete_clsact(index)?;
            }
        }
    }
    remove(path)
}

/// Whether some of the attachments are clsact filters, which only their own namespace can reach.
pub(crate) fn has_filters(pins: &Pins) -> Result<bool> {
    let names = entries(&pins.links())?;
    Ok(names
        .iter()
        .any(|name| fs::read_link(pins.links().join(name)).is_ok()))
}

/// Takes everything of ours off all devices of this namespace, and removes the pins of links.
pub(crate) fn detach_all(pins: &Pins, names: &BTreeMap<u32, String>) -> Result<usize> {
    let found = entries(&pins.links())?;
    // Ways out first: until the last moment every packet that is judged carries its mark.
    let mut places: Vec<(Direction, PathBuf, Option<&str>)> = found
        .iter()
        .map(|entry| {
            let (index, direction) = entry.split_once('-').unwrap_or((entry, ""));
            let direction = if direction == Direction::Egress.name() {
                Direction::Egress
            } else {
                Direction::Ingress
            };
            let name = index.parse().ok().and_then(|index: u32| names.get(&index));
            (direction, pins.links().join(entry), name.map(String::as_str))
        })
        .collect();
    places.sort_by_key(|place| std::cmp::Reverse(place.0));
    for (direction, path, name) in &places {
        detach_one(path, *direction, *name)?;
    }
    Ok(places.len())
}
