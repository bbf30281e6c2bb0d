//! Which ends of a matrix are shown as one: the replicas of a workload that nothing tells apart.

use std::collections::BTreeMap;

use netpol_policy::model::Pod;

use super::{
    Found, Kind,
    matrix::{Matrix, Outcome},
};

/// One row and column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The namespace, `nodes` or `outside`.
    pub heading: String,
    /// The pod's name, or the workload's where there are several.
    pub name: String,
    /// Places among the matrix' ends; never empty.
    pub members: Vec<usize>,
}

/// Labels that differ between replicas of one workload.
const PER_REPLICA: [&str; 7] = [
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-completion-index",
    "controller-revision-hash",
    "controller-uid",
    "pod-template-hash",
    "statefulset.kubernetes.io/pod-name",
];

/// Groups `ends`, in their order. Pods are one group if they have namespace, labels and the stem of their
/// names in common, and exchanging them changes no cell.
#[must_use]
pub fn groups(matrix: &Matrix<'_>, ends: &[Found<'_>]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut candidates: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (this, end) in ends.iter().enumerate() {
        let Some(pod) = pod_of(end) else {
            groups.push(Group {
                heading: heading(end).into(),
                name: end.label.clone(),
                members: vec![this],
            });
            continue;
        };
        let labels: Vec<_> = pod
            .labels
            .iter()
            .filter(|(key, _)| !PER_REPLICA.contains(key))
            .collect();
        let alike = candidates
            .entry((&pod.name.namespace, stem(pod), labels))
            .or_default();
        if let Some(&group) = alike
            .iter()
            .find(|&&group| twins(matrix, groups[group].members[0], this))
        {
            groups[group].members.push(this);
            continue;
        }
        alike.push(groups.len());
        groups.push(Group {
            heading: pod.name.namespace.to_string(),
            name: pod.name.name.to_string(),
            members: vec![this],
        });
    }
    for ((_, stem, _), alike) in &candidates {
        // Two groups of one workload keep the names of their first pods, to be told apart.
        if let [group] = alike[..]
            && groups[group].members.len() > 1
        {
            groups[group].name = (*stem).to_owned();
        }
    }
    groups
}

/// Whether exchanging two ends changes nothing.
fn twins(matrix: &Matrix<'_>, a: usize, b: usize) -> bool {
    // Two questions that do not apply differ in words only.
    let same = |[from, to]: [usize; 2], [from2, to2]: [usize; 2]| {
        let unasked = |from, to| matches!(matrix.outcome(from, to), Outcome::NotApplicable(_));
        matrix.id(from, to) == matrix.id(from2, to2) || (unasked(from, to) && unasked(from2, to2))
    };
    let others = (0..matrix.size()).filter(|&other| other != a && other != b);
    same([a, b], [b, a])
        && same([a, a], [b, b])
        && others
            .into_iter()
            .all(|other| same([a, other], [b, other]) && same([other, a], [other, b]))
}

fn pod_of<'a>(end: &Found<'a>) -> Option<&'a Pod> {
    let at = end.at.first()?;
    Some(at.subjects.first()?.pod)
}

fn heading(end: &Found<'_>) -> &'static str {
    match end.at.first().map(|at| at.kind) {
        Some(Kind::Node) => "nodes",
        _ => "outside",
    }
}

/// The name that the pod's controller has: without the hash or the ordinal that it appends.
fn stem(pod: &Pod) -> &str {
    let name = &*pod.name.name;
    if let Some(hash) = pod.labels.get("pod-template-hash")
        && let Some(at) = name.rfind(&format!("-{hash}-")).filter(|&at| at > 0)
    {
        return &name[..at];
    }
    // One random or ordinal part (DaemonSet, Job, StatefulSet).
    let controlled = [
        "controller-revision-hash",
        "controller-uid",
        "batch.kubernetes.io/controller-uid",
    ];
    if controlled.iter().any(|label| pod.labels.get(label).is_some())
        && let Some(at) = name.rfind('-').filter(|&at| at > 0)
    {
        return &name[..at];
    }
    let stem = name
        .trim_end_matches(|c: char| c.is_ascii_digit())
        .trim_end_matches('-');
    if stem.is_empty() || !name.ends_with(|c: char| c.is_ascii_digit()) {
        name
    } else {
        stem
    }
}
