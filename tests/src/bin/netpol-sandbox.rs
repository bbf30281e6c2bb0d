//! `netpol-sandbox`: what `cargo xtask sandbox` and `cargo xtask demo` run once everything is built.

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::Parser;
use netpol_tests::{
    net::Rig,
    sandbox::{KIND, Options, Run, Sandbox, Scene, build::Backend, report, stop},
};

/// A cluster of network namespaces around the real agent.
#[derive(Parser)]
struct Args {
    /// The manifests.
    dir: PathBuf,
    /// The agent's binary; without it no policy is in force.
    #[arg(long)]
    agent: Option<PathBuf>,
    /// Nodes, at least.
    #[arg(long, default_value_t = 2)]
    nodes: usize,
    /// Only differences and the count.
    #[arg(long)]
    check: bool,
    /// `json` or `text`
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
    /// Stay until Ctrl-C.
    #[arg(long)]
    keep: bool,
    /// Apply the files of policies one at a time, with a matrix after each.
    #[arg(long)]
    tutorial: bool,
    /// From node to node.
    #[arg(long, value_enum, default_value = "host-gw")]
    backend: Backend,
    /// How the agent attaches its programs.
    #[arg(long)]
    attach: Option<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = stop::install(KIND).and_then(|()| {
        if args.tutorial {
            tutorial(&args)
        } else {
            sandbox(&args)
        }
    });
    match done {
        Ok(same) => ExitCode::from(u8::from(!same)),
        Err(_) if stop::stopped() => ExitCode::from(stop::CODE),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn options(args: &Args) -> Options {
    Options {
        nodes: args.nodes,
        backend: args.backend,
        agent: args.agent.clone(),
        attach: args.attach.clone(),
    }
}

fn read(args: &Args) -> Result<Scene> {
    // What a killed run left goes first, also where this one is refused.
    drop(Rig::new(KIND)?);
    let scene = Scene::read(&args.dir, args.nodes)?;
    for problem in &scene.problems {
        eprintln!("{problem}");
    }
    let layout = &scene.layout;
    eprintln!(
        "building {} pods on {} nodes, {} Service ports, an outside host with {} addresses",
        layout.pods.len(),
        layout.nodes.len(),
        scene.services.len(),
        layout.outside.len()
    );
    Ok(scene)
}

fn sandbox(args: &Args) -> Result<bool> {
    let scene = read(args)?;
    let held_back = if args.agent.is_some() {
        Vec::new()
    } else {
        scene.policy_files()
    };
    let sandbox = Sandbox::start(&scene, &options(args), &held_back)?;
    eprintln!("everything is in force; probing");
    let run = sandbox.ask()?;
    let same = run.differences().next().is_none();
    if args.output == "json" {
        println!("{:#}", report::json(&scene, sandbox.questions(), &run));
    } else {
        if !args.check {
            print_matrix(&scene, &sandbox, &run);
        }
        print!("{}", report::differences(&scene, sandbox.questions(), &run));
        println!("{}", report::summary(&run));
    }
    if args.keep {
        keep(&sandbox)?;
    }
    Ok(same)
}

fn keep(sandbox: &Sandbox<'_>) -> Result<()> {
    for namespace in sandbox
        .network()
        .nodes
        .iter()
        .chain(sandbox.network().pods.iter().flatten())
    {
        eprintln!("  nsenter --net={}", namespace.path().display());
    }
    eprintln!("kept until Ctrl-C");
    loop {
        stop::check()?;
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

fn tutorial(args: &Args) -> Result<bool> {
    let scene = read(args)?;
    let steps = scene.policy_files();
    let mut sandbox = Sandbox::start(&scene, &options(args), &steps)?;
    println!("\n0. No policies yet: everyone reaches everyone.\n");
    let mut same = show(&scene, &sandbox)?;
    for (at, file) in steps.iter().enumerate() {
        println!("\n{}. {}\n", at + 1, story(file)?);
        sandbox.apply(file)?;
        same &= show(&scene, &sandbox)?;
    }
    Ok(same)
}

fn show(scene: &Scene, sandbox: &Sandbox<'_>) -> Result<bool> {
    let run = sandbox.ask()?;
    print_matrix(scene, sandbox, &run);
    print!("{}", report::differences(scene, sandbox.questions(), &run));
    println!("{}", report::summary(&run));
    Ok(run.differences().next().is_none())
}

fn print_matrix(scene: &Scene, sandbox: &Sandbox<'_>, run: &Run) {
    let width = std::env::var("COLUMNS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(120);
    let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    println!(
        "{}",
        report::matrices(scene, sandbox.questions(), run, width, colour)
    );
}

/// The comment at the head of the file.
fn story(file: &Path) -> Result<String> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let comment = text
        .lines()
        .map_while(|line| line.strip_prefix('#'))
        .map(str::trim);
    let words: Vec<&str> = comment.filter(|line| !line.is_empty()).collect();
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    Ok(if words.is_empty() {
        name.into_owned()
    } else {
        format!("{name}: {}", words.join("\n   "))
    })
}
