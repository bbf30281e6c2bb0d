//! What an agent says of itself as long as nothing of it is in force: a file of its own, beside the report of what is.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::{
    error::{Error, Result},
    pins::waiting_file,
};

/// An agent that waits; times are seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// The agent's version.
    pub version: String,
    /// `--node`
    pub node: String,
    /// The agent's process.
    pub pid: u32,
    /// When it started.
    pub started: u64,
    /// `--pin`
    pub pin: PathBuf,
    /// The directory of manifests, or the API server's address.
    pub source: String,
    /// What it waits for.
    pub reasons: Vec<Reason>,
}

/// One thing that an agent waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Since when.
    pub since: u64,
    /// What for, and why it takes so long.
    pub what: String,
}

/// The file of one agent; goes with the agent. One that was killed leaves it, but not the lock on it.
#[derive(Debug)]
pub(crate) struct Note {
    path: PathBuf,
    written: Option<(Waiting, Flock<File>)>,
}

impl Note {
    /// Of the agent whose files begin with `stem`; not written yet.
    pub(crate) fn new(stem: &Path) -> Self {
        Self {
            path: waiting_file(stem),
            written: None,
        }
    }

    /// Writes it as a whole, if it says anything new.
    pub(crate) fn write(&mut self, waiting: &Waiting) -> Result<()> {
        if self
            .written
            .as_ref()
            .is_some_and(|(written, _)| written == waiting)
        {
            return Ok(());
        }
        let mut fresh = self.path.clone().into_os_string();
        fresh.push(".new");
        let fresh = PathBuf::from(fresh);
        let written = replace(&self.path, &fresh, waiting);
        let written = written.inspect_err(|_| drop(fs::remove_file(&fresh)));
        let lock = written.map_err(Error::io(format!("writing {}", self.path.display())))?;
        // While another agent writes its own there is nothing to hold.
        self.written = lock.map(|lock| (waiting.clone(), lock)).or(self.written.take());
        Ok(())
    }
}

/// Puts a file that is locked in place of `path`; `None` where another agent is about to.
fn replace(path: &Path, fresh: &Path, waiting: &Waiting) -> io::Result<Option<Flock<File>>> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(fresh)?;
    let Ok(mut file) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
        return Ok(None);
    };
    file.set_len(0)?;
    file.write_all(&serde_json::to_vec_pretty(waiting)?)?;
    fs::rename(fresh, path)?;
    Ok(Some(file))
}

impl Drop for Note {
    fn drop(&mut self) {
        let Some((_, file)) = &self.written else { return };
        let inode = |metadata: io::Result<fs::Metadata>| metadata.map(|metadata| metadata.ino()).ok();
        // Another agent may have put its own there.
        if inode(file.metadata()) == inode(fs::metadata(&self.path)) {
            let _stays_without_its_lock = fs::remove_file(&self.path);
        }
    }
}

/// The agents that wait for `pin` at this moment and keep their files in `directory`.
///
/// # Errors
/// The directory is there and can not be read.
pub fn all(directory: &Path, pin: &Path) -> Result<Vec<Waiting>> {
    let failed = || Error::io(format!("reading {}", directory.display()));
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed()(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed())?.path();
        if path
            .to_string_lossy()
            .ends_with(&*waiting_file(Path::new("")).to_string_lossy())
        {
            found.extend(read(&path).filter(|waiting| waiting.pin == pin));
        }
    }
    found.sort_by(|one, other| one.node.cmp(&other.node));
    Ok(found)
}

/// `None` where it goes at this moment, is of no agent that lives, or says what this version does not understand.
fn read(path: &Path) -> Option<Waiting> {
    let file = File::open(path).ok()?;
    let waiting = serde_json::from_reader(io::BufReader::new(&file)).ok()?;
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => None,
        Err(_) => Some(waiting),
    }
}

#[cfg(test)]
impl Waiting {
    /// One, for tests of what is made of it.
    pub(crate) fn example() -> Self {
        Self {
            version: "1.0.0".to_owned(),
            node: "n1".to_owned(),
            pid: 7,
            started: 1,
            pin: "/pin".into(),
            source: "https://10.96.0.1".to_owned(),
            reasons: vec![Reason {
                since: 2,
                what: "may not list pods".to_owned(),
            }],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_is_told_while_it_lives() {
        let directory = tempfile::tempdir().unwrap();
        let all = |pin: &str| all(&directory.path().join("state"), Path::new(pin)).unwrap();
        assert_eq!(all("/pin"), []);
        let stem = directory.path().join("state/n1.example");
        let mut note = Note::new(&stem);
        let mut waiting = Waiting::example();
        for reasons in [waiting.reasons.clone(), vec![]] {
            waiting.reasons = reasons;
            note.write(&waiting).unwrap();
            assert_eq!(all("/pin"), [waiting.clone()]);
        }
        assert_eq!(all("/other"), []);
        // As a killed one leaves it: nobody holds it.
        fs::copy(
            waiting_file(&stem),
            waiting_file(&directory.path().join("state/n2")),
        )
        .unwrap();
        assert_eq!(all("/pin"), [waiting]);
        drop(note);
        assert_eq!(all("/pin"), []);
        assert!(!waiting_file(&stem).exists());
    }

    #[test]
    fn the_end_of_one_leaves_the_note_of_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let stem = directory.path().join("n1");
        let (mut first, mut second) = (Note::new(&stem), Note::new(&stem));
        let waiting = Waiting::example();
        first.write(&waiting).unwrap();
        let waiting = Waiting {
            started: 9,
            ..waiting
        };
        second.write(&waiting).unwrap();
        drop(first);
        assert_eq!(all(directory.path(), Path::new("/pin")).unwrap(), [waiting]);
    }
}
