//! Starting the components, each with its log, and short commands.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};

use super::record::{DaemonRecord, Process};
use crate::ui::{path, tail};

/// How much of a log is shown where its component failed.
const TAIL: usize = 25;

/// A component that was started here.
#[derive(Debug)]
pub(super) struct Daemon {
    name: String,
    node: Option<String>,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts it; both streams go to its log in `logs`.
    ///
    /// # Errors
    /// The log can't be made, or the program not be started.
    pub(super) fn start(logs: &Path, node: Option<&str>, name: &str, command: &mut Command) -> Result<Self> {
        let file_name = match node {
            Some(node) => format!("{node}-{name}.log"),
            None => format!("{name}.log"),
        };
        let log = logs.join(file_name);
        let file = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let copy = file
            .try_clone()
            .with_context(|| format!("opening {} twice", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(copy)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            node: node.map(str::to_owned),
            child,
            log,
        })
    }

    /// For `cluster.json`.
    ///
    /// # Errors
    /// It does not run any more.
    pub(super) fn record(&mut self) -> Result<DaemonRecord> {
        self.check()?;
        let process = Process::find(Path::new("/proc"), self.child.id() as i32);
        Ok(DaemonRecord {
            name: self.name.clone(),
            node: self.node.clone(),
            process: process.ok_or_else(|| anyhow!("{} ended:\n{}", self.title(), self.end_of_log()))?,
            log: self.log.clone(),
        })
    }

    /// `kubelet of n1`
    fn title(&self) -> String {
        match &self.node {
            Some(node) => format!("{} of {node}", self.name),
            None => self.name.clone(),
        }
    }

    fn end_of_log(&self) -> String {
        let file = self.log.file_name().unwrap_or_default().to_string_lossy();
        format!("the end of {file}:\n{}", tail(&self.log, TAIL))
    }

    /// Fails where it has ended.
    ///
    /// # Errors
    /// It has: the end of its log is in the error.
    pub(super) fn check(&mut self) -> Result<()> {
        if let Some(status) = self
            .child
            .try_wait()
            .with_context(|| format!("waiting for {}", self.name))?
        {
            bail!("{} ended ({status}); {}", self.title(), self.end_of_log());
        }
        Ok(())
    }

    /// Asks again and again until `done`.
    ///
    /// # Errors
    /// It ended, or it took too long: the end of its log is in the error.
    pub(super) fn until(
        &mut self,
        what: &str,
        limit: Duration,
        mut done: impl FnMut() -> bool,
    ) -> Result<()> {
        let start = Instant::now();
        while !done() {
            self.check()?;
            if start.elapsed() > limit {
                bail!(
                    "{what} took more than {} s; {}",
                    limit.as_secs(),
                    self.end_of_log()
                );
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

/// A command of the components or of the machine, with nothing of the caller's environment: a proxy that is
/// set there would be asked for what only the cluster knows.
pub(super) fn program(components: &Path, name: &str) -> Command {
    let mut command = Command::new(name);
    environment(&mut command, components);
    command
}

/// Sets the environment of [`program`].
pub(super) fn environment(command: &mut Command, components: &Path) {
    let mut folders = vec![
        components.join("bin"),
        components.join("debian/usr/sbin"),
        components.join("debian/usr/bin"),
    ];
    folders.extend(std::env::split_paths(&path()));
    let joined = std::env::join_paths(folders).unwrap_or_else(|_| path());
    command
        .env_clear()
        .env("PATH", joined)
        .env("HOME", "/root")
        .current_dir("/");
}

/// Runs a short command and returns its standard output.
///
/// # Errors
/// It fails: what it said is in the error.
pub(super) fn call(command: &mut Command) -> Result<String> {
    call_with(command, "")
}

/// [`call`] with a standard input.
///
/// # Errors
/// As [`call`].
pub(super) fn call_with(command: &mut Command, input: &str) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {name}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // Who does not read its input says why by its status.
        let _ = stdin.write_all(input.as_bytes());
    }
    let done = child
        .wait_with_output()
        .with_context(|| format!("waiting for {name}"))?;
    if !done.status.success() {
        bail!(
            "{command:?} failed ({}):\n{}{}",
            done.status,
            String::from_utf8_lossy(&done.stdout),
            String::from_utf8_lossy(&done.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Writes a file and the directories above it.
///
/// # Errors
/// One can't be written.
pub(super) fn write(path: &Path, text: impl AsRef<[u8]>) -> Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    }
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
