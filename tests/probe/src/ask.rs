//! `ask`: every target at the same time, a line each.

use std::{
    io::{self, BufRead as _, BufReader},
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use crate::{
    target::{Kind, Target, datagrams, is_silence, open},
    text::{print, quote},
};

/// What came of it.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Who answered, and whom it saw.
    Answered(String, String),
    /// Somebody said no: the packet arrived.
    Refused,
    /// Nobody.
    Silent,
    /// It could not be asked.
    Failed(String),
}

/// Asks all.
pub(crate) fn run(from: Option<IpAddr>, timeout_ms: u64, targets: &[Target]) -> Result<bool, String> {
    let limit = Duration::from_millis(timeout_ms);
    thread::scope(|scope| {
        for target in targets {
            scope.spawn(move || {
                let start = Instant::now();
                let outcome = ask(from, *target, limit);
                let ms = start.elapsed().as_millis();
                let (word, detail) = match &outcome {
                    Outcome::Answered(by, seen) => {
                        let detail = format!(",\"by\":{},\"seen\":{}", quote(by), quote(seen));
                        ("answered", detail)
                    }
                    Outcome::Refused => ("refused", String::new()),
                    Outcome::Silent => ("silent", String::new()),
                    Outcome::Failed(why) => ("failed", format!(",\"why\":{}", quote(why))),
                };
                let target = quote(&target.to_string());
                print(&format!(
                    "{{\"target\":{target},\"outcome\":\"{word}\"{detail},\"ms\":{ms}}}"
                ));
            });
        }
    });
    Ok(true)
}

/// Asks one.
pub(crate) fn ask(from: Option<IpAddr>, target: Target, limit: Duration) -> Outcome {
    let answer = match target.kind {
        Kind::Tcp => tcp(from, target, limit),
        Kind::Connect => open(from, target.address, limit).map(|_| String::new()),
        Kind::Udp => udp(from, target, limit),
    };
    match answer {
        Ok(line) => {
            let (by, seen) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
            Outcome::Answered(by.to_owned(), seen.to_owned())
        }
        Err(error) if is_silence(&error) => Outcome::Silent,
        Err(error) if is_refusal(&error) => Outcome::Refused,
        Err(error) => Outcome::Failed(error.to_string()),
    }
}

/// The other end, or somebody for it, answered with an error.
pub(crate) fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
    )
}

fn tcp(from: Option<IpAddr>, target: Target, limit: Duration) -> io::Result<String> {
    let stream = open(from, target.address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line)
}

fn udp(from: Option<IpAddr>, target: Target, limit: Duration) -> io::Result<String> {
    let socket = datagrams(from, target.address)?;
    socket.send(b"?")?;
    socket.set_read_timeout(Some(limit))?;
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}
