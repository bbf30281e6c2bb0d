//! What the agents measured themselves, by their `/metrics`.

use std::{collections::BTreeMap, fmt};

use anyhow::{Result, ensure};

use crate::cluster::{Cluster, SYSTEM};

/// The buckets of all histograms of all agents, added up: how many were at most so many seconds.
#[derive(Debug, Default)]
pub(crate) struct Metrics(BTreeMap<String, Vec<(f64, f64)>>);

/// Reads the metrics of every agent, through the API server.
///
/// # Errors
/// An agent does not answer.
pub(crate) fn read(cluster: &Cluster) -> Result<Metrics> {
    let mut metrics = Metrics::default();
    for agent in cluster.agents()? {
        let name = agent["metadata"]["name"].as_str().unwrap_or_default();
        let path = format!("/api/v1/namespaces/{SYSTEM}/pods/{name}:9478/proxy/metrics");
        metrics.add(&cluster.kubectl.run(&["get", "--raw", &path])?);
    }
    Ok(metrics)
}

impl Metrics {
    fn add(&mut self, text: &str) {
        for line in text.lines() {
            let Some((name, rest)) = line.split_once("_bucket{le=\"") else {
                continue;
            };
            let Some((bound, count)) = rest.split_once("\"}") else {
                continue;
            };
            let bound = if bound == "+Inf" {
                Ok(f64::INFINITY)
            } else {
                bound.parse()
            };
            let count = count.split_whitespace().next().unwrap_or_default().parse();
            let (Ok(bound), Ok(count)) = (bound, count) else {
                continue;
            };
            let buckets = self.0.entry(name.to_owned()).or_default();
            match buckets.iter_mut().find(|(known, _)| *known == bound) {
                Some((_, sum)) => *sum += count,
                None => buckets.push((bound, count)),
            }
        }
    }

    /// What was measured after `before`.
    ///
    /// # Errors
    /// Nothing was.
    pub(crate) fn since(&self, before: &Self, name: &str) -> Result<Spread> {
        let buckets = self.0.get(name).cloned().unwrap_or_default();
        let earlier = |bound: f64| {
            let found = before
                .0
                .get(name)
                .into_iter()
                .flatten()
                .find(|(known, _)| *known == bound);
            found.map_or(0.0, |(_, count)| *count)
        };
        let own: Vec<(f64, f64)> = buckets
            .iter()
            .map(|(bound, count)| (*bound, count - earlier(*bound)))
            .collect();
        let count = own.iter().map(|(_, count)| *count).fold(0.0, f64::max);
        ensure!(count > 0.0, "no agent measured {name}");
        Ok(Spread { buckets: own, count })
    }
}

/// A histogram of durations.
#[derive(Debug)]
pub(crate) struct Spread {
    buckets: Vec<(f64, f64)>,
    count: f64,
}

impl Spread {
    /// Between the bounds of the bucket in which the share lies, in proportion.
    fn quantile(&self, share: f64) -> f64 {
        let mut buckets = self.buckets.clone();
        buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
        let (mut low, mut below) = (0.0, 0.0);
        for (bound, count) in buckets {
            if count >= share * self.count {
                let part = (share * self.count - below) / (count - below);
                return if bound.is_finite() {
                    low + (bound - low) * part
                } else {
                    f64::INFINITY
                };
            }
            (low, below) = (bound, count);
        }
        f64::INFINITY
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (median, p99) = (self.quantile(0.5) * 1000.0, self.quantile(0.99) * 1000.0);
        write!(f, "median {median:.1} ms, p99 {p99:.1} ms of {}", self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_of_agents_add_up_and_earlier_ones_do_not_count() {
        let text = "x_seconds_bucket{le=\"0.01\"} 50\nx_seconds_bucket{le=\"0.1\"} 100\nx_seconds_bucket{le=\"+Inf\"} 100\n";
        let (mut before, mut after) = (Metrics::default(), Metrics::default());
        before.add(text);
        (0..3).for_each(|_| after.add(text));
        let spread = after.since(&before, "x_seconds").expect("it was measured");
        assert_eq!(spread.to_string(), "median 10.0 ms, p99 98.2 ms of 200");
        assert!(before.since(&before, "x_seconds").is_err());
    }
}
