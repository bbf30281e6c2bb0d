//! `cargo xtask ebpf`: the kernel object, `target/bpf/netpol.o`.

use std::{
    env::consts::ARCH,
    fs,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};

use crate::{
    setup,
    toolchain::Toolchain,
    ui::{root, run_quietly, say, seconds},
};

const TARGET: &str = "bpfel-unknown-none";

/// Cargo's directory for the object.
const BUILD_DIR: &str = "target/bpf-build";

/// `cargo xtask ebpf`
#[derive(clap::Args)]
pub(crate) struct Args {}

/// The verb.
pub(crate) fn run(_: &Args) -> Result<ExitCode> {
    object(&setup::ensure(setup::Need::BUILD)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Builds the object of the four programs.
///
/// # Errors
/// The compiler's, or a file can't be read or written.
pub(crate) fn object(toolchain: &Toolchain) -> Result<PathBuf> {
    build(toolchain, "netpol", &[], ARCH)
}

/// Builds the object for kernels of `arch` (`x86_64`, `aarch64`): `target/bpf/netpol-ARCH.o` where it is not this machine's.
///
/// # Errors
/// As [`object`].
pub(crate) fn object_for(toolchain: &Toolchain, arch: &str) -> Result<PathBuf> {
    build(toolchain, "netpol", &[], arch)
}

/// Builds the object that drives them in the bench.
///
/// # Errors
/// As [`object`].
pub(crate) fn bench_object(toolchain: &Toolchain) -> Result<PathBuf> {
    build(toolchain, "netpol-bench", &[], ARCH)
}

/// Builds `target/bpf/netpol-ingress-in-priority.o`, which program tests load on a kernel whose BPF_PROG_TEST_RUN can't
/// set `ingress_ifindex`: the same programs, but for where they read it.
///
/// # Errors
/// As [`object`].
pub(crate) fn object_for_old_test_runs(toolchain: &Toolchain) -> Result<PathBuf> {
    build(toolchain, "netpol", &["ingress-in-priority"], ARCH)
}

/// Builds `target/bpf/netpol-abi-next.o`, for the agent of [`crate::build::next_agent`].
///
/// # Errors
/// As [`object`].
pub(crate) fn next_object(toolchain: &Toolchain) -> Result<PathBuf> {
    build(toolchain, "netpol", &["abi-next"], ARCH)
}

/// Builds `target/bpf/BIN-FEATURES-ARCH.o`; the file is written only when its content changed, so nothing that embeds it is
/// rebuilt in vain.
fn build(toolchain: &Toolchain, bin: &str, features: &[&str], arch: &str) -> Result<PathBuf> {
    let mut cargo = cargo_for(toolchain, "build", arch);
    cargo.args(["--bin", bin, "--features", &features.join(",")]);
    let time = run_quietly("eBPF object", &mut cargo)?;
    let built = root().join(BUILD_DIR).join(TARGET).join("release").join(bin);
    let new = fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
    let foreign = if arch == ARCH { &[][..] } else { &[arch] };
    let name = [&[bin], features, foreign].concat().join("-");
    let object = root().join(format!("target/bpf/{name}.o"));
    let size = new.len() / 1024;
    if fs::read(&object).is_ok_and(|old| old == new) {
        say(
            "eBPF object",
            &format!("target/bpf/{name}.o unchanged ({size} KiB)"),
        );
        return Ok(object);
    }
    fs::create_dir_all(root().join("target/bpf")).context("creating target/bpf")?;
    // Whoever reads meanwhile sees the old object or the new one, never half of it.
    let half = object.with_extension("o.new");
    fs::write(&half, new).with_context(|| format!("writing {}", half.display()))?;
    fs::rename(&half, &object).with_context(|| format!("writing {}", object.display()))?;
    say(
        "eBPF object",
        &format!("target/bpf/{name}.o, {size} KiB, built in {}", seconds(time)),
    );
    Ok(object)
}

/// `cargo SUBCOMMAND` on the eBPF crate for the kernel's target.
pub(crate) fn cargo(toolchain: &Toolchain, subcommand: &str) -> Command {
    cargo_for(toolchain, subcommand, ARCH)
}

/// As [`cargo`], for the kernels of another machine.
fn cargo_for(toolchain: &Toolchain, subcommand: &str, arch: &str) -> Command {
    let mut cargo = toolchain.compiler.cargo(subcommand);
    let flags = [
        // aya-ebpf's bindings depend on the machine whose kernel will run the program.
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        format!("-Clinker={}", toolchain.linker.path.display()),
        // 32-bit arithmetic and jumps (5.1); words of a packet in one load each: both machines that netpol is built for may
        // read them anywhere. LLVM before 22 does not know the latter, says so and goes on.
        "-Ctarget-cpu=v3".into(),
        "-Clink-arg=--cpu-features=+allows-misaligned-mem-access".into(),
        // BTF for the maps and, with it, source lines in the verifier's log.
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
        format!("--remap-path-prefix={}=.", root().display()),
    ];
    cargo
        .args(["--release", "--package", "netpol-ebpf"])
        .args(["-Z", "build-std=core", "--target", TARGET])
        .args(["--target-dir", BUILD_DIR])
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("CARGO_CFG_BPF_TARGET_ARCH", arch)
        // The linker sees the whole program as bitcode and optimises it; nothing of it may be stripped before.
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_STRIP", "none");
    cargo
}
