//! `count`: what is allowed must not lose anything, what is denied must not get through; a line a second, with
//! everything since the start.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    ask::{Outcome, ask},
    serve::spawn,
    target::{Kind, Target, datagrams, is_silence, open},
    text::{print, quote},
};

/// Between two messages of one connection.
const BEAT: Duration = Duration::from_millis(20);
/// Between two new connections.
const PACE: Duration = Duration::from_millis(100);
/// A message that takes longer is lost, and its connection broken.
const LIMIT: Duration = Duration::from_secs(10);
/// An attempt at what is denied.
const ATTEMPT: Duration = Duration::from_millis(200);
/// Who tries what is denied, at the same time.
const TRIERS: usize = 3;

#[derive(Debug, Default)]
struct Counts {
    /// Messages that came back.
    echoes: AtomicU64,
    /// Connections that died, or datagrams that did not come back.
    lost: AtomicU64,
    /// New connections.
    opened: AtomicU64,
    /// New connections that failed.
    refused: AtomicU64,
    /// The longest time between two messages, in milliseconds.
    gap: AtomicU64,
    /// Attempts at what is denied.
    tried: AtomicU64,
    /// Attempts that got through.
    through: AtomicU64,
}

impl Counts {
    fn json(&self, target: &Target, denied: bool) -> String {
        let target = quote(&target.to_string());
        let number = |counter: &AtomicU64| counter.load(Relaxed);
        if denied {
            let (tried, through) = (number(&self.tried), number(&self.through));
            return format!("{{\"target\":{target},\"tried\":{tried},\"through\":{through}}}");
        }
        format!(
            "{{\"target\":{target},\"echoes\":{},\"lost\":{},\"opened\":{},\"refused\":{},\"gap_ms\":{}}}",
            number(&self.echoes),
            number(&self.lost),
            number(&self.opened),
            number(&self.refused),
            number(&self.gap)
        )
    }
}

/// Counts until it is killed.
pub(crate) fn run(allow: &[Target], deny: &[Target]) -> Result<bool, String> {
    let start = |targets: &[Target], work: fn(Target, &Arc<Counts>)| -> Vec<(Target, Arc<Counts>)> {
        let with = targets.iter().map(|target| {
            let counts = Arc::new(Counts::default());
            work(*target, &counts);
            (*target, counts)
        });
        with.collect()
    };
    let allowed = start(allow, count_allowed);
    let denied = start(deny, count_denied);
    let since = Instant::now();
    loop {
        thread::sleep(Duration::from_secs(1));
        let list = |counted: &[(Target, Arc<Counts>)], denied| {
            let texts = counted.iter().map(|(target, counts)| counts.json(target, denied));
            texts.collect::<Vec<_>>().join(",")
        };
        print(&format!(
            "{{\"seconds\":{},\"allow\":[{}],\"deny\":[{}]}}",
            since.elapsed().as_secs(),
            list(&allowed, false),
            list(&denied, true)
        ));
    }
}

fn count_allowed(target: Target, counts: &Arc<Counts>) {
    let (long, short) = (counts.clone(), counts.clone());
    match target.kind {
        Kind::Udp => spawn(move || datagrams_come_back(target, &long)),
        Kind::Tcp | Kind::Connect => {
            spawn(move || {
                loop {
                    // Who can't be connected to at all is counted by the other thread.
                    if let Err(error) = messages_come_back(target, &long)
                        && error.kind() != io::ErrorKind::NotConnected
                    {
                        long.lost.fetch_add(1, Relaxed);
                    }
                    thread::sleep(BEAT);
                }
            });
        }
    }
    spawn(move || {
        // A SYN is repeated until the other node knows this pod; a datagram is not.
        let mut known = target.kind != Kind::Udp;
        loop {
            let answered = matches!(ask(None, target, LIMIT), Outcome::Answered(..));
            known |= answered;
            let counter = if answered { &short.opened } else { &short.refused };
            counter.fetch_add(u64::from(known), Relaxed);
            thread::sleep(PACE);
        }
    });
}

fn messages_come_back(target: Target, counts: &Counts) -> io::Result<()> {
    let stream = open(None, target.address, LIMIT).map_err(|_| io::ErrorKind::NotConnected)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    reader.read_line(&mut String::new())?;
    let mut writer = stream;
    let mut last = Instant::now();
    for number in 0_u64.. {
        writer.write_all(&number.to_be_bytes())?;
        let mut back = [0; 8];
        reader.read_exact(&mut back)?;
        if back != number.to_be_bytes() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        counts.echoes.fetch_add(1, Relaxed);
        counts.gap.fetch_max(last.elapsed().as_millis() as u64, Relaxed);
        last = Instant::now();
        thread::sleep(BEAT);
    }
    Ok(())
}

fn datagrams_come_back(target: Target, counts: &Counts) {
    let Ok(socket) = datagrams(None, target.address) else {
        return;
    };
    // What was dropped never comes; what comes late was held up by a machine with too much to do.
    let _ = socket.set_read_timeout(Some(Duration::from_secs(3)));
    // The first ones may come before anybody knows this pod.
    let mut known = false;
    for number in 0_u64.. {
        let start = Instant::now();
        let sent = socket.send(&number.to_be_bytes()).is_ok();
        let mut back = [0; 8];
        let mut came = false;
        while sent && let Ok(8) = socket.recv(&mut back) {
            // A late one is not this one.
            if back == number.to_be_bytes() {
                came = true;
                break;
            }
        }
        known |= came;
        let counter = if came { &counts.echoes } else { &counts.lost };
        counter.fetch_add(u64::from(known), Relaxed);
        if known {
            counts.gap.fetch_max(start.elapsed().as_millis() as u64, Relaxed);
        }
        thread::sleep(BEAT);
    }
}

/// Tries without pause. A refusal is an answer: the packet was there.
pub(crate) fn try_denied(target: Target, limit: Duration) -> bool {
    match ask(None, target, limit) {
        Outcome::Answered(..) | Outcome::Refused => true,
        Outcome::Silent | Outcome::Failed(_) => false,
    }
}

fn count_denied(target: Target, counts: &Arc<Counts>) {
    for _ in 0..TRIERS {
        let counts = counts.clone();
        match target.kind {
            Kind::Udp => spawn(move || throw(target, &counts)),
            Kind::Tcp | Kind::Connect => spawn(move || {
                loop {
                    counts.tried.fetch_add(1, Relaxed);
                    if try_denied(target, ATTEMPT) {
                        counts.through.fetch_add(1, Relaxed);
                    }
                }
            }),
        }
    }
}

/// Datagrams without waiting for answers.
fn throw(target: Target, counts: &Counts) {
    let Ok(socket) = datagrams(None, target.address) else {
        return;
    };
    let _ = socket.set_read_timeout(Some(Duration::from_millis(5)));
    loop {
        // A datagram that the kernel does not take is none.
        let sent = socket.send(b"?");
        counts.tried.fetch_add(u64::from(sent.is_ok()), Relaxed);
        match socket.recv(&mut [0; 512]) {
            Err(error) if is_silence(&error) => {}
            _ => {
                counts.through.fetch_add(1, Relaxed);
                thread::sleep(BEAT);
            }
        }
    }
}
