//! `cargo xtask test --kernels`: the real object and the real tests on the kernels that people run.
//!
//! Debian's 5.10, 6.1 and 6.12 boot in software emulation, with the very test binaries that run on this machine
//! (and the shared libraries they need) in an initramfs.

mod boot;
mod fetch;
mod image;
mod report;
mod suite;

use std::{
    fs,
    num::NonZero,
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

pub(crate) use self::suite::Scope;
use self::{boot::Limits, fetch::Tree, report::Report};
use crate::{
    build, ebpf, setup,
    test::{Count, report as report_tests},
    toolchain::Toolchain,
    ui::{root, say, tail},
};

/// A kernel and the Debian suite that carries it.
#[derive(Debug)]
struct Kernel {
    version: &'static str,
    suite: &'static str,
}

/// The floor, which attaches filters and has the poorest verifier.
const FLOOR: &str = "5.10";
/// The last long-term kernel without TCX.
const LONG_TERM: &str = "6.1";
/// One with TCX.
const TCX: &str = "6.12";

/// In the order in which they boot.
const KERNELS: &[Kernel] = &[
    Kernel {
        version: FLOOR,
        suite: "bullseye",
    },
    Kernel {
        version: LONG_TERM,
        suite: "bookworm",
    },
    Kernel {
        version: TCX,
        suite: "trixie",
    },
];

/// Debian packages of this verb, beyond those of the other verbs.
pub(crate) const PACKAGES: &[&str] = &[
    "qemu-system-x86",
    "busybox-static",
    "kmod",
    "cpio",
    "ipset",
    "ipvsadm",
];

/// How long one job (a test binary) may take in the guest, where everything is some fifteen times slower.
const JOB: Duration = Duration::from_secs(600);

/// One thing to run in the guest.
#[derive(Debug, Clone)]
struct Job {
    /// Shown in the report; unique.
    name: String,
    /// For the guest's shell; test binaries are in `/tests`.
    script: String,
    /// The kernels of [`Scope::Choice`].
    choice: &'static [&'static str],
}

/// `cargo xtask kernels`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which kernels (5.10, 6.1, 6.12); all where none is named.
    #[arg(value_parser = parse_kernel)]
    only: Vec<&'static Kernel>,

    /// Only the jobs (test targets) with this name.
    #[arg(long, value_name = "NAME")]
    job: Option<String>,
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
    let toolchain = setup::ensure(setup::Need {
        kernels: true,
        ..setup::Need::BUILD
    })?;
    ebpf::object(&toolchain)?;
    build::agent(true)?;
    let sum = match &*args.only {
        [] => test(
            &toolchain,
            &KERNELS.iter().collect::<Vec<_>>(),
            args.job.as_deref(),
            Scope::All,
        ),
        only => test(&toolchain, only, args.job.as_deref(), Scope::All),
    }?;
    println!("{sum}");
    Ok(if sum.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What keeps this machine from emulating the kernels, whatever is installed.
pub(crate) fn obstacle() -> Option<String> {
    (std::env::consts::ARCH != "x86_64").then(|| {
        format!(
            "the other kernels are emulated for x86_64, with binaries of this machine, which is {}: run it on an x86_64 machine",
            std::env::consts::ARCH
        )
    })
}

/// Runs the tests of `scope` on the kernels, with the object and the debug agent that are there.
///
/// # Errors
/// A kernel can't be fetched. A guest that dies, or a test that fails, is counted.
pub(crate) fn each(toolchain: &Toolchain, scope: Scope) -> Result<Count> {
    test(toolchain, &KERNELS.iter().collect::<Vec<_>>(), None, scope)
}

fn test(toolchain: &Toolchain, kernels: &[&Kernel], job: Option<&str>, scope: Scope) -> Result<Count> {
    let objects = vec![
        root().join("target/bpf/netpol.o"),
        ebpf::object_for_old_test_runs(toolchain)?,
    ];
    // apt and cpio run in folders of their own, so the path is absolute.
    let cache = root().join(".cache/kernels");
    fs::create_dir_all(&cache).with_context(|| format!("creating {}", cache.display()))?;
    let suite = suite::build(objects, job)?;
    let programs = image::programs(&cache, &suite)?;
    let machines = kernels
        .iter()
        .map(|kernel| Bootable::prepare(&cache, kernel, &programs))
        .collect::<Result<Vec<_>>>()?;
    let guests: Vec<_> = machines
        .iter()
        .zip(kernels)
        .map(|(machine, kernel)| (machine, suite.jobs_on(kernel.version, scope)))
        .collect();
    side_by_side(&guests)
}

/// Boots as many at a time as this machine has room for.
fn side_by_side(guests: &[(&Bootable, Vec<&Job>)]) -> Result<Count> {
    let waiting = Mutex::new(guests.iter());
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || -> Result<Count> {
        let mut sum = Count::default();
        while let Some((machine, jobs)) = next() {
            sum += machine.run(jobs)?;
        }
        Ok(sum)
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..room().min(guests.len())).map(|_| scope.spawn(work)).collect();
        let mut sum = Count::default();
        for worker in workers {
            sum += worker.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        }
        Ok(sum)
    })
}

/// How many guests run at a time: each keeps one core busy (its second one waits most of the time), and none may
/// drive the others out of memory.
fn room() -> usize {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = meminfo
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemAvailable:")?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .unwrap_or(0_usize);
    cores.min(available / 1024 / boot::MEGABYTES).max(1)
}

/// A kernel with all that it boots with.
#[derive(Debug)]
struct Bootable {
    /// `kernel 6.1`
    name: String,
    tree: Tree,
    initrd: PathBuf,
    /// The first serial line.
    console: PathBuf,
}

impl Bootable {
    fn prepare(cache: &Path, kernel: &Kernel, programs: &Path) -> Result<Self> {
        let dir = cache.join(kernel.version);
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        let tree = fetch::kernel(cache, kernel)?;
        let modules = image::modules(&dir, &tree)?;
        let initrd = dir.join("initrd.cpio");
        image::join(&[modules, programs.to_owned()], &initrd)?;
        Ok(Self {
            name: format!("kernel {}", kernel.version),
            tree,
            initrd,
            console: dir.join("console.log"),
        })
    }

    /// Boots it, runs `jobs`, and shows what failed.
    fn run(&self, jobs: &[&Job]) -> Result<Count> {
        let Self { name, console, .. } = self;
        say(name, &format!("booting {}", self.tree.release));
        let limits = Limits { job: JOB };
        let names: Vec<_> = jobs.iter().map(|job| &*job.name).collect();
        let (report, late) = boot::boot(
            &self.tree.image,
            &self.initrd,
            console,
            &names,
            limits,
            |report| {
                if let Some(job) = report.jobs.last() {
                    let what = format!("{name}, {}", job.name);
                    report_tests(&what, job.result(), job.took, &job.output);
                }
            },
        )?;
        let mut count = report.count();
        let ended = report.jobs.iter().filter(|job| job.status.is_some()).count();
        if late.is_some() || ended < jobs.len() {
            count.failed = count.failed.max(1);
        }
        if count.failed > 0 {
            explain(name, &report, late, console);
        }
        Ok(count)
    }
}

/// Shows what the failed jobs said and the end of the console.
fn explain(name: &str, report: &Report, late: Option<String>, console: &Path) {
    for job in report.jobs.iter().filter(|job| job.result().failed > 0) {
        eprintln!("---- {name}, {}:\n{}", job.name, job.output);
    }
    eprintln!(
        "---- {name}, the end of {}:\n{}",
        console.display(),
        tail(console, 40)
    );
    if !report.lacks.is_empty() {
        eprintln!("---- {name} did not load the modules {}", report.lacks.join(" "));
    }
    if let Some(late) = late {
        eprintln!("---- {name}: {late}");
    }
}
