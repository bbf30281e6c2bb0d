//! `cargo xtask scale`: everything built, then one agent in a large cluster without kubelets.
//!
//! The cluster is a control plane alone, which `netpol-scale` (of the `tests` crate) starts with this very program, fills, and ends.

use std::{
    env,
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::{
    build, cluster, ebpf, setup,
    ui::{path, root, run_quietly, say, seconds},
};

/// `cargo xtask scale`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Pods of the cluster; a tenth as many nodes, namespaces and policies.
    #[arg(long, default_value_t = 50_000)]
    pods: u32,

    /// Pods of the node that the agent is for.
    #[arg(long, default_value_t = 100)]
    local: u32,

    /// Pods that change elsewhere in the cluster, a second.
    #[arg(long, default_value_t = 100)]
    churn: u32,

    /// Seconds for which processor time is taken.
    #[arg(long, default_value_t = 60)]
    seconds: u32,

    /// How often a policy is patched, quiet and while pods change.
    #[arg(long, default_value_t = 200)]
    flips: u32,

    /// Measure on the control plane of this name (`cargo xtask cluster up --nodes 0 --name NAME`), which stays; it is filled if it
    /// is not yet.
    #[arg(long, value_name = "NAME", value_parser = cluster::parse_name)]
    on: Option<String>,

    /// A rough look in two minutes: 500 pods, 10 seconds, 20 patches.
    #[arg(long, conflicts_with_all = ["pods", "seconds", "flips"])]
    quick: bool,

    /// How to print.
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    /// The table of docs/performance.md.
    Text,
    /// Every figure.
    Json,
}

/// The verb.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let toolchain = setup::ensure(setup::Need::RUN)?;
    cluster::prepare()?;
    ebpf::object(&toolchain)?;
    let agent = build::agent(false)?;
    let mut cargo = build::cargo("build");
    cargo.args(["--release", "--package", "netpol-tests", "--bin", "netpol-scale"]);
    let time = run_quietly("scale", &mut cargo)?;
    say(
        "scale",
        &format!("target/release/netpol-scale, {}", seconds(time)),
    );
    let (pods, time, flips) = match args.quick {
        true => (500, 10, 20),
        false => (args.pods, args.seconds, args.flips),
    };
    let numbers = [
        ("--pods", pods),
        ("--local", args.local),
        ("--churn", args.churn),
        ("--seconds", time),
        ("--flips", flips),
    ];
    let format = match args.output {
        Output::Text => "text",
        Output::Json => "json",
    };
    let mut scale = Command::new(root().join("target/release/netpol-scale"));
    scale
        .args(numbers.map(|(name, number)| format!("{name}={number}")))
        .args(["--output", format, "--agent"])
        .arg(agent)
        .arg("--log")
        .arg(root().join("target/xtask-log/scale-agent.log"))
        .arg("--xtask")
        .arg(env::current_exe().context("finding the xtask binary")?)
        .env("PATH", path());
    if let Some(name) = &args.on {
        scale.arg("--there").arg(cluster::directory(name));
    }
    // It takes this process's place, so that signals and the exit code are its own.
    Err(scale.exec()).context("starting netpol-scale")
}
