//! `cargo xtask setup`: packages and bpf-linker. Everything already there is left alone.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, anyhow};

use crate::{
    kernels,
    preflight::{self, Machine},
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

/// What a verb needs beside the toolchain that builds everything.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Need {
    /// To load programs and make namespaces.
    pub(crate) run: bool,
    /// To check the code, the eBPF crate's too.
    pub(crate) clippy: bool,
    /// To boot other kernels.
    pub(crate) kernels: bool,
}

impl Need {
    /// To build; no root if the tools are here.
    pub(crate) const BUILD: Self = Self {
        run: false,
        clippy: false,
        kernels: false,
    };
    /// To build, load programs and make namespaces.
    pub(crate) const RUN: Self = Self {
        run: true,
        ..Self::BUILD
    };

    /// Debian's packages; dpkg knows which of them are here.
    fn packages(self, found: Option<&Toolchain>) -> Vec<&'static str> {
        let mut packages = Vec::new();
        if found.is_none() {
            packages.extend_from_slice(DEBIAN_PACKAGES);
        }
        if self.run && !has_test_programs() {
            packages.extend_from_slice(TEST_PACKAGES);
        }
        if self.clippy && found.is_none_or(|found| found.compiler == Compiler::Debian) {
            packages.extend_from_slice(LINT_PACKAGES);
        }
        if self.kernels {
            packages.extend_from_slice(kernels::PACKAGES);
        }
        packages
    }
}

/// The verb.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    ensure(if args.build_only { Need::BUILD } else { Need::RUN })?;
    say("setup", "complete");
    Ok(ExitCode::SUCCESS)
}

/// Makes sure that everything for `need` is here, and returns the toolchain.
///
/// # Errors
/// [`preflight::Missing`] where something is absent that can't be installed, before anything was changed.
pub(crate) fn ensure(need: Need) -> Result<Toolchain> {
    let machine = Machine::this();
    let found = Toolchain::find();
    let absent = toolchain::absent_packages(&need.packages(found.as_ref()));
    let mut missing = Vec::new();
    if need.run {
        missing.extend(machine.lacks_to_run());
    }
    if need.kernels {
        missing.extend(kernels::obstacle());
    }
    missing.extend(machine.lacks_to_install(&absent));
    if found.is_none() && absent.is_empty() && Compiler::find().is_none() {
        missing.push(no_source());
    }
    let components = if need.clippy {
        absent_components()
    } else {
        Vec::new()
    };
    if !components.is_empty() && !starts("rustup", &["--version"]) {
        missing.push(format!(
            "no {0}, and no rustup to add it: install what your Rust's packages call it, or Rust from https://rustup.rs and then \
             `rustup component add {0}`",
            components.join(" ")
        ));
    }
    preflight::require(missing)?;
    if found.is_none() && !has_linker() {
        preflight::require(Vec::from_iter(registry_out_of_reach()))?;
    }
    if need.run {
        mount_bpffs()?;
    }
    install(&absent)?;
    if !components.is_empty() {
        let mut rustup = Command::new("rustup");
        let what = format!("rustup component add {}", components.join(" "));
        run_step(&what, rustup.args(["component", "add"]).args(&components))?;
    }
    let toolchain = match found {
        Some(found) => found,
        None => complete_toolchain()?,
    };
    say("toolchain", &toolchain.describe());
    Ok(toolchain)
}

/// Makes sure that Debian's packages `names` are here, where nothing of the toolchain is needed.
///
/// # Errors
/// [`preflight::Missing`] where they are absent and can't be installed.
pub(crate) fn packages(names: &[&str]) -> Result<()> {
    let absent = toolchain::absent_packages(names);
    preflight::require(Vec::from_iter(Machine::this().lacks_to_install(&absent)))?;
    install(&absent)
}

/// What checks the code and is not here, as rustup calls it.
fn absent_components() -> Vec<&'static str> {
    [("fmt", "rustfmt"), ("clippy", "clippy")]
        .into_iter()
        .filter(|(subcommand, _)| !starts("cargo", &[subcommand, "--version"]))
        .map(|(_, component)| component)
        .collect()
}

/// Whether `program ARGUMENTS` ends well.
fn starts(program: &str, arguments: &[&str]) -> bool {
    Command::new(program)
        .args(arguments)
        .output()
        .is_ok_and(|done| done.status.success())
}

fn has_test_programs() -> bool {
    ["ip", "nft", "iptables", "conntrack", "tcpdump"]
        .iter()
        .all(|name| {
            let paths = ui::path();
            std::env::split_paths(&paths).any(|dir| dir.join(name).is_file())
        })
}

/// Whether the linker that [`complete_toolchain`] makes is here, as after a run that was broken off.
fn has_linker() -> bool {
    toolchain::own_tools().join("bin/bpf-linker").is_file()
}

/// The linker is built from crates.io: asked before packages are installed that are of no use without it.
fn registry_out_of_reach() -> Option<String> {
    let mut cargo = Command::new("cargo");
    toolchain::without_cargo_environment(&mut cargo);
    cargo.args(["info", "--quiet", &format!("bpf-linker@{BPF_LINKER_VERSION}")]);
    // Asked from outside the workspace, or cargo would look for a package of this name in it.
    cargo.current_dir("/");
    let what = "bpf-linker in the registry";
    let error = run_quietly(what, &mut cargo).err()?;
    Some(format!(
        "bpf-linker {BPF_LINKER_VERSION} is to be built from crates.io, which can't be reached: connect this machine, or name a proxy \
         (https_proxy) or a mirror (source replacement in ~/.cargo/config.toml). {error:#}"
    ))
}

/// Installs Debian packages; that they are absent, root and Debian were checked before. They are all downloaded before
/// the first is unpacked.
///
/// # Errors
/// [`preflight::Missing`] where they can't be downloaded; apt's own after that.
fn install(absent: &[String]) -> Result<()> {
    if absent.is_empty() {
        return Ok(());
    }
    let list = absent.join(" ");
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        // Packages are never configured by questions here; a lock of another apt is waited for.
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            // dpkg insists on root's programs.
            .env("PATH", ui::path())
            .args(["-o", "DPkg::Lock::Timeout=300", "-y"])
            .args(args);
        command
    };
    let install = ["install", "--no-install-recommends"];
    let download = || -> Result<()> {
        run_quietly("apt-get update", &mut apt(&["update"]))?;
        run_quietly(
            "download of Debian packages",
            apt(&install).arg("--download-only").args(absent),
        )?;
        Ok(())
    };
    if let Err(error) = download() {
        let missing = format!(
            "Debian packages are missing and can't be downloaded: connect this machine, name a proxy (http_proxy), or give \
             /etc/apt/sources.list.d a mirror that can be reached; then run again, or apt-get install {list}. {error:#}"
        );
        return Err(preflight::Missing(vec![missing]).into());
    }
    run_step(&format!("Debian packages {list}"), apt(&install).args(absent))
}

/// Pins and links need a bpffs; the kernel has it, so it is only a mount.
fn mount_bpffs() -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("reading /proc/self/mounts")?;
    let here = |line: &str| {
        let mut words = line.split(' ').skip(1);
        words.next() == Some("/sys/fs/bpf") && words.next() == Some("bpf")
    };
    if mounts.lines().any(here) {
        return Ok(());
    }
    let mount = ["-t", "bpf", "bpf", "/sys/fs/bpf"];
    run_step("bpffs at /sys/fs/bpf", Command::new("mount").args(mount)).map_err(|error| {
        let missing = format!(
            "no bpffs at /sys/fs/bpf, and it can't be mounted (in a container: start it with --privileged -v /sys/fs/bpf:/sys/fs/bpf). {error:#}"
        );
        preflight::Missing(vec![missing]).into()
    })
}

fn no_source() -> String {
    "Debian's packages are installed, but /usr/bin/rustc has no source of its core library: apt-get install --reinstall \
     rustc-web cargo-web rust-web-src"
        .to_owned()
}

fn complete_toolchain() -> Result<Toolchain> {
    let compiler = Compiler::find().ok_or_else(|| anyhow!(no_source()))?;
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
