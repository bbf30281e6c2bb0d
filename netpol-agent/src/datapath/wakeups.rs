//! What wakes the agent besides its source: announcements of devices, and the CNI cache.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd, RawFd},
    path::Path,
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

use super::{
    error::{Error, Result},
    netlink::Announcements,
};

/// Something to wait for within a runtime.
#[derive(Debug)]
pub struct Wakeups<T: AsRawFd>(AsyncFd<T>);

/// inotify on a directory.
#[derive(Debug)]
pub struct Watch(Inotify);

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
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
    /// Files that come and go in `directory`.
    ///
    /// # Errors
    /// The directory does not exist, or inotify is used up.
    pub fn directory(directory: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let events = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE;
        inotify.add_watch(directory, events)?;
        // SAFETY: `Watch` owns its descriptor and never replaces it.
        let registered = unsafe { AsyncFd::register(Watch(inotify)) };
        registered.map(Self).map_err(Into::into)
    }

    /// Waits for an event and takes all that are waiting.
    ///
    /// # Errors
    /// inotify can not be read.
    pub async fn next(&self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        while ready.get_inner().0.read_events().is_ok() {}
        ready.clear_ready();
        Ok(())
    }
}
