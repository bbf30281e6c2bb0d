//! Filters of a clsact qdisc, with a symbolic link as their marker.

use std::{fs, io, os::unix::fs::symlink, path::Path};

use aya::programs::{
    SchedClassifier,
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
};

use super::{Hook, Target, hook::Direction, remove, same_device};
use crate::datapath::{
    error::{Error, Result, os_error},
    qdisc::{self, Qdisc},
};

/// Ours come before other filters: one that ends the chain must not skip them.
pub(super) const PRIORITY: u16 = 1;
/// Handle of our filters: "np".
pub(super) const HANDLE: TcHandle = TcHandle::new(0, 0x6e70);
/// What the marker of a clsact filter points at; the second where the qdisc is ours, too.
const MARK_FILTER: &str = "clsact";
pub(super) const MARK_FILTER_AND_QDISC: &str = "clsact+qdisc";

/// Whether our filter is there.
pub(super) fn is_attached(index: u32, direction: Direction) -> Result<bool> {
    qdisc::has_filter(index, direction == Direction::Egress, PRIORITY, HANDLE.into())
}

/// Attaches `hook`'s program as a filter, in the place of whichever of ours is there; `path`: its marker.
pub(super) fn attach_clsact(
    program: &mut SchedClassifier,
    target: Target<'_>,
    hook: Hook,
    path: &Path,
) -> Result<()> {
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
