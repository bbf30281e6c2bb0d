//! The holder of a node: a process whose network, mount and UTS namespaces are the node. Components enter them.
//!
//! The node sees this machine's file system, but `/run`, `/var`, `/etc`, `/sys` and `/sys/fs/bpf` of its own: no mount point needs
//! to be made on this machine, and nothing that is written there is seen outside.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::pause,
};

use super::{
    daemon::{call, write},
    record::{BASE, Record},
    supervisor::call_me,
};
use crate::ui::root;

/// What the holder says when the node is there.
pub(super) const READY: &str = "ready";

/// What kubelet insists on writing: it gets files, so that this machine's kernel keeps its settings.
const KUBELET_SETTINGS: &[(&str, &str)] = &[
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Directories of a node that are expected to be there.
const DIRECTORIES: &[&str] = &[
    "run/netns",
    "run/lock",
    "run/containerd",
    "run/flannel",
    "run/netpol",
    "var/lib/kubelet",
    "var/lib/containerd",
    "var/lib/cni",
    "var/log/pods",
    "var/log/containers",
    "var/cache",
    "etc/cni/net.d",
];

/// Parts of `/sys` that are mounts of their own.
const BELOW_SYS: &[&str] = &["fs/cgroup", "kernel/debug", "kernel/tracing", "kernel/security"];

const NONE: Option<&str> = None;

/// The hidden verb.
pub(super) fn run(dir: &Path, node: &str) -> Result<ExitCode> {
    call_me(c"npc-node");
    let record = Record::read(dir)?;
    let flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS;
    unshare(flags).context("making the namespaces of a node")?;
    let home = dir.join("nodes").join(node);
    files(&home, node)?;
    mounts(&home, &record.components)?;
    settings(node, record.options.dual_stack)?;
    writeln!(std::io::stdout(), "{READY}").context("writing to the builder")?;
    loop {
        pause();
    }
}

/// The node's own files.
fn files(home: &Path, node: &str) -> Result<()> {
    fs::create_dir_all(home).with_context(|| format!("creating {}", home.display()))?;
    let mut copy = Command::new("cp");
    copy.arg("-a").arg("/etc").arg(home.join("etc"));
    call(&mut copy).context("copying /etc")?;
    let cni = home.join("etc/cni");
    if cni.exists() {
        fs::remove_dir_all(&cni).with_context(|| format!("removing {}", cni.display()))?;
    }
    for directory in DIRECTORIES {
        let path = home.join(directory);
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
    }
    for (path, target) in [("var/run", "/run"), ("var/lock", "/run/lock")] {
        symlink(target, home.join(path)).with_context(|| format!("creating {path}"))?;
    }
    let temporary = home.join("var/tmp");
    fs::create_dir_all(&temporary)
        .and_then(|()| fs::set_permissions(&temporary, fs::Permissions::from_mode(0o1777)))
        .with_context(|| format!("creating {}", temporary.display()))?;
    write(&home.join("run/xtables.lock"), "")?;
    write(&home.join("etc/hostname"), format!("{node}\n"))?;
    write(
        &home.join("etc/hosts"),
        format!("127.0.0.1 localhost {node}\n::1 localhost\n"),
    )?;
    // The machine's may be a link into its /run, and its name servers know nothing of the cluster.
    let resolv = home.join("etc/resolv.conf");
    let _ = fs::remove_file(&resolv);
    write(&resolv, "# There is no name service in this cluster.\n")?;
    for (path, value) in KUBELET_SETTINGS {
        write(&home.join("settings").join(path), format!("{value}\n"))?;
    }
    Ok(())
}

fn mounts(home: &Path, components: &Path) -> Result<()> {
    for part in ["run", "var", "etc"] {
        for kept in hidden(&["/", part].concat(), components) {
            let inside = home.join(kept.strip_prefix("/").unwrap_or(&kept));
            fs::create_dir_all(&inside).with_context(|| format!("creating {}", inside.display()))?;
            bind(&kept, &inside)?;
        }
        bind(&home.join(part), Path::new("/").join(part).as_path())?;
    }
    sys(home)?;
    for (path, _) in KUBELET_SETTINGS {
        let setting = Path::new("/proc/sys").join(path);
        if setting.exists() {
            bind(&home.join("settings").join(path), &setting)?;
        }
    }
    // kubelet and pods pass mounts to one another; they stay inside of the node all the same.
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SHARED, NONE)
        .context("sharing mounts within the node")
}

/// What components need of a directory that the node has an own one of.
fn hidden(part: &str, components: &Path) -> Vec<PathBuf> {
    let mut kept = vec![PathBuf::from(BASE), components.to_owned(), root()];
    kept.retain(|path| path.starts_with(part) && path.is_dir());
    kept
}

/// sysfs shows the network namespace in which it was mounted.
fn sys(home: &Path) -> Result<()> {
    let sys = home.join("sys");
    fs::create_dir_all(&sys).with_context(|| format!("creating {}", sys.display()))?;
    mount(Some("sysfs"), &sys, Some("sysfs"), MsFlags::empty(), NONE).context("mounting sysfs")?;
    for below in BELOW_SYS {
        let (from, to) = (Path::new("/sys").join(below), sys.join(below));
        if from.is_dir() && to.is_dir() {
            bind(&from, &to)?;
        }
    }
    // Pins of one node must not be seen by another.
    let bpf = sys.join("fs/bpf");
    mount(Some("bpf"), &bpf, Some("bpf"), MsFlags::empty(), NONE).context("mounting bpffs")?;
    mount(Some(&sys), "/sys", NONE, MsFlags::MS_MOVE, NONE).context("moving sysfs to /sys")
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)
        .with_context(|| format!("mounting {} on {}", from.display(), to.display()))
}

/// Settings of the node's own network and name.
fn settings(node: &str, dual_stack: bool) -> Result<()> {
    let mut wanted = vec![
        ("kernel/hostname", node),
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
        // Packets between pods on one bridge must meet kube-proxy's rules, or answers would not be translated back.
        ("net/bridge/bridge-nf-call-iptables", "1"),
    ];
    if dual_stack {
        wanted.extend([
            ("net/ipv6/conf/all/disable_ipv6", "0"),
            ("net/ipv6/conf/default/disable_ipv6", "0"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv6/conf/default/forwarding", "1"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/bridge/bridge-nf-call-ip6tables", "1"),
        ]);
    }
    for (path, value) in wanted {
        let path = Path::new("/proc/sys").join(path);
        File::create(&path)
            .and_then(|mut file| file.write_all(value.as_bytes()))
            .with_context(|| format!("writing {value} to {}", path.display()))?;
    }
    Ok(())
}

/// A command that enters a node and then runs what is appended; `holder` is its id where this is run.
pub(super) fn enter(holder: i32) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["-t", &holder.to_string(), "-n", "-m", "-u", "--wd=/", "--"]);
    command
}
