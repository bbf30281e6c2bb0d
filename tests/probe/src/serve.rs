//! `serve`: who listens says its name and whom it sees, then echoes; what arrived is counted by sender.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use crate::{
    syn,
    text::{print, quote},
};

/// What arrived: `tcp/80 from 10.0.0.1`, and how often. `syn` counts SYNs, `tcp` what was accepted.
pub(crate) type Arrivals = Arc<Mutex<BTreeMap<(&'static str, u16, IpAddr), u64>>>;

/// Between two looks at what arrived.
const LOOK: Duration = Duration::from_millis(200);

/// Both families; IPv4 alone where the pod has no other.
fn wildcards() -> [IpAddr; 2] {
    [IpAddr::from([0_u16; 8]), IpAddr::from([0_u8; 4])]
}

/// Listens until it is killed.
pub(crate) fn run(name: &str, tcp: &[u16], udp: &[u16], syns: bool) -> Result<bool, String> {
    let arrivals = Arrivals::default();
    listen(name, tcp, udp, syns, &arrivals)?;
    print(&format!("{{\"serves\":{}}}", quote(name)));
    let mut shown = arrived(&arrivals);
    loop {
        thread::sleep(LOOK);
        let now = arrived(&arrivals);
        if now != shown {
            print(&format!("{{\"arrived\":{now}}}"));
            shown = now;
        }
    }
}

/// Begins to listen; `syns`: also for SYNs, which needs `CAP_NET_RAW`.
pub(crate) fn listen(
    name: &str,
    tcp: &[u16],
    udp: &[u16],
    syns: bool,
    arrivals: &Arrivals,
) -> Result<(), String> {
    if syns {
        let all = syn::segments().map_err(|error| format!("SYNs can't be seen: {error}"))?;
        for segments in all {
            let (ports, arrivals) = (tcp.to_vec(), arrivals.clone());
            spawn(move || {
                while let Ok((port, from)) = segments.next() {
                    if ports.contains(&port) {
                        count(&arrivals, "syn", port, from);
                    }
                }
            });
        }
    }
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
    Ok(())
}

/// What arrived so far, as a JSON object.
pub(crate) fn arrived(arrivals: &Arrivals) -> String {
    let now = arrivals.lock().unwrap_or_else(PoisonError::into_inner);
    let counts = now.iter().map(|((protocol, port, peer), count)| {
        format!("{}:{count}", quote(&format!("{protocol}/{port} from {peer}")))
    });
    format!("{{{}}}", counts.collect::<Vec<_>>().join(","))
}

/// Small stacks: there may be hundreds.
pub(crate) fn spawn(work: impl FnOnce() + Send + 'static) {
    // A thread that can't be made leaves a connection unanswered, which the test sees.
    let _ = thread::Builder::new().stack_size(64 << 10).spawn(work);
}

fn count(arrivals: &Arrivals, protocol: &'static str, port: u16, peer: IpAddr) {
    let mut arrivals = arrivals.lock().unwrap_or_else(PoisonError::into_inner);
    *arrivals.entry((protocol, port, peer.to_canonical())).or_default() += 1;
}

fn greeting(name: &str, peer: SocketAddr) -> String {
    format!("{name} {}\n", peer.ip().to_canonical())
}

fn accept(name: &str, port: u16, listener: &TcpListener, arrivals: &Arrivals) {
    for stream in listener.incoming().flatten() {
        let Ok(peer) = stream.peer_addr() else { continue };
        count(arrivals, "tcp", port, peer.ip());
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
        count(arrivals, "udp", port, peer.ip());
        // What is numbered comes back as it came; a question gets the name.
        let reply = match &buffer[..length] {
            b"?" => greeting(name, peer).into_bytes(),
            other => other.to_vec(),
        };
        let _ = socket.send_to(&reply, peer);
    }
}
