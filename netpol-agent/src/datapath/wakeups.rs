//! What wakes the agent besides its source: announcements of devices, and the CNI cache.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd, RawFd},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};
use tokio::io::unix::AsyncFd;

use super::{
    cni,
    error::{Error, Result},
    netlink::Announcements,
};

/// Something to wait for within a runtime.
#[derive(Debug)]
pub struct Wakeups<T: AsRawFd>(AsyncFd<T>);

/// inotify on directories, of which each may come later, go and come again.
#[derive(Debug)]
pub struct Watch {
    inotify: Inotify,
    directories: Vec<PathBuf>,
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.inotify.as_fd().as_raw_fd()
    }
}

impl Watch {
    /// Watches each directory that is there, and for one that is not the nearest above it, where the way to it will begin. What is watched
    /// already stays as it is.
    fn cover(&self) -> io::Result<()> {
        for directory in &self.directories {
            // What comes after the question whether it is there, and before what is above it is watched, nobody announces.
            while let Some(missing) = self.add(directory)?
                && missing.is_dir()
            {}
        }
        Ok(())
    }

    /// Watches `directory`, or what is above it; what is missing below that.
    fn add<'d>(&self, directory: &'d Path) -> io::Result<Option<&'d Path>> {
        let files = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_DELETE_SELF;
        let moved = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_MOVE_SELF;
        let (mut events, mut missing) = (files | moved, None);
        for path in directory.ancestors() {
            match self.inotify.add_watch(path, events | AddWatchFlags::IN_ONLYDIR) {
                Ok(_) => break,
                Err(Errno::ENOENT | Errno::ENOTDIR) => missing = Some(path),
                Err(errno) => return Err(errno.into()),
            }
            events = moved | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE_SELF;
        }
        Ok(missing)
    }
}

impl Wakeups<Announcements> {
    /// Devices, addresses and routes of the calling thread's network namespace.
    ///
    /// # Errors
    /// netlink is not to be had.
    pub fn devices() -> Result<Self> {
        let announcements = Announcements::subscribe()?;
        // SAFETY: `Announcements` owns its socket and never replaces it.
        let registered = unsafe { AsyncFd::register(announcements) };
        registered
            .map(Self)
            .map_err(|error| Error::io("waiting for netlink")(error.into()))
    }

    /// Waits for an announcement and takes all that are waiting.
    ///
    /// # Errors
    /// netlink can not be read.
    pub async fn next(&self) -> Result<()> {
        let mut ready = self
            .0
            .readable()
            .await
            .map_err(Error::io("waiting for netlink"))?;
        ready.get_inner().drain()?;
        ready.clear_ready();
        Ok(())
    }
}

impl Wakeups<Watch> {
    /// CNI results that come and go wherever [`cni`] looks for them.
    ///
    /// # Errors
    /// inotify is used up, or a directory may not be read.
    pub fn cni_results(cache: &Path) -> io::Result<Self> {
        let watch = Watch {
            inotify: Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?,
            directories: cni::directories(cache),
        };
        watch.cover()?;
        // SAFETY: `Watch` owns its descriptor and never replaces it.
        let registered = unsafe { AsyncFd::register(watch) };
        registered.map(Self).map_err(Into::into)
    }

    /// Waits for an event, takes all that are waiting, and watches what has come.
    ///
    /// # Errors
    /// inotify can not be read, or what has come can not be watched.
    pub async fn next(&self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        let watch = ready.get_inner();
        while watch.inotify.read_events().is_ok() {}
        let covered = watch.cover();
        ready.clear_ready();
        covered
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn results_are_seen_wherever_the_look_finds_them_and_whenever_that_comes() {
        /// No event takes so long.
        const PATIENCE: Duration = Duration::from_secs(40);
        let root = tempfile::tempdir().unwrap();
        let cni = root.path().join("var/cni");
        let (own, other) = (cni.join("results"), cni.join("cache/results"));
        let watch = Wakeups::cni_results(&own).unwrap();
        let sees = async |what: &str| match timeout(PATIENCE, watch.next()).await {
            Ok(seen) => seen.unwrap(),
            Err(_) => panic!("{what}: no event"),
        };
        let lives = async |directory: &Path| {
            let file = directory.join("cbr0-5f0c-eth0");
            fs::write(&file, "{}").unwrap();
            sees("a result").await;
            fs::remove_file(&file).unwrap();
            sees("its end").await;
        };
        // All of the way at once.
        fs::create_dir_all(&other).unwrap();
        sees("the directory of cri-dockerd").await;
        lives(&other).await;
        // Beside another that is watched.
        fs::create_dir(&own).unwrap();
        sees("the directory of containerd").await;
        lives(&own).await;
        lives(&other).await;
        // Another of the same name.
        for directory in [&own, &other] {
            fs::remove_dir(directory).unwrap();
            sees("a directory that goes").await;
            fs::create_dir(directory).unwrap();
            sees("a directory that comes again").await;
            lives(directory).await;
        }
        // Step by step, from the top.
        fs::remove_dir_all(&cni).unwrap();
        sees("all that goes").await;
        for directory in [&cni, &cni.join("cache"), &other] {
            fs::create_dir(directory).unwrap();
            sees("a step").await;
        }
        lives(&other).await;
    }
}
