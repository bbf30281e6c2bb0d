//! Devices without link layer.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    os::fd::{AsFd as _, AsRawFd as _},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Namespace;

mod request {
    // `TUNSETIFF` is declared with an `int` and takes a `struct ifreq` (linux/if_tun.h).
    nix::ioctl_write_ptr_bad!(
        tunsetiff,
        nix::request_code_write!(b'T', 202, std::mem::size_of::<libc::c_int>()),
        libc::ifreq
    );
}

/// Two `tun` devices, one in each of two namespaces, joined like the ends of a VPN. Dropping it removes them.
#[derive(Debug)]
pub struct Tunnel {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Tunnel {
    /// Makes a device `name` in both namespaces and carries packets between them.
    ///
    /// # Errors
    /// Where the kernel has no such devices, or `name` is taken.
    pub fn join(a: &Namespace, b: &Namespace, name: &str) -> Result<Self> {
        let ends = [a, b].map(|end| end.run(|| open(name)));
        let [a, b] = ends;
        let ends = [a?, b?];
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let thread = std::thread::spawn(move || carry(ends, &flag));
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn open(name: &str) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .context("open /dev/net/tun")?;
    // SAFETY: all zeros is a valid `ifreq`.
    let mut wanted: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in wanted
        .ifr_name
        .iter_mut()
        .zip(name.bytes().take(libc::IFNAMSIZ - 1))
    {
        *to = from as libc::c_char;
    }
    wanted.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: an open descriptor, and a request that lives through the call.
    unsafe { request::tunsetiff(file.as_raw_fd(), &raw const wanted) }
        .with_context(|| format!("make the device {name}"))?;
    Ok(file)
}

fn carry(ends: [File; 2], stop: &AtomicBool) {
    let mut packet = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        let mut ready = ends
            .each_ref()
            .map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN));
        // A short limit instead of a wake-up: only stopping waits for it.
        if poll(&mut ready, PollTimeout::from(20_u8)).unwrap_or(0) <= 0 {
            continue;
        }
        let ready = ready.map(|fd| fd.any().unwrap_or(false));
        for (from, to) in [(0, 1), (1, 0)] {
            if ready[from]
                && let Ok(len) = (&ends[from]).read(&mut packet)
            {
                // A device that is down takes nothing: as on any wire.
                let _ = (&ends[to]).write(&packet[..len]);
            }
        }
    }
}
