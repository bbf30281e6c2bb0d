//! One measured figure.

use serde::Serialize;

/// A figure: what, under which conditions, how much, and how much it may be.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    /// `packets`, `compile` or `edits`.
    pub(crate) part: &'static str,
    /// What was done.
    pub(crate) what: String,
    /// At which size.
    pub(crate) at: String,
    /// `ns`, `ms` or `MB`.
    pub(crate) unit: &'static str,
    /// The best of all rounds.
    pub(crate) min: f64,
    /// The median of all rounds.
    pub(crate) median: f64,
    /// The most that `median` may be; `null` where nothing is asked.
    pub(crate) goal: Option<f64>,
}

/// Minimum and median.
pub(crate) fn spread(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[0], values[values.len() / 2])
}
