//! How the verbs speak: one line a step on standard error, a ticking clock while it runs, the child's output
//! in a log that is shown only when it fails.

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    io::{self, IsTerminal, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// The workspace's top directory.
pub(crate) fn root() -> PathBuf {
    let here = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let here = PathBuf::from(here);
    here.parent().map(Path::to_path_buf).unwrap_or(here)
}

/// `PATH` with the folders of root's programs, which a root who came by `su` lacks.
pub(crate) fn path() -> OsString {
    let here = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = env::split_paths(&here).collect();
    for folder in ["/usr/sbin", "/sbin"].map(PathBuf::from) {
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    // Only a folder with a colon in its name can't be joined, and none came from splitting.
    env::join_paths(folders).unwrap_or(here)
}

/// Says that something is done, in one line.
pub(crate) fn say(what: &str, result: &str) {
    eprintln!("  {what}: {result}");
}

/// A step under way: its clock ticks on a terminal; elsewhere a line every half minute says that it lives.
struct Ticker<'a> {
    what: &'a str,
    start: Instant,
    tty: bool,
    next_line: Duration,
}

impl<'a> Ticker<'a> {
    const QUIET: Duration = Duration::from_secs(30);

    fn new(what: &'a str) -> Self {
        let tty = io::stderr().is_terminal();
        Self {
            what,
            start: Instant::now(),
            tty,
            next_line: Self::QUIET,
        }
    }

    fn tick(&mut self) {
        let past = self.start.elapsed();
        if self.tty {
            eprint!("\r\x1b[K  {} … {} s", self.what, past.as_secs());
            // A terminal that can't be flushed costs a tick, nothing else.
            let _ = io::stderr().flush();
        } else if past >= self.next_line {
            self.next_line += Self::QUIET;
            eprintln!("  {} … {} s so far", self.what, past.as_secs());
        }
    }

    fn done(&self) -> Duration {
        if self.tty {
            eprint!("\r\x1b[K");
        }
        self.start.elapsed()
    }
}

/// `1.2 s`, or `3 min 20 s`.
pub(crate) fn seconds(time: Duration) -> String {
    match time.as_secs() {
        s if s >= 60 => format!("{} min {} s", s / 60, s % 60),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

/// Runs `command` to its end with its output (both streams) in the returned log; the clock ticks meanwhile.
///
/// # Errors
/// The log or the child can't be made. The child's own failure is in the status.
pub(crate) fn run_to_log(
    what: &str,
    command: &mut Command,
) -> Result<(std::process::ExitStatus, PathBuf, Duration)> {
    let log = log_path(what)?;
    let file = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
    let copy = file
        .try_clone()
        .with_context(|| format!("opening {} twice", log.display()))?;
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(copy)
        .spawn()
        .with_context(|| format!("starting {program} for the step \"{what}\""))?;
    let mut ticker = Ticker::new(what);
    let mut pause = Duration::from_millis(5);
    let status = loop {
        if let Some(status) = child
            .try_wait()
            .with_context(|| format!("waiting for {program}"))?
        {
            break status;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(200));
        if ticker.start.elapsed() > Duration::from_millis(300) {
            ticker.tick();
        }
    };
    Ok((status, log, ticker.done()))
}

/// Runs `command` as a step that must succeed; says nothing if it does.
///
/// # Errors
/// The child failed: the end of its output is in the error.
pub(crate) fn run_quietly(what: &str, command: &mut Command) -> Result<Duration> {
    let (status, log, time) = run_to_log(what, command)?;
    if !status.success() {
        bail!(
            "{what} failed ({status}); the end of {}:\n{}",
            log.display(),
            tail(&log, 60)
        );
    }
    Ok(time)
}

/// Runs `command` as a step that must succeed and says in one line that it did.
///
/// # Errors
/// The child failed: the end of its output is in the error.
pub(crate) fn run_step(what: &str, command: &mut Command) -> Result<()> {
    let time = run_quietly(what, command)?;
    say(what, &format!("done in {}", seconds(time)));
    Ok(())
}

/// The last `lines` lines of the file.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Where the output of a step goes: `target/xtask-log/STEP.log`.
fn log_path(what: &str) -> Result<PathBuf> {
    let dir = root().join("target/xtask-log");
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let name: String = what
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .take(40)
        .collect();
    Ok(dir.join(format!("{}.log", name.trim_matches('-'))))
}
