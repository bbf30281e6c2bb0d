//! TCX links, pinned: the program on one is replaced in one step.

use std::{fs, path::Path};

use aya::programs::{
    LinkOrder, SchedClassifier,
    links::{FdLink, LinkError, PinnedLink},
    tc::{SchedClassifierLink, TcAttachOptions},
};

use super::{Hook, Target, detach::detach_one, remove, same_device};
use crate::datapath::error::{Error, Result, os_error};

/// Attaches `hook`'s program by a link pinned at `path`, in the place of whichever of ours is there.
pub(super) fn attach_tcx(
    program: &mut SchedClassifier,
    target: Target<'_>,
    hook: Hook,
    path: &Path,
) -> Result<()> {
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
    let link: FdLink = link.try_into().map_err(Error::caused::<LinkError>(what()))?;
    link.pin(path)
        .map(drop)
        .map_err(Error::caused(format!("pinning {}", path.display())))
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
    let failed = |error: LinkError| Error::caused(what())(error);
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
