//! `serve`: who listens says its name and whom it sees, then echoes; what arrived is counted by sender.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use crate::text::{print, quote};

/// What arrived: `tcp/80 from 10.0.0.1`, and how often.
type Arrivals = Arc<Mutex<BTreeMap<(&'static str, u16, IpAddr), u64>>>;

/// Both families; IPv4 alone where the pod has no other.
fn wildcards() -> [IpAddr; 2] {
    [IpAddr::from([0_u16; 8]), IpAddr::from([0_u8; 4])]
}

/// Listens until it is killed.
pub(crate) fn run(name: &str, tcp: &[u16], udp: &[u16]) -> Result<bool, String> {
    let arrivals = Arrivals::default();
    for port in tcp.iter().copied() {
        let listener = wildcards()
            .into_iter()
            .find_map(|any| TcpListener::bind((any, port)).ok());
        let listener = listener.ok_or_else(|| format!("TCP port {port} can't be listened on"))?;
        let (name, arrivals) = (name.to_owned(), arrivals.clone());
        spawn(move || accept(&name, port, &listener, &arrivals));
    }
    for port in udp.iter().copied() {
        let socket = wildcards()
            .into_iter()
            .find_map(|any| UdpSocket::bind((any, port)).ok());
        let socket = socket.ok_or_else(|| format!("UDP port {port} can't be listened on"))?;
        let (name, arrivals) = (name.to_owned(), arrivals.clone());
        spawn(move || answer(&name, port, &socket, &arrivals));
    }
    print(&format!("{{\"serves\":{}}}", quote(name)));
    let mut shown = BTreeMap::new();
    loop {
        thread::sleep(Duration::from_secs(1));
        let now = arrivals.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if now != shown {
            let counts = now.iter().map(|((protocol, port, peer), count)| {
                format!("{}:{count}", quote(&format!("{protocol}/{port} from {peer}")))
            });
            print(&format!(
                "{{\"arrived\":{{{}}}}}",
                counts.collect::<Vec<_>>().join(",")
            ));
            shown = now;
        }
    }
}

/// Small stacks: there may be hundreds.
pub(crate) fn spawn(work: impl FnOnce() + Send + 'static) {
    // A thread that can't be made leaves a connection unanswered, which the test sees.
    let _ = thread::Builder::new().stack_size(64 << 10).spawn(work);
}

fn count(arrivals: &Arrivals, protocol: &'static str, port: u16, peer: SocketAddr) {
    let mut arrivals = arrivals.lock().unwrap_or_else(PoisonError::into_inner);
    *arrivals
        .entry((protocol, port, peer.ip().to_canonical()))
        .or_default() += 1;
}

fn greeting(name: &str, peer: SocketAddr) -> String {
    format!("{name} {}\n", peer.ip().to_canonical())
}

fn accept(name: &str, port: u16, listener: &TcpListener, arrivals: &Arrivals) {
    for stream in listener.incoming().flatten() {
        let Ok(peer) = stream.peer_addr() else { continue };
        count(arrivals, "tcp", port, peer);
        let greeting = greeting(name, peer);
        spawn(move || echo(stream, &greeting));
    }
}

fn echo(mut stream: TcpStream, greeting: &str) {
    let _ = stream.set_nodelay(true);
    // An end that is gone is who asked, and who asked notices.
    if stream.write_all(greeting.as_bytes()).is_err() {
        return;
    }
    let mut buffer = [0; 2048];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

fn answer(name: &str, port: u16, socket: &UdpSocket, arrivals: &Arrivals) {
    let mut buffer = [0; 2048];
    loop {
        // Errors are ICMP's, of what was answered before.
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        count(arrivals, "udp", port, peer);
        // What is numbered comes back as it came; a question gets the name.
        let reply = match &buffer[..length] {
            b"?" => greeting(name, peer).into_bytes(),
            other => other.to_vec(),
        };
        let _ = socket.send_to(&reply, peer);
    }
}
