//! Follows a directory: editors' atomic saves, renames, the `..data` links of a mounted ConfigMap, a directory
//! that vanishes and comes back.
//!
//! The kernel's events say only *when* to look; what has changed is found by looking. Every directory is
//! watched before it is listed, so nothing falls between.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor},
    unistd::pipe,
};
use tokio::sync::mpsc;

use super::{LoadError, store::Store};
use crate::source::{Change, Loaded, Severity, manifests::files::problem};

/// A change is read when the directory was quiet for so long,
const QUIET: Duration = Duration::from_millis(100);
/// or at the latest after so long.
const LATEST: Duration = Duration::from_secs(1);
/// Also without events we look so often: network file systems have none.
const SLOW: Duration = Duration::from_secs(10);
/// As above while the directory is away.
const AWAY: Duration = Duration::from_millis(500);

/// The changes of a directory. Dropping it ends the thread that watches.
#[derive(Debug)]
pub struct Watcher {
    changes: mpsc::Receiver<Change>,
    /// The thread ends when this end of its pipe is closed.
    _stop: OwnedFd,
}

impl Watcher {
    /// Reads `dir` and begins to watch it.
    pub fn start(dir: &Path) -> Result<(Loaded, Self), LoadError> {
        let failed = |error: Errno| LoadError::Watch {
            dir: dir.to_owned(),
            error: error.into(),
        };
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(failed)?;
        let (ended, stop) = pipe().map_err(failed)?;
        let (sender, changes) = mpsc::channel(1);
        let mut thread = Thread {
            store: Store::new(dir),
            dir: dir.to_owned(),
            inotify,
            parent: None,
            sender,
        };
        thread.scan().map_err(|error| LoadError::Directory {
            dir: dir.to_owned(),
            error,
        })?;
        let loaded = Loaded {
            snapshot: thread.store.snapshot(),
            problems: thread.store.problems().to_vec(),
        };
        thread::Builder::new()
            .name("manifests".to_owned())
            .spawn(move || thread.run(&ended))
            .map_err(|error| LoadError::Watch {
                dir: dir.to_owned(),
                error,
            })?;
        Ok((loaded, Self { changes, _stop: stop }))
    }

    /// The next change. Changes that happen while nobody asks are joined. `None` once the thread has ended.
    pub async fn next(&mut self) -> Option<Change> {
        self.changes.recv().await
    }

    /// As [`Self::next`], outside a runtime.
    pub fn blocking_next(&mut self) -> Option<Change> {
        self.changes.blocking_recv()
    }
}

struct Thread {
    store: Store,
    dir: PathBuf,
    inotify: Inotify,
    /// The watch of the directory's own parent: only the directory's name counts there.
    parent: Option<WatchDescriptor>,
    sender: mpsc::Sender<Change>,
}

/// Why the thread wakes up.
enum Wake {
    Event,
    Timeout,
    Stop,
}

impl Thread {
    fn run(mut self, ended: &OwnedFd) {
        let mut wait = SLOW;
        loop {
            match self.wait(ended, wait) {
                Wake::Stop => return,
                Wake::Timeout => {}
                Wake::Event => match self.settle(ended) {
                    Some(true) => {}
                    Some(false) => continue,
                    None => return,
                },
            }
            let change = match self.scan() {
                Ok(change) => {
                    wait = SLOW;
                    change
                }
                Err(error) => {
                    wait = AWAY;
                    self.store.vanished(&error)
                }
            };
            if change.is_some_and(|change| self.sender.blocking_send(change).is_err()) {
                return;
            }
        }
    }

    fn wait(&self, ended: &OwnedFd, timeout: Duration) -> Wake {
        let mut fds = [
            PollFd::new(ended.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN),
        ];
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        // An interrupted poll is a timeout too early: looking once more does no harm.
        let _count = poll(&mut fds, timeout);
        let [stop, event] = fds.map(|fd| fd.any().unwrap_or(false));
        match (stop, event) {
            (true, _) => Wake::Stop,
            (false, true) => Wake::Event,
            (false, false) => Wake::Timeout,
        }
    }

    /// Waits until the directory is quiet. Whether something of ours has happened; `None` to stop.
    fn settle(&self, ended: &OwnedFd) -> Option<bool> {
        let begin = Instant::now();
        let mut ours = self.drain();
        while ours && begin.elapsed() < LATEST {
            match self.wait(ended, QUIET) {
                Wake::Stop => return None,
                Wake::Timeout => break,
                Wake::Event => ours |= self.drain(),
            }
        }
        Some(ours)
    }

    /// Reads all events; whether one is about our directory.
    fn drain(&self) -> bool {
        let mut ours = false;
        loop {
            match self.inotify.read_events() {
                Ok(events) if events.is_empty() => return ours,
                Ok(events) => {
                    let foreign = |wd, name: Option<&std::ffi::OsStr>| {
                        Some(wd) == self.parent && name.is_some() && name != self.dir.file_name()
                    };
                    ours |= events
                        .iter()
                        .any(|event| !foreign(event.wd, event.name.as_deref()));
                }
                Err(Errno::EAGAIN) => return ours,
                // Looking is always safe.
                Err(_) => return true,
            }
        }
    }

    fn scan(&mut self) -> io::Result<Option<Change>> {
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF;
        self.parent = self
            .dir
            .file_name()
            .and_then(|_| self.dir.parent())
            .and_then(|parent| {
                let parent = if parent.as_os_str().is_empty() {
                    Path::new(".")
                } else {
                    parent
                };
                // Without it we see the directory come back a little later.
                self.inotify.add_watch(parent, flags).ok()
            });
        let (inotify, parent) = (&self.inotify, &mut self.parent);
        self.store.scan(&mut |dir| match inotify.add_watch(dir, flags) {
            Ok(watch) => {
                // The parent holds the target of a link, too: all its names count.
                parent.take_if(|parent| *parent == watch);
                None
            }
            Err(Errno::ENOENT) => None,
            Err(error) => {
                let message = format!(
                    "can not be watched: {error}; changes are seen within {} s",
                    SLOW.as_secs()
                );
                Some(problem(
                    Severity::Warning,
                    dir,
                    message,
                    "raise fs.inotify.max_user_watches",
                ))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel drops events that nobody reads in time; what happened must then be looked for everywhere.
    #[test]
    fn events_that_were_lost_make_us_look() {
        let above = tempfile::TempDir::new().expect("a temporary directory");
        let dir = above.path().join("manifests");
        std::fs::create_dir(&dir).expect("made");
        let (sender, _changes) = mpsc::channel(1);
        let mut thread = Thread {
            store: Store::new(&dir),
            dir,
            inotify: Inotify::init(InitFlags::IN_NONBLOCK).expect("an inotify instance"),
            parent: None,
            sender,
        };
        thread.scan().expect("readable");
        let touch = |name: &str| std::fs::write(above.path().join(name), "").expect("written");
        touch("neighbour");
        assert!(!thread.drain(), "a neighbour is none of our business");
        let most = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").expect("readable");
        // Each writing is one event at least; two equal ones in a row would be one.
        for _ in 0..=most.trim().parse::<usize>().expect("a number") / 2 {
            touch("one");
            touch("another");
        }
        assert!(thread.drain(), "the overflow went unnoticed");
    }

    #[test]
    fn dropping_the_watcher_ends_its_thread() {
        let dir = tempfile::TempDir::new().expect("a temporary directory");
        let (
            _,
            Watcher {
                mut changes,
                _stop: stop,
            },
        ) = Watcher::start(dir.path()).expect("watched");
        drop(stop);
        assert_eq!(changes.blocking_recv(), None);
    }
}
