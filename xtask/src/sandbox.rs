//! `cargo xtask sandbox` and `cargo xtask demo`: everything built, then the sandbox of the `tests` crate.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::{
    build, ebpf, preflight, setup,
    ui::{path, root, run_quietly, say, seconds},
};

/// `cargo xtask sandbox`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A directory of manifests: Pods, Namespaces, NetworkPolicies, and, where given, Nodes, Services, Endpoints.
    dir: PathBuf,

    /// Nodes, at least; pods without spec.nodeName are spread over them.
    #[arg(long, default_value_t = 2)]
    nodes: usize,

    /// Print only differences and the count of probes.
    #[arg(long)]
    check: bool,

    /// How to print.
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Output,

    /// Stay until Ctrl-C, to look around in the namespaces.
    #[arg(long)]
    keep: bool,

    /// How packets go from node to node.
    #[arg(long, value_name = "HOW", default_value = "host-gw")]
    backend: Backend,

    /// How the agents attach their programs.
    #[arg(long, value_name = "HOW", default_value = "auto")]
    attach: Attach,
}

/// `cargo xtask demo`
#[derive(clap::Args)]
pub(crate) struct Demo {
    /// Another directory than deploy/examples/three-tier; its files of policies are applied in order of their names.
    dir: Option<PathBuf>,

    /// Stay until Ctrl-C, to look around in the namespaces.
    #[arg(long)]
    keep: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// Every probe.
    Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Backend {
    /// A route to the other node.
    HostGw,
    /// A VXLAN device, as Flannel makes it.
    Vxlan,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Attach {
    /// TCX where the kernel has it (6.6), else clsact.
    Auto,
    /// TCX links.
    Tcx,
    /// Filters of a clsact qdisc.
    Clsact,
}

/// `sandbox`
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let dir = directory(&args.dir)?;
    let mut sandbox = prepare()?;
    sandbox.args(["--nodes".to_owned(), args.nodes.to_string()]);
    sandbox.args(["--output".to_owned(), word(args.output)]);
    sandbox.args(["--backend".to_owned(), word(args.backend)]);
    sandbox.args(["--attach".to_owned(), word(args.attach)]);
    for (name, set) in [("--check", args.check), ("--keep", args.keep)] {
        sandbox.args(set.then_some(name));
    }
    become_it(sandbox.arg(dir))
}

/// `demo`
pub(crate) fn demo(args: &Demo) -> Result<ExitCode> {
    let dir = args
        .dir
        .clone()
        .unwrap_or_else(|| root().join("deploy/examples/three-tier"));
    let dir = directory(&dir)?;
    let mut sandbox = prepare()?;
    sandbox
        .args(["--tutorial", "--nodes", "2"])
        .args(args.keep.then_some("--keep"));
    become_it(sandbox.arg(dir))
}

/// The value as it is typed.
fn word(value: impl ValueEnum) -> String {
    value
        .to_possible_value()
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default()
}

/// Asked before anything is set up.
fn directory(dir: &Path) -> Result<PathBuf> {
    let fault = match fs::canonicalize(dir) {
        Ok(path) if path.is_dir() => return Ok(path),
        Ok(_) => "is not a directory".to_owned(),
        Err(error) => error.to_string(),
    };
    let help = "name a directory of manifests, such as deploy/examples/three-tier";
    Err(preflight::Missing(vec![format!("{}: {fault}; {help}", dir.display())]).into())
}

/// Builds what is needed.
fn prepare() -> Result<Command> {
    let toolchain = setup::ensure(setup::Need::RUN)?;
    ebpf::object(&toolchain)?;
    let agent = build::agent(true)?;
    let mut cargo = build::cargo("build");
    cargo.args(["--package", "netpol-tests", "--bin", "netpol-sandbox"]);
    let time = run_quietly("sandbox", &mut cargo)?;
    say(
        "sandbox",
        &format!("target/debug/netpol-sandbox, {}", seconds(time)),
    );
    let mut sandbox = Command::new(root().join("target/debug/netpol-sandbox"));
    sandbox.arg("--agent").arg(agent).env("PATH", path());
    Ok(sandbox)
}

/// The sandbox takes this process's place, so that signals and the exit code are its own.
fn become_it(command: &mut Command) -> Result<ExitCode> {
    Err(command.exec()).with_context(|| format!("starting {}", command.get_program().to_string_lossy()))
}
