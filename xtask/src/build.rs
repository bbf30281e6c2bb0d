//! `cargo xtask build`: the agent with the eBPF object embedded.

use std::{
    fs,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};

use crate::{
    ebpf, setup,
    toolchain::Toolchain,
    ui::{path, root, run_quietly, say, seconds},
};

/// `cargo xtask build`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build target/debug/netpol-agent instead: faster to build, slower to run.
    #[arg(long)]
    debug: bool,
}

/// The verb.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let toolchain = setup::ensure(setup::Need::BUILD)?;
    ebpf::object(&toolchain)?;
    agent(args.debug)?;
    Ok(ExitCode::SUCCESS)
}

/// Builds the agent around the object that is there, and returns the binary's path.
///
/// # Errors
/// The compiler's.
pub(crate) fn agent(debug: bool) -> Result<PathBuf> {
    let mut cargo = cargo("build");
    cargo.args(["--package", "netpol-agent", "--bin", "netpol-agent"]);
    if !debug {
        cargo.arg("--release");
    }
    let time = run_quietly("agent", &mut cargo)?;
    let binary = agent_path(debug);
    let shown = binary.strip_prefix(root()).unwrap_or(&binary);
    say("agent", &format!("{}, {}", shown.display(), seconds(time)));
    Ok(binary)
}

/// Builds `target/debug/netpol-agent-abi-next`, which tests of upgrades put in the agent's place: the same sources with another
/// version of the map ABI, around an object of that version. Leaves no agent under the usual name.
///
/// # Errors
/// The compiler's, or a file can't be copied.
pub(crate) fn next_agent(toolchain: &Toolchain) -> Result<()> {
    let object = ebpf::next_object(toolchain)?;
    let mut cargo = cargo("build");
    cargo
        .args([
            "--package",
            "netpol-agent",
            "--bin",
            "netpol-agent",
            "--features",
            "abi-next",
        ])
        .env("NETPOL_EBPF_OBJECT", object);
    let time = run_quietly("agent of the next ABI", &mut cargo)?;
    let built = agent_path(true);
    let binary = built.with_file_name("netpol-agent-abi-next");
    // A binary that runs can't be written to, but replaced.
    let half = built.with_file_name("netpol-agent-abi-next.new");
    fs::copy(&built, &half).with_context(|| format!("copying {}", built.display()))?;
    fs::rename(&half, &binary).with_context(|| format!("writing {}", binary.display()))?;
    let shown = binary.strip_prefix(root()).unwrap_or(&binary);
    say(
        "agent of the next ABI",
        &format!("{}, {}", shown.display(), seconds(time)),
    );
    Ok(())
}

/// Where [`agent`] leaves the binary.
pub(crate) fn agent_path(debug: bool) -> PathBuf {
    let profile = if debug { "debug" } else { "release" };
    root().join("target").join(profile).join("netpol-agent")
}

/// `cargo SUBCOMMAND` in the workspace with the toolchain that runs xtask, the lock file binding, the eBPF object
/// known to build scripts.
pub(crate) fn cargo(subcommand: &str) -> Command {
    let mut cargo = cargo_plain(subcommand);
    cargo
        .arg("--locked")
        .env("NETPOL_EBPF_OBJECT", root().join("target/bpf/netpol.o"));
    cargo
}

/// `cargo SUBCOMMAND` in the workspace with the toolchain that runs xtask.
pub(crate) fn cargo_plain(subcommand: &str) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.arg(subcommand).current_dir(root()).env("PATH", path());
    cargo
}
