use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use netpol_common::tables::{CELL_ALL, CLASS_ANY, Cell, CellKey, RULESET_HAS_ANY, Range};

use super::{properties::follow, *};
use crate::{
    build::{from_to, ip, matching, name, pod, pods, policy},
    compile::Compiler,
    model::Event,
    tables::PodRules,
};

/// A cell that allows one TCP port: enough to tell cells apart.
pub(crate) fn cell(port: u16) -> Cell {
    let range = Range {
        lo: port,
        hi: port,
        proto: 6,
    };
    Cell {
        ranges: [range, Range::UNUSED, Range::UNUSED],
        ..Cell::default()
    }
}

fn cells(entries: &[(u32, u32, u16)]) -> BTreeMap<CellKey, Cell> {
    let entry = |&(ruleset, class, port): &(u32, u32, u16)| (CellKey { ruleset, class }, cell(port));
    entries.iter().map(entry).collect()
}

pub(crate) fn local(rulesets: &[(&str, u32, u32)]) -> BTreeMap<crate::model::ObjectName, PodRules> {
    let entry = |&(pod, ingress, egress): &(&str, u32, u32)| (name(pod), PodRules { ingress, egress });
    rulesets.iter().map(entry).collect()
}

pub(crate) fn hosts(entries: &[(u8, u32)]) -> BTreeMap<Ipv4Addr, u32> {
    entries
        .iter()
        .map(|&(last, class)| (Ipv4Addr::new(10, 0, 0, last), class))
        .collect()
}

fn whole(old: &Tables, new: &Tables) -> Plan {
    plan(old, new, Scope::Everything, &mut IdSource::new(100))
}

fn follow_whole(old: &Tables, new: &Tables, addresses: &[&str]) {
    let addresses: Vec<IpAddr> = addresses.iter().map(|text| ip(text)).collect();
    follow(&whole(old, new), old, new, &addresses, usize::MAX);
}

#[test]
fn isolation_begins_in_exactly_this_order() {
    let old = Tables {
        pods: local(&[("default/db", 0, 0)]),
        ..Tables::default()
    };
    let new = Tables {
        hosts4: hosts(&[(2, 8)]),
        cells: cells(&[(7, 8, 5432)]),
        pods: local(&[("default/db", 7, 0)]),
        ..Tables::default()
    };
    let recording = CellKey {
        ruleset: 100 | RULESET_HAS_ANY,
        class: CLASS_ANY,
    };
    let everything = Cell {
        flags: CELL_ALL,
        ..Cell::default()
    };
    let db = name("default/db");
    let rules = |ingress| PodRules { ingress, egress: 0 };
    let expected = [
        Step::PutCells(vec![
            (CellKey { ruleset: 7, class: 8 }, cell(5432)),
            (recording, everything),
        ]),
        Step::Flags(flags(&new)),
        Step::PutPods(vec![(db.clone(), rules(recording.ruleset))]),
        Step::Grace,
        Step::Adopt(vec![Adoption {
            pod: db.clone(),
            ingress: true,
            egress: false,
        }]),
        Step::PutHosts(vec![(ip("10.0.0.2"), 8)]),
        Step::Grace,
        Step::PutPods(vec![(db, rules(7))]),
        Step::Epoch,
        Step::Grace,
        Step::RemoveCells(vec![recording]),
        Step::Flags(flags(&new)),
    ];
    assert_eq!(whole(&old, &new).steps, expected);
}

#[test]
fn a_born_pod_is_isolated_from_its_first_packet() {
    let new = Tables {
        cells: cells(&[(7, 8, 5432)]),
        hosts4: hosts(&[(2, 8)]),
        pods: local(&[("default/db", 7, 0)]),
        ..Tables::default()
    };
    let plan = whole(&Tables::default(), &new);
    let pods: Vec<_> = plan
        .steps
        .iter()
        .filter(|step| matches!(step, Step::PutPods(_)))
        .collect();
    assert_eq!(pods, [&Step::PutPods(new.pods.clone().into_iter().collect())]);
}

#[test]
fn a_new_prefix_is_there_before_what_is_around_it_changes() {
    let net = |text: &str| text.parse().expect("a prefix");
    let pods = local(&[("default/db", 7, 0)]);
    let cells = cells(&[(7, 1, 1), (7, 2, 2), (7, 3, 3)]);
    let old = Tables {
        nets4: BTreeMap::from([(net("10.0.0.0/8"), 1)]),
        cells: cells.clone(),
        pods: pods.clone(),
        ..Tables::default()
    };
    let new = Tables {
        nets4: BTreeMap::from([(net("10.0.0.0/8"), 2), (net("10.0.0.0/24"), 3)]),
        cells,
        pods,
        ..Tables::default()
    };
    let probes = ["10.0.0.1", "10.1.0.1", "11.0.0.1"];
    follow_whole(&old, &new, &probes);
    follow_whole(&new, &old, &probes);
}

#[test]
fn who_missed_a_new_address_finds_what_was_around_it() {
    let net = |text: &str| text.parse().expect("a prefix");
    let pods = local(&[("default/db", 7, 0)]);
    let cells = cells(&[(7, 1, 1), (7, 2, 2), (7, 3, 3)]);
    let old = Tables {
        nets4: BTreeMap::from([(net("10.0.0.0/8"), 1)]),
        cells: cells.clone(),
        pods: pods.clone(),
        ..Tables::default()
    };
    let new = Tables {
        hosts4: hosts(&[(1, 3)]),
        nets4: BTreeMap::from([(net("10.0.0.0/8"), 2)]),
        cells,
        pods,
        ..Tables::default()
    };
    follow_whole(&old, &new, &["10.0.0.1", "10.1.0.1"]);
    follow_whole(&new, &old, &["10.0.0.1", "10.1.0.1"]);
}

/// Two pods change places between two rulesets that go on, and so do their peers between two classes.
#[test]
fn pods_that_swap_rulesets_while_their_peers_swap_classes() {
    let mut compiler = Compiler::new("node-1".into(), 1);
    let of = |pod_name, label, address| Event::Pod(pod(pod_name, label, &[address]));
    let remote = |pod_name, label, address| {
        let mut remote = pod(pod_name, label, &[address]);
        remote.node = None;
        Event::Pod(remote)
    };
    let allow = |policy_name, to, from| {
        let rules = vec![from_to([pods(matching(from))])];
        Event::Policy(policy(policy_name, matching(to), Some(rules), None))
    };
    compiler.apply_all([
        allow("d/a", "app=a", "app=x"),
        allow("d/b", "app=b", "app=y"),
        of("d/p", "app=a", "10.0.0.1"),
        of("d/q", "app=b", "10.0.0.2"),
        remote("d/x", "app=x", "10.0.0.3"),
        remote("d/y", "app=y", "10.0.0.4"),
    ]);
    let old = compiler.tables().clone();
    compiler.apply_all([
        of("d/p", "app=b", "10.0.0.1"),
        of("d/q", "app=a", "10.0.0.2"),
        remote("d/x", "app=y", "10.0.0.3"),
        remote("d/y", "app=x", "10.0.0.4"),
    ]);
    let probes = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"];
    follow_whole(&old, compiler.tables(), &probes);
}

#[test]
fn a_full_table_is_named_with_what_it_needs() {
    let new = Tables {
        cells: cells(&[(7, 1, 1), (7, 2, 2)]),
        ..Tables::default()
    };
    let plan = whole(&Tables::default(), &new);
    let limit = |cells| Sizes::new(|map| if map == Map::Cells { cells } else { 10 });
    assert_eq!(plan.fits(&limit(2)), Ok(()));
    let full = MapFull {
        map: Map::Cells,
        need: 2,
        limit: 1,
        largest: Vec::new(),
    };
    assert_eq!(plan.fits(&limit(1)), Err(full));
}
