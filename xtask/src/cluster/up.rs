//! `cluster up`: makes sure that everything is here, starts the supervisor, and shows what it says.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{SigSet, Signal};

use super::{
    Up, components,
    record::{Lock, Plan, Record, dir},
    show,
    supervisor::{KEEP, this_program},
};
use crate::{
    preflight, setup,
    ui::{path, say, seconds},
};

/// What the nodes run, beside the components.
const PACKAGES: &[&str] = &[
    "iproute2",
    "iptables",
    "nftables",
    "ipset",
    "conntrack",
    "ethtool",
    "openssl",
    "libseccomp2",
    // Flannel is built with cgo.
    "gcc",
    "libc6-dev",
];

/// Everything that a cluster needs; the directory of the components.
///
/// # Errors
/// [`preflight::Missing`] where something can't be had.
pub(super) fn prepare() -> Result<PathBuf> {
    setup::packages(PACKAGES)?;
    components::ensure()
}

/// The verb.
pub(super) fn run(args: &Up) -> Result<ExitCode> {
    let name = &args.which.name;
    refuse_second(name)?;
    let components = prepare()?;
    bridge_netfilter()?;
    let start = Instant::now();
    let plan = Plan {
        name: name.clone(),
        options: args.options.clone(),
        components,
    };
    match raise(&plan, args, start)? {
        End::Ready => {
            announce(args, start)?;
            Ok(ExitCode::SUCCESS)
        }
        End::Held => {
            say("cluster", &format!("{name} is gone"));
            Ok(ExitCode::SUCCESS)
        }
        End::Interrupted => {
            say("cluster", &format!("{name} interrupted; nothing of it is left"));
            Ok(ExitCode::from(130))
        }
        End::Failed(errors) => bail!(
            "the cluster {name} did not come up, and nothing of it is left: {}",
            errors.join("\n")
        ),
    }
}

fn announce(args: &Up, start: Instant) -> Result<()> {
    let (name, nodes) = (&args.which.name, args.options.nodes);
    let took = seconds(start.elapsed());
    say(
        "cluster",
        &format!("{name} is up after {took}: {nodes} nodes ready"),
    );
    let record = Record::read(&dir(name))?;
    say("kubeconfig", &record.kubeconfig.display().to_string());
    Ok(())
}

/// Building takes long: said before it, not after.
fn refuse_second(name: &str) -> Result<()> {
    let dir = dir(name);
    if dir.is_dir() && Lock::try_on(&dir)?.is_none() {
        preflight::require(vec![format!(
            "the cluster {name} is there already: `cargo xtask cluster down --name {name}` removes it, `--name` makes another"
        )])?;
    }
    Ok(())
}

/// A setting of all bridges of a network namespace, where the kernel has it as a module.
fn bridge_netfilter() -> Result<()> {
    let there = || Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists();
    if there() {
        return Ok(());
    }
    let modprobe = Command::new("modprobe")
        .arg("br_netfilter")
        .env("PATH", path())
        .output();
    if !there() {
        let why = match modprobe {
            Ok(done) => String::from_utf8_lossy(&done.stderr).trim().to_owned(),
            Err(error) => error.to_string(),
        };
        preflight::require(vec![format!(
            "no br_netfilter, which kube-proxy needs for pods on one bridge: boot a kernel with CONFIG_BRIDGE_NETFILTER ({why})"
        )])?;
    }
    Ok(())
}

/// How it went.
enum End {
    Ready,
    /// It was ready, and ended when it was let go of.
    Held,
    Interrupted,
    Failed(Vec<String>),
}

fn raise(plan: &Plan, args: &Up, start: Instant) -> Result<End> {
    // Before any thread is started, so that all of them leave these signals to the one that waits.
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block().context("blocking signals")?;
    let mut child = supervisor(plan)?;
    let stdin = Arc::new(Mutex::new(child.stdin.take()));
    let interrupted = Arc::new(AtomicBool::new(false));
    let (leash, told) = (stdin.clone(), interrupted.clone());
    let let_go = move || {
        told.store(true, Ordering::Relaxed);
        drop(leash.lock().unwrap_or_else(PoisonError::into_inner).take());
    };
    let on_signal = let_go.clone();
    thread::spawn(move || {
        if signals.wait().is_ok() {
            on_signal();
        }
    });
    let mut held = false;
    let stdout = child.stdout.take().context("the supervisor has no output")?;
    let mut errors = Vec::new();
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("ready", _) if args.hold => {
                held = true;
                announce(args, start)?;
                // For whoever started this: where `cluster.json` is.
                writeln!(std::io::stdout(), "{}", dir(&plan.name).display())
                    .context("writing to standard output")?;
                let at_end = let_go.clone();
                thread::spawn(move || {
                    // However it ends.
                    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
                    at_end();
                });
            }
            ("ready", _) => {
                let mut stdin = stdin.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(mut stdin) = stdin.take() {
                    writeln!(stdin, "{KEEP}").context("writing to the supervisor")?;
                    return Ok(End::Ready);
                }
            }
            ("step", rest) => {
                let (what, time) = rest.rsplit_once(' ').unwrap_or((rest, "?"));
                say(what, &format!("after {time} s"));
            }
            ("error", text) => errors.push(serde_json::from_str(text).unwrap_or_else(|_| text.to_owned())),
            ("logs", text) => errors.push(format!("all logs are in {text}")),
            _ => errors.push(line),
        }
    }
    let status = child.wait().context("waiting for the supervisor")?;
    if interrupted.load(Ordering::Relaxed) && status.success() {
        return Ok(if held { End::Held } else { End::Interrupted });
    }
    if status.code().is_none() {
        // It was killed: what it would have removed is removed here.
        errors.push(format!("its supervisor was killed ({status})"));
        show::clear(&plan.name)?;
    }
    Ok(End::Failed(errors))
}

fn supervisor(plan: &Plan) -> Result<Child> {
    this_program("supervisor")
        .args(["cluster", "supervise", &serde_json::to_string(plan)?])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // A working directory can't be unmounted.
        .current_dir("/")
        .spawn()
        .context("starting the supervisor")
}
