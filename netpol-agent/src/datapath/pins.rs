//! Where everything is pinned: a tree for each ABI version below `--pin`.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, symlink},
    path::{Path, PathBuf},
};

use netpol_common::layout;

use super::{
    attach::entries,
    error::{Error, Result},
};

/// Where everything of one node is pinned: `maps/`, `progs/`, `links/` and the marker `netns`.
#[derive(Clone, Debug)]
pub struct Pins(PathBuf);

impl Pins {
    /// Below `root`, which names the ABI's version.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }

    /// The directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.0
    }

    /// What `--pin` names: the trees of all ABI versions are in there.
    pub(crate) fn parent(&self) -> &Path {
        self.0.parent().unwrap_or(Path::new("/"))
    }

    /// The ABI version that the tree is named after.
    pub(crate) fn version(&self) -> Option<u32> {
        version(&self.0.file_name()?.to_string_lossy())
    }

    /// Every tree below `parent`, by version.
    pub(crate) fn versions(parent: &Path) -> Result<Vec<Self>> {
        let mut found: Vec<_> = entries(parent)?
            .iter()
            .filter_map(|name| Some((version(name)?, Self::new(parent.join(name)))))
            .collect();
        found.sort_by_key(|(version, _)| *version);
        Ok(found.into_iter().map(|(_, pins)| pins).collect())
    }

    /// The tree below `parent` that most programs on devices are pinned in: where two versions are, one is about to take
    /// over from the other. The newest where it makes no difference; `None` where there is none.
    ///
    /// # Errors
    /// The directory can not be read.
    pub fn in_force(parent: &Path) -> Result<Option<Self>> {
        let mut best: Option<(usize, Self)> = None;
        for pins in Self::versions(parent)? {
            let links = entries(&pins.links())?.len();
            if best.as_ref().is_none_or(|(most, _)| links >= *most) {
                best = Some((links, pins));
            }
        }
        Ok(best.map(|(_, pins)| pins))
    }

    /// Where this tree is built before it gets its name.
    pub(crate) fn stage(&self) -> Self {
        self.beside("new")
    }

    fn beside(&self, prefix: &str) -> Self {
        let name = self.0.file_name().unwrap_or_default().to_string_lossy();
        Self(self.0.with_file_name(format!("{prefix}-{name}")))
    }

    /// Removes the tree, which nothing is attached by any more: in one step it has no version's name.
    pub(crate) fn discard(&self) -> Result<()> {
        let doomed = self.beside("old");
        fs::rename(&self.0, &doomed.0).map_err(Error::io(format!("renaming {}", self.0.display())))?;
        remove_tree(&doomed.0)
    }

    /// Removes trees that a killed run has left half built or half removed. Nothing was ever attached by them.
    pub(crate) fn remove_halves(parent: &Path) -> Result<()> {
        entries(parent)?
            .iter()
            .filter(|name| {
                let rest = name.strip_prefix("new-").or_else(|| name.strip_prefix("old-"));
                rest.is_some_and(|rest| version(rest).is_some())
            })
            .try_for_each(|name| remove_tree(&parent.join(name)))
    }

    pub(crate) fn map(&self, name: &str) -> PathBuf {
        self.0.join("maps").join(name)
    }

    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.0.join("progs").join(name)
    }

    pub(crate) fn links(&self) -> PathBuf {
        self.0.join("links")
    }

    /// Made of a symbolic link, as bpffs has no other files: the namespace that the devices are in.
    fn namespace(&self) -> PathBuf {
        self.0.join("netns")
    }

    /// Makes the directories.
    pub(crate) fn create(&self) -> Result<()> {
        let directories = [
            self.0.clone(),
            self.0.join("maps"),
            self.0.join("progs"),
            self.links(),
        ];
        for directory in directories {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&directory)
                .map_err(Error::io(format!("creating {}", directory.display())))?;
        }
        Ok(())
    }

    /// Notes in whose network namespace the links are; refuses another's.
    pub(crate) fn claim_namespace(&self) -> Result<()> {
        let ours = own_namespace()?;
        let marker = self.namespace();
        match fs::read_link(&marker) {
            Ok(theirs) if theirs == Path::new(&ours) => Ok(()),
            Ok(theirs) => Err(Error::OtherNamespace {
                path: self.0.clone(),
                theirs: theirs.display().to_string(),
                ours,
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                symlink(&ours, &marker).map_err(Error::io(format!("creating {}", marker.display())))
            }
            Err(error) => Err(Error::io(format!("reading {}", marker.display()))(error)),
        }
    }
}

impl Pins {
    /// Made of a symbolic link, too: `MAP=LAYOUT,…`.
    fn layouts_marker(&self) -> PathBuf {
        self.0.join("layouts")
    }

    /// Notes what the maps mean.
    pub(crate) fn note_layouts(&self) -> Result<()> {
        let text: Vec<_> = layout::all()
            .map(|(name, number)| format!("{name}={number}"))
            .collect();
        let marker = self.layouts_marker();
        symlink(text.join(","), &marker).map_err(Error::io(format!("creating {}", marker.display())))
    }

    /// What the maps mean, by name: see `netpol_common::layout`. Versions that noted nothing are known.
    pub(crate) fn layouts(&self) -> Result<BTreeMap<String, u16>> {
        let marker = self.layouts_marker();
        match fs::read_link(&marker) {
            Ok(text) => Ok(text
                .to_string_lossy()
                .split(',')
                .filter_map(|pair| {
                    let (name, number) = pair.split_once('=')?;
                    Some((name.to_owned(), number.parse().ok()?))
                })
                .collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(self
                .version()
                .filter(|version| *version == layout::UNMARKED_ABI)
                .map(|_| layout::all().map(|(name, _)| (name.to_owned(), 1)).collect())
                .unwrap_or_default()),
            Err(error) => Err(Error::io(format!("reading {}", marker.display()))(error)),
        }
    }

    /// Refuses maps that mean something else under the same version.
    pub(crate) fn check_layouts(&self) -> Result<()> {
        let found = self.layouts()?;
        let other = layout::all().find(|(name, number)| found.get(*name) != Some(number));
        other.map_or(Ok(()), |(name, _)| {
            Err(Error::Incompatible {
                path: self.0.clone(),
                what: name,
            })
        })
    }

    /// Notes where the agent keeps its files: `STEM.json`, `STEM.pods.json`, `STEM.waiting.json`.
    pub(crate) fn note_files(&self, stem: &Path) -> Result<()> {
        let marker = self.0.join("state");
        if fs::read_link(&marker).is_ok_and(|known| known == stem) {
            return Ok(());
        }
        let failed = || Error::io(format!("creating {}", marker.display()));
        match fs::remove_file(&marker) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed()(error)),
            _ => {}
        }
        symlink(stem, &marker).map_err(failed())
    }

    /// The report, the slots and the note of the agent that used these pins last; empty where none did.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>> {
        let marker = self.0.join("state");
        match fs::read_link(&marker) {
            Ok(stem) => Ok(vec![report_file(&stem), slots_file(&stem), waiting_file(&stem)]),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(Error::io(format!("reading {}", marker.display()))(error)),
        }
    }

    /// The agent's report, if an agent has noted where it writes one.
    pub fn report(&self) -> Result<Option<PathBuf>> {
        Ok(self.files()?.into_iter().next())
    }

    /// Whether an agent has made this directory.
    pub(crate) fn is_tree(&self) -> bool {
        let marker = fs::read_link(self.namespace());
        self.version().is_some() && marker.is_ok_and(|marker| marker.to_string_lossy().starts_with("net:["))
    }

    /// Whether the devices are those of the calling thread's network namespace.
    pub(crate) fn is_here(&self) -> Result<bool> {
        let ours = own_namespace()?;
        Ok(fs::read_link(self.namespace()).is_ok_and(|theirs| theirs == Path::new(&ours)))
    }

    /// Says in whose namespace the devices are.
    pub(crate) fn other_namespace(&self) -> Result<Error> {
        let theirs = fs::read_link(self.namespace()).unwrap_or_default();
        Ok(Error::OtherNamespace {
            path: self.0.clone(),
            theirs: theirs.display().to_string(),
            ours: own_namespace()?,
        })
    }
}

/// `STEM.json`
pub(crate) fn report_file(stem: &Path) -> PathBuf {
    with_ending(stem, ".json")
}

/// `STEM.pods.json`
pub(crate) fn slots_file(stem: &Path) -> PathBuf {
    with_ending(stem, ".pods.json")
}

/// `STEM.waiting.json`
pub(crate) fn waiting_file(stem: &Path) -> PathBuf {
    with_ending(stem, ".waiting.json")
}

/// A node's name may hold dots: nothing is replaced.
fn with_ending(stem: &Path, ending: &str) -> PathBuf {
    let mut path = stem.as_os_str().to_owned();
    path.push(ending);
    path.into()
}

/// The number of `vN`.
fn version(name: &str) -> Option<u32> {
    name.strip_prefix('v')?.parse().ok()
}

pub(crate) fn remove_tree(root: &Path) -> Result<()> {
    fs::remove_dir_all(root).map_err(Error::io(format!("removing {}", root.display())))
}

/// `net:[4026531840]`
fn own_namespace() -> Result<String> {
    let path = "/proc/thread-self/ns/net";
    let inode = fs::metadata(path)
        .map_err(Error::io(format!("stat {path}")))?
        .ino();
    Ok(format!("net:[{inode}]"))
}
