//! The agent as a process, and what it uses.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;

use super::{node::Node, objects::node_name};
use crate::{net::Child, sandbox::stop};

const LISTEN: ([u8; 4], u16) = ([127, 0, 0, 1], 9966);
/// How long a start may take.
const LIMIT: Duration = Duration::from_secs(600);
const LISTED: &str = "everything is listed";

/// A running agent; killed when dropped.
#[derive(Debug)]
pub(super) struct Agent<'n> {
    node: &'n Node,
    child: Child,
    begun: Instant,
    /// The length of the log when it began.
    log: u64,
}

/// How long a start took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Started {
    /// Until the log says that everything is listed.
    pub(super) listed: Duration,
    /// Until `/readyz` says 200.
    pub(super) ready: Duration,
}

/// Memory, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Memory {
    pub(super) resident: u64,
    /// Of that what no file holds.
    pub(super) anonymous: u64,
    pub(super) peak: u64,
    /// What the kernel holds for its maps.
    pub(super) maps: u64,
}

impl<'n> Agent<'n> {
    pub(super) fn start(node: &'n Node, binary: &Path, kubeconfig: &Path) -> Result<Self> {
        let log = File::options().create(true).append(true).open(node.log())?;
        let length = log.metadata()?.len();
        let mut command = Command::new(binary);
        command
            .args([
                "run",
                "--node",
                &node_name(0),
                "--listen",
                &SocketAddr::from(LISTEN).to_string(),
            ])
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .arg("--pin")
            .arg(&node.pins)
            .arg("--state")
            .arg(node.directory.join("state"))
            .arg("--cni-cache")
            .arg(node.cni());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let begun = Instant::now();
        Ok(Self {
            child: node.namespace.spawn(&mut command)?,
            node,
            begun,
            log: length,
        })
    }

    /// Waits until it is ready.
    pub(super) fn wait(&mut self) -> Result<Started> {
        let mut listed = None;
        loop {
            stop::check()?;
            if listed.is_none() && self.log()?.contains(LISTED) {
                listed = Some(self.begun.elapsed());
            }
            if self.get("/readyz").is_ok_and(|(status, _)| status == 200) {
                let ready = self.begun.elapsed();
                return Ok(Started {
                    listed: listed.unwrap_or(ready),
                    ready,
                });
            }
            if let Some(status) = self.child.inner().try_wait()? {
                bail!("the agent has ended ({status}): {}", self.log()?);
            }
            ensure!(
                self.begun.elapsed() < LIMIT,
                "the agent is not ready after {LIMIT:?}: {}",
                self.log()?
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What it has logged.
    pub(super) fn log(&self) -> Result<String> {
        let bytes = fs::read(self.node.log()).context("reading the agent's log")?;
        Ok(String::from_utf8_lossy(bytes.get(self.log as usize..).unwrap_or_default()).into_owned())
    }

    /// Ends it; what it has attached stays.
    pub(super) fn end(mut self) -> Result<()> {
        self.child.signal(Signal::SIGTERM)?;
        self.child.wait(Duration::from_secs(20)).map(drop)
    }

    fn get(&self, path: &str) -> Result<(u16, String)> {
        let mut stream = self
            .node
            .namespace
            .connect(LISTEN.into(), Duration::from_secs(5))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: scale\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok());
        Ok((status.context("no status")?, answer))
    }

    /// Its metrics: the sum of each name's values, and each with its labels.
    pub(super) fn metrics(&self) -> Result<BTreeMap<String, f64>> {
        let (status, text) = self.get("/metrics")?;
        ensure!(status == 200, "/metrics says {status}");
        let mut metrics = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, value)) = line.rsplit_once(' ') else {
                continue;
            };
            let Ok(value) = value.parse::<f64>() else { continue };
            if let Some((family, _)) = name.split_once('{') {
                *metrics.entry(family.to_owned()).or_default() += value;
            }
            metrics.insert(name.to_owned(), value);
        }
        Ok(metrics)
    }

    /// User and system time in seconds, and bytes that came from the API server.
    pub(super) fn usage(&self) -> Result<(f64, f64)> {
        let metrics = self.metrics()?;
        let get = |name: &str| {
            metrics
                .get(name)
                .copied()
                .with_context(|| format!("no metric {name}"))
        };
        Ok((
            get("process_cpu_seconds_total")?,
            get("netpol_source_received_bytes_total")?,
        ))
    }

    pub(super) fn memory(&self) -> Result<Memory> {
        let proc = Path::new("/proc").join(self.child.id().to_string());
        let status = fs::read_to_string(proc.join("status")).context("reading the agent's status")?;
        let field = |name: &str| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let number = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
            number
                .map(|kib| kib * 1024)
                .with_context(|| format!("no {name} in /proc/PID/status"))
        };
        Ok(Memory {
            resident: field("VmRSS")?,
            anonymous: field("RssAnon")?,
            peak: field("VmHWM")?,
            maps: map_sizes(&proc)?.values().map(|(_, size)| size).sum(),
        })
    }
}

/// What the kernel holds for each map of the process, by id, with the map's type.
pub(super) fn map_sizes(proc: &Path) -> Result<BTreeMap<u64, (u64, u64)>> {
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir(proc.join("fdinfo")).context("listing the agent's files")? {
        // Files come and go.
        let Ok(text) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        let field = |name: &str| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|rest| rest.trim().parse::<u64>().ok())
        };
        if let (Some(id), Some(kind), Some(size)) = (field("map_id"), field("map_type"), field("memlock")) {
            maps.insert(id, (kind, size));
        }
    }
    Ok(maps)
}
