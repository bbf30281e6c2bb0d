//! Whole frames on one device: a packet socket.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Namespace;

/// Sends and receives frames on one device, as they are.
#[derive(Debug)]
pub struct Wire(OwnedFd);

impl Wire {
    /// Opens `link` of `namespace`. Frames that the namespace itself sends on it are seen, too.
    ///
    /// # Errors
    /// Where there is no such link, or without `CAP_NET_RAW`.
    pub fn open(namespace: &Namespace, link: &str) -> Result<Self> {
        let index = namespace.ifindex(link)?;
        namespace
            .run(|| Self::on(index))
            .with_context(|| format!("open a packet socket on {link} in {}", namespace.label()))
    }

    fn on(index: u32) -> io::Result<Self> {
        let all = (libc::ETH_P_ALL as u16).to_be();
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // Protocol 0: nothing is received before `bind` names the device.
        // SAFETY: no pointers are passed.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just returned and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: all,
            sll_ifindex: index as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the address lives through the call and has the length given.
        let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) };
        if bound < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(Self(fd))
        }
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// As `send`.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        nix::sys::socket::send(self.0.as_raw_fd(), frame, nix::sys::socket::MsgFlags::empty())
            .with_context(|| format!("send a frame of {} bytes", frame.len()))?;
        Ok(())
    }

    /// The next frame for which `wanted` holds, within `timeout`.
    ///
    /// # Errors
    /// As `recv`, other than for lack of frames.
    pub fn receive(&self, timeout: Duration, wanted: impl Fn(&[u8]) -> bool) -> Result<Option<Vec<u8>>> {
        let end = Instant::now() + timeout;
        let mut buffer = vec![0; 65536];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let millis = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, millis)? == 0 {
                return Ok(None);
            }
            let len = nix::sys::socket::recv(
                self.0.as_raw_fd(),
                &mut buffer,
                nix::sys::socket::MsgFlags::MSG_TRUNC,
            )?;
            let frame = &buffer[..len.min(buffer.len())];
            if wanted(frame) {
                return Ok(Some(frame.to_vec()));
            }
        }
    }
}
