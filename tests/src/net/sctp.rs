//! SCTP as far as a probe needs it: kernel sockets where the kernel has them, INIT and INIT ACK on raw
//! sockets where not.

use std::{
    io,
    mem::MaybeUninit,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::packet::{protocol, sctp};

/// The INIT ACK parameter that carries the responder's name (a state cookie is opaque to its receiver).
const COOKIE: u16 = 7;

/// Whether this kernel has SCTP sockets.
#[must_use]
pub fn kernel_has_sctp() -> bool {
    socket(libc::AF_INET, libc::SOCK_STREAM).is_ok()
}

/// A stream-style SCTP socket; with the raw type, one that gets every SCTP packet of its addresses.
fn socket(family: i32, kind: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, libc::IPPROTO_SCTP) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just returned and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn family(address: IpAddr) -> i32 {
    if address.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    }
}

/// A listening SCTP socket of the kernel's.
pub(super) fn listen(address: SocketAddr) -> io::Result<OwnedFd> {
    let fd = socket(family(address.ip()), libc::SOCK_STREAM)?;
    with_sockaddr(address, |pointer, len| {
        // SAFETY: `pointer` and `len` describe a socket address that lives through the call.
        check(unsafe { libc::bind(fd.as_raw_fd(), pointer, len) })
    })?;
    // SAFETY: no pointers are passed.
    check(unsafe { libc::listen(fd.as_raw_fd(), 16) })?;
    Ok(fd)
}

/// A socket of the kernel's that is connecting to `to`, without blocking.
pub(super) fn connect(from: Option<IpAddr>, to: SocketAddr) -> io::Result<OwnedFd> {
    let fd = socket(family(to.ip()), libc::SOCK_STREAM | libc::SOCK_NONBLOCK)?;
    if let Some(from) = from {
        bind_to(&fd, SocketAddr::new(from, 0))?;
    }
    with_sockaddr(to, |pointer, len| {
        // SAFETY: `pointer` and `len` describe a socket address that lives through the call.
        check(unsafe { libc::connect(fd.as_raw_fd(), pointer, len) })
    })
    .or_else(|error| match error.raw_os_error() {
        Some(libc::EINPROGRESS) => Ok(()),
        _ => Err(error),
    })?;
    Ok(fd)
}

/// An association with `to`; only where [`kernel_has_sctp`].
pub(super) fn associate(to: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let fd = connect(None, to)?;
    let millis = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    if poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)], millis)? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let stream = TcpStream::from(fd);
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn bind_to(fd: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    with_sockaddr(address, |pointer, len| {
        // SAFETY: `pointer` and `len` describe a socket address that lives through the call.
        check(unsafe { libc::bind(fd.as_raw_fd(), pointer, len) })
    })
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn with_sockaddr<T>(address: SocketAddr, work: impl FnOnce(*const libc::sockaddr, u32) -> T) -> T {
    use nix::sys::socket::{SockaddrLike, SockaddrStorage};
    let storage = SockaddrStorage::from(address);
    work(storage.as_ptr(), storage.len())
}

/// A raw socket for SCTP without a kernel that speaks it. The kernel says nothing (no ICMP error) while it
/// is bound.
#[derive(Debug)]
pub(super) struct Raw(OwnedFd);

/// An SCTP packet without its IP header.
pub(super) struct Received {
    /// Whose.
    pub(super) from: SocketAddr,
    /// To which port.
    pub(super) port: u16,
    /// `sctp::*`, the first chunk's.
    pub(super) chunk: u8,
    /// The initiate tag of an INIT or INIT ACK, else 0.
    pub(super) tag: u32,
    /// The responder's name in an INIT ACK.
    pub(super) name: String,
}

impl Raw {
    /// Gets the SCTP packets to `address`; to any where `None`.
    pub(super) fn bind(family_of: IpAddr, address: Option<IpAddr>) -> io::Result<Self> {
        let fd = socket(family(family_of), libc::SOCK_RAW | libc::SOCK_NONBLOCK)?;
        if let Some(address) = address {
            bind_to(&fd, SocketAddr::new(address, 0))?;
        }
        Ok(Self(fd))
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.0
    }

    /// Sends a packet of one chunk.
    pub(super) fn send(
        &self,
        to: IpAddr,
        ports: (u16, u16),
        tag: u32,
        chunk: u8,
        value: &[u8],
    ) -> io::Result<()> {
        let segment = sctp::segment(ports.0, ports.1, tag, &sctp::chunk(chunk, value));
        with_sockaddr(SocketAddr::new(to, 0), |pointer, len| {
            // SAFETY: buffer and address live through the call and have the lengths given.
            let sent = unsafe {
                libc::sendto(
                    self.0.as_raw_fd(),
                    segment.as_ptr().cast(),
                    segment.len(),
                    0,
                    pointer,
                    len,
                )
            };
            if sent < 0 {
                Err(io::Error::last_os_error())
            } else {
                Ok(())
            }
        })
    }

    /// The next packet that could be read, without blocking.
    pub(super) fn receive(&self) -> io::Result<Option<Received>> {
        let mut buffer = [0_u8; 2048];
        let mut address = MaybeUninit::<libc::sockaddr_storage>::zeroed();
        let mut len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        // SAFETY: buffer and address live through the call and have the lengths given.
        let got = unsafe {
            libc::recvfrom(
                self.0.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
                address.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        if got < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: all zeros is a valid value, and the kernel wrote an address of a family over it.
        let address = unsafe { address.assume_init() };
        let Some(from) = ip_of(&address) else {
            return Ok(None);
        };
        let packet = &buffer[..got as usize];
        // An IPv4 raw socket shows the IP header, an IPv6 one does not.
        let start = if from.is_ipv4() {
            usize::from(packet[0] & 15) * 4
        } else {
            0
        };
        Ok(packet.get(start..).and_then(|segment| parse(from, segment)))
    }
}

fn ip_of(address: &libc::sockaddr_storage) -> Option<IpAddr> {
    let pointer: *const libc::sockaddr_storage = address;
    match i32::from(address.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that this storage holds a `sockaddr_in`.
            let v4 = unsafe { &*pointer.cast::<libc::sockaddr_in>() };
            Some(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that this storage holds a `sockaddr_in6`.
            let v6 = unsafe { &*pointer.cast::<libc::sockaddr_in6>() };
            Some(Ipv6Addr::from(v6.sin6_addr.s6_addr).into())
        }
        _ => None,
    }
}

fn parse(from: IpAddr, segment: &[u8]) -> Option<Received> {
    let u16_at = |at: usize| Some(u16::from_be_bytes(segment.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_be_bytes(segment.get(at..at + 4)?.try_into().ok()?));
    let chunk = *segment.get(12)?;
    let has_tag = matches!(chunk, sctp::INIT | sctp::INIT_ACK);
    let mut name = String::new();
    if chunk == sctp::INIT_ACK && u16_at(32) == Some(COOKIE) {
        let len = usize::from(u16_at(34)?);
        name = String::from_utf8_lossy(segment.get(36..32 + len)?).into_owned();
    }
    Some(Received {
        from: SocketAddr::new(from, u16_at(0)?),
        port: u16_at(2)?,
        chunk,
        tag: if has_tag { u32_at(16)? } else { 0 },
        name,
    })
}

/// The value of an INIT ACK that tells `name`.
pub(super) fn init_ack(tag: u32, name: &str) -> Vec<u8> {
    let len = u16::try_from(name.len() + 4).expect("a short name");
    let mut parameter = COOKIE.to_be_bytes().to_vec();
    parameter.extend(len.to_be_bytes());
    parameter.extend(name.as_bytes());
    parameter.resize(parameter.len().next_multiple_of(4), 0);
    sctp::init(tag, &parameter)
}

const _: () = assert!(protocol::SCTP as i32 == libc::IPPROTO_SCTP);
