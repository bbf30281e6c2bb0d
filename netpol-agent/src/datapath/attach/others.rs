//! Links and filters of another ABI version: taken as they are, then given our program.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{Attachments, detach::detach_one, entries, hook::Direction, remove};
use crate::datapath::error::{Error, Result};

impl Attachments {
    /// From now on what is theirs is taken.
    pub(crate) fn release(&mut self) {
        self.held = false;
    }

    /// Nothing is theirs any more.
    pub(crate) fn forget_others(&mut self) {
        self.others.clear();
    }

    /// Brings what another version has at this place to `path`, in one step: whoever is killed here, the next run of either
    /// version finds it in one tree. False where it has to be left alone for now.
    pub(super) fn fetch(&self, path: &Path) -> Result<bool> {
        let (true, Some(name)) = (fs::symlink_metadata(path).is_err(), path.file_name()) else {
            return Ok(true);
        };
        for theirs in self.others.iter().map(|links| links.join(name)) {
            if fs::symlink_metadata(&theirs).is_err() {
                continue;
            }
            if self.held {
                return Ok(false);
            }
            fs::rename(&theirs, path).map_err(Error::io(format!(
                "moving {} to {}",
                theirs.display(),
                path.display()
            )))?;
            return Ok(true);
        }
        Ok(true)
    }

    /// Takes off what is left below `links` of another version: on devices that need no programs or have gone, and what is
    /// there twice. `name`: what a device is called now.
    pub(crate) fn take_off(&self, links: &Path, name: impl Fn(u32) -> Option<String>) -> Result<()> {
        let mut places: Vec<(Direction, PathBuf)> = entries(links)?
            .iter()
            .map(|entry| {
                let egress = entry.ends_with(Direction::Egress.name());
                let direction = if egress {
                    Direction::Egress
                } else {
                    Direction::Ingress
                };
                (direction, links.join(entry))
            })
            .collect();
        // Ways out first, as always.
        places.sort_by_key(|(direction, _)| std::cmp::Reverse(*direction));
        for (direction, path) in places {
            let entry = path.file_name().unwrap_or_default();
            let both_filters = fs::read_link(&path).is_ok() && fs::read_link(self.links.join(entry)).is_ok();
            if both_filters {
                // One filter, two markers.
                remove(&path)?;
                continue;
            }
            let index = entry.to_string_lossy();
            let index = index.split_once('-').and_then(|(index, _)| index.parse().ok());
            detach_one(&path, direction, index.and_then(&name).as_deref())?;
        }
        match fs::remove_dir(links) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(format!("removing {}", links.display()))(error))
            }
            _ => Ok(()),
        }
    }
}
