//! `cargo xtask test`: every layer of tests, counted.

use std::{
    ffi::OsString,
    fmt, fs,
    ops::AddAssign,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::{
    build, ebpf, kernels, setup,
    ui::{root, run_to_log, say, seconds},
};

/// `cargo xtask test`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these layers; all of them where none is named.
    #[arg(value_enum)]
    layers: Vec<Layer>,

    /// Property tests in the size of a nightly run (at least 200 000 cases each instead of a bounded number).
    #[arg(long)]
    nightly: bool,

    /// The tests that other kernels can answer, on Debian's 5.10, 6.1 and 6.12 in an emulator; with layers, these too.
    /// `choice`: the program tests on each, of those with sockets each on one at least.
    #[arg(
        long,
        value_enum,
        value_name = "SCOPE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "all"
    )]
    kernels: Option<kernels::Scope>,

    /// Only tests whose name contains this.
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
}

/// What a test answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Layer {
    /// Does a part give exactly this?
    Unit,
    /// For every input: do two readings agree?
    Property,
    /// The real object, real maps, packets through BPF_PROG_TEST_RUN.
    Program,
    /// Real sockets between network namespaces.
    Netns,
}

impl Layer {
    const ALL: [Self; 4] = [Self::Unit, Self::Property, Self::Program, Self::Netns];

    const fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit tests",
            Self::Property => "property tests",
            Self::Program => "program tests",
            Self::Netns => "netns tests",
        }
    }

    /// Loads programs or makes namespaces.
    const fn needs_kernel(self) -> bool {
        matches!(self, Self::Program | Self::Netns)
    }
}

/// Tests by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    /// Ended well.
    pub(crate) passed: u64,
    /// Did not, or did not compile.
    pub(crate) failed: u64,
    /// Marked as not to be run here.
    pub(crate) skipped: u64,
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

impl Count {
    /// The sum of all `test result:` lines of libtest.
    pub(crate) fn read(log: &str) -> Self {
        let mut sum = Self::default();
        for line in log
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix("test result: "))
        {
            let number = |word: &str| {
                let before = line
                    .split(word)
                    .next()
                    .filter(|before| before.len() < line.len())?;
                before
                    .rsplit(' ')
                    .find(|part| !part.is_empty())?
                    .parse::<u64>()
                    .ok()
            };
            sum += Self {
                passed: number(" passed").unwrap_or(0),
                failed: number(" failed").unwrap_or(0),
                skipped: number(" ignored").unwrap_or(0),
            };
        }
        sum
    }
}

/// The verb.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let layers = match &*args.layers {
        [] if args.kernels.is_some() => &[],
        [] => &Layer::ALL[..],
        some => some,
    };
    let kernel = layers.iter().any(|layer| layer.needs_kernel());
    let toolchain = setup::ensure(setup::Need {
        run: kernel,
        kernels: args.kernels.is_some(),
        ..setup::Need::BUILD
    })?;
    ebpf::object(&toolchain)?;
    if kernel || args.kernels.is_some() {
        if layers.contains(&Layer::Netns) {
            build::next_agent(&toolchain)?;
        }
        build::agent(true)?;
    }
    let mut sum = Count::default();
    for layer in layers {
        sum += run_layer(*layer, args)?;
    }
    if let Some(scope) = args.kernels {
        sum += kernels::each(&toolchain, scope)?;
    }
    println!("{sum}");
    if sum.passed + sum.failed == 0 {
        bail!(
            "no test ran{}",
            args.filter
                .as_ref()
                .map(|name| format!(": none is named like {name}"))
                .unwrap_or_default()
        );
    }
    Ok(if sum.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn run_layer(layer: Layer, args: &Args) -> Result<Count> {
    let targets = targets(layer)?;
    if targets.is_empty() {
        return Ok(Count::default());
    }
    let mut cargo = build::cargo("test");
    cargo
        .args(targets)
        .arg("--no-fail-fast")
        .env("RUST_BACKTRACE", "1");
    cargo.env("NETPOL_AGENT", root().join("target/debug/netpol-agent"));
    if args.nightly {
        cargo.env("PROPTEST_CASES", "200000").env("NETPOL_NIGHTLY", "1");
    }
    if let Some(filter) = &args.filter {
        cargo.arg("--").arg(filter);
    }
    let (status, log, time) = run_to_log(layer.name(), &mut cargo)?;
    let text = fs::read(&log).with_context(|| format!("reading {}", log.display()))?;
    let text = String::from_utf8_lossy(&text);
    let mut count = Count::read(&text);
    if !status.success() {
        // Code that does not compile, or a test that ended its whole process, has no line of its own.
        count.failed = count.failed.max(1);
        eprintln!("{}\n(all of it: {})", failure(&text), log.display());
    }
    report(layer.name(), count, time, &text);
    Ok(count)
}

/// Says how a group of tests went, and which of them were left out and why.
pub(crate) fn report(what: &str, count: Count, time: Duration, log: &str) {
    say(what, &format!("{count} ({})", seconds(time)));
    for (name, reason) in skipped(log) {
        say(&format!("{what}, skipped {name}"), reason);
    }
}

/// Name and reason of each ignored test of a libtest log.
fn skipped(log: &str) -> impl Iterator<Item = (&str, &str)> {
    log.lines().filter_map(|line| {
        let (name, end) = line.strip_prefix("test ")?.split_once(" ... ignored")?;
        Some((name, end.strip_prefix(", ").unwrap_or("no reason given")))
    })
}

/// The arguments that make cargo run the layer's targets; empty where it has none.
///
/// A test file of the `tests` crate belongs to *program* by its name and to *netns* otherwise, so none is forgotten.
fn targets(layer: Layer) -> Result<Vec<OsString>> {
    let rest = || {
        ["--workspace", "--exclude", "netpol-tests"]
            .map(OsString::from)
            .to_vec()
    };
    let named = |names: Vec<String>| names.into_iter().flat_map(|name| ["--test".into(), name.into()]);
    let rig = |wanted: &dyn Fn(&str) -> bool| -> Result<Vec<OsString>> {
        let names: Vec<String> = tests_of("netpol-tests")?
            .into_iter()
            .filter(|name| wanted(name))
            .collect();
        Ok(named(names).collect())
    };
    Ok(match layer {
        Layer::Unit => rest()
            .into_iter()
            .chain(["--lib".into(), "--bins".into()])
            .collect(),
        Layer::Property => {
            let names: Vec<String> = packages()?
                .into_iter()
                .filter(|(name, _)| name != "netpol-tests")
                .flat_map(|(_, t)| t)
                .collect();
            if names.is_empty() {
                Vec::new()
            } else {
                rest().into_iter().chain(named(names)).collect()
            }
        }
        Layer::Program => {
            let found = rig(&|name| name.starts_with("program"))?;
            if found.is_empty() {
                found
            } else {
                ["-p".into(), "netpol-tests".into()]
                    .into_iter()
                    .chain(found)
                    .collect()
            }
        }
        Layer::Netns => {
            let found = rig(&|name| !name.starts_with("program"))?;
            ["-p".into(), "netpol-tests".into(), "--lib".into()]
                .into_iter()
                .chain(found)
                .collect()
        }
    })
}

fn tests_of(package: &str) -> Result<Vec<String>> {
    Ok(packages()?
        .into_iter()
        .filter(|(name, _)| name == package)
        .flat_map(|(_, tests)| tests)
        .collect())
}

/// Every package of the workspace with the names of its integration tests.
fn packages() -> Result<Vec<(String, Vec<String>)>> {
    let metadata = metadata(&["--no-deps"])?;
    let list = metadata["packages"]
        .as_array()
        .context("cargo metadata has no packages")?;
    Ok(list
        .iter()
        .map(|package| {
            let targets = package["targets"].as_array().into_iter().flatten();
            let tests = targets.filter(|target| target["kind"][0] == "test");
            let name = |value: &serde_json::Value| value["name"].as_str().unwrap_or_default().to_owned();
            (name(package), tests.map(name).collect())
        })
        .collect())
}

/// `cargo metadata ARGS…`
pub(crate) fn metadata(args: &[&str]) -> Result<serde_json::Value> {
    let mut cargo: Command = build::cargo("metadata");
    let done = cargo
        .args(["--format-version", "1"])
        .args(args)
        .output()
        .context("starting cargo metadata")?;
    if !done.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&done.stderr));
    }
    serde_json::from_slice(&done.stdout).context("reading what cargo metadata printed")
}

/// What a reader needs of a failed run: the failed tests' own output, or the end of everything.
fn failure(log: &str) -> String {
    let parts: Vec<&str> = log.split("\nfailures:\n").collect();
    let last = |text: &str, lines: usize| {
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    };
    if parts.len() < 2 {
        return last(log, 60);
    }
    // libtest prints the section twice a binary: first with output, then the names.
    parts[1..]
        .iter()
        .map(|part| part.split("\ntest result:").next().unwrap_or(part))
        .map(|part| last(part, 80))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_result_lines_are_summed() {
        let log = "running 3 tests\ntest a ... ok\n\
            test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
            test result: FAILED. 10 passed; 4 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.00s\n";
        assert_eq!(
            Count::read(log),
            Count {
                passed: 12,
                failed: 4,
                skipped: 1
            }
        );
    }

    #[test]
    fn what_is_left_out_is_said() {
        let log =
            "test a ... ok\ntest b ... ignored, no SCTP sockets\ntest c::d ... ignored\ntest result: ok.\n";
        let found: Vec<_> = skipped(log).collect();
        assert_eq!(found, [("b", "no SCTP sockets"), ("c::d", "no reason given")]);
    }

    #[test]
    fn the_last_line_is_plain() {
        let count = Count {
            passed: 3,
            failed: 0,
            skipped: 1,
        };
        assert_eq!(count.to_string(), "3 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn a_failed_test_shows_its_output() {
        let log = "test a ... FAILED\n\nfailures:\n\n---- a stdout ----\nboom\n\n\nfailures:\n    a\n\ntest result: FAILED. 0 passed; 1 failed\n";
        assert_eq!(failure(log).trim(), "---- a stdout ----\nboom\n\n    a");
    }
}
