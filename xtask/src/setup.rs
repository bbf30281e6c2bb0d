//! `cargo xtask setup`: packages and bpf-linker. Everything already there is left alone.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, anyhow};

use crate::{
    preflight,
    toolchain::{self, BPF_LINKER_VERSION, Compiler, DEBIAN_LLVM, DEBIAN_PACKAGES, Linker, Toolchain},
    ui::{self, run_quietly, run_step, say},
};

/// What tests, sandbox and demo run.
const TEST_PACKAGES: &[&str] = &["iproute2", "nftables", "iptables", "conntrack", "tcpdump"];

/// What a check of the eBPF crate's code needs beside the compiler.
const LINT_PACKAGES: &[&str] = &["rust-web-clippy"];

/// `cargo xtask setup`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only what building needs, not what tests, sandbox and demo run.
    #[arg(long)]
    build_only: bool,
}

/// What a verb needs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Need {
    /// To build; no root if the tools are here.
    Build,
    /// To load programs and make namespaces, too.
    Run,
    /// To check the code, too.
    Lint,
}

/// The verb.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    ensure(if args.build_only { Need::Build } else { Need::Run })?;
    say("setup", "complete");
    Ok(ExitCode::SUCCESS)
}

/// Makes sure that everything for `need` is here, and returns the toolchain.
///
/// # Errors
/// [`Missing`] where something is absent that can't be installed, before anything was changed.
pub(crate) fn ensure(need: Need) -> Result<Toolchain> {
    let mut missing = if need >= Need::Run {
        preflight::kernel()
    } else {
        Vec::new()
    };
    let found = Toolchain::find();
    let mut packages = Vec::new();
    if found.is_none() {
        packages.extend_from_slice(DEBIAN_PACKAGES);
    }
    if need >= Need::Run && !has_test_programs() {
        packages.extend_from_slice(TEST_PACKAGES);
    }
    if need >= Need::Lint
        && found
            .as_ref()
            .is_none_or(|found| found.compiler == Compiler::Debian)
    {
        packages.extend_from_slice(LINT_PACKAGES);
    }
    missing.extend(toolchain::obstacles(&packages));
    preflight::require(missing)?;

    install_packages(&packages)?;
    if need >= Need::Run {
        mount_bpffs()?;
    }
    let toolchain = match found {
        Some(found) => found,
        None => complete_toolchain()?,
    };
    say("toolchain", &toolchain.describe());
    Ok(toolchain)
}

fn has_test_programs() -> bool {
    ["ip", "nft", "iptables", "conntrack", "tcpdump"]
        .iter()
        .all(|name| {
            let paths = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&paths).any(|dir| dir.join(name).is_file())
        })
}

/// Installs those of `packages` that are absent; root and Debian were checked before.
///
/// # Errors
/// apt's.
pub(crate) fn install_packages(packages: &[&str]) -> Result<()> {
    let absent = toolchain::absent_packages(packages);
    if absent.is_empty() {
        return Ok(());
    }
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        // Packages are never configured by questions here; a lock of another apt is waited for.
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["-o", "DPkg::Lock::Timeout=300", "-y"])
            .args(args);
        command
    };
    run_quietly("apt-get update", &mut apt(&["update"]))?;
    let mut install = apt(&["install", "--no-install-recommends"]);
    run_step(
        &format!("Debian packages {}", absent.join(" ")),
        install.args(&absent),
    )
}

/// Pins and links need a bpffs; the kernel has it, so it is only a mount.
fn mount_bpffs() -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("reading /proc/self/mounts")?;
    if mounts.lines().any(|line| line.split(' ').nth(2) == Some("bpf")) {
        return Ok(());
    }
    run_step(
        "bpffs at /sys/fs/bpf",
        Command::new("mount").args(["-t", "bpf", "bpf", "/sys/fs/bpf"]),
    )
}

fn complete_toolchain() -> Result<Toolchain> {
    let compiler = Compiler::find().ok_or_else(|| {
        anyhow!("the packages {DEBIAN_PACKAGES:?} are installed but /usr/bin/rustc has no source of its core library; reinstall rust-web-src")
    })?;
    let (release, llvm) = compiler
        .version()
        .context("reading the version of the eBPF compiler")?;
    let linker = match Linker::find(llvm) {
        Some(linker) => linker,
        None => install_linker()?,
    };
    Ok(Toolchain {
        compiler,
        release,
        linker,
    })
}

fn install_linker() -> Result<Linker> {
    let tools = toolchain::own_tools();
    let mut cargo = Command::new("cargo");
    toolchain::without_cargo_environment(&mut cargo);
    let (library, rpath) = (
        format!("-L {DEBIAN_LLVM}/lib"),
        format!("-C link-arg=-Wl,-rpath,{DEBIAN_LLVM}/lib"),
    );
    cargo
        .env("LLVM_PREFIX", DEBIAN_LLVM)
        .env("RUSTFLAGS", format!("{library} {rpath}"))
        .args([
            "install",
            "bpf-linker",
            "--version",
            BPF_LINKER_VERSION,
            "--force",
        ])
        .args(["--no-default-features", "--features", "llvm-22", "--root"])
        .arg(&tools);
    run_step(&format!("bpf-linker {BPF_LINKER_VERSION}"), &mut cargo)?;
    let path = tools.join("bin/bpf-linker");
    Linker::at(&path).ok_or_else(|| {
        let log = ui::root().join("target/xtask-log");
        anyhow!(
            "{} was installed and does not start; see {}",
            path.display(),
            log.display()
        )
    })
}
