//! SYNs that arrive, also those that are not accepted: where the answer is dropped no listener learns of them.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, recvfrom, socket};

/// Copies of all TCP segments of one family that reach this network namespace.
#[derive(Debug)]
pub(crate) struct Segments {
    socket: OwnedFd,
    family: AddressFamily,
}

/// Both families; IPv4 alone where the pod has no other.
///
/// # Errors
/// `EPERM` without `CAP_NET_RAW`.
pub(crate) fn segments() -> io::Result<Vec<Segments>> {
    let of = |family| -> io::Result<Segments> {
        let tcp = SockProtocol::Tcp;
        let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, tcp)?;
        Ok(Segments { socket, family })
    };
    let mut all = vec![of(AddressFamily::Inet)?];
    all.extend(of(AddressFamily::Inet6).ok());
    Ok(all)
}

impl Segments {
    /// Waits for the next SYN: its port here, and who sent it.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn next(&self) -> io::Result<(u16, IpAddr)> {
        let mut buffer = [0; 256];
        loop {
            let (length, from) = recvfrom::<SockaddrStorage>(self.socket.as_raw_fd(), &mut buffer)?;
            let packet = &buffer[..length];
            // The kernel shows IPv4's header, and not IPv6's.
            let segment = match self.family {
                AddressFamily::Inet => packet.get(header(packet)..).unwrap_or_default(),
                _ => packet,
            };
            if let (Some(port), Some(from)) = (syn(segment), from.as_ref().and_then(sender)) {
                return Ok((port, from));
            }
        }
    }
}

/// The length of an IPv4 header.
fn header(packet: &[u8]) -> usize {
    packet.first().map_or(0, |byte| usize::from(byte & 0xf) * 4)
}

/// The destination port of a segment that begins a connection.
fn syn(segment: &[u8]) -> Option<u16> {
    const SYN: u8 = 2;
    const ACK: u8 = 16;
    let flags = segment.get(13)?;
    (flags & (SYN | ACK) == SYN).then(|| u16::from_be_bytes([segment[2], segment[3]]))
}

fn sender(from: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = from.as_sockaddr_in().map(|four| IpAddr::from(four.ip()));
    v4.or_else(|| from.as_sockaddr_in6().map(|six| IpAddr::from(six.ip())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_begins_a_connection_is_a_syn() {
        let segment = |flags: u8| {
            let mut bytes = [0; 20];
            (bytes[2], bytes[3], bytes[13]) = (0x1f, 0x90, flags);
            syn(&bytes)
        };
        assert_eq!(segment(0x02), Some(8080));
        assert_eq!((segment(0x12), segment(0x10), segment(0x04)), (None, None, None));
        assert_eq!(syn(&[0; 13]), None);
        assert_eq!(header(&[0x46]), 24);
    }
}
