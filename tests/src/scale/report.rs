//! Figures and how they are printed.

use std::{fmt::Write as _, fs, time::Duration};

use serde::Serialize;

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
    /// What it should not exceed.
    pub goal: Option<f64>,
    /// The machine's load average of the last minute at that time: what else ran.
    pub load: f64,
}

impl Row {
    fn is_met(&self) -> Option<bool> {
        self.goal.map(|goal| self.value <= goal)
    }
}

/// All figures of a run.
#[derive(Clone, Debug, Default)]
pub struct Report(Vec<Row>);

impl Report {
    /// Takes a figure down, and tells it.
    pub(super) fn put(&mut self, what: impl Into<String>, value: f64, unit: &'static str, goal: Option<f64>) {
        let row = Row {
            what: what.into(),
            value,
            unit,
            goal,
            load: load(),
        };
        eprintln!("  {} {} {}", row.what, number(row.value), row.unit);
        self.0.push(row);
    }

    /// The median and 99 of 100.
    pub(super) fn put_latencies(&mut self, what: &str, mut took: Vec<Duration>) {
        took.sort();
        let at = |part: f64| {
            let index = ((took.len() as f64 * part).ceil() as usize).clamp(1, took.len().max(1)) - 1;
            took.get(index).map_or(0.0, |took| took.as_secs_f64() * 1e3)
        };
        self.put(
            format!("{what}, median of {}", took.len()),
            at(0.5),
            "ms",
            Some(100.0),
        );
        self.put(format!("{what}, 99 of 100"), at(0.99), "ms", Some(300.0));
        self.put(format!("{what}, longest"), at(1.0), "ms", None);
    }

    /// Whether all goals are met.
    #[must_use]
    pub fn is_met(&self) -> bool {
        self.0.iter().all(|row| row.is_met() != Some(false))
    }

    /// A table for docs/performance.md.
    #[must_use]
    pub fn table(&self) -> String {
        let mut lines = vec![["", "figure", "goal", "", "load"].map(str::to_owned)];
        lines.extend(self.0.iter().map(|row| {
            [
                row.what.clone(),
                format!("{} {}", number(row.value), row.unit),
                row.goal
                    .map_or_else(String::new, |goal| format!("≤ {} {}", number(goal), row.unit)),
                row.is_met()
                    .map_or("", |met| if met { "met" } else { "missed" })
                    .to_owned(),
                format!("{:.1}", row.load),
            ]
        }));
        let mut text = String::new();
        for (at, line) in lines.iter().enumerate() {
            let _ = writeln!(text, "| {} |", line.join(" | "));
            if at == 0 {
                text += "|---|---|---|---|---|\n";
            }
        }
        text
    }

    /// Every figure.
    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.0
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// `/proc/loadavg`; 0 where it can not be read.
pub(super) fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let first = text.split_whitespace().next();
    first.and_then(|word| word.parse().ok()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_met_or_missed() {
        let mut report = Report::default();
        report.put_latencies("flip", (1..=200).map(Duration::from_millis).collect());
        let values: Vec<f64> = report.rows().iter().map(|row| row.value).collect();
        assert_eq!(values, [100.0, 198.0, 200.0]);
        assert!(report.is_met());
        report.put("memory", 151.0, "MiB", Some(150.0));
        assert!(!report.is_met());
        assert!(
            report
                .table()
                .contains("| memory | 151 MiB | ≤ 150 MiB | missed |"),
            "{}",
            report.table()
        );
    }

    #[test]
    fn nothing_measured_is_no_panic() {
        let mut report = Report::default();
        report.put_latencies("flip", Vec::new());
        assert_eq!(report.rows().len(), 3);
    }
}
