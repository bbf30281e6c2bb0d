//! `status`: what is enforced, as the agent last said and as the kernel says now.

use std::{
    fmt::Write as _,
    io::Write as _,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use netpol_common::ABI;
use serde::Serialize;

use super::{BadInput, Exit, Output, run::PIN};
use crate::datapath::{
    attach::{Hook, Mode},
    object::Pins,
    report::{Live, Report},
};

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where `run` has pinned.
    #[arg(long, env = "NETPOL_PIN", value_name = "DIR", default_value = PIN)]
    pin: PathBuf,

    /// How to print.
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

/// `-o json`
#[derive(Debug, Serialize)]
struct Status {
    /// What the agent wrote last.
    agent: Option<Report>,
    /// What is pinned.
    kernel: Live,
}

/// Exit 0: everything is in force; 1: something is not, or no agent runs; 2: nothing is pinned.
pub(super) fn run(args: &Args) -> anyhow::Result<Exit> {
    let pins = Pins::new(args.pin.join(format!("v{ABI}")));
    let Some(kernel) = Live::read(&pins)? else {
        let pin = args.pin.display();
        return Err(BadInput(format!(
            "nothing is pinned below {pin}: no agent has run here, or --pin is another"
        ))
        .into());
    };
    let agent = match pins.report()? {
        Some(path) => Report::read(&path)?,
        None => None,
    };
    let well = kernel.running && agent.as_ref().is_some_and(|agent| agent.in_force);
    let status = Status { agent, kernel };
    let mut out = std::io::stdout().lock();
    match args.output {
        Output::Json => {
            serde_json::to_writer_pretty(&mut out, &status)?;
            writeln!(out)?;
        }
        Output::Text => out.write_all(text(&status, now()).as_bytes())?,
    }
    Ok(if well { Exit::Ok } else { Exit::No })
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

fn text(status: &Status, now: u64) -> String {
    let mut out = String::new();
    let kernel = &status.kernel;
    if let Some(agent) = &status.agent {
        head(&mut out, agent, kernel.running, now);
    } else {
        out.push_str("agent: none has written a report\n");
    }
    table(
        &mut out,
        "maps",
        &["NAME", "ENTRIES", "CAPACITY"],
        kernel.maps.iter().map(|map| {
            let entries = map
                .entries
                .map_or_else(|| "-".to_owned(), |entries| entries.to_string());
            vec![map.name.clone(), entries, map.capacity.to_string()]
        }),
    );
    let pod = |index: u32| {
        let known = status
            .agent
            .iter()
            .flat_map(|agent| &agent.pods)
            .find(|pod| pod.index == index);
        known.map_or_else(|| "-".to_owned(), |pod| pod.name.clone())
    };
    table(
        &mut out,
        "drops",
        &["POD", "HOOK", "REASON", "PACKETS", "BYTES"],
        kernel.drops.iter().map(|drop| {
            let hook = drop.hook.map_or("-", Hook::program);
            vec![
                pod(drop.pod),
                hook.to_owned(),
                drop.reason.clone(),
                drop.packets.to_string(),
                drop.bytes.to_string(),
            ]
        }),
    );
    out
}

fn head(out: &mut String, agent: &Report, running: bool, now: u64) {
    let ago = |then: u64| duration(now.saturating_sub(then));
    let state = match (running, agent.in_force) {
        (true, true) => format!("running as process {} for {}", agent.pid, ago(agent.started)),
        (true, false) => format!("running as process {}, but not everything is in force", agent.pid),
        (false, _) => "not running; what is attached stays in force, nothing new is".to_owned(),
    };
    let kernel = &agent.kernel.release;
    let attach = match agent.attach {
        Mode::Tcx => "TCX",
        Mode::Clsact => "clsact",
    };
    // Writing to a string does not fail.
    let _ = writeln!(out, "agent:  {} on node {}, {state}", agent.version, agent.node);
    let _ = writeln!(out, "kernel: {kernel}, programs attached by {attach}");
    let _ = writeln!(
        out,
        "source: {}: {} policies, last change {} ago",
        agent.manifests.display(),
        agent.policies.len(),
        ago(agent.updated)
    );
    for failure in &agent.errors {
        let _ = writeln!(out, "failed for {}: {}", ago(failure.since), failure.error);
    }
    for problem in &agent.problems {
        let _ = writeln!(out, "{problem}");
    }
    table(
        out,
        "devices",
        &["NAME", "INDEX", "ROLE", "PROGRAMS", "POD"],
        agent.devices.iter().map(|device| {
            let programs: Vec<_> = device.programs.iter().map(|hook| hook.program()).collect();
            vec![
                device.name.clone(),
                device.index.to_string(),
                device.role.clone(),
                programs.join(","),
                device.detail.clone(),
            ]
        }),
    );
    let ruleset = |id: u32| {
        if id == 0 {
            "-".to_owned()
        } else {
            format!("{id:#x}")
        }
    };
    table(
        out,
        "pods",
        &["NAME", "INDEX", "INGRESS", "EGRESS", "DEVICE", "ADDRESSES"],
        agent.pods.iter().map(|pod| {
            let addresses: Vec<_> = pod.addresses.iter().map(ToString::to_string).collect();
            vec![
                pod.name.clone(),
                pod.index.to_string(),
                ruleset(pod.ingress),
                ruleset(pod.egress),
                pod.devices.join(","),
                addresses.join(","),
            ]
        }),
    );
    table(
        out,
        "rulesets",
        &["ID", "CELLS", "PODS"],
        agent
            .rulesets
            .iter()
            .map(|rules| vec![ruleset(rules.id), rules.cells.to_string(), rules.pods.to_string()]),
    );
}

/// Columns as wide as their widest cell; nothing where there are no rows.
fn table(out: &mut String, title: &str, header: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let mut rows: Vec<Vec<String>> = rows.collect();
    if rows.is_empty() {
        return;
    }
    rows.insert(0, header.iter().map(|text| (*text).to_owned()).collect());
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let _ = writeln!(out, "\n{title}");
    for row in &rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        let _ = writeln!(out, "  {}", cells.join("  ").trim_end());
    }
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let mut out = String::new();
        let rows = [["cells", "12", "262144"], ["state", "-", "8"]];
        table(
            &mut out,
            "maps",
            &["NAME", "ENTRIES", "CAPACITY"],
            rows.iter().map(|row| row.map(str::to_owned).to_vec()),
        );
        table(&mut out, "drops", &["REASON", "PACKETS"], std::iter::empty());
        assert_eq!(
            out,
            "\nmaps\n  NAME   ENTRIES  CAPACITY\n  cells  12       262144\n  state  -        8\n"
        );
    }

    #[test]
    fn durations_are_short() {
        assert_eq!(
            [0, 119, 120, 7200, 172_800].map(duration),
            ["0 s", "119 s", "2 min", "2 h", "2 d"]
        );
    }
}
