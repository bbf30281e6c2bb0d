//! The status for people.

use std::{collections::BTreeMap, fmt::Write as _};

use super::Status;
use crate::{
    cli::count,
    datapath::{
        attach::{Hook, Mode},
        report::{Live, Report, RulesetReport},
        waiting::Waiting,
    },
};

/// Policies of one ruleset that are named.
const NAMED: usize = 3;

/// Everything, in tables that fit into a terminal where names are not too long.
pub(super) fn text(status: &Status, now: u64) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = match (&status.agent, &status.kernel) {
        (Some(agent), Some(kernel)) => {
            head(&mut out, agent, kernel, now);
            Ok(())
        }
        (None, Some(kernel)) if kernel.running => writeln!(out, "agent:    starting, no report yet"),
        (None, Some(_)) => writeln!(out, "agent:    not running, and none has written a report"),
        (_, None) => writeln!(out, "kernel:   nothing is pinned: nothing is enforced"),
    };
    waiting(&mut out, &status.waiting, now);
    if let Some(agent) = &status.agent {
        devices(&mut out, agent);
        pods(&mut out, agent);
        policies(&mut out, agent);
        rulesets(&mut out, agent);
    }
    if let Some(kernel) = &status.kernel {
        maps(&mut out, kernel);
        drops(&mut out, kernel, status.agent.as_ref());
    }
    out
}

fn waiting(out: &mut String, waiting: &[Waiting], now: u64) {
    for agent in waiting {
        let _ = writeln!(
            out,
            "waiting:  {} on node {}, as process {} for {}, source {}",
            agent.version,
            agent.node,
            agent.pid,
            duration(now.saturating_sub(agent.started)),
            agent.source
        );
        for reason in &agent.reasons {
            let lasts = duration(now.saturating_sub(reason.since));
            let _ = writeln!(out, "waits for {lasts}: {}", reason.what);
        }
    }
}

fn head(out: &mut String, agent: &Report, kernel: &Live, now: u64) {
    let ago = |then: u64| duration(now.saturating_sub(then));
    let state = match (kernel.running, agent.is_well()) {
        (true, true) => format!("running as process {} for {}", agent.pid, ago(agent.started)),
        (true, false) => format!("running as process {}, but not everything is in force", agent.pid),
        (false, _) => "not running; what is attached stays in force, nothing new is".to_owned(),
    };
    let attach = match agent.attach {
        Mode::Tcx => "TCX",
        Mode::Clsact => "clsact",
    };
    let _ = writeln!(out, "agent:    {} on node {}, {state}", agent.version, agent.node);
    let _ = writeln!(
        out,
        "kernel:   {}, programs attached by {attach}",
        agent.kernel.release
    );
    let _ = writeln!(
        out,
        "programs: {}; attached in {}",
        kernel.programs.join(", "),
        count(kernel.links.len(), "place", "places")
    );
    let _ = writeln!(
        out,
        "source:   {}: {}, last change {} ago",
        agent.source,
        count(agent.policies.len(), "policy", "policies"),
        ago(agent.updated)
    );
    if let Some(since) = agent.stale_since {
        let ago = ago(since);
        let _ = writeln!(
            out,
            "stale:    the API server is not to be reached for {ago}; what is in force stays"
        );
    }
    for failure in &agent.errors {
        let _ = writeln!(out, "failed for {}: {}", ago(failure.since), failure.error);
    }
    for problem in &agent.problems {
        let _ = writeln!(out, "{problem}");
    }
}

fn devices(out: &mut String, agent: &Report) {
    let rows = agent.devices.iter().map(|device| {
        let programs: Vec<_> = device.programs.iter().map(|hook| hook.program()).collect();
        vec![
            device.name.clone(),
            device.index.to_string(),
            device.role.clone(),
            programs.join(","),
            device.detail.clone(),
        ]
    });
    table(
        out,
        "devices",
        &["NAME", "INDEX", "ROLE", "PROGRAMS", "WHOSE, OR WHY NONE"],
        rows,
    );
}

fn pods(out: &mut String, agent: &Report) {
    let rows = agent.pods.iter().map(|pod| {
        let addresses: Vec<_> = pod.addresses.iter().map(ToString::to_string).collect();
        vec![
            pod.name.clone(),
            pod.index.to_string(),
            ruleset(pod.ingress),
            ruleset(pod.egress),
            pod.devices.join(","),
            addresses.join(","),
        ]
    });
    table(
        out,
        "pods",
        &["NAME", "INDEX", "INGRESS", "EGRESS", "DEVICE", "ADDRESSES"],
        rows,
    );
}

/// The policies that isolate pods of this node, and how many.
fn policies(out: &mut String, agent: &Report) {
    let mut isolated: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for rules in &agent.rulesets {
        for policy in &rules.policies {
            let (ingress, egress) = isolated.entry(policy).or_default();
            *ingress += agent.pods.iter().filter(|pod| pod.ingress == rules.id).count();
            *egress += agent.pods.iter().filter(|pod| pod.egress == rules.id).count();
        }
    }
    let rows = isolated
        .into_iter()
        .map(|(policy, (ingress, egress))| vec![policy.to_owned(), ingress.to_string(), egress.to_string()]);
    table(
        out,
        "policies that isolate pods of this node",
        &["NAME", "INGRESS OF PODS", "EGRESS OF PODS"],
        rows,
    );
}

fn rulesets(out: &mut String, agent: &Report) {
    let rows = agent.rulesets.iter().map(|rules| {
        vec![
            ruleset(rules.id),
            rules.direction.clone(),
            rules.pods.to_string(),
            rules.cells.to_string(),
            policies_of(rules),
        ]
    });
    table(
        out,
        "rulesets",
        &["ID", "DIRECTION", "PODS", "CELLS", "POLICIES"],
        rows,
    );
}

fn policies_of(rules: &RulesetReport) -> String {
    let named = &rules.policies[..rules.policies.len().min(NAMED)];
    match rules.policies.len() - named.len() {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

fn maps(out: &mut String, kernel: &Live) {
    let rows = kernel.maps.iter().map(|map| {
        let (entries, fill) = match map.entries {
            Some(entries) => (entries.to_string(), fill(entries, map.capacity)),
            None => ("-".to_owned(), "-".to_owned()),
        };
        vec![map.name.clone(), entries, map.capacity.to_string(), fill]
    });
    table(out, "maps", &["NAME", "ENTRIES", "CAPACITY", "FILL"], rows);
}

/// Rounded up: what is not empty does not look empty.
fn fill(entries: usize, capacity: u32) -> String {
    format!("{}%", (entries * 100).div_ceil(capacity.max(1) as usize))
}

fn drops(out: &mut String, kernel: &Live, agent: Option<&Report>) {
    let pod = |index: u32| {
        let mut known = agent.into_iter().flat_map(|agent| &agent.pods);
        let known = known.find(|pod| pod.index == index);
        known.map_or_else(|| "-".to_owned(), |pod| pod.name.clone())
    };
    let rows = kernel.drops.iter().map(|drop| {
        vec![
            pod(drop.pod),
            drop.hook.map_or("-", Hook::program).to_owned(),
            drop.reason.clone(),
            drop.packets.to_string(),
            drop.bytes.to_string(),
        ]
    });
    table(out, "drops", &["POD", "HOOK", "REASON", "PACKETS", "BYTES"], rows);
    let refused = kernel.refused.iter();
    let rows = refused.map(|refused| vec![pod(refused.pod), refused.openings.to_string()]);
    table(
        out,
        "unanswered flows beyond a pod's quota",
        &["POD", "FLOWS"],
        rows,
    );
}

fn ruleset(id: u32) -> String {
    match id {
        0 => "-".to_owned(),
        id => format!("{id:#x}"),
    }
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
    fn who_waits_is_beside_what_is_in_force() {
        let waits = "waiting:  1.0.0 on node n1, as process 7 for 9 s, source https://10.96.0.1\n\
                     waits for 8 s: may not list pods\n";
        let mut status = Status {
            agent: None,
            waiting: vec![Waiting::example()],
            kernel: None,
        };
        assert_eq!(
            text(&status, 10),
            format!("kernel:   nothing is pinned: nothing is enforced\n{waits}")
        );
        status.kernel = Some(Live::default());
        status.agent = Some(Report::example());
        let both = text(&status, 10);
        assert!(
            both.contains("not running; what is attached stays in force"),
            "{both}"
        );
        assert!(both.contains(waits), "{both}");
        assert!(both.contains("prod/db"), "{both}");
    }

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
