//! Taking programs off devices, from what the pins and markers say.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use aya::programs::tc::SchedClassifierLink;

use super::{
    clsact::{HANDLE, MARK_FILTER_AND_QDISC, PRIORITY},
    entries,
    hook::Direction,
    remove,
};
use crate::datapath::{
    error::Result,
    object::Pins,
    qdisc::{self, Qdisc},
};

/// Removes what the pin or marker at `path` stands for. The marker goes last, so that a killed run leaves it.
pub(super) fn detach_one(path: &Path, direction: Direction, name: Option<&str>) -> Result<()> {
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

/// Takes the link that is pinned at `path` off its device: when this returns no packet meets its program any more. The pin's end alone
/// leaves that to a worker of the kernel, which gets to it some time later (`bpf_link_put` in kernel/bpf/syscall.c).
fn detach_link(path: &Path) -> io::Result<()> {
    /// Commands of bpf(2) that aya has no function for, or one that keeps the descriptor to itself.
    const BPF_OBJ_GET: libc::c_long = 7;
    const BPF_LINK_DETACH: libc::c_long = 34;
    /// The beginning of `union bpf_attr` of each.
    #[repr(C)]
    struct Pinned {
        path: u64,
        descriptor: u32,
        flags: u32,
    }
    #[repr(C)]
    struct Linked {
        descriptor: RawFd,
    }
    let name = CString::new(path.as_os_str().as_bytes())?;
    let pinned = Pinned {
        path: name.as_ptr() as u64,
        descriptor: 0,
        flags: 0,
    };
    // SAFETY: the kernel reads so many bytes of what is pointed to, and in there a string that ends with a zero; both outlive the call.
    let got = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const pinned, size_of::<Pinned>()) };
    let got = RawFd::try_from(got).ok().filter(|got| *got >= 0);
    let descriptor = got.ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just opened it for us, and nobody else knows of it.
    let link = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let linked = Linked {
        descriptor: link.as_raw_fd(),
    };
    // SAFETY: the kernel reads so many bytes of what is pointed to, which outlives the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_LINK_DETACH,
            &raw const linked,
            size_of::<Linked>(),
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether some of the attachments are clsact filters, which only their own namespace can reach.
pub(crate) fn has_filters(pins: &Pins) -> Result<bool> {
    let names = entries(&pins.links())?;
    Ok(names
        .iter()
        .any(|name| fs::read_link(pins.links().join(name)).is_ok()))
}

/// Takes everything of ours off all devices of this namespace, and removes the pins of links. When this returns nothing is judged any more.
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
        if !path.is_symlink()
            && let Err(error) = detach_link(path)
        {
            // In any case it goes with its pin, if later.
            tracing::debug!(path = %path.display(), %error, "a link that could not be detached");
        }
        detach_one(path, *direction, *name)?;
    }
    Ok(places.len())
}
