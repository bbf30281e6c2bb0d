//! `cargo xtask bench`: how fast, against the goals.
//!
//! Each part runs in a process of its own (the `bench` target of the `tests` crate), which prints its figures as JSON.

use std::{
    fmt::Write as _,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::{
    build, ebpf, setup,
    ui::{run_quietly, say, seconds},
};

/// `cargo xtask bench`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these parts; all of them where none is named.
    #[arg(value_enum)]
    parts: Vec<Part>,

    /// Fewer rounds, and packets at one size only.
    #[arg(long)]
    quick: bool,

    /// Measure with debug builds, which are there sooner: fit for packets, whose cost is the kernel's.
    #[arg(long)]
    debug: bool,

    /// How to print.
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Nanoseconds a packet, by BPF_PROG_TEST_RUN.
    Packets,
    /// Compiling a cluster of 100 000 pods and 10 000 policies, and its changes.
    Compile,
    /// The real agent, from the edit of a manifest to the last map write; its memory.
    Edits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Tables for people.
    Text,
    /// Every figure.
    Json,
    /// The tables of docs/performance.md.
    Markdown,
}

impl Part {
    /// As it is typed.
    fn word(self) -> String {
        let value = self.to_possible_value();
        value.map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// One figure; `null` as a goal: nothing is asked.
#[derive(Debug, Deserialize, Serialize)]
struct Row {
    part: String,
    what: String,
    at: String,
    unit: String,
    min: f64,
    median: f64,
    goal: Option<f64>,
}

/// The verb.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let toolchain = setup::ensure(setup::Need::RUN)?;
    ebpf::object(&toolchain)?;
    ebpf::bench_object(&toolchain)?;
    let mut cargo = bench(args.debug);
    let time = run_quietly("bench", cargo.arg("--no-run"))?;
    say("bench", &format!("built in {}", seconds(time)));
    let parts = match &*args.parts {
        [] => Part::value_variants(),
        some => some,
    };
    if parts.contains(&Part::Edits) {
        build::agent(args.debug)?;
    }
    let mut rows = Vec::new();
    for part in parts {
        rows.extend(measure(*part, args)?);
    }
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&rows)?),
        Output::Text => print!("{}", tables(&rows, false)),
        Output::Markdown => print!("{}", tables(&rows, true)),
    }
    Ok(ExitCode::SUCCESS)
}

fn bench(debug: bool) -> Command {
    let mut cargo = build::cargo("bench");
    cargo.args(debug.then_some("--profile=dev"));
    cargo.args(["--quiet", "--package", "netpol-tests", "--bench", "bench"]);
    cargo
}

fn measure(part: Part, args: &Args) -> Result<Vec<Row>> {
    let mut cargo = bench(args.debug);
    cargo
        .args(["--", &part.word()])
        .args(args.quick.then_some("--quick"))
        .env("NETPOL_AGENT", build::agent_path(args.debug))
        .stderr(Stdio::inherit());
    let done = cargo.output().context("starting cargo bench")?;
    if !done.status.success() {
        bail!("measuring {} failed ({})", part.word(), done.status);
    }
    serde_json::from_slice(&done.stdout).context("reading what the bench has measured")
}

/// A table for each part: a line for each thing, a column for each size, minimum and median in each cell.
fn tables(rows: &[Row], markdown: bool) -> String {
    let mut text = String::new();
    for part in distinct(rows.iter().map(|row| &row.part)) {
        let rows: Vec<&Row> = rows.iter().filter(|row| &row.part == part).collect();
        let sizes = distinct(rows.iter().map(|row| &row.at));
        let mut table = vec![heading(part, &sizes)];
        for what in distinct(rows.iter().map(|row| &row.what)) {
            let line: Vec<&Row> = rows.iter().copied().filter(|row| &row.what == what).collect();
            table.push(cells(what, &line, &sizes));
        }
        let _ = writeln!(text, "{}", if markdown { pipes(&table) } else { columns(&table) });
    }
    text
}

fn heading(part: &str, sizes: &[&String]) -> Vec<String> {
    let mut heading = vec![part.to_owned()];
    heading.extend(sizes.iter().map(|size| size.to_string()));
    heading.extend(["goal".to_owned(), String::new()]);
    heading
}

fn cells(what: &str, line: &[&Row], sizes: &[&String]) -> Vec<String> {
    let unit = line.first().map_or("", |row| &row.unit);
    let mut cells = vec![format!("{what} ({unit})")];
    for size in sizes {
        let row = line.iter().find(|row| &row.at == *size);
        cells.push(row.map_or_else(String::new, |row| {
            format!("{} / {}", number(row.min), number(row.median))
        }));
    }
    let goal = line.iter().find_map(|row| row.goal);
    cells.push(goal.map_or_else(String::new, |goal| format!("≤ {}", number(goal))));
    cells.push(match goal {
        None => String::new(),
        Some(goal) if line.iter().all(|row| row.median <= goal) => "met".to_owned(),
        Some(_) => "missed".to_owned(),
    });
    cells
}

fn number(value: f64) -> String {
    if value.abs() >= 10.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

fn distinct<'a>(all: impl Iterator<Item = &'a String>) -> Vec<&'a String> {
    let mut seen: Vec<&String> = Vec::new();
    for one in all {
        if !seen.contains(&one) {
            seen.push(one);
        }
    }
    seen
}

fn pipes(table: &[Vec<String>]) -> String {
    let mut text = String::new();
    for (at, line) in table.iter().enumerate() {
        let _ = writeln!(text, "| {} |", line.join(" | "));
        if at == 0 {
            let _ = writeln!(text, "|{}", "---|".repeat(line.len()));
        }
    }
    text
}

/// Numbers to the right; a heading is broken at its comma.
fn columns(table: &[Vec<String>]) -> String {
    let mut lines = table.to_vec();
    if let Some(heading) = lines.first_mut() {
        let second = heading
            .iter_mut()
            .map(|cell| match cell.split_once(", ") {
                Some((first, second)) => {
                    let second = second.to_owned();
                    *cell = first.to_owned();
                    second
                }
                None => String::new(),
            })
            .collect();
        lines.insert(1, second);
    }
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for line in &lines {
        let _ = write!(text, "{:<1$}", line[0], widths[0]);
        for (cell, width) in line.iter().zip(&widths).skip(1) {
            let _ = write!(text, "  {cell:>width$}");
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(what: &str, at: &str, median: f64, goal: Option<f64>) -> Row {
        Row {
            part: "packets".into(),
            what: what.into(),
            at: at.into(),
            unit: "ns".into(),
            min: 1.0,
            median,
            goal,
        }
    }

    #[test]
    fn one_size_over_the_goal_misses_it() {
        let rows = [
            row("a", "1 policy, 1 peer", 9.0, Some(10.0)),
            row("a", "2 policies, 1 peer", 11.0, Some(10.0)),
            row("b", "1 policy, 1 peer", 3.5, None),
        ];
        let expected = "\
packets  1 policy  2 policies  goal
           1 peer      1 peer
a (ns)      1 / 9      1 / 11  ≤ 10  missed
b (ns)   1 / 3.50

";
        assert_eq!(tables(&rows, false), expected);
    }
}
