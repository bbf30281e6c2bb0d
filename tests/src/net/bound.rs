//! Sockets bound to an address that another socket of this process has just left.

use std::{
    io::{self, ErrorKind},
    net::{SocketAddr, TcpListener, UdpSocket},
    thread,
    time::{Duration, Instant},
};

/// For how long an address may still be held. A process that another thread starts has this process's descriptors from
/// `fork` until `exec`, so that a socket can outlive its last `close` here by as much.
const HELD: Duration = Duration::from_secs(2);

fn once_free<T>(mut bind: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let begun = Instant::now();
    loop {
        match bind() {
            Err(error) if error.kind() == ErrorKind::AddrInUse && begun.elapsed() < HELD => {
                thread::sleep(Duration::from_millis(5));
            }
            done => return done,
        }
    }
}

/// A TCP socket that listens on `address`.
pub(super) fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    once_free(|| TcpListener::bind(address))
}

/// A UDP socket bound to `address`.
pub(super) fn datagrams(address: SocketAddr) -> io::Result<UdpSocket> {
    once_free(|| UdpSocket::bind(address))
}
