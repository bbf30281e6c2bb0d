//! Running programs to their end, with a time limit and errors that say what failed.

use std::{
    io::Write,
    process::{Command, Output, Stdio},
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::patience;

/// How long a helper program (`ip`, `nft`, ...) may take.
pub const TIMEOUT: Duration = Duration::from_secs(20);

/// Runs `program` in the calling thread's network namespace and returns its standard output.
///
/// # Errors
/// Where it can not be started, ends with another status than 0 (with what it wrote to standard error) or
/// takes longer than [`TIMEOUT`].
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    run_with_input(program, args, "")
}

/// [`run`] with `input` on standard input.
///
/// # Errors
/// As [`run`].
pub fn run_with_input(program: &str, args: &[&str], input: &str) -> Result<String> {
    let line = || format!("{program} {}", args.join(" "));
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start `{}` (is it installed?)", line()))?;
    let pid = Pid::from_raw(child.id() as i32);
    let mut stdin = child.stdin.take().context("no standard input")?;
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || send.send(child.wait_with_output()));
    // A program that ends without reading all of it says so by its status.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let Ok(output) = receive.recv_timeout(patience(TIMEOUT)) else {
        let _ = kill(pid, Signal::SIGKILL);
        bail!("`{}` did not end within {TIMEOUT:?}", line());
    };
    let Output {
        status,
        stdout,
        stderr,
    } = output.with_context(|| format!("wait for `{}`", line()))?;
    if !status.success() {
        let stderr = String::from_utf8_lossy(&stderr);
        let input = if input.is_empty() {
            String::new()
        } else {
            format!("\ninput:\n{input}")
        };
        bail!("`{}` failed ({status}): {}{input}", line(), stderr.trim());
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}
