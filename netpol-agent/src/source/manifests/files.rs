//! Finds and reads the files of a directory.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs::{self, File, Metadata},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::source::{Problem, Severity};

/// The largest file that is read.
pub(super) const MAX_FILE: u64 = 64 << 20;
/// How deep directories may nest.
const MAX_DEPTH: usize = 32;
/// A clock's tick at most: a file changed so shortly before it was read may change again within the same tick.
const TICK: Duration = Duration::from_millis(50);

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// Whether a later change would show in the stamp.
    pub(super) fn is_settled(&self, now: SystemTime) -> bool {
        let (Ok(seconds), Ok(nanos)) = (u64::try_from(self.changed.0), u32::try_from(self.changed.1)) else {
            return false;
        };
        let changed = UNIX_EPOCH + Duration::new(seconds, nanos);
        now.duration_since(changed).is_ok_and(|age| age > TICK)
    }
}

/// Is told of every directory before it is listed; gives what is wrong with it.
pub(super) type Visit<'v> = &'v mut dyn FnMut(&Path) -> Option<Problem>;

/// What is in the directory.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Manifests in byte order of their paths.
    pub(super) files: BTreeMap<OsString, Stamp>,
    /// Directories and links that could not be followed; what was known beneath them stays.
    pub(super) lost: Vec<OsString>,
    /// What is wrong, other than within files.
    pub(super) problems: Vec<Problem>,
}

impl Found {
    /// Whether `path` was not found only because the way to it could not be read.
    pub(super) fn is_lost(&self, path: &OsStr) -> bool {
        self.lost.iter().any(|lost| Path::new(path).starts_with(lost))
    }

    fn lose(&mut self, path: &Path, message: String, help: &str) {
        self.lost.push(path.into());
        self.problems.push(problem(Severity::Error, path, message, help));
    }
}

/// Lists `root` with all its subdirectories, following symbolic links, without hidden files. `visit` is called
/// for every directory before it is read, and for those that hold the targets of links.
pub(super) fn find(root: &Path, visit: Visit<'_>) -> io::Result<Found> {
    let mut found = Found::default();
    let mut above = Vec::new();
    let meta = fs::metadata(root)?;
    if !meta.is_dir() {
        return Err(io::Error::from(io::ErrorKind::NotADirectory));
    }
    above.push((meta.dev(), meta.ino()));
    found.problems.extend(visit(root));
    list(root, fs::read_dir(root)?, &mut above, &mut found, visit);
    found.problems.sort();
    Ok(found)
}

fn list(dir: &Path, entries: fs::ReadDir, above: &mut Vec<(u64, u64)>, found: &mut Found, visit: Visit<'_>) {
    for entry in entries {
        match entry {
            Ok(entry) if is_hidden(&entry.file_name()) => {}
            Ok(entry) => place(&entry.path(), above, found, visit),
            Err(error) => found.lose(
                dir,
                format!("can not be listed: {error}"),
                "check the file system",
            ),
        }
    }
}

fn place(path: &Path, above: &mut Vec<(u64, u64)>, found: &mut Found, visit: Visit<'_>) {
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        // Removed while we were looking.
        Err(_) if fs::symlink_metadata(path).is_err() => return,
        // Perhaps a directory of manifests, perhaps anything else.
        Err(error) if !is_manifest(path) => {
            found.lost.push(path.into());
            return found.problems.push(problem(
                Severity::Warning,
                path,
                format!(
                    "the symbolic link can not be followed: {error}; what was read through it stays in force"
                ),
                "correct or remove it",
            ));
        }
        Err(error) => {
            return found.lose(
                path,
                format!("the symbolic link can not be followed: {error}"),
                "correct or remove it",
            );
        }
    };
    if meta.is_dir() {
        subdirectory(path, &meta, above, found, visit);
    } else if !is_manifest(path) {
    } else if meta.is_file() {
        if let Some(dir) = target_dir(path) {
            found.problems.extend(visit(&dir));
        }
        found.files.insert(path.into(), Stamp::of(&meta));
    } else {
        found.problems.push(problem(
            Severity::Warning,
            path,
            "is not a regular file: ignored".into(),
            "remove it",
        ));
    }
}

fn subdirectory(
    path: &Path,
    meta: &Metadata,
    above: &mut Vec<(u64, u64)>,
    found: &mut Found,
    visit: Visit<'_>,
) {
    let id = (meta.dev(), meta.ino());
    if above.contains(&id) {
        let message = "leads back to a directory above it: ignored".into();
        found.problems.push(problem(
            Severity::Warning,
            path,
            message,
            "remove the symbolic link",
        ));
        return;
    }
    if above.len() == MAX_DEPTH {
        let message = format!("lies deeper than {MAX_DEPTH} directories: not read");
        return found.lose(path, message, "move its files up");
    }
    found.problems.extend(visit(path));
    match fs::read_dir(path) {
        Ok(entries) => {
            above.push(id);
            list(path, entries, above, found, visit);
            above.pop();
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => found.lose(
            path,
            format!("the directory can not be read: {error}"),
            "make it readable for netpol",
        ),
    }
}

/// The directory that holds the target of the link `path`; `None` where it is no link.
fn target_dir(path: &Path) -> Option<PathBuf> {
    let is_link = fs::symlink_metadata(path).ok()?.is_symlink();
    let target = is_link.then(|| fs::canonicalize(path).ok()).flatten()?;
    target.parent().map(Path::to_owned)
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

fn is_manifest(path: &Path) -> bool {
    path.extension()
        .is_some_and(|ext| ext == "yaml" || ext == "yml" || ext == "json")
}

/// The text of a file, or why there is none.
pub(super) fn read(path: &Path) -> Result<String, Box<Problem>> {
    let unreadable = |error: io::Error| {
        Box::new(problem(
            Severity::Error,
            path,
            format!("can not be read: {error}"),
            "make the file readable for netpol",
        ))
    };
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE {
        let message = format!("is larger than {} MiB: not read", MAX_FILE >> 20);
        return Err(Box::new(problem(
            Severity::Error,
            path,
            message,
            "split the file",
        )));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = good.iter().filter(|b| **b == b'\n').count() + 1;
        let message = "is not UTF-8 text: not read".into();
        Box::new(Problem {
            line: u32::try_from(line).ok(),
            ..problem(Severity::Error, path, message, "save it as UTF-8")
        })
    })
}

pub(super) fn problem(severity: Severity, path: &Path, message: String, help: &str) -> Problem {
    Problem {
        file: Some(path.to_owned()),
        line: None,
        severity,
        object: None,
        field: None,
        message,
        help: help.to_owned(),
    }
}
