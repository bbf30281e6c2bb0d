//! Removing everything that netpol has put on this machine, and only that.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::Serialize;

pub use super::elsewhere::refuse as refuse_others;
use super::{
    attach,
    error::{Error, Result},
    kernel::Kernel,
    lock::Locks,
    netlink,
    pins::{Pins, remove_tree},
};

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// Programs taken off devices.
    pub attachments: usize,
    /// Pinned programs.
    pub programs: usize,
    /// Pinned maps.
    pub maps: usize,
    /// State files.
    pub files: Vec<PathBuf>,
}

/// Removes the pins of every ABI version below `root`, with the programs on the devices of the calling thread's
/// network namespace and the agent's files. Needs no agent, no object and no device to be there.
///
/// # Errors
/// [`Error::Locked`] while an agent runs; [`Error::OtherNamespace`] where filters are on devices of another
/// namespace, unless `force` says that it is gone.
pub fn cleanup(root: &Path, force: bool) -> Result<Removed> {
    let mut removed = Removed::default();
    if !root.exists() {
        return Ok(removed);
    }
    Kernel::probe(root)?;
    let locks = Locks::all(root)?;
    Pins::remove_halves(root)?;
    let versions = Pins::versions(root)?;
    let names: BTreeMap<u32, String> = netlink::look()?
        .devices
        .into_iter()
        .map(|(index, device)| (index, device.name))
        .collect();
    for pins in &versions {
        let here = pins.is_here()?;
        if !here && !force && attach::has_filters(pins)? {
            return Err(pins.other_namespace()?);
        }
        // In another namespace the same index is another device.
        let names = if here { names.clone() } else { BTreeMap::new() };
        removed.attachments += attach::detach_all(pins, &names)?;
        removed.programs += clear(&pins.root().join("progs"))?;
        removed.maps += clear(&pins.root().join("maps"))?;
        for file in pins.files()? {
            if remove_file(&file)? {
                removed.files.push(file);
            }
        }
        remove_tree(pins.root())?;
    }
    drop(locks);
    // Somebody else's files in there stay, and so does the directory then.
    let _not_empty = fs::remove_dir(root);
    Ok(removed)
}

/// Removes the files of a directory.
fn clear(directory: &Path) -> Result<usize> {
    let names = attach::entries(directory)?;
    for name in &names {
        remove_file(&directory.join(name))?;
    }
    Ok(names.len())
}

fn remove_file(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io(format!("removing {}", path.display()))(error)),
    }
}
