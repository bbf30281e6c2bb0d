//! `cargo xtask lint`: formatting, clippy (the eBPF crate for the kernel's target, too), licences, documentation.

use std::{
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::Result;

use crate::{
    build, docs, ebpf, licences, setup,
    toolchain::{Compiler, Toolchain},
    ui::{run_step, say},
};

/// `cargo xtask lint`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Format the code and write docs/cli.md anew instead of only checking them.
    #[arg(long)]
    fix: bool,
}

/// The verb.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let toolchain = setup::ensure(setup::Need {
        clippy: true,
        ..setup::Need::BUILD
    })?;
    let mut format = build::cargo_plain("fmt");
    format.arg("--all");
    if !args.fix {
        format.arg("--check");
    }
    run_step("formatting", &mut format)?;
    ebpf::object(&toolchain)?;
    let mut clippy = build::cargo("clippy");
    clippy.args(["--workspace", "--all-targets", "--", "-D", "warnings"]);
    run_step("clippy, user space", &mut clippy)?;
    match ebpf_clippy(&toolchain) {
        Some(mut clippy) => run_step("clippy, eBPF", &mut clippy)?,
        None => say(
            "clippy, eBPF",
            "this nightly has no clippy; the crate was checked as a host library only",
        ),
    }
    licences::check()?;
    docs::check(args.fix)?;
    Ok(ExitCode::SUCCESS)
}

/// Clippy of the compiler that builds the object, for the target it builds for.
fn ebpf_clippy(toolchain: &Toolchain) -> Option<Command> {
    let here = match toolchain.compiler {
        Compiler::Debian => Path::new("/usr/bin/clippy-driver").exists(),
        Compiler::Nightly => {
            let mut version = toolchain.compiler.cargo("clippy");
            version
                .arg("--version")
                .output()
                .is_ok_and(|done| done.status.success())
        }
    };
    here.then(|| {
        let mut clippy = ebpf::cargo(toolchain, "clippy");
        clippy.args(["--", "-D", "warnings"]);
        clippy
    })
}
