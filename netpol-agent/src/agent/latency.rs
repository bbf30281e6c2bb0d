//! How long it takes until the kernel knows, as histograms that are scraped.

use std::{collections::BTreeMap, time::Duration};

use prometheus_client::metrics::histogram::Histogram;
use tokio::time::Instant;

use crate::datapath::Guard;

/// From a millisecond to half a minute.
const BUCKETS: [f64; 15] = [
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

/// The histograms; clones share them.
#[derive(Clone, Debug)]
pub struct Latency {
    /// From a change at the source to the kernel, for changes that concern this node.
    pub events: Histogram,
    /// From the announcement of a pod's veth to programs on it: from then on nothing passes that no rule has allowed.
    pub guarded: Histogram,
    /// From the announcement of a pod's veth to its pod's rules in force on it.
    pub enforced: Histogram,
}

impl Default for Latency {
    fn default() -> Self {
        let histogram = || Histogram::new(BUCKETS);
        Self {
            events: histogram(),
            guarded: histogram(),
            enforced: histogram(),
        }
    }
}

/// Devices that have come and are not yet what they will be.
#[derive(Debug, Default)]
pub(super) struct Births(BTreeMap<u32, (Instant, Guard)>);

impl Births {
    /// Devices that are there when the agent starts were not announced.
    pub(super) fn ignore(&mut self, devices: impl Iterator<Item = (u32, Guard)>) {
        self.0 = devices
            .map(|(index, _)| (index, (Instant::now(), Guard::Pod)))
            .collect();
    }

    /// Takes note of what is in force `now`; devices not seen before were announced at `announced`.
    pub(super) fn note(
        &mut self,
        devices: impl Iterator<Item = (u32, Guard)>,
        announced: Instant,
        now: Instant,
        latency: &Latency,
    ) {
        let mut alive = BTreeMap::new();
        for (index, guard) in devices {
            let (since, before) = self.0.get(&index).copied().unwrap_or((announced, Guard::None));
            let took = |since: Instant| now.saturating_duration_since(since).as_secs_f64();
            if before == Guard::None && guard != Guard::None {
                latency.guarded.observe(took(since));
            }
            if before < Guard::Pod && guard == Guard::Pod {
                latency.enforced.observe(took(since));
                tracing::debug!(device = index, took = ?Duration::from_secs_f64(took(since)), "a new pod's rules are in force");
            }
            alive.insert(index, (since, guard.max(before)));
        }
        self.0 = alive;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::{encoding::text::encode, registry::Registry};

    #[test]
    fn each_step_of_a_birth_is_counted_once() {
        let (latency, mut births) = (Latency::default(), Births::default());
        births.ignore([(1, Guard::Unknown)].into_iter());
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut note = |guard, ms| {
            births.note([(1, Guard::Pod), (2, guard)].into_iter(), at(0), at(ms), &latency);
        };
        note(Guard::None, 1);
        note(Guard::Unknown, 4);
        note(Guard::Unknown, 6);
        note(Guard::Pod, 15);
        // A moment without its binding is no second birth.
        note(Guard::Unknown, 20);
        note(Guard::Pod, 30);
        let mut registry = Registry::default();
        registry.register("guarded", "g", latency.guarded.clone());
        registry.register("enforced", "e", latency.enforced.clone());
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let sums: Vec<&str> = text
            .lines()
            .filter(|line| line.contains("_sum") || line.contains("_count"))
            .collect();
        assert_eq!(
            sums,
            [
                "guarded_sum 0.004",
                "guarded_count 1",
                "enforced_sum 0.015",
                "enforced_count 1"
            ]
        );
    }
}
