//! Trees of ours that nobody has named: elsewhere in the BPF file system that `--pin` is on.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{
    attach::entries,
    error::{Error, Result},
    kernel::Kernel,
    pins::Pins,
};

/// How far below the file system's root: `--pin` is mostly one or two directories below it, and a tree one more.
const DEPTH: usize = 5;

/// Refuses to call a node clean where what is pinned in another place than `root` is for devices of the calling thread's
/// network namespace. What is another namespace's is another node's (of kind, say), and is left alone.
///
/// # Errors
/// [`Error::Elsewhere`] with every such place.
pub fn refuse(root: &Path) -> Result<()> {
    match Kernel::probe(root) {
        Err(Error::NoBpffs(_)) => return Ok(()),
        other => other.map(drop)?,
    }
    let mut found = Vec::new();
    search(&top(root)?, DEPTH, &mut found)?;
    let mut places = Vec::new();
    for pins in found {
        let place = pins.parent().to_path_buf();
        if !pins.is_here()? {
            tracing::info!(pin = %place.display(), "pinned for another network namespace: not this node's, left alone");
        } else if !places.contains(&place) {
            places.push(place);
        }
    }
    if places.is_empty() {
        Ok(())
    } else {
        Err(Error::Elsewhere(places))
    }
}

/// The highest directory of the file system that `path` is on, or would be.
fn top(path: &Path) -> Result<PathBuf> {
    let existing = path
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    let failed = || Error::io(format!("looking at {}", existing.display()));
    let existing = fs::canonicalize(existing).map_err(failed())?;
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev());
    let ours = device(&existing).map_err(failed())?;
    let highest = existing
        .ancestors()
        .take_while(|path| device(path).is_ok_and(|device| device == ours))
        .last();
    Ok(highest.unwrap_or(&existing).to_path_buf())
}

/// Finds the trees below `directory`, in the order of their names.
fn search(directory: &Path, depth: usize, found: &mut Vec<Pins>) -> Result<()> {
    let mut names = entries(directory)?;
    names.sort_unstable();
    for name in names {
        let path = directory.join(name);
        // Not where a link leads.
        let is_directory = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata.is_dir(),
            // Others come and go meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(Error::io(format!("looking at {}", path.display()))(error)),
        };
        let pins = Pins::new(&path);
        if is_directory && pins.is_tree() {
            found.push(pins);
        } else if is_directory && depth > 1 {
            search(&path, depth - 1, found)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn trees_are_found_by_what_is_in_them() {
        let directory = std::env::temp_dir().join(format!("netpol-elsewhere-{}", std::process::id()));
        let make = |path: &str, marker: &str| {
            let path = directory.join(path);
            fs::create_dir_all(&path).unwrap();
            symlink("net:[1]", path.join(marker)).unwrap();
        };
        make("netpol-b/v3", "netns");
        make("netpol-a/v12", "netns");
        make("x/y/z/netpol/v7", "netns");
        // Too deep; of others: another name, another marker, a link.
        make("1/2/3/4/5/v7", "netns");
        make("cilium/version", "netns");
        make("tc/v7", "globals");
        symlink(directory.join("netpol-a"), directory.join("link")).unwrap();

        let mut found = Vec::new();
        let searched = search(&directory, DEPTH, &mut found);
        let found: Vec<PathBuf> = found.iter().map(|pins| pins.root().to_path_buf()).collect();
        fs::remove_dir_all(&directory).unwrap();
        searched.unwrap();
        let expected = ["netpol-a/v12", "netpol-b/v3", "x/y/z/netpol/v7"];
        assert_eq!(found, expected.map(|path| directory.join(path)));
    }
}
