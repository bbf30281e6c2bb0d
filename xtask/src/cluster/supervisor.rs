//! The supervisor: makes the cluster's directory, its init and the link to it, waits for init's end, and removes what
//! processes leave. It is outside of the cluster's PID namespace, in a session of its own.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitCode, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sched::{CloneFlags, unshare},
    sys::signal::{SigSet, Signal},
    unistd::setsid,
};

use super::{
    addresses::Network,
    record::{BASE, Lock, Plan, Process, Record, dir},
    residue,
};
use crate::ui::root;

/// What `up` writes when it has seen that the cluster is ready: from then on the cluster outlives it.
pub(super) const KEEP: &str = "keep";
/// What init says when it is in its network namespace.
pub(super) const UNSHARED: &str = "unshared";
/// What the supervisor answers when the link is there.
pub(super) const LINKED: &str = "linked";

/// The end of init's standard input: init lives as long as it is open.
type Leash = Arc<Mutex<Option<ChildStdin>>>;

/// The hidden verb.
pub(super) fn run(plan: &str) -> Result<ExitCode> {
    call_me(c"npc-supervisor");
    let plan: Plan = serde_json::from_str(plan).context("reading the plan")?;
    // Ctrl-C on the terminal is for `up`, which then lets go of the supervisor.
    setsid().context("beginning a session")?;
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    signals.thread_block().context("blocking signals")?;
    let dir = dir(&plan.name);
    let done = supervise(&plan, &dir, signals);
    if let Err(error) = &done {
        tell(&format!(
            "error {}",
            serde_json::to_string(&format!("{error:#}"))?
        ));
    }
    Ok(if done.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn supervise(plan: &Plan, dir: &Path, signals: SigSet) -> Result<()> {
    // Held while a directory and a network are chosen, so that clusters that start at the same time differ.
    let base = Lock::wait_on(Path::new(BASE))?;
    let lock = claim(plan, dir)?;
    let done = begin(plan, dir).and_then(|(child, leash, record)| {
        drop(base);
        let_go_on_signal(signals, leash.clone());
        let_go_without(leash.clone());
        follow(child, &leash, &record)
    });
    if done.is_err() || !Record::read(dir).is_ok_and(|record| record.ready) {
        keep_logs(dir, &plan.name);
    }
    residue::remove(&plan.name)?;
    drop(lock);
    residue::remove_base();
    done
}

/// The cluster's own directory and its lock; what a killed predecessor left is removed.
fn claim(plan: &Plan, dir: &Path) -> Result<Lock> {
    let name = &plan.name;
    if dir.exists() {
        let Some(lock) = Lock::try_on(dir)? else {
            bail!("the cluster {name} is there already: `cargo xtask cluster down --name {name}` removes it");
        };
        residue::remove(name)?;
        drop(lock);
    }
    // Keys and /etc of the nodes are in it.
    fs::create_dir_all(dir.join("logs"))
        .and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(0o700)))
        .with_context(|| format!("creating {}", dir.display()))?;
    Lock::try_on(dir)?.with_context(|| format!("another process holds {}", dir.display()))
}

/// Starts init and writes the first `cluster.json`.
fn begin(plan: &Plan, dir: &Path) -> Result<(Child, Leash, Record)> {
    let network = Network::free(&plan.name, plan.options.dual_stack)?;
    let mut child = start_init(dir)?;
    let leash = Arc::new(Mutex::new(child.stdin.take()));
    let proc = Path::new("/proc");
    let process =
        |pid: u32| Process::find(proc, pid as i32).context("a process of the cluster ended at once");
    let record = Record {
        name: plan.name.clone(),
        options: plan.options.clone(),
        components: plan.components.clone(),
        snapshotter: snapshotter(dir).to_owned(),
        kubeconfig: dir.join("kubeconfig"),
        network,
        supervisor: process(std::process::id())?,
        init: process(child.id())?,
        ready: false,
        nodes: Vec::new(),
        daemons: Vec::new(),
    };
    record.write(dir)?;
    // init says that it has left this machine's network before the lock on all clusters is given up.
    let stdout = child.stdout.take().context("init has no output")?;
    let mut lines = BufReader::new(stdout);
    let mut line = String::new();
    lines.read_line(&mut line).context("reading from init")?;
    if line.trim() != UNSHARED {
        bail!("init failed: {}", crate::ui::tail(&dir.join("logs/init.log"), 20));
    }
    record.network.link_to(record.init.pid)?;
    if let Some(stdin) = leash.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
        writeln!(stdin, "{LINKED}").context("writing to init")?;
    }
    thread::spawn(move || lines.lines().map_while(Result::ok).for_each(|line| tell(&line)));
    Ok((child, leash, record))
}

/// Starts init as the first process of a new PID namespace. A thread of its own does, as all later children of who
/// unshares would be born into that namespace.
fn start_init(dir: &Path) -> Result<Child> {
    let log = dir.join("logs/init.log");
    let log = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
    let start = move || -> Result<Child> {
        unshare(CloneFlags::CLONE_NEWPID).context("making a PID namespace")?;
        this_program("init")
            .args(["cluster", "init"])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("starting init")
    };
    thread::scope(|scope| scope.spawn(start).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Gives this process the name of its role, where it would be called `exe`.
pub(super) fn call_me(role: &std::ffi::CStr) {
    // Only for who reads a list of processes.
    let _ = nix::sys::prctl::set_name(role);
}

/// This very program, though its file may have been replaced by a newer build meanwhile.
pub(super) fn this_program(role: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(format!("netpol-cluster-{role}"));
    command
}

/// Overlays are fast and small; but an overlay can't hold the upper directory of another.
fn snapshotter(dir: &Path) -> &'static str {
    let file_system = nix::sys::statfs::statfs(dir).map(|stat| stat.filesystem_type());
    let overlay = file_system.is_ok_and(|kind| kind == nix::sys::statfs::OVERLAYFS_SUPER_MAGIC);
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let known = known.lines().any(|line| line.ends_with("\toverlay"));
    if overlay || !known { "native" } else { "overlayfs" }
}

fn let_go(leash: &Leash) {
    drop(leash.lock().unwrap_or_else(PoisonError::into_inner).take());
}

fn let_go_on_signal(signals: SigSet, leash: Leash) {
    thread::spawn(move || {
        // Only a set with no signals can't be waited for.
        let _ = signals.wait();
        let_go(&leash);
    });
}

/// Where `up` ends, by Ctrl-C or however, before it wrote [`KEEP`], the cluster ends too.
fn let_go_without(leash: Leash) {
    thread::spawn(move || {
        let mut line = String::new();
        let kept = std::io::stdin().read_line(&mut line).is_ok() && line.trim() == KEEP;
        if !kept {
            let_go(&leash);
        }
    });
}

/// Waits for init's end.
fn follow(mut child: Child, leash: &Leash, record: &Record) -> Result<()> {
    let status = child.wait().context("waiting for init")?;
    let asked = leash.lock().unwrap_or_else(PoisonError::into_inner).is_none();
    if asked {
        return Ok(());
    }
    if status.code() == Some(1) {
        // The builder has said why.
        bail!("everything that was started is ended");
    }
    bail!("the cluster {} ended: its init {status}", record.name)
}

/// Keeps the logs of a cluster that failed where those of the other verbs are.
fn keep_logs(dir: &Path, name: &str) {
    let to = kept_logs(name);
    let _ = fs::remove_dir_all(&to);
    let copied = fs::create_dir_all(&to).is_ok()
        && Command::new("cp")
            .arg("-r")
            .arg(dir.join("logs/."))
            .arg(&to)
            .status()
            .is_ok();
    if copied {
        tell(&format!("logs {}", to.display()));
    }
}

/// Where the logs of a failed cluster are.
pub(super) fn kept_logs(name: &str) -> PathBuf {
    root().join(format!("target/xtask-log/cluster-{name}"))
}

/// A line to `up`, which may have ended long ago.
fn tell(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
