//! Long conversations and counted datagrams.

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::net::{Namespace, patience};

/// How long a conversation may take to come about.
const PATIENCE: Duration = Duration::from_secs(3);

/// A TCP connection or SCTP association to a [`crate::net::Responder`], which says its name and then echoes.
#[derive(Debug)]
pub struct Talk {
    stream: TcpStream,
    said: u32,
}

impl Talk {
    /// Connects and reads the name.
    ///
    /// # Errors
    /// Where no connection comes about.
    pub fn open(namespace: &Namespace, to: SocketAddr) -> Result<Self> {
        let stream = namespace
            .connect(to, patience(PATIENCE))
            .with_context(|| format!("connect {} to {to}", namespace.label()))?;
        stream.set_nodelay(true)?;
        Self::greeted(stream, to)
    }

    /// Opens an SCTP association and reads the name.
    ///
    /// # Errors
    /// Where none comes about.
    pub fn open_sctp(namespace: &Namespace, to: SocketAddr) -> Result<Self> {
        let stream = namespace
            .associate(to, patience(PATIENCE))
            .with_context(|| format!("associate {} with {to}", namespace.label()))?;
        Self::greeted(stream, to)
    }

    fn greeted(mut stream: TcpStream, to: SocketAddr) -> Result<Self> {
        stream.set_read_timeout(Some(patience(PATIENCE)))?;
        let mut byte = [0];
        while byte != *b"\n" {
            stream
                .read_exact(&mut byte)
                .with_context(|| format!("no word from {to}"))?;
        }
        Ok(Self { stream, said: 0 })
    }

    /// Sends a few bytes and waits `timeout` for them to come back.
    ///
    /// # Errors
    /// Where the connection was reset or closed, or something else came back.
    pub fn exchange(&mut self, timeout: Duration) -> Result<bool> {
        self.said += 1;
        self.stream
            .write_all(&self.said.to_be_bytes())
            .context("write to a connection")?;
        self.receive(timeout)
    }

    /// Waits for what was sent last.
    ///
    /// # Errors
    /// As [`Self::exchange`].
    pub fn receive(&mut self, timeout: Duration) -> Result<bool> {
        self.stream.set_read_timeout(Some(timeout))?;
        let mut bytes = [0; 4];
        match self.stream.read_exact(&mut bytes) {
            Ok(()) => {
                ensure!(
                    bytes == self.said.to_be_bytes(),
                    "another answer than what was sent: {bytes:?}"
                );
                Ok(true)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(false),
            Err(error) => Err(error).context("read from a connection"),
        }
    }

    /// Our end.
    ///
    /// # Errors
    /// As `getsockname`.
    pub fn local(&self) -> Result<SocketAddr> {
        Ok(self.stream.local_addr()?)
    }
}

/// Numbered datagrams in one direction, sent and counted until stopped.
#[derive(Debug)]
pub struct Counter {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    seen: Arc<Mutex<BTreeSet<u64>>>,
    threads: Vec<JoinHandle<()>>,
}

/// Sends one datagram every `pause` from `from` to `to` in the namespace of the pod that has it, and counts what arrives.
///
/// # Errors
/// Where the sockets can not be opened.
pub fn count(from: &Namespace, receiver: &Namespace, to: SocketAddr, pause: Duration) -> Result<Counter> {
    let inbox = receiver.udp(to).with_context(|| format!("listen on {to}"))?;
    inbox.set_read_timeout(Some(Duration::from_millis(20)))?;
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let outbox = from.udp(any.parse()?)?;
    outbox.connect(to)?;
    let counter = Counter {
        stop: Arc::default(),
        sent: Arc::default(),
        seen: Arc::default(),
        threads: Vec::new(),
    };
    Ok(counter.run(outbox, inbox, pause))
}

impl Counter {
    fn run(mut self, outbox: UdpSocket, inbox: UdpSocket, pause: Duration) -> Self {
        let (stop, sent) = (self.stop.clone(), self.sent.clone());
        self.threads.push(std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let number = sent.load(Ordering::Relaxed);
                if outbox.send(&number.to_be_bytes()).is_ok() {
                    sent.store(number + 1, Ordering::Relaxed);
                }
                std::thread::sleep(pause);
            }
        }));
        let (stop, seen) = (self.stop.clone(), self.seen.clone());
        self.threads.push(std::thread::spawn(move || {
            let mut bytes = [0; 8];
            loop {
                match inbox.recv(&mut bytes) {
                    Ok(_) => drop(
                        seen.lock()
                            .expect("not poisoned")
                            .insert(u64::from_be_bytes(bytes)),
                    ),
                    // What was sent last has had the time of one more read to arrive.
                    Err(_) if stop.load(Ordering::Relaxed) => return,
                    Err(_) => {}
                }
            }
        }));
        self
    }

    /// How many were sent so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Waits until `more` further datagrams have been sent.
    pub fn wait_for(&self, more: u64) {
        let goal = self.sent() + more;
        while self.sent() < goal {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// How many were received so far.
    ///
    /// # Panics
    /// Where the receiving thread panicked.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.seen.lock().expect("not poisoned").len() as u64
    }

    /// Which of those that were sent until now do not arrive within `patience`.
    ///
    /// # Panics
    /// Where the receiving thread panicked.
    #[must_use]
    pub fn missing(&self, patience: Duration) -> Vec<u64> {
        let (sent, end) = (self.sent(), Instant::now() + patience);
        loop {
            let seen = self.seen.lock().expect("not poisoned");
            let missing: Vec<u64> = (0..sent).filter(|number| !seen.contains(number)).collect();
            drop(seen);
            if missing.is_empty() || Instant::now() > end {
                return missing;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Stops; how many were sent and which of them were not received.
    ///
    /// # Panics
    /// Where one of the threads panicked.
    #[must_use]
    pub fn stop(mut self) -> (u64, Vec<u64>) {
        self.end();
        let seen = self.seen.lock().expect("not poisoned");
        (
            self.sent(),
            (0..self.sent()).filter(|number| !seen.contains(number)).collect(),
        )
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("a thread that counts does not panic");
        }
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.end();
    }
}
