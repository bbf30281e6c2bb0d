//! init: the first process of the cluster's PID namespace. When it ends, the kernel ends every other one, and with them
//! go mounts, network namespaces and links. It lives as long as its standard input is open.

use std::{
    io::{BufRead as _, Write as _},
    path::Path,
    process::{Command, ExitCode, exit},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::{
        signal::SigSet,
        wait::{WaitStatus, wait},
    },
};

use super::supervisor::{LINKED, UNSHARED, call_me, this_program};

/// The hidden verb.
pub(super) fn run(dir: &Path) -> Result<ExitCode> {
    call_me(c"npc-init");
    // The supervisor has blocked signals for itself; components must not inherit that.
    SigSet::all().thread_unblock().context("unblocking signals")?;
    if std::process::id() != 1 {
        bail!("only the supervisor starts this, as the first process of a PID namespace");
    }
    let linked = hold_on();
    isolate()?;
    writeln!(std::io::stdout(), "{UNSHARED}").context("writing to the supervisor")?;
    linked.recv().context("no word from the supervisor")?;
    let builder = this_program("builder")
        .args(["cluster", "builder"])
        .arg(dir)
        .stdin(std::process::Stdio::null())
        .spawn()
        .context("starting the builder")?;
    reap(builder.id() as i32)
}

/// Ends this process when its standard input ends.
fn hold_on() -> mpsc::Receiver<()> {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if line == LINKED {
                // Nobody listens where init is failing anyway.
                let _ = tell.send(());
            }
        }
        exit(0);
    });
    told
}

/// Network and mounts of its own.
fn isolate() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .context("making network and mount namespaces")?;
    let none: Option<&str> = None;
    // Nothing that is mounted here is seen outside; what is unmounted outside goes here too, or it could not be removed.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none).context("making mounts private")?;
    // Names of network namespaces keep them alive, also in a copy of the mount: other people's are let go of.
    while umount2("/run/netns", MntFlags::MNT_DETACH).is_ok() {}
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none).context("mounting /proc")?;
    drop_named_namespaces()
}

/// Where `/run/netns` itself is no mount, each name in it is one.
fn drop_named_namespaces() -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("reading /proc/self/mounts")?;
    for line in mounts.lines() {
        let mut words = line.split(' ');
        if let (Some("nsfs"), Some(path)) = (words.next(), words.next()) {
            // One that vanished meanwhile is one less.
            let _ = umount2(path, MntFlags::MNT_DETACH);
        }
    }
    Ok(())
}

/// Collects what ended, as the first process of a PID namespace must; a builder that fails ends everything.
fn reap(builder: i32) -> Result<ExitCode> {
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid.as_raw() == builder && code != 0 => {
                return Ok(ExitCode::FAILURE);
            }
            Ok(WaitStatus::Signaled(pid, ..)) if pid.as_raw() == builder => return Ok(ExitCode::FAILURE),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) => thread::sleep(Duration::from_millis(100)),
            Err(error) => return Err(error).context("waiting for processes"),
        }
    }
}

/// Enters the namespaces of the cluster's control plane from outside.
pub(super) fn enter(init: i32) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["-t", &init.to_string(), "-p", "-n", "-m", "--wd=/", "--"]);
    command
}
