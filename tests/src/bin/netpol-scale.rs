//! `netpol-scale`: what `cargo xtask scale` runs once everything is built.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Result;
use clap::Parser;
use netpol_tests::{
    net::Rig,
    sandbox::stop,
    scale::{self, KIND, Options, Plane, Size},
};

/// One agent in a large cluster without kubelets.
#[derive(Parser)]
struct Args {
    /// xtask's binary, which makes the control plane.
    #[arg(long)]
    xtask: PathBuf,
    /// The agent's binary.
    #[arg(long)]
    agent: Option<PathBuf>,
    /// The control plane's name.
    #[arg(long, default_value = "scale")]
    name: String,
    /// The directory of a control plane that is there, and stays.
    #[arg(long, conflicts_with = "name")]
    there: Option<PathBuf>,
    /// Pods of the cluster.
    #[arg(long, default_value_t = 50_000)]
    pods: usize,
    /// Pods of the node under test.
    #[arg(long, default_value_t = 100)]
    local: usize,
    /// Pods that change a second.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    churn: u32,
    /// Seconds for which processor time is taken.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How often a policy is patched.
    #[arg(long, default_value_t = 200)]
    flips: usize,
    /// Where to leave the agent's log.
    #[arg(long)]
    log: Option<PathBuf>,
    /// `json` or `text`
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match stop::install(KIND).and_then(|()| measure(&args)) {
        Ok(met) => ExitCode::from(u8::from(!met)),
        Err(_) if stop::stopped() => ExitCode::from(stop::CODE),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether all goals are met.
fn measure(args: &Args) -> Result<bool> {
    // What a killed run left goes first.
    drop(Rig::new(KIND)?);
    let options = Options {
        agent: scale::agent(args.agent.as_deref())?,
        xtask: args.xtask.clone(),
        control: match &args.there {
            Some(directory) => Plane::There(directory.clone()),
            None => Plane::New(args.name.clone()),
        },
        size: Size::new(args.pods, args.local)?,
        churn: args.churn,
        window: Duration::from_secs(args.seconds),
        flips: args.flips,
        log: args.log.clone(),
    };
    let report = scale::run(&options)?;
    if args.output == "json" {
        println!("{}", serde_json::to_string_pretty(report.rows())?);
    } else {
        print!("{}", report.table());
    }
    Ok(report.is_met())
}
