//! What the programs of a node have dropped, and why.

use std::collections::BTreeMap;

use serde_json::Value as Json;

/// Packets by the pod whose rules decided (`-`: none) and the reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drops(BTreeMap<(String, String), u64>);

impl Drops {
    /// From `status -o json`.
    pub(super) fn read(status: &Json) -> Self {
        let list = |value: &Json| value.as_array().cloned().unwrap_or_default();
        let names: BTreeMap<u64, String> = list(&status["agent"]["pods"])
            .iter()
            .filter_map(|pod| Some((pod["index"].as_u64()?, pod["name"].as_str()?.to_owned())))
            .collect();
        let mut drops = BTreeMap::new();
        for drop in list(&status["kernel"]["drops"]) {
            let pod = drop["pod"].as_u64().and_then(|index| names.get(&index));
            let key = (
                pod.map_or("-", String::as_str).to_owned(),
                drop["reason"].as_str().unwrap_or_default().to_owned(),
            );
            *drops.entry(key).or_default() += drop["packets"].as_u64().unwrap_or_default();
        }
        Self(drops)
    }

    /// Those of `pod` for `reason`.
    #[must_use]
    pub fn of(&self, pod: &str, reason: &str) -> u64 {
        self.0
            .get(&(pod.to_owned(), reason.to_owned()))
            .copied()
            .unwrap_or(0)
    }

    /// All for `reason`.
    #[must_use]
    pub fn all(&self, reason: &str) -> u64 {
        self.0
            .iter()
            .filter(|((_, found), _)| found == reason)
            .map(|(_, packets)| packets)
            .sum()
    }

    /// What came since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let more = self.0.iter().filter_map(|(key, packets)| {
            let more = packets - earlier.0.get(key).copied().unwrap_or(0);
            (more > 0).then(|| (key.clone(), more))
        });
        Self(more.collect())
    }

    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Whether nothing was dropped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
