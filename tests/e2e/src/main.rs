//! `netpol-e2e`: end-to-end tests against whatever cluster kubectl reaches, or one of `cargo xtask cluster`.
//!
//! It deploys the real image by the real manifest; real pods ask, listen and count. What a cluster can't answer is
//! listed as skipped, with its reason. docs/e2e.md says more.

mod agent;
mod asks;
mod cases;
mod cluster;
mod kubectl;
mod load;
mod local;
mod objects;
mod run;
mod stop;
mod witness;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::Parser;

use crate::{cluster::Cluster, kubectl::Kubectl, local::Local};

/// End-to-end tests.
#[derive(Debug, Parser)]
#[command(name = "netpol-e2e")]
struct Args {
    /// kubectl; that of the local cluster where --local is given.
    #[arg(long, default_value = "kubectl")]
    kubectl: PathBuf,

    /// The cluster; without it kubectl's own choice.
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// A cluster of `cargo xtask cluster`, by its name: its nodes can be rebooted, its API server stopped.
    #[arg(long, value_name = "NAME")]
    local: Option<String>,

    /// The agent's image, in place of the manifest's.
    #[arg(long, value_name = "IMAGE", default_value = concat!("netpol/netpol-agent:", env!("CARGO_PKG_VERSION")))]
    agent_image: String,

    /// The probe's image.
    #[arg(long, value_name = "IMAGE", default_value = "netpol.local/probe:1")]
    image: String,

    /// The probe as a static program of this machine, for what comes from outside of a local cluster.
    #[arg(long, value_name = "FILE")]
    probe_binary: Option<PathBuf>,

    /// Helm, for the case that installs by the chart.
    #[arg(long, value_name = "FILE")]
    helm: Option<PathBuf>,

    /// The directory of manifests and examples.
    #[arg(long, value_name = "DIR", default_value = "deploy")]
    deploy: PathBuf,

    /// Only cases whose names contain one of these words.
    #[arg(long, value_name = "WORD", value_delimiter = ',')]
    filter: Vec<String>,

    /// Everything as long and as often as promised: minutes of killing, 300 pods.
    #[arg(long)]
    whole: bool,

    /// The agent is there already, or is meant not to be: leave it alone.
    #[arg(long)]
    no_deploy: bool,

    /// List the cases and end.
    #[arg(long)]
    list: bool,
}

fn prepare(args: &Args) -> Result<Cluster> {
    let local = args.local.as_deref().map(Local::read).transpose()?;
    let kubectl = match &local {
        Some(local) => Kubectl {
            program: local.kubectl(),
            kubeconfig: Some(local.kubeconfig.clone()),
        },
        None => Kubectl {
            program: args.kubectl.clone(),
            kubeconfig: args.kubeconfig.clone(),
        },
    };
    let mut cluster = Cluster::new(
        kubectl,
        args.image.clone(),
        args.agent_image.clone(),
        args.deploy.clone(),
    )?;
    cluster.helm = args.helm.as_ref().map(|program| Kubectl {
        program: program.clone(),
        kubeconfig: cluster.kubectl.kubeconfig.clone(),
    });
    cluster.local = local;
    cluster.probe = args.probe_binary.as_ref().map(std::path::absolute).transpose()?;
    cluster.whole = args.whole;
    Ok(cluster)
}

fn tests(args: &Args) -> Result<bool> {
    stop::install()?;
    let cluster = prepare(args)?;
    cluster.remove_leftovers()?;
    if !args.no_deploy {
        cluster.deploy_agent()?;
    }
    let summary = run::run(&cluster, &args.filter);
    cluster.remove_leftovers()?;
    println!("{summary}");
    Ok(summary.failed == 0)
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.list {
        for case in cases::all() {
            println!("{:<32} {}", case.name, case.says);
        }
        return ExitCode::SUCCESS;
    }
    let done = tests(&args);
    if stop::stopped() {
        return ExitCode::from(stop::CODE);
    }
    match done {
        Ok(fine) => ExitCode::from(u8::from(!fine)),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
