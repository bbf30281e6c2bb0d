//! The guest's file system: one archive of modules a kernel, one of programs and jobs for all. The kernel
//! unpacks archives that follow one another in one file as if they were one.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Write as _,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::{
    fetch::{Tree, output, remove_dir, run},
    suite::Suite,
};

/// Loaded before the jobs run; what these need comes along.
const MODULES: &[&str] = &[
    "veth",
    "bridge",
    "br_netfilter",
    "8021q",
    "bonding",
    "dummy",
    "vxlan",
    "sch_ingress",
    "sch_netem",
    "cls_bpf",
    "cls_matchall",
    "act_mirred",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_nat",
    "nf_tables",
    "nft_ct",
    "nft_nat",
    "nft_masq",
    "nft_chain_nat",
    "nft_compat",
    "xt_mark",
    "xt_nat",
    "xt_conntrack",
    "xt_addrtype",
    "xt_comment",
    "xt_MASQUERADE",
    "iptable_nat",
    "iptable_mangle",
    "iptable_filter",
    "ip_vs",
    "ip_vs_rr",
    "sctp",
    "tun",
    "af_packet",
];

/// What the rig and people at the guest's shell use, where this machine has it. Busybox has the rest.
const PROGRAMS: &[&str] = &[
    "kmod",
    "ip",
    "tc",
    "bridge",
    "ss",
    "nft",
    "iptables",
    "ip6tables",
    "iptables-restore",
    "ip6tables-restore",
    "ipset",
    "ipvsadm",
    "nsenter",
    "setpriv",
    "conntrack",
    "ethtool",
    "bpftool",
];

/// Plug-ins that no library list names.
const PLUGINS: &[&str] = &["/usr/lib/x86_64-linux-gnu/xtables"];

/// Writes the archive of `tree`'s modules beside it, once.
///
/// # Errors
/// When copying, `depmod` or `cpio` fails.
pub(super) fn modules(dir: &Path, tree: &Tree) -> Result<PathBuf> {
    let archive = dir.join("modules.cpio");
    // The list above is part of this program: a new program packs again.
    let stamp = dir.join("modules.list");
    let list = MODULES.join("\n");
    if archive.exists() && fs::read_to_string(&stamp).is_ok_and(|old| old == list) {
        return Ok(archive);
    }
    let root = dir.join("modules");
    remove_dir(&root)?;
    let base = root.join("usr/lib/modules").join(&tree.release);
    for module in wanted(tree)? {
        let target = base.join(module.strip_prefix(&tree.modules)?);
        fs::create_dir_all(target.parent().context("a module at the root")?)?;
        fs::copy(&module, &target).with_context(|| format!("copying {}", module.display()))?;
    }
    for name in ["modules.order", "modules.builtin", "modules.builtin.modinfo"] {
        fs::copy(tree.modules.join(name), base.join(name)).with_context(|| format!("copying {name}"))?;
    }
    run(Command::new("depmod")
        .arg("-b")
        .arg(root.join("usr"))
        .arg(&tree.release))?;
    pack(&root, &archive)?;
    remove_dir(&root)?;
    fs::write(&stamp, list)?;
    Ok(archive)
}

/// Every network module (netfilter loads its own by name) and the drivers the rig needs.
fn wanted(tree: &Tree) -> Result<BTreeSet<PathBuf>> {
    let mut all = Vec::new();
    files(&tree.modules.join("kernel"), &mut all)?;
    let folders = [
        "kernel/net",
        "kernel/lib",
        "kernel/crypto",
        "kernel/arch/x86/crypto",
        "kernel/fs/fuse",
    ];
    let stem = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.split('.').next().unwrap_or_default().replace('-', "_")
    };
    Ok(all
        .into_iter()
        .filter(|path| {
            let inside = path.strip_prefix(&tree.modules).unwrap_or(path);
            folders.iter().any(|folder| inside.starts_with(folder)) || MODULES.contains(&&*stem(path))
        })
        .collect())
}

fn files(dir: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files(&entry.path(), into)?;
        } else {
            into.push(entry.path());
        }
    }
    Ok(())
}

/// Writes the archive of programs, test binaries and jobs.
///
/// Binaries are copied to `/tests` under their own names, without debug information.
///
/// # Errors
/// When a program can't be copied or `cpio` fails.
pub(super) fn programs(dir: &Path, suite: &Suite) -> Result<PathBuf> {
    let root = dir.join("root");
    remove_dir(&root)?;
    for part in [
        "usr/bin",
        "usr/sbin",
        "usr/lib",
        "usr/lib64",
        "bin",
        "jobs",
        "tests",
        "proc",
        "sys",
        "dev",
        "etc",
    ] {
        fs::create_dir_all(root.join(part))?;
    }
    for (link, target) in [("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")] {
        symlink(target, root.join(link))?;
    }
    copy(Path::new("/bin/busybox"), &root.join("bin/busybox"))?;
    let mut carried = BTreeSet::new();
    for name in PROGRAMS {
        if let Some(program) = find(name) {
            copy(&program, &root.join("usr/sbin").join(name))?;
            carried.insert(program);
        }
    }
    symlink("kmod", root.join("usr/sbin/modprobe"))?;
    for plugins in PLUGINS.iter().map(Path::new).filter(|path| path.is_dir()) {
        let mut found = Vec::new();
        files(plugins, &mut found)?;
        for plugin in found {
            copy(&plugin, &inside(&root, &plugin))?;
        }
    }
    for object in &suite.objects {
        let name = object.file_name().context("an object without name")?;
        copy(object, &root.join("tests").join(name))?;
    }
    for binary in &suite.binaries {
        let target = root
            .join("tests")
            .join(binary.file_name().context("a binary without name")?);
        run(Command::new("strip")
            .arg("--strip-debug")
            .arg("-o")
            .args([&target, binary]))?;
        carried.insert(binary.clone());
    }
    let mut examples = Vec::new();
    files(&suite.examples, &mut examples)?;
    for example in examples {
        let below = example.strip_prefix(&suite.examples)?;
        copy(&example, &root.join("tests/examples").join(below))?;
    }
    for library in libraries(&carried)? {
        copy(&library, &inside(&root, &library))?;
    }
    for (at, job) in suite.jobs.iter().enumerate() {
        fs::write(root.join(format!("jobs/{at:03}-{}", job.name)), &job.script)?;
    }
    fs::write(root.join("modules"), MODULES.join("\n"))?;
    fs::write(root.join("init"), include_str!("init.sh"))?;
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755))?;
    let archive = dir.join("programs.cpio");
    pack(&root, &archive)?;
    remove_dir(&root)?;
    Ok(archive)
}

/// Where a path of this machine goes in the guest (`/lib` is a link to `/usr/lib` in both).
fn inside(root: &Path, path: &Path) -> PathBuf {
    let path = path.strip_prefix("/").unwrap_or(path);
    match path.starts_with("usr") {
        true => root.join(path),
        false => root.join("usr").join(path),
    }
}

/// The program `name`, links resolved.
fn find(name: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .find_map(|dir| fs::canonicalize(Path::new(dir).join(name)).ok())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let dir = to.parent().context("a path without folder")?;
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    fs::copy(from, to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// The shared libraries that `programs` load at start.
fn libraries(programs: &BTreeSet<PathBuf>) -> Result<BTreeSet<PathBuf>> {
    let text = output(Command::new("ldd").args(programs))?;
    ensure!(!text.contains("not found"), "libraries are missing:\n{text}");
    Ok(text
        .lines()
        .flat_map(str::split_whitespace)
        .filter(|word| word.starts_with('/') && !word.ends_with(':'))
        .map(PathBuf::from)
        .collect())
}

/// Packs `root` as the kernel reads it.
fn pack(root: &Path, archive: &Path) -> Result<()> {
    let mut names = Vec::new();
    tree(root, root, &mut names)?;
    let out = File::create(archive).with_context(|| format!("creating {}", archive.display()))?;
    let mut child = Command::new("cpio")
        .args(["--quiet", "--null", "-o", "-H", "newc", "-R", "0:0"])
        .current_dir(root)
        .stdin(Stdio::piped())
        .stdout(out)
        .spawn()
        .context("starting cpio")?;
    let mut input = child.stdin.take().context("cpio without standard input")?;
    input.write_all(&names).context("writing to cpio")?;
    drop(input);
    let status = child.wait().context("waiting for cpio")?;
    ensure!(status.success(), "cpio of {} failed: {status}", root.display());
    Ok(())
}

/// Every path below `dir`, folders before what they hold, sorted, each ended by a zero byte.
fn tree(root: &Path, dir: &Path, names: &mut Vec<u8>) -> Result<()> {
    let mut entries = fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        names.extend_from_slice(path.strip_prefix(root)?.as_os_str().as_encoded_bytes());
        names.push(0);
        if entry.file_type()?.is_dir() {
            tree(root, &path, names)?;
        }
    }
    Ok(())
}

/// Joins archives into the file that the kernel boots with.
pub(super) fn join(archives: &[PathBuf], to: &Path) -> Result<()> {
    let mut out = File::create(to).with_context(|| format!("creating {}", to.display()))?;
    for archive in archives {
        let mut file = File::open(archive).with_context(|| format!("opening {}", archive.display()))?;
        std::io::copy(&mut file, &mut out).with_context(|| format!("writing {}", to.display()))?;
    }
    Ok(())
}
