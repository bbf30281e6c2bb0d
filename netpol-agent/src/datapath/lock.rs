//! One agent at a time: locks on `--pin` and on every version's tree below. They end with the process, however that ends.

use std::{
    fs::{self, DirBuilder, File},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::{
    error::{Error, Result},
    pins::Pins,
    report::Report,
};

/// Holds them until dropped.
#[derive(Debug)]
pub(crate) struct Locks(Vec<Flock<File>>);

impl Locks {
    /// Takes the pins of every version, which are beside `pins`.
    ///
    /// # Errors
    /// [`Error::Locked`] where another agent holds one of them.
    pub(crate) fn take(pins: &Pins) -> Result<Self> {
        let parent = pins.parent();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)
            .map_err(Error::io(format!("creating {}", parent.display())))?;
        let locks = Self::all(parent)?;
        Pins::remove_halves(parent)?;
        Ok(locks)
    }

    /// Takes `parent` and every version's tree in there.
    pub(crate) fn all(parent: &Path) -> Result<Self> {
        // First what all agents take that know of other versions, so that two of them never wait for each other's; then the
        // trees, which is all that ABI 3 takes.
        let mut locks = Self(vec![lock(parent)?]);
        for pins in Pins::versions(parent)? {
            locks.add(&pins)?;
        }
        Ok(locks)
    }

    /// Takes one more tree.
    pub(crate) fn add(&mut self, pins: &Pins) -> Result<()> {
        self.0.push(lock(pins.root())?);
        Ok(())
    }
}

fn lock(path: &Path) -> Result<Flock<File>> {
    let opening = || Error::io(format!("opening {}", path.display()));
    loop {
        let directory = File::open(path).map_err(opening())?;
        let inode = directory.metadata().map_err(opening())?.ino();
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            // What was locked may have been replaced meanwhile.
            Ok(lock) if fs::metadata(path).map_err(opening())?.ino() == inode => return Ok(lock),
            Ok(_) => {}
            Err((_, Errno::EWOULDBLOCK)) => {
                return Err(Error::Locked {
                    path: path.to_path_buf(),
                    holder: holder(path),
                });
            }
            Err((_, errno)) => return Err(Error::io(format!("locking {}", path.display()))(errno.into())),
        }
    }
}

/// Who holds it, by the report of the agent that runs: ` (process N, node NAME)`, or nothing.
fn holder(path: &Path) -> String {
    let own = Pins::new(path);
    let parent = if own.version().is_some() {
        own.parent()
    } else {
        path
    };
    let trees = Pins::versions(parent).unwrap_or_default();
    let mut reports: Vec<Report> = trees
        .iter()
        .filter_map(|pins| Report::read(&pins.report().ok()??).ok()?)
        .collect();
    reports.sort_by_key(|report| report.updated);
    reports.last().map_or_else(String::new, |report| {
        format!(" (process {}, node {})", report.pid, report.node)
    })
}
