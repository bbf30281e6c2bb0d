//! Whom to ask, and how: a connection with a limit of time, from a chosen address.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    str::FromStr,
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, getsockopt, setsockopt, socket,
        sockopt,
    },
};

/// How.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// TCP, where the other end begins.
    Tcp,
    /// A datagram that is answered.
    Udp,
    /// TCP: who accepts has answered.
    Connect,
}

/// Whom, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) kind: Kind,
    pub(crate) address: SocketAddr,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, address) = text
            .split_once(':')
            .ok_or_else(|| format!("{text}: not KIND:ADDRESS:PORT"))?;
        let kind = match kind {
            "tcp" => Kind::Tcp,
            "udp" => Kind::Udp,
            "connect" => Kind::Connect,
            _ => return Err(format!("{text}: neither tcp, udp nor connect")),
        };
        let address = address.parse().map_err(|error| format!("{text}: {error}"))?;
        Ok(Self { kind, address })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Tcp => "tcp",
            Kind::Udp => "udp",
            Kind::Connect => "connect",
        };
        write!(f, "{kind}:{}", self.address)
    }
}

/// Connects within `limit`; the source is `from` where that is given.
///
/// # Errors
/// `TimedOut`, or what the kernel says.
pub(crate) fn open(from: Option<IpAddr>, to: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    let family = if to.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd: OwnedFd = socket(family, SockType::Stream, flags, None)?;
    if let Some(from) = from {
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0)))?;
    }
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) => {}
        Err(Errno::EINPROGRESS) => wait(&fd, limit)?,
        Err(error) => return Err(error.into()),
    }
    let stream = TcpStream::from(fd);
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn wait(fd: &OwnedFd, limit: Duration) -> io::Result<()> {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    if poll(&mut fds, limit)? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    match getsockopt(fd, sockopt::SocketError)? {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// A UDP socket to `to`.
///
/// # Errors
/// What the kernel says.
pub(crate) fn datagrams(from: Option<IpAddr>, to: SocketAddr) -> io::Result<UdpSocket> {
    let any = if to.is_ipv4() {
        IpAddr::from([0_u8; 4])
    } else {
        IpAddr::from([0_u16; 8])
    };
    let socket = UdpSocket::bind((from.unwrap_or(any), 0))?;
    socket.connect(to)?;
    Ok(socket)
}

/// Whether nobody answered in time: not an answer that says no.
pub(crate) fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_of_both_families_are_read_and_shown() {
        for text in ["tcp:10.0.0.1:80", "udp:[fd00::1]:53", "connect:10.96.0.1:443"] {
            assert_eq!(
                text.parse::<Target>().map(|target| target.to_string()),
                Ok(text.to_owned())
            );
        }
        for text in ["tcp", "sctp:10.0.0.1:1", "tcp:web:80"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }
}
