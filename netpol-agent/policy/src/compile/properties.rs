//! For every flow the tables say what the oracle says, and an edited compiler has what a new one would have.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use netpol_common::tables::{CLASS_ANY, Cell, CellKey, PortsChunk, PortsKey};
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    generate::{self, LOCAL_NODE, Readable, Shape},
    model::{Direction, ObjectName, Snapshot},
    oracle::{End, Flow, Oracle, Side},
};

/// Tables without ids: rulesets named by a pod, classes by an address or prefix.
#[derive(Debug, PartialEq)]
pub(super) struct Canonical {
    regions: BTreeMap<Place, Option<Place>>,
    pods: BTreeMap<(ObjectName, Direction), Option<(ObjectName, Direction)>>,
    cells: BTreeMap<((ObjectName, Direction), Option<Place>), Content>,
}

/// A cell, with the chunks of its port set.
type Content = (Cell, Vec<(PortsKey, PortsChunk)>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Host(IpAddr),
    Net(IpNet),
}

fn regions(tables: &Tables) -> impl Iterator<Item = (Place, u32)> {
    let hosts4 = tables.hosts4.iter().map(|(a, c)| (Place::Host((*a).into()), *c));
    let hosts6 = tables.hosts6.iter().map(|(a, c)| (Place::Host((*a).into()), *c));
    let nets4 = tables.nets4.iter().map(|(n, c)| (Place::Net((*n).into()), *c));
    let nets6 = tables.nets6.iter().map(|(n, c)| (Place::Net((*n).into()), *c));
    hosts4.chain(hosts6).chain(nets4).chain(nets6)
}

fn sides(tables: &Tables) -> impl Iterator<Item = ((ObjectName, Direction), u32)> {
    tables.pods.iter().flat_map(|(name, rules)| {
        [
            ((name.clone(), Direction::Ingress), rules.ingress),
            ((name.clone(), Direction::Egress), rules.egress),
        ]
    })
}

/// Panics where something in `tables` leads nowhere or nothing leads to it.
pub(super) fn canonical(tables: &Tables) -> Canonical {
    let mut classes: BTreeMap<u32, Place> = BTreeMap::new();
    for (place, class) in regions(tables).filter(|(_, class)| *class != 0) {
        classes.entry(class).or_insert(place);
    }
    let mut rulesets: BTreeMap<u32, (ObjectName, Direction)> = BTreeMap::new();
    for (side, ruleset) in sides(tables).filter(|(_, ruleset)| *ruleset != 0) {
        rulesets.entry(ruleset).or_insert(side);
    }
    let mut unused = tables.ports.clone();
    let mut content = |cell: &Cell| {
        let first = PortsKey {
            set: cell.ports,
            ..PortsKey::default()
        };
        let last = PortsKey {
            set: cell.ports,
            chunk: u16::MAX,
            proto: u16::MAX,
        };
        let chunks = tables.ports.range(first..=last).map(|(key, chunk)| {
            unused.remove(key);
            (PortsKey { set: 1, ..*key }, *chunk)
        });
        let chunks = chunks.collect::<Vec<_>>();
        assert_eq!(cell.ports == 0, chunks.is_empty(), "a cell's port set is there");
        (
            Cell {
                ports: u32::from(cell.ports != 0),
                ..*cell
            },
            chunks,
        )
    };
    let cells = tables.cells.iter().map(|(key, cell)| {
        let class = (key.class != CLASS_ANY).then(|| classes[&key.class].clone());
        ((rulesets[&key.ruleset].clone(), class), content(cell))
    });
    let cells = cells.collect();
    assert_eq!(unused, BTreeMap::new(), "every port set is some cell's");
    Canonical {
        regions: regions(tables)
            .map(|(place, class)| (place, classes.get(&class).cloned()))
            .collect(),
        pods: sides(tables)
            .map(|(side, ruleset)| (side, rulesets.get(&ruleset).cloned()))
            .collect(),
        cells,
    }
}

/// Holds the tables against the oracle on one side of a flow.
fn check_side(
    tables: &Tables,
    direction: Direction,
    local: &End,
    remote: &End,
    flow: &Flow,
    side: &Side<'_>,
) -> Result<(), TestCaseError> {
    let End::Pod(name, _) = local else { return Ok(()) };
    let Some(rules) = tables.pods.get(name) else {
        return Ok(());
    };
    let ruleset = match direction {
        Direction::Ingress => rules.ingress,
        Direction::Egress => rules.egress,
    };
    prop_assert_eq!(ruleset != 0, side.isolated);
    if side.exempt.is_none() {
        let class = tables.class(remote.address());
        let allowed = tables.allows(ruleset, class, flow.protocol, flow.port);
        prop_assert_eq!(allowed, side.allowed, "{:?}: {}", direction, Readable(flow));
    }
    Ok(())
}

pub(super) fn check_against_oracle(
    snapshot: &Snapshot,
    compiler: &Compiler,
    flows: &[Flow],
) -> Result<(), TestCaseError> {
    let (oracle, tables) = (Oracle::new(snapshot), compiler.tables());
    for flow in flows {
        let verdict = oracle.evaluate(flow);
        check_side(
            tables,
            Direction::Egress,
            &flow.from,
            &flow.to,
            flow,
            &verdict.egress,
        )?;
        check_side(
            tables,
            Direction::Ingress,
            &flow.to,
            &flow.from,
            flow,
            &verdict.ingress,
        )?;
        check_explanation(compiler, flow, &verdict.egress)?;
    }
    Ok(())
}

/// The rules named for a cell are those that the oracle names.
fn check_explanation(compiler: &Compiler, flow: &Flow, side: &Side<'_>) -> Result<(), TestCaseError> {
    let End::Pod(name, _) = &flow.from else {
        return Ok(());
    };
    let Some(rules) = compiler.tables().pods.get(name).filter(|_| side.exempt.is_none()) else {
        return Ok(());
    };
    let class = compiler.tables().class(flow.to.address());
    let found = compiler.explain_cell(rules.egress, class, flow.protocol, flow.port);
    let expected: Vec<_> = side
        .allowing
        .iter()
        .map(|rule| (rule.policy.clone(), rule.rule))
        .collect();
    prop_assert_eq!(found, expected, "{}", Readable(flow));
    Ok(())
}

/// Writes what `dirty` names from `tables` into `mirror`.
pub(super) fn follow(mirror: &mut Tables, tables: &Tables, dirty: &Dirty) {
    fn copy<K: Ord + Clone, V: Clone>(to: &mut BTreeMap<K, V>, from: &BTreeMap<K, V>, key: &K) {
        match from.get(key) {
            Some(value) => drop(to.insert(key.clone(), value.clone())),
            None => drop(to.remove(key)),
        }
    }
    for host in &dirty.hosts {
        match host {
            IpAddr::V4(a) => copy(&mut mirror.hosts4, &tables.hosts4, a),
            IpAddr::V6(a) => copy(&mut mirror.hosts6, &tables.hosts6, a),
        }
    }
    for net in &dirty.nets {
        match net {
            IpNet::V4(net) => copy(&mut mirror.nets4, &tables.nets4, net),
            IpNet::V6(net) => copy(&mut mirror.nets6, &tables.nets6, net),
        }
    }
    dirty
        .cells
        .iter()
        .for_each(|key: &CellKey| copy(&mut mirror.cells, &tables.cells, key));
    dirty
        .ports
        .iter()
        .for_each(|key| copy(&mut mirror.ports, &tables.ports, key));
    dirty
        .pods
        .iter()
        .for_each(|key| copy(&mut mirror.pods, &tables.pods, key));
}

/// Applies `batch` to both: the compiler has what a new one would have, and what it says has changed is all.
pub(super) fn edit(
    compiler: &mut Compiler,
    mirror: &mut Tables,
    snapshot: &mut Snapshot,
    batch: Vec<Event>,
) -> Result<(), TestCaseError> {
    batch.iter().cloned().for_each(|event| snapshot.apply(event));
    compiler.apply_all(batch);
    prop_assert_eq!(
        canonical(compiler.tables()),
        canonical(&full(snapshot, LOCAL_NODE))
    );
    let dirty = compiler.take_dirty();
    follow(mirror, compiler.tables(), &dirty);
    prop_assert_eq!(&*mirror, compiler.tables(), "{:?} is all that changed", dirty);
    Ok(())
}

proptest! {
    #[test]
    fn tables_say_what_the_oracle_says(
        snapshot in generate::snapshots(Shape::default()).prop_map(Readable),
        seed: u64,
    ) {
        let snapshot = snapshot.0;
        let mut compiler = Compiler::new(LOCAL_NODE.into(), 1);
        compiler.load(&snapshot);
        canonical(compiler.tables());
        check_against_oracle(&snapshot, &compiler, &generate::flows(&snapshot, 400, seed))?;
    }

    #[test]
    fn an_edited_compiler_has_what_a_new_one_has(
        snapshot in generate::snapshots(Shape::default()).prop_map(Readable),
        batches in vec(vec(generate::events(Shape::default()), 1..4), 1..12),
    ) {
        let mut snapshot = snapshot.0;
        let mut compiler = Compiler::new(LOCAL_NODE.into(), 1);
        compiler.load(&snapshot);
        let mut mirror = compiler.tables().clone();
        drop(compiler.take_dirty());
        for batch in batches {
            edit(&mut compiler, &mut mirror, &mut snapshot, batch)?;
            compiler.apply_all(vec![]);
            prop_assert!(compiler.take_dirty().is_empty());
        }
    }

    #[test]
    fn what_is_held_need_not_be_applied(
        snapshot in generate::snapshots(Shape::default()).prop_map(Readable),
        batches in vec(vec(generate::events(Shape::default()), 1..8), 1..8),
    ) {
        let mut snapshot = snapshot.0;
        let mut compiler = Compiler::new(LOCAL_NODE.into(), 1);
        compiler.load(&snapshot);
        for batch in batches {
            for event in batch {
                snapshot.apply(event.clone());
                if !compiler.holds(&event) {
                    compiler.stage(event.clone());
                }
                prop_assert!(compiler.holds(&event), "{:?} was staged", event);
            }
            compiler.settle();
            prop_assert_eq!(canonical(compiler.tables()), canonical(&full(&snapshot, LOCAL_NODE)));
            let held = snapshot.clone().into_events();
            held.for_each(|event| assert!(compiler.holds(&event), "{event:?} is in force"));
            prop_assert!(compiler.policies().eq(snapshot.policies.values()));
        }
    }

    #[test]
    fn nothing_stays_of_what_went(snapshot in generate::snapshots(Shape::default()).prop_map(Readable)) {
        let snapshot = snapshot.0;
        let mut compiler = Compiler::new(LOCAL_NODE.into(), 1);
        compiler.load(&snapshot);
        let pods = snapshot.pods.into_keys().map(Event::PodGone);
        let policies = snapshot.policies.into_keys().map(Event::PolicyGone);
        let namespaces = snapshot.namespaces.into_keys().map(Event::NamespaceGone);
        compiler.apply_all(pods.chain(policies).chain(namespaces));
        prop_assert_eq!(compiler.tables(), &Tables::default());
        prop_assert_eq!(compiler.stats(), Stats::default());
        prop_assert!(compiler.is_vacant());
    }
}
