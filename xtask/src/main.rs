//! netpol's verbs: `cargo xtask VERB`. One verb a file; each does the set-up that it needs.

mod bench;
mod build;
mod cluster;
mod deploy;
mod docs;
mod e2e;
mod ebpf;
mod image;
mod kernels;
mod licences;
mod lint;
mod preflight;
mod sandbox;
mod scale;
mod setup;
mod test;
mod toolchain;
mod ui;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, tests and shows netpol.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what building and testing need (packages, bpf-linker); nothing else.
    Setup(setup::Args),
    /// Build the agent with the eBPF object embedded: target/release/netpol-agent.
    Build(build::Args),
    /// Run the tests: unit, property, program, netns.
    Test(test::Args),
    /// Check formatting, clippy on all crates, licences, and that docs and --help agree.
    Lint(lint::Args),
    /// Run the real agent in a cluster of network namespaces and compare what happens with the oracle.
    Sandbox(sandbox::Args),
    /// Watch three tiers being isolated, one policy at a time.
    Demo(sandbox::Demo),
    /// A real Kubernetes in network namespaces of this machine, without Docker.
    Cluster(cluster::Args),
    /// Measure packets, compiling and edits, and hold the figures against the goals.
    Bench(bench::Args),
    /// Measure one agent in a cluster of 50 000 pods without kubelets.
    Scale(scale::Args),
    /// Pack the agent as a container image, without a container engine: target/image/netpol-agent-VERSION-ARCH.tar.
    Image(image::Args),
    /// Render the plain manifest, the kustomizations and the Helm chart, and compare them.
    DeployCheck(deploy::Args),
    /// Deploy the real image on a real cluster and judge it with real pods.
    E2e(e2e::Args),
    /// Build the eBPF object alone: target/bpf/netpol.o.
    #[command(hide = true)]
    Ebpf(ebpf::Args),
    /// Run the tests on Debian's kernels 5.10, 6.1 and 6.12 in an emulator.
    #[command(hide = true)]
    Kernels(kernels::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().verb {
        Verb::Setup(args) => setup::run(&args),
        Verb::Build(args) => build::run(&args),
        Verb::Test(args) => test::run(&args),
        Verb::Lint(args) => lint::run(&args),
        Verb::Sandbox(args) => sandbox::run(&args),
        Verb::Demo(args) => sandbox::demo(&args),
        Verb::Cluster(args) => cluster::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Scale(args) => scale::run(&args),
        Verb::Image(args) => image::run(&args),
        Verb::DeployCheck(args) => deploy::run(&args),
        Verb::E2e(args) => e2e::run(&args),
        Verb::Ebpf(args) => ebpf::run(&args),
        Verb::Kernels(args) => kernels::run(&args),
    };
    match done {
        Ok(code) => code,
        Err(error) if error.is::<preflight::Missing>() => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
