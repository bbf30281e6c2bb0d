//! `cargo xtask test --kernels`: the real object and the real tests on the kernels that people run.
//!
//! Debian's 5.10, 6.1 and 6.12 boot in software emulation, with the very test binaries that run on this machine
//! (and the shared libraries they need) in an initramfs.

mod boot;
mod fetch;
mod image;
mod report;
mod suite;

use std::{fs, path::Path, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail};

use self::{
    boot::Limits,
    report::{Counts, Outcome, Report},
};
use crate::{
    build, ebpf,
    preflight::{self, Missing},
    setup,
    toolchain::{self, Toolchain},
    ui::{root, say},
};

/// A kernel and the Debian suite that carries it.
#[derive(Debug)]
struct Kernel {
    version: &'static str,
    suite: &'static str,
}

/// The floor, the last long-term kernel without TCX, and one with it.
const KERNELS: &[Kernel] = &[
    Kernel {
        version: "5.10",
        suite: "bullseye",
    },
    Kernel {
        version: "6.1",
        suite: "bookworm",
    },
    Kernel {
        version: "6.12",
        suite: "trixie",
    },
];

/// Debian packages of this verb, beyond those of the other verbs.
const PACKAGES: &[&str] = &["qemu-system-x86", "busybox-static", "kmod", "cpio"];

/// How long one job (a test binary) may take in the guest, where everything is some fifteen times slower.
const JOB: Duration = Duration::from_secs(420);

/// One thing to run in the guest.
#[derive(Debug, Clone)]
struct Job {
    /// Shown in the report; unique.
    name: String,
    /// For the guest's shell; test binaries are in `/tests`.
    script: String,
}

/// `cargo xtask kernels`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which kernels (5.10, 6.1, 6.12); all where none is named.
    #[arg(value_parser = parse_kernel)]
    only: Vec<&'static Kernel>,
}

fn parse_kernel(name: &str) -> Result<&'static Kernel, String> {
    let known = || {
        KERNELS
            .iter()
            .map(|kernel| kernel.version)
            .collect::<Vec<_>>()
            .join(", ")
    };
    KERNELS
        .iter()
        .find(|kernel| kernel.version == name)
        .ok_or_else(|| format!("there are {}", known()))
}

/// The verb.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    // The host runs nothing of it: no root needed, unless packages are missing.
    let toolchain = setup::ensure(setup::Need::Build)?;
    match &*args.only {
        [] => all(&toolchain),
        only => test(&toolchain, only),
    }
}

/// Runs the tests on every kernel.
///
/// # Errors
/// When a tool is missing, a kernel can't be fetched, a guest does not come up, or a test fails.
pub(crate) fn all(toolchain: &Toolchain) -> Result<ExitCode> {
    test(toolchain, &KERNELS.iter().collect::<Vec<_>>())
}

fn test(toolchain: &Toolchain, kernels: &[&Kernel]) -> Result<ExitCode> {
    if std::env::consts::ARCH != "x86_64" {
        return Err(Missing(vec![
            "the other kernels are emulated for x86_64, with binaries of this machine".into(),
        ])
        .into());
    }
    preflight::require(toolchain::obstacles(PACKAGES))?;
    setup::install_packages(PACKAGES)?;
    // apt and cpio run in folders of their own, so the path is absolute.
    let cache = root().join(".cache/kernels");
    fs::create_dir_all(&cache).with_context(|| format!("creating {}", cache.display()))?;
    let suite = suite::build(&ebpf::object(toolchain)?, &build::agent(true)?)?;
    let programs = image::programs(&cache, &suite)?;
    let mut sum = Counts::default();
    let mut failures = Vec::new();
    for kernel in kernels {
        let (counts, failure) = one(&cache, kernel, &programs, &suite.jobs)?;
        sum += counts;
        failures.extend(failure);
    }
    println!(
        "kernels: {} passed, {} failed, {} skipped",
        sum.passed, sum.failed, sum.ignored
    );
    if !failures.is_empty() {
        bail!("{}", failures.join("\n"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs `jobs` under one kernel. The second value says what went wrong, in one line.
fn one(cache: &Path, kernel: &Kernel, programs: &Path, jobs: &[Job]) -> Result<(Counts, Option<String>)> {
    let dir = cache.join(kernel.version);
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let tree = fetch::kernel(cache, kernel)?;
    let modules = image::modules(&dir, &tree)?;
    let initrd = dir.join("initrd.cpio");
    image::join(&[modules, programs.to_owned()], &initrd)?;
    let console = dir.join("console.log");
    say("booting", &format!("{} ({})", kernel.version, tree.release));
    let (report, late) = boot::boot(&tree.image, &initrd, &console, Limits { job: JOB }, |report| {
        if let Some(job) = report.jobs.last() {
            say(&format!("{:>5}", kernel.version), &line(job));
        }
    })?;
    let missing = jobs.len() - report.jobs.iter().filter(|job| job.status.is_some()).count();
    let failed: Vec<&Outcome> = report.jobs.iter().filter(|job| job.result().failed > 0).collect();
    if late.is_none() && failed.is_empty() && missing == 0 {
        return Ok((report.counts(), None));
    }
    Ok((
        report.counts(),
        Some(explain(kernel, &report, late, &failed, &console)),
    ))
}

fn line(job: &Outcome) -> String {
    let Counts {
        passed,
        failed,
        ignored,
    } = job.result();
    let took = job.took.as_secs();
    format!(
        "{}: {passed} passed, {failed} failed, {ignored} skipped in {took} s",
        job.name
    )
}

/// Shows what the failed jobs said and the end of the console, and returns the summary.
fn explain(
    kernel: &Kernel,
    report: &Report,
    late: Option<String>,
    failed: &[&Outcome],
    console: &Path,
) -> String {
    for job in failed {
        println!("---- {} on {}:", job.name, kernel.version);
        println!("{}", job.output.join("\n"));
    }
    let log = fs::read(console).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().collect();
    println!(
        "---- console of {} (whole: {}):",
        kernel.version,
        console.display()
    );
    println!("{}", lines[lines.len().saturating_sub(40)..].join("\n"));
    let names: Vec<&str> = failed.iter().map(|job| &*job.name).collect();
    let lacks = match report.lacks.is_empty() {
        true => String::new(),
        false => format!(" (modules that did not load: {})", report.lacks.join(" ")),
    };
    match late {
        Some(reason) => format!("kernel {}: {reason}{lacks}", kernel.version),
        None => format!("kernel {}: failed: {}{lacks}", kernel.version, names.join(", ")),
    }
}
