//! The verbs for a cluster that is there.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;

use super::{
    control,
    daemon::environment,
    debian, hold, init,
    node::import_arguments,
    record::{Lock, NodeRecord, Record, dir},
    residue,
};
use crate::ui::say;

/// How long a supervisor that ends may take to remove its cluster: it waits for processes, then for their cgroups.
const LIMIT: Duration = residue::LIMIT.saturating_mul(3);

/// `cluster down`
pub(super) fn down(name: &str) -> Result<ExitCode> {
    let dir = dir(name);
    if !dir.exists() {
        // A cgroup may be left where the directory was removed by hand.
        residue::remove(name)?;
        say("cluster", &format!("there is no {name}"));
        return Ok(ExitCode::SUCCESS);
    }
    // The supervisor removes everything itself; a dead one leaves that to us.
    if let Ok(record) = Record::read(&dir) {
        residue::end(record.supervisor, Signal::SIGTERM, LIMIT)?;
    }
    clear(name)?;
    say("cluster", &format!("{name} is gone"));
    Ok(ExitCode::SUCCESS)
}

/// Removes what a cluster left whose supervisor is dead, or about to end.
///
/// # Errors
/// Something can't be removed, or another process makes the cluster.
pub(super) fn clear(name: &str) -> Result<()> {
    let dir = dir(name);
    let start = Instant::now();
    while dir.exists() {
        // A directory that vanishes between two looks is what is wanted.
        if let Ok(Some(lock)) = Lock::try_on(&dir) {
            residue::remove(name)?;
            drop(lock);
        } else if start.elapsed() > LIMIT {
            bail!(
                "another process holds {}: is an `up` of this cluster under way?",
                dir.display()
            );
        } else {
            thread::sleep(Duration::from_millis(50));
        }
    }
    residue::remove_base();
    Ok(())
}

/// `cluster status`: 0 where everything lives, else 1.
pub(super) fn status(name: &str) -> Result<ExitCode> {
    let record = Record::running(name)?;
    let proc = record.proc();
    let options = serde_json::to_string(&record.options)?;
    println!(
        "cluster     {name}{}",
        if record.ready { "" } else { ", not ready yet" }
    );
    println!("options     {options}");
    println!("kubeconfig  {}", record.kubeconfig.display());
    println!("api server  {}", control::server(&record.network));
    println!("this host   {} on {}", record.network.v4(1), record.network.link);
    println!("components  {}", record.components.display());
    println!("debian      {}", debian::versions(&record.components));
    println!("logs        {}", dir(name).join("logs").display());
    println!(
        "processes   supervisor {}, init {}",
        record.supervisor.pid, record.init.pid
    );
    let mut dead = 0;
    let mut life = |process: super::record::Process| {
        let alive = process.is_alive(&proc);
        dead += usize::from(!alive);
        if alive { "runs" } else { "DEAD" }
    };
    for node in &record.nodes {
        let six = node.address6.as_deref().unwrap_or_default();
        println!(
            "node        {:<4} {} {six} holder {} {}",
            node.name,
            node.address,
            node.holder.pid,
            life(node.holder)
        );
    }
    for daemon in &record.daemons {
        println!(
            "component   {:<4} {:<24} {:<6} {} {}",
            daemon.node.as_deref().unwrap_or("-"),
            daemon.name,
            daemon.process.pid,
            life(daemon.process),
            daemon.log.display()
        );
    }
    Ok(if dead == 0 && record.ready {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// `cluster kubeconfig`
pub(super) fn kubeconfig(name: &str, raw: bool) -> Result<ExitCode> {
    let path = Record::running(name)?.kubeconfig;
    if raw {
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        print!("{text}");
    } else {
        println!("{}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// `cluster load`
pub(super) fn load(name: &str, image: &Path) -> Result<ExitCode> {
    let record = Record::running(name)?;
    let open = || fs::File::open(image).with_context(|| format!("opening {}", image.display()));
    open()?;
    for node in &record.nodes {
        let mut ctr = enter(&record, node);
        ctr.arg("ctr");
        import_arguments(&mut ctr, &record.snapshotter);
        let done = ctr.stdin(open()?).output().context("starting ctr")?;
        if !done.status.success() {
            let said = String::from_utf8_lossy(&done.stderr);
            bail!("importing {} into {}: {said}", image.display(), node.name);
        }
        say(&node.name, &format!("has {}", image.display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// `cluster node`
pub(super) fn node(name: &str, node: &str, command: &[String]) -> Result<ExitCode> {
    let record = Record::running(name)?;
    let mut inside = enter(&record, record.node(node)?);
    Err(inside.args(command).exec()).context("starting nsenter")
}

/// `cluster kubectl`
pub(super) fn kubectl(name: &str, arguments: &[String]) -> Result<ExitCode> {
    let record = Record::running(name)?;
    let mut kubectl = Command::new(record.components.join("bin/kubectl"));
    kubectl.env("KUBECONFIG", &record.kubeconfig).args(arguments);
    // A proxy would be asked for an address that only this machine reaches.
    for proxy in ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        kubectl.env_remove(proxy);
    }
    Err(kubectl.exec()).context("starting kubectl")
}

/// First the PID namespace, where the holder has the id that is written down, then the node.
fn enter(record: &Record, node: &NodeRecord) -> Command {
    let mut command = init::enter(record.init.pid);
    environment(&mut command, &record.components);
    command.env("KUBECONFIG", &record.kubeconfig);
    command.envs(std::env::var_os("TERM").map(|term| ("TERM", term)));
    let inner = hold::enter(node.holder.pid);
    command.arg(inner.get_program()).args(inner.get_args());
    command
}
