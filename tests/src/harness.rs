//! A harness for tests that not every kernel can run, which libtest can't leave out once it runs.
//!
//! It writes what libtest writes (`test NAME ... ignored, REASON`, the line of sums), so whoever counts tests
//! reads one language. A target that uses it says `harness = false`.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    time::Instant,
};

use anyhow::Result;

/// One test on a scene that it shares with those before it.
#[derive(Clone, Copy, Debug)]
pub struct Test<S> {
    /// Its name.
    pub name: &'static str,
    /// What it does; it leaves the scene to the next test, which makes no more of it than its builder promises.
    pub run: fn(&mut S) -> Result<()>,
}

/// What became of a test.
enum End {
    Ok,
    Ignored(&'static str),
    Failed(String),
}

/// Runs those `tests` whose name contains one of the arguments (all without arguments), one after the other, on a scene
/// that `build` makes; after a failure on a new one. Where `lacks` says what this kernel lacks, each counts as ignored for
/// that reason.
#[must_use]
pub fn main<S>(lacks: Option<&'static str>, build: impl Fn() -> Result<S>, tests: &[Test<S>]) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (flags, names): (Vec<_>, Vec<_>) = arguments.iter().partition(|word| word.starts_with('-'));
    let wanted = |test: &&Test<S>| names.is_empty() || names.iter().any(|name| test.name.contains(&***name));
    let wanted: Vec<&Test<S>> = tests.iter().filter(wanted).collect();
    if flags.iter().any(|flag| *flag == "--list") {
        wanted.iter().for_each(|test| println!("{}: test", test.name));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", wanted.len());
    let begun = Instant::now();
    let mut ends = Vec::new();
    let mut scene = None;
    for test in &wanted {
        let end = lacks.map_or_else(|| run(test, &mut scene, &build), End::Ignored);
        println!("test {} ... {}", test.name, word(&end));
        ends.push((test.name, end));
    }
    let failed = failures(&ends);
    let ignored = ends
        .iter()
        .filter(|(_, end)| matches!(end, End::Ignored(_)))
        .count();
    println!(
        "\ntest result: {}. {} passed; {failed} failed; {ignored} ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
        if failed == 0 { "ok" } else { "FAILED" },
        ends.len() - failed - ignored,
        tests.len() - wanted.len(),
        begun.elapsed().as_secs_f64(),
    );
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn run<S>(test: &Test<S>, scene: &mut Option<S>, build: impl Fn() -> Result<S>) -> End {
    let work = || -> Result<()> {
        let mut here = scene.take().map_or_else(build, Ok)?;
        (test.run)(&mut here)?;
        *scene = Some(here);
        Ok(())
    };
    // The hook has printed the panic's message and place by the time it is caught.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => End::Ok,
        Ok(Err(error)) => End::Failed(format!("Error: {error:?}")),
        Err(_) => End::Failed("it panicked: see above".to_owned()),
    }
}

fn word(end: &End) -> String {
    match end {
        End::Ok => "ok".to_owned(),
        End::Ignored(reason) => format!("ignored, {reason}"),
        End::Failed(_) => "FAILED".to_owned(),
    }
}

/// Shows why tests failed, and how many.
fn failures(ends: &[(&str, End)]) -> usize {
    let failed: Vec<_> = ends
        .iter()
        .filter_map(|(name, end)| match end {
            End::Failed(why) => Some((name, why)),
            _ => None,
        })
        .collect();
    if !failed.is_empty() {
        println!("\nfailures:\n");
        for (name, why) in &failed {
            println!("---- {name} ----\n{why}\n");
        }
    }
    failed.len()
}
