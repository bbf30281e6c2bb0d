//! The grace for mid-stream TCP (see [`super::apply`]) is for connections that were there before their pod was
//! isolated. What an edit takes away afterwards must end at its next packet, so the edit ends the grace.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use netpol_common::tables::{Cell, CellKey};
use netpol_policy::{
    model::ObjectName,
    plan::{Plan, Step},
    tables::{PodRules, Tables},
};

/// Those of `graced` whose rules, or whose peers, `plan` changes. `actual`: the tables before it.
#[must_use]
pub(super) fn ends(graced: &BTreeSet<ObjectName>, plan: &Plan, actual: &Tables) -> BTreeSet<ObjectName> {
    if graced.is_empty() {
        return BTreeSet::new();
    }
    let (mut edited, mut moves, mut cells) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
    for step in &plan.steps {
        match step {
            Step::PutPods(list) => edited.extend(list.iter().map(|(name, _)| name)),
            Step::PutCells(list) => cells.extend(list.iter().map(|(key, cell)| (*key, cell))),
            Step::PutHosts(list) => {
                let known = list
                    .iter()
                    .filter_map(|(address, class)| Some((exact(actual, *address)?, *class)));
                moves.extend(known);
            }
            _ => {}
        }
    }
    let cell = |ruleset, class| -> Option<&Cell> {
        let key = CellKey { ruleset, class };
        cells.get(&key).copied().or_else(|| actual.cells.get(&key))
    };
    let differs = |ruleset| {
        moves
            .iter()
            .any(|(old, new)| cell(ruleset, *old) != cell(ruleset, *new))
    };
    let affected = |name: &&ObjectName| {
        let PodRules { ingress, egress } = actual.pods.get(*name).copied().unwrap_or_default();
        edited.contains(*name) || differs(ingress) || differs(egress)
    };
    graced.iter().filter(affected).cloned().collect()
}

fn exact(tables: &Tables, address: IpAddr) -> Option<u32> {
    match address {
        IpAddr::V4(address) => tables.hosts4.get(&address).copied(),
        IpAddr::V6(address) => tables.hosts6.get(&address).copied(),
    }
}

#[cfg(test)]
mod tests {
    use netpol_common::tables::CELL_ALL;

    use super::*;

    fn pod(name: &str) -> ObjectName {
        ObjectName::new("t", name)
    }

    fn everything() -> Cell {
        Cell {
            flags: CELL_ALL,
            ..Cell::default()
        }
    }

    fn rules(ingress: u32) -> PodRules {
        PodRules { ingress, egress: 0 }
    }

    /// The pods `a` (ruleset 1) and `b` (ruleset 2) have their grace; ruleset 1 allows class 3, which 10.0.0.1 has.
    fn ended(steps: Vec<Step>) -> Vec<String> {
        let actual = Tables {
            hosts4: [([10, 0, 0, 1].into(), 3)].into(),
            cells: [(CellKey { ruleset: 1, class: 3 }, everything())].into(),
            pods: [(pod("a"), rules(1)), (pod("b"), rules(2)), (pod("c"), rules(1))].into(),
            ..Tables::default()
        };
        let plan = Plan {
            steps,
            ..Plan::default()
        };
        let graced = [pod("a"), pod("b")].into();
        ends(&graced, &plan, &actual)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn only_an_edit_of_the_pods_own_rules_or_peers_ends_it() {
        let host = |last, class| Step::PutHosts(vec![(IpAddr::from([10, 0, 0, last]), class)]);
        assert_eq!(
            ended(vec![Step::PutPods(vec![(pod("b"), rules(7))]), Step::Epoch]),
            ["t/b"]
        );
        assert_eq!(
            ended(vec![Step::PutPods(vec![(pod("c"), rules(7))])]),
            [""; 0],
            "another pod"
        );
        assert_eq!(
            ended(vec![host(1, 4)]),
            ["t/a"],
            "a peer of ruleset 1 is none any more"
        );
        let same = Step::PutCells(vec![(CellKey { ruleset: 1, class: 4 }, everything())]);
        assert_eq!(ended(vec![same, host(1, 4)]), [""; 0], "it is still a peer");
        assert_eq!(ended(vec![host(2, 3)]), [""; 0], "a new pod");
    }
}
