use netpol_common::tables::{CELL_ALL, CellKey, PortsKey};

use super::*;
use crate::plan::tests::{self, hosts, local};

fn nets<const N: usize>(entries: [(&str, u32); N]) -> BTreeMap<ipnet::Ipv4Net, u32> {
    let entry = |(net, class): (&str, u32)| (net.parse().expect("a prefix"), class);
    entries.into_iter().map(entry).collect()
}

/// Allows one TCP port, or (from 1000 up) refers to that port set.
fn cell(what: u32) -> Cell {
    if what >= 1000 {
        return Cell {
            ports: what,
            ..Cell::default()
        };
    }
    tests::cell(u16::try_from(what).expect("below 1000"))
}

fn cells(entries: &[(u32, u32, u32)]) -> BTreeMap<CellKey, Cell> {
    let entry = |&(ruleset, class, what): &(u32, u32, u32)| (CellKey { ruleset, class }, cell(what));
    entries.iter().map(entry).collect()
}

/// Of each set, for each chunk, one word.
fn ports(entries: &[(u32, u16, u64)]) -> BTreeMap<PortsKey, PortsChunk> {
    let entry = |&(set, chunk, word): &(u32, u16, u64)| {
        let mut words = [0; 8];
        words[0] = word;
        (PortsKey { set, chunk, proto: 6 }, PortsChunk { words })
    };
    entries.iter().map(entry).collect()
}

#[track_caller]
fn assert_matches(
    [actual, desired]: [&Tables; 2],
    classes: &[(u32, u32)],
    rulesets: &[(u32, u32)],
    ports: &[(u32, u32)],
) {
    let expected = Matches {
        classes: classes.iter().copied().collect(),
        rulesets: rulesets.iter().copied().collect(),
        ports: ports.iter().copied().collect(),
    };
    assert_eq!(Matches::new(actual, desired), expected);
}

const ANY: u32 = RULESET_HAS_ANY;

#[test]
fn a_class_is_the_entries_that_lead_to_it() {
    let actual = Tables {
        hosts4: hosts(&[(1, 1), (2, 2), (3, 2), (4, 3), (5, 4), (6, 4)]),
        ..Tables::default()
    };
    // 12 has lost an address, 13 has gained one, 14 and 15 were one class.
    let desired = Tables {
        hosts4: hosts(&[(1, 11), (2, 12), (4, 13), (7, 13), (5, 14), (6, 15)]),
        ..Tables::default()
    };
    assert_matches([&actual, &desired], &[(11, 1)], &[], &[]);
}

#[test]
fn a_prefix_is_what_the_prefixes_of_other_classes_leave_of_it() {
    let around = |inner: &str, class, other| Tables {
        nets4: nets([("10.0.0.0/8", class), ("10.1.0.0/16", class), (inner, other)]),
        ..Tables::default()
    };
    let actual = around("10.1.2.0/24", 1, 2);
    assert_matches(
        [&actual, &around("10.1.2.0/24", 11, 12)],
        &[(11, 1), (12, 2)],
        &[],
        &[],
    );
    assert_matches([&actual, &around("10.2.2.0/24", 11, 12)], &[], &[], &[]);
    // Nobody's class is nobody's, but cuts a hole.
    assert_matches([&actual, &around("10.1.2.0/24", 11, 0)], &[(11, 1)], &[], &[]);
    let hole = around("10.1.2.0/24", 1, 0);
    assert_matches([&hole, &around("10.1.2.0/24", 11, 0)], &[(11, 1)], &[], &[]);
    let whole = Tables {
        nets4: nets([("10.0.0.0/8", 11), ("10.1.0.0/16", 11)]),
        ..Tables::default()
    };
    assert_matches([&hole, &whole], &[], &[], &[]);
}

#[test]
fn a_port_set_is_all_its_chunks() {
    let actual = Tables {
        ports: ports(&[
            (1001, 0, 5),
            (1001, 1, 6),
            (1002, 0, 7),
            (1003, 0, 7),
            (1004, 0, 8),
        ]),
        ..Tables::default()
    };
    let desired = Tables {
        ports: ports(&[
            (2001, 0, 5),
            (2001, 1, 6),
            (2002, 0, 7),
            (2003, 0, 5),
            (2004, 0, 8),
            (2004, 1, 8),
        ]),
        ..Tables::default()
    };
    assert_matches([&actual, &desired], &[], &[], &[(2001, 1001), (2002, 1002)]);
}

#[test]
fn a_ruleset_is_all_its_cells() {
    let hosts4 = [hosts(&[(1, 1), (2, 2)]), hosts(&[(1, 12), (2, 11)])];
    let [old_hosts, new_hosts] = hosts4;
    let actual = Tables {
        hosts4: old_hosts,
        cells: cells(&[
            (100, 1, 80),
            (100, 2, 1001),
            (101 | ANY, 1, 80),
            (101 | ANY, CLASS_ANY, 81),
            (102, 1, 80),
            (103, 1, 80),
            (103, 2, 82),
            (104, 2, 1009),
        ]),
        ports: ports(&[(1001, 0, 5), (1009, 0, 9)]),
        ..Tables::default()
    };
    let desired = Tables {
        hosts4: new_hosts,
        cells: cells(&[
            // As 100, in the other order of classes.
            (200, 11, 2001),
            (200, 12, 80),
            // As 101 but for another default.
            (201 | ANY, 12, 80),
            (201 | ANY, CLASS_ANY, 82),
            // As 102.
            (202, 12, 80),
            // As 103 and one more; as 103 without one.
            (203, 11, 82),
            (203, 12, 80),
            (203, 13, 80),
            (204, 11, 82),
            // As 104, with other ports behind the set's id.
            (205, 11, 2002),
        ]),
        ports: ports(&[(2001, 0, 5), (2002, 0, 10)]),
        ..Tables::default()
    };
    assert_matches(
        [&actual, &desired],
        &[(11, 2), (12, 1)],
        &[(200, 100), (202, 102)],
        &[(2001, 1001)],
    );
}

/// What an agent has left that was killed while it wrote cells: the id says that there is a default, and there is none.
#[test]
fn a_ruleset_without_the_default_that_it_says_is_no_match() {
    let hosts4 = hosts(&[(1, 1)]);
    let actual = Tables {
        hosts4: hosts4.clone(),
        cells: cells(&[(100 | ANY, 1, 80)]),
        ..Tables::default()
    };
    let desired = Tables {
        hosts4: hosts(&[(1, 11)]),
        cells: cells(&[(200, 11, 80)]),
        ..Tables::default()
    };
    assert_matches([&actual, &desired], &[(11, 1)], &[], &[]);
}

#[test]
fn of_equal_rulesets_a_pod_keeps_its_own() {
    let everything = |ruleset| {
        let key = CellKey {
            ruleset,
            class: CLASS_ANY,
        };
        let all = Cell {
            flags: CELL_ALL,
            ..Cell::default()
        };
        (key, all)
    };
    let actual = Tables {
        cells: BTreeMap::from([everything(103 | ANY)]),
        // Nothing, three times.
        pods: local(&[("a/p", 100, 0), ("a/q", 101, 103 | ANY), ("a/gone", 102, 0)]),
        ..Tables::default()
    };
    let desired = Tables {
        cells: BTreeMap::from([everything(203 | ANY)]),
        pods: local(&[
            ("a/new", 200, 203 | ANY),
            ("a/p", 202, 0),
            ("a/q", 201, 0),
            ("a/r", 204, 0),
        ]),
        ..Tables::default()
    };
    let rulesets = [(202, 100), (201, 101), (200, 102), (203 | ANY, 103 | ANY)];
    assert_matches([&actual, &desired], &[], &rulesets, &[]);
}
