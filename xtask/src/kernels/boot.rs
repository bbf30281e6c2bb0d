//! One guest, from power-on to its last line.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::report::Report;

/// From power-on to the first word: 6 s on an idle machine.
const BOOT: Duration = Duration::from_secs(120);

/// A guest's memory.
pub(super) const MEGABYTES: usize = 3072;

/// How long the guest may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// One job.
    pub(super) job: Duration,
}

/// Ends the emulator however this process leaves the scope.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        // An emulator that has ended by itself can't be killed, which is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots `image` with `initrd`, has it run `jobs` in their order there, and listens until the guest says that it is done, dies or is late.
/// `progress` is called after each job. The first serial line goes to the file `console`.
///
/// # Errors
/// When the emulator can't be started. A guest that fails is an unfinished [`Report`], with a reason.
pub(super) fn boot(
    image: &Path,
    initrd: &Path,
    console: &Path,
    jobs: &[&str],
    limits: Limits,
    mut progress: impl FnMut(&Report),
) -> Result<(Report, Option<String>)> {
    let _ = fs::remove_file(console);
    let mut guest = start(image, initrd, console, jobs)?;
    let lines = lines(&mut guest.0)?;
    let mut report = Report::default();
    let mut deadline = Instant::now() + BOOT;
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                let begun = report.jobs.len();
                let ended = report.line(&line);
                if report.done {
                    return Ok((report, None));
                }
                if ended {
                    progress(&report);
                }
                // Each job has its own time, whatever it prints.
                if ended || report.jobs.len() > begun {
                    deadline = Instant::now() + limits.job;
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                let what = match report.jobs.last() {
                    Some(job) if job.status.is_none() => {
                        format!("{} did not end within {:?}", job.name, limits.job)
                    }
                    Some(job) => format!("nothing followed {}", job.name),
                    None => format!("the guest did not come up within {BOOT:?}"),
                };
                return Ok((report, Some(what)));
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Ok((report, Some("the guest ended before its last job".into())));
            }
        }
    }
}

fn start(image: &Path, initrd: &Path, console: &Path, jobs: &[&str]) -> Result<Guest> {
    // setpriv has the kernel end the emulator when this process dies, even by SIGKILL.
    let child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"])
        // KVM looks present on machines where it hangs; 6.12 panics on `-cpu max`, and now and then where
        // the emulator of Debian 12 does a cmpxchg16b.
        .args(["-accel", "tcg,thread=multi", "-cpu", "Nehalem,-cx16", "-smp", "2"])
        .args(["-m", &MEGABYTES.to_string()])
        .args([
            "-nodefaults",
            "-display",
            "none",
            "-monitor",
            "none",
            "-no-reboot",
        ])
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .args(["-serial", "stdio"])
        .arg("-kernel")
        .arg(image)
        .arg("-initrd")
        .arg(initrd)
        .arg("-append")
        .arg(format!(
            "console=ttyS0 loglevel=5 panic=-1 random.trust_cpu=on mitigations=off netpol.jobs={}",
            jobs.join(",")
        ))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .context("starting qemu-system-x86_64 by setpriv")?;
    Ok(Guest(child))
}

/// The guest's lines, without their ends, as they come.
fn lines(child: &mut Child) -> Result<Receiver<String>> {
    let stdout = child
        .stdout
        .take()
        .context("the emulator has no standard output")?;
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(stdout);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line)
                .trim_end_matches(['\r', '\n'])
                .to_owned();
            if sender.send(text).is_err() {
                break;
            }
            line.clear();
        }
    });
    Ok(receiver)
}
