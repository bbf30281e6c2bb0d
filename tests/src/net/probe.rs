//! Who answers? Many probes at once from one namespace, with real sockets.

use std::{
    io::{self, ErrorKind, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket,
        sockopt::{ReuseAddr, SocketError},
    },
};

use super::{
    Namespace, bound, sctp,
    sctp::{Raw, kernel_has_sctp},
};
use crate::packet;

/// Probes in flight at one time, well below the usual limit of open files.
const AT_ONCE: usize = 256;

/// What a probe speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// A connection whose first line is read.
    Tcp,
    /// A datagram, and another in answer.
    Udp,
    /// A connection where the kernel has SCTP, else an INIT by hand.
    Sctp,
}

/// One question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Probe {
    /// What it speaks.
    pub transport: Transport,
    /// To whom.
    pub to: SocketAddr,
    /// From which of the namespace's addresses; the kernel's choice where `None`.
    pub from: Option<IpAddr>,
    /// From which port; the kernel's choice where 0.
    pub from_port: u16,
}

impl Probe {
    /// TCP to `to`.
    #[must_use]
    pub fn tcp(to: SocketAddr) -> Self {
        Self::new(Transport::Tcp, to)
    }

    /// UDP to `to`.
    #[must_use]
    pub fn udp(to: SocketAddr) -> Self {
        Self::new(Transport::Udp, to)
    }

    /// SCTP to `to`.
    #[must_use]
    pub fn sctp(to: SocketAddr) -> Self {
        Self::new(Transport::Sctp, to)
    }

    /// `transport` to `to`.
    #[must_use]
    pub fn new(transport: Transport, to: SocketAddr) -> Self {
        Self {
            transport,
            to,
            from: None,
            from_port: 0,
        }
    }

    /// The address to bind to.
    fn local(&self) -> IpAddr {
        self.from.unwrap_or(match self.to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        })
    }
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// This responder answered.
    Answered(String),
    /// A reset, an abort or port unreachable: the packet got there and nobody listened.
    Refused,
    /// Nothing came back.
    Silent,
    /// The kernel refused to send, or broke the connection with another error.
    Failed(String),
}

impl Outcome {
    /// Whether packets went there and back, answered or refused.
    #[must_use]
    pub fn reached(&self) -> bool {
        matches!(self, Self::Answered(_) | Self::Refused)
    }
}

/// One probe from `namespace`.
#[must_use]
pub fn probe(namespace: &Namespace, probe: Probe, timeout: Duration) -> Outcome {
    probe_all(namespace, &[probe], timeout).swap_remove(0)
}

/// Probes from `namespace`, at most 256 at a time, each with `timeout`; outcomes in the same order.
#[must_use]
pub fn probe_all(namespace: &Namespace, probes: &[Probe], timeout: Duration) -> Vec<Outcome> {
    namespace.run(|| {
        probes
            .chunks(AT_ONCE)
            .flat_map(|chunk| {
                let flights: Vec<_> = chunk.iter().map(|probe| start(*probe)).collect();
                land(flights, timeout)
            })
            .collect()
    })
}

/// A probe under way.
enum Flight {
    Connecting(TcpStream),
    Reading(TcpStream, Vec<u8>),
    Datagram(UdpSocket),
    Sctp(Raw, Probe, u16),
    Landed(Outcome),
}

impl Flight {
    fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match self {
            Self::Connecting(socket) => Some((socket.as_fd(), PollFlags::POLLOUT)),
            Self::Reading(socket, _) => Some((socket.as_fd(), PollFlags::POLLIN)),
            Self::Datagram(socket) => Some((socket.as_fd(), PollFlags::POLLIN)),
            Self::Sctp(raw, ..) => Some((raw.fd().as_fd(), PollFlags::POLLIN)),
            Self::Landed(_) => None,
        }
    }

    fn advance(self) -> Self {
        match self {
            Self::Connecting(stream) => connected(stream),
            Self::Reading(stream, line) => read_line(stream, line),
            Self::Datagram(socket) => {
                let mut buffer = [0; 2048];
                Self::Landed(match socket.recv(&mut buffer) {
                    Ok(len) => Outcome::Answered(text(&buffer[..len])),
                    Err(error) => failed(&error),
                })
            }
            Self::Sctp(raw, probe, port) => read_sctp(raw, probe, port),
            Self::Landed(outcome) => Self::Landed(outcome),
        }
    }
}

fn land(mut flights: Vec<Flight>, timeout: Duration) -> Vec<Outcome> {
    let end = Instant::now() + timeout;
    loop {
        let (mut index, mut fds) = (Vec::new(), Vec::new());
        for (at, flight) in flights.iter().enumerate() {
            if let Some((fd, events)) = flight.interest() {
                index.push(at);
                fds.push(PollFd::new(fd, events));
            }
        }
        let left = end.saturating_duration_since(Instant::now());
        if fds.is_empty() || left.is_zero() {
            break;
        }
        // Rounded up, or the last millisecond would be spent spinning.
        let millis = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        if poll(&mut fds, millis).is_err() {
            continue;
        }
        let ready: Vec<usize> = index
            .into_iter()
            .zip(&fds)
            .filter(|(_, fd)| fd.revents().is_some_and(|events| !events.is_empty()))
            .map(|(at, _)| at)
            .collect();
        for at in ready {
            let flight = std::mem::replace(&mut flights[at], Flight::Landed(Outcome::Silent));
            flights[at] = flight.advance();
        }
    }
    flights
        .into_iter()
        .map(|flight| match flight {
            Flight::Landed(outcome) => outcome,
            _ => Outcome::Silent,
        })
        .collect()
}

fn start(probe: Probe) -> Flight {
    let begun = match probe.transport {
        Transport::Tcp => start_tcp(probe).map(Flight::Connecting),
        Transport::Udp => start_udp(probe).map(Flight::Datagram),
        Transport::Sctp if kernel_has_sctp() => {
            sctp::connect(probe.from, probe.to).map(|fd| Flight::Connecting(fd.into()))
        }
        Transport::Sctp => start_sctp(probe),
    };
    begun.unwrap_or_else(|error| Flight::Landed(failed(&error)))
}

fn start_tcp(probe: Probe) -> io::Result<TcpStream> {
    let family = if probe.to.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(family, SockType::Stream, flags, None)?;
    if probe.from.is_some() || probe.from_port != 0 {
        setsockopt(&fd, ReuseAddr, &true)?;
        let from = SocketAddr::new(probe.local(), probe.from_port);
        bind(fd.as_raw_fd(), &SockaddrStorage::from(from))?;
    }
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(probe.to)) {
        Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => Ok(fd.into()),
        Err(error) => Err(error.into()),
    }
}

fn start_udp(probe: Probe) -> io::Result<UdpSocket> {
    let socket = bound::datagrams(SocketAddr::new(probe.local(), probe.from_port))?;
    socket.set_nonblocking(true)?;
    socket.connect(probe.to)?;
    socket.send(b"?")?;
    Ok(socket)
}

fn start_sctp(probe: Probe) -> io::Result<Flight> {
    // A port of its own for every probe of this process, so that answers do not mix.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let port = match probe.from_port {
        0 => 20_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 40_000,
        port => port,
    };
    let raw = Raw::bind(probe.to.ip(), probe.from)?;
    let value = packet::sctp::init(u32::from(port) + 1, &[]);
    raw.send(
        probe.to.ip(),
        (port, probe.to.port()),
        0,
        packet::sctp::INIT,
        &value,
    )?;
    Ok(Flight::Sctp(raw, probe, port))
}

fn connected(stream: TcpStream) -> Flight {
    match nix::sys::socket::getsockopt(&stream, SocketError) {
        Ok(0) => read_line(stream, Vec::new()),
        Ok(error) => Flight::Landed(failed(&io::Error::from_raw_os_error(error))),
        Err(error) => Flight::Landed(failed(&error.into())),
    }
}

fn read_line(mut stream: TcpStream, mut line: Vec<u8>) -> Flight {
    let mut buffer = [0; 512];
    match stream.read(&mut buffer) {
        Ok(0) => Flight::Landed(Outcome::Failed("closed without a word".to_owned())),
        Ok(len) => {
            line.extend(&buffer[..len]);
            if line.contains(&b'\n') {
                return Flight::Landed(Outcome::Answered(text(&line)));
            }
            Flight::Reading(stream, line)
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Flight::Reading(stream, line),
        Err(error) => Flight::Landed(failed(&error)),
    }
}

fn read_sctp(raw: Raw, probe: Probe, port: u16) -> Flight {
    match raw.receive() {
        Ok(Some(answer)) if answer.from == probe.to && answer.port == port => {
            Flight::Landed(match answer.chunk {
                packet::sctp::INIT_ACK => Outcome::Answered(answer.name),
                packet::sctp::ABORT => Outcome::Refused,
                other => Outcome::Failed(format!("SCTP chunk {other}")),
            })
        }
        Ok(_) => Flight::Sctp(raw, probe, port),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Flight::Sctp(raw, probe, port),
        Err(error) => Flight::Landed(failed(&error)),
    }
}

fn failed(error: &io::Error) -> Outcome {
    match error.kind() {
        ErrorKind::ConnectionRefused => Outcome::Refused,
        ErrorKind::TimedOut => Outcome::Silent,
        _ => Outcome::Failed(error.to_string()),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}
