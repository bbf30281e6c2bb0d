//! Servers that say who they are.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    Namespace, Transport, bound, sctp,
    sctp::{Raw, kernel_has_sctp},
};
use crate::packet;

/// One thread that answers on many addresses in one namespace.
///
/// TCP (and SCTP where the kernel has it): a line with the name, then everything comes back until the client closes.
/// UDP: a line with the name for every datagram. SCTP by hand: an INIT ACK with the name, an ABORT on other ports.
#[derive(Debug)]
pub struct Responder {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

enum Socket {
    Listener(TcpListener),
    Stream(TcpStream),
    Datagram(UdpSocket),
    Sctp(Raw, Vec<u16>),
}

impl Socket {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Listener(socket) => socket.as_fd(),
            Self::Stream(socket) => socket.as_fd(),
            Self::Datagram(socket) => socket.as_fd(),
            Self::Sctp(socket, _) => socket.fd().as_fd(),
        }
    }
}

impl Responder {
    /// Answers with `name` on `endpoints`.
    ///
    /// # Errors
    /// Where an address can not be bound.
    pub fn start(
        namespace: &Namespace,
        name: &str,
        endpoints: impl IntoIterator<Item = (Transport, SocketAddr)>,
    ) -> Result<Self> {
        let endpoints: Vec<_> = endpoints.into_iter().collect();
        let sockets = namespace.run(|| open(&endpoints))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (flag, line) = (stop.clone(), format!("{name}\n"));
        let thread = std::thread::spawn(move || serve(sockets, &line, &flag));
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn open(endpoints: &[(Transport, SocketAddr)]) -> Result<Vec<Socket>> {
    let mut sockets = Vec::new();
    let mut by_hand: BTreeMap<IpAddr, Vec<u16>> = BTreeMap::new();
    for (transport, address) in endpoints {
        let what = || format!("listen on {transport:?} {address}");
        match transport {
            Transport::Tcp => {
                let listener = bound::listener(*address).with_context(what)?;
                listener.set_nonblocking(true)?;
                sockets.push(Socket::Listener(listener));
            }
            Transport::Udp => {
                let socket = bound::datagrams(*address).with_context(what)?;
                socket.set_nonblocking(true)?;
                sockets.push(Socket::Datagram(socket));
            }
            Transport::Sctp if kernel_has_sctp() => {
                let fd: OwnedFd = sctp::listen(*address).with_context(what)?;
                let listener = TcpListener::from(fd);
                listener.set_nonblocking(true)?;
                sockets.push(Socket::Listener(listener));
            }
            Transport::Sctp => by_hand.entry(address.ip()).or_default().push(address.port()),
        }
    }
    for (address, ports) in by_hand {
        let raw = Raw::bind(address, (!address.is_unspecified()).then_some(address))
            .with_context(|| format!("open a raw SCTP socket on {address}"))?;
        sockets.push(Socket::Sctp(raw, ports));
    }
    Ok(sockets)
}

fn serve(mut sockets: Vec<Socket>, line: &str, stop: &AtomicBool) {
    // A short limit instead of a wake-up channel: only stopping waits for it.
    let limit = PollTimeout::from(20_u8);
    while !stop.load(Ordering::Relaxed) {
        let mut fds: Vec<_> = sockets
            .iter()
            .map(|socket| PollFd::new(socket.fd(), PollFlags::POLLIN))
            .collect();
        if poll(&mut fds, limit).unwrap_or(0) <= 0 {
            continue;
        }
        let ready: Vec<bool> = fds
            .iter()
            .map(|fd| fd.revents().is_some_and(|events| !events.is_empty()))
            .collect();
        let mut opened = Vec::new();
        let mut ready = ready.into_iter();
        sockets.retain_mut(|socket| !ready.next().unwrap_or(false) || answer(socket, line, &mut opened));
        sockets.extend(opened);
    }
}

/// Does what `socket` is ready for; `false` where it is finished.
fn answer(socket: &mut Socket, line: &str, opened: &mut Vec<Socket>) -> bool {
    match socket {
        Socket::Listener(listener) => {
            if let Ok((mut stream, _)) = listener.accept() {
                let _ = stream.set_nonblocking(true);
                let _ = stream.write_all(line.as_bytes());
                opened.push(Socket::Stream(stream));
            }
            true
        }
        Socket::Stream(stream) => echo(stream).is_ok_and(|len| len > 0),
        Socket::Datagram(socket) => {
            let mut buffer = [0; 2048];
            if let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(line.as_bytes(), from);
            }
            true
        }
        Socket::Sctp(raw, ports) => {
            let _ = answer_sctp(raw, ports, line.trim_end());
            true
        }
    }
}

fn echo(stream: &mut TcpStream) -> io::Result<usize> {
    let mut buffer = [0; 2048];
    match stream.read(&mut buffer) {
        Ok(len) => {
            stream.write_all(&buffer[..len])?;
            Ok(len)
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(1),
        Err(error) => Err(error),
    }
}

fn answer_sctp(raw: &Raw, ports: &[u16], name: &str) -> io::Result<()> {
    let Some(packet) = raw.receive()? else {
        return Ok(());
    };
    if packet.chunk != packet::sctp::INIT {
        return Ok(());
    }
    let (to, back) = (packet.from.ip(), (packet.port, packet.from.port()));
    if ports.contains(&packet.port) {
        let value = sctp::init_ack(0x5e17_ed00, name);
        raw.send(to, back, packet.tag, packet::sctp::INIT_ACK, &value)
    } else {
        raw.send(to, back, packet.tag, packet::sctp::ABORT, &[])
    }
}
