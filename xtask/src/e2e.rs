//! `cargo xtask e2e`: images, a cluster, and the end-to-end tests on it.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::PathBuf,
    process::{Command, ExitCode},
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context as _, Result};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::{
    build, deploy, image,
    ui::{root, run_quietly, say, seconds},
};

/// `cargo xtask e2e`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The cluster of this kubeconfig instead of one that is made here; its nodes must have both images.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kind", "all"])]
    kubeconfig: Option<PathBuf>,

    /// A cluster that kind makes (docker or podman needed): tests/e2e/kind.sh.
    #[arg(long, conflicts_with = "all")]
    kind: bool,

    /// Every kind of local cluster, and every case at full length: an hour and more.
    #[arg(long)]
    all: bool,

    /// Every case at full length: the agent killed for a minute, the API server stopped for a minute, 300 pods.
    #[arg(long)]
    whole: bool,

    /// kube-proxy's mode in the local cluster.
    #[arg(long, value_name = "MODE", default_value = "iptables", value_parser = ["iptables", "nftables"])]
    proxy: String,

    /// Who gives the local cluster's pods their network.
    #[arg(long, value_name = "WHO", default_value = "flannel", value_parser = ["flannel", "ptp"])]
    cni: String,

    /// Flannel's backend in the local cluster.
    #[arg(long, value_name = "BACKEND", default_value = "vxlan", value_parser = ["vxlan", "host-gw"])]
    flannel: String,

    /// The local cluster has IPv4 only.
    #[arg(long)]
    single_stack: bool,

    /// Only cases whose names contain one of these words.
    #[arg(long, value_name = "WORD", value_delimiter = ',')]
    filter: Vec<String>,

    /// Leave the agent alone; also to see the tests fail where there is none.
    #[arg(long)]
    no_deploy: bool,

    /// List the cases and end.
    #[arg(long)]
    list: bool,

    /// Let the local cluster stand, for the next run with --keep, or to look around.
    #[arg(long)]
    keep: bool,
}

/// What a local cluster is made of.
#[derive(Clone, Copy, Debug)]
struct Kind<'a> {
    proxy: &'a str,
    cni: &'a str,
    flannel: &'a str,
    dual_stack: bool,
}

/// Each value of each choice at least once, and each pair of kube-proxy's mode and Flannel's backend.
const KINDS: [Kind<'_>; 6] = [
    kind("iptables", "flannel", "vxlan", true),
    kind("nftables", "flannel", "vxlan", true),
    kind("iptables", "flannel", "host-gw", true),
    kind("nftables", "flannel", "host-gw", false),
    kind("iptables", "ptp", "vxlan", true),
    kind("nftables", "ptp", "vxlan", true),
];

const fn kind<'a>(proxy: &'a str, cni: &'a str, flannel: &'a str, dual_stack: bool) -> Kind<'a> {
    Kind {
        proxy,
        cni,
        flannel,
        dual_stack,
    }
}

impl Kind<'_> {
    fn words(&self) -> Vec<&str> {
        let mut words = vec![
            "--proxy",
            self.proxy,
            "--cni",
            self.cni,
            "--flannel",
            self.flannel,
        ];
        words.extend(self.dual_stack.then_some("--dual-stack"));
        words
    }
}

static STOPPED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_: nix::libc::c_int) {
    STOPPED.store(true, Ordering::Relaxed);
}

/// Everything that the tests need, built.
struct Built {
    tests: PathBuf,
    agent: PathBuf,
    probe: PathBuf,
    probe_archive: PathBuf,
}

/// The verb.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let tests = build_tests()?;
    if args.list {
        return end(Command::new(tests).arg("--list"));
    }
    let agent = image::agent()?;
    let probe = image::probe()?;
    let built = Built {
        tests,
        agent,
        probe: probe.binary,
        probe_archive: probe.archive,
    };
    stay_until_the_end()?;
    if args.kind {
        let mut script = Command::new(root().join("tests/e2e/kind.sh"));
        script.args([&built.agent, &built.probe_archive]).arg("--");
        return end(script.arg(&built.tests).args(options(args)?));
    }
    if let Some(file) = &args.kubeconfig {
        return end(Command::new(&built.tests)
            .arg("--kubeconfig")
            .arg(file)
            .args(options(args)?));
    }
    let chosen = kind(&args.proxy, &args.cni, &args.flannel, !args.single_stack);
    let kinds = if args.all { KINDS.to_vec() } else { vec![chosen] };
    let mut worst = ExitCode::SUCCESS;
    for (at, kind) in kinds.iter().enumerate() {
        if STOPPED.load(Ordering::Relaxed) {
            return Ok(ExitCode::from(130));
        }
        say(
            "cluster",
            &format!("{} of {}: {}", at + 1, kinds.len(), kind.words().join(" ")),
        );
        let code = on_local(args, &built, kind, &cluster_name(at))?;
        if code != ExitCode::SUCCESS {
            worst = code;
        }
    }
    Ok(worst)
}

fn build_tests() -> Result<PathBuf> {
    let mut cargo = build::cargo("build");
    cargo.args(["--package", "netpol-e2e", "--bin", "netpol-e2e"]);
    let time = run_quietly("end-to-end tests", &mut cargo)?;
    say(
        "end-to-end tests",
        &format!("target/debug/netpol-e2e, {}", seconds(time)),
    );
    Ok(root().join("target/debug/netpol-e2e"))
}

/// Ctrl-C reaches the tests, too; the cluster is taken down when they have ended.
fn stay_until_the_end() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler stores one atomic flag, which is safe in a signal handler.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("handling {signal}"))?;
    }
    Ok(())
}

/// A name of this checkout's own, so that runs of several do not meet.
fn cluster_name(at: usize) -> String {
    let mut hasher = DefaultHasher::new();
    root().hash(&mut hasher);
    format!("e2e-{:04x}-{at}", hasher.finish() & 0xffff)
}

/// What is passed on to the tests.
fn options(args: &Args) -> Result<Vec<String>> {
    let mut words = vec!["--deploy".to_owned(), root().join("deploy").display().to_string()];
    for (name, set) in [
        ("--whole", args.whole || args.all),
        ("--no-deploy", args.no_deploy),
    ] {
        words.extend(set.then(|| name.to_owned()));
    }
    if !args.filter.is_empty() {
        words.extend(["--filter".to_owned(), args.filter.join(",")]);
    }
    if let Some(helm) = deploy::helm()? {
        words.extend(["--helm".to_owned(), helm.display().to_string()]);
    }
    Ok(words)
}

fn on_local(args: &Args, built: &Built, kind: &Kind<'_>, name: &str) -> Result<ExitCode> {
    let stands = args.keep
        && cluster(&["status"], name)?
            .output()
            .is_ok_and(|done| done.status.success());
    if !stands {
        // Of a run that was killed.
        run_quietly("cluster of an earlier run", &mut cluster(&["down"], name)?)?;
        let mut up = cluster(&["up"], name)?;
        let time = run_quietly("cluster up", up.args(kind.words()))?;
        say("cluster up", &format!("{name}, {}", seconds(time)));
    }
    let done = tests_on(args, built, name);
    if args.keep {
        say(
            "cluster",
            &format!("{name} stands: cargo xtask cluster down --name {name}"),
        );
    } else {
        run_quietly("cluster down", &mut cluster(&["down"], name)?)?;
    }
    done
}

fn tests_on(args: &Args, built: &Built, name: &str) -> Result<ExitCode> {
    for archive in [&built.agent, &built.probe_archive] {
        let mut load = cluster(&["load"], name)?;
        run_quietly("images", load.arg(archive))?;
    }
    let mut tests = Command::new(&built.tests);
    tests.args(["--local", name, "--probe-binary"]).arg(&built.probe);
    end(tests.args(options(args)?))
}

/// `cargo xtask cluster WORDS --name NAME`
fn cluster(words: &[&str], name: &str) -> Result<Command> {
    let own = std::env::current_exe().context("finding xtask itself")?;
    let mut command = Command::new(own);
    command.arg("cluster").args(words).args(["--name", name]);
    Ok(command)
}

/// Runs it to its end; its exit code is ours.
fn end(command: &mut Command) -> Result<ExitCode> {
    let status = command.status();
    let status = status.with_context(|| format!("starting {}", command.get_program().to_string_lossy()))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
