//! At no moment does any program run find anything but the old or the new verdict.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use netpol_common::tables::{CELL_ALL, CLASS_ANY, Cell, CellKey, PortsChunk, PortsKey, RULESET_HAS_ANY};
use proptest::{collection::vec, prelude::*};

use super::{restart::restarted, *};
use crate::{
    compile::Compiler,
    generate::{self, LOCAL_NODE, Readable, Shape},
    model::{Direction, Event, ObjectName, Snapshot},
    tables::PodRules,
};

/// What a ruleset says about a class, whatever the ids: equal means the same verdict for every port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Says {
    Everything,
    Ports(Cell, Vec<(PortsKey, PortsChunk)>),
}

fn says(tables: &Tables, ruleset: u32, class: u32) -> Says {
    if ruleset == 0 {
        return Says::Everything;
    }
    let cell = |class| tables.cells.get(&CellKey { ruleset, class });
    let any = || cell(CLASS_ANY).filter(|_| ruleset & RULESET_HAS_ANY != 0);
    let cell = cell(class).or_else(any).copied().unwrap_or_default();
    if cell.flags & CELL_ALL != 0 {
        return Says::Everything;
    }
    let set = |set, chunk, proto| PortsKey { set, chunk, proto };
    let chunks = tables
        .ports
        .range(set(cell.ports, 0, 0)..=set(cell.ports, u16::MAX, u16::MAX));
    let chunks: Vec<_> = chunks
        .map(|(key, chunk)| (PortsKey { set: 0, ..*key }, *chunk))
        .collect();
    assert_eq!(
        cell.ports == 0,
        chunks.is_empty(),
        "a port set that is referred to is there"
    );
    Says::Ports(Cell { ports: 0, ..cell }, chunks)
}

fn side(rules: PodRules, direction: Direction) -> u32 {
    match direction {
        Direction::Ingress => rules.ingress,
        Direction::Egress => rules.egress,
    }
}

const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// The writes of `step` one by one.
fn singly(step: &Step) -> Vec<Step> {
    fn each<T: Clone>(list: &[T], step: impl Fn(Vec<T>) -> Step) -> Vec<Step> {
        list.iter().map(|one| step(vec![one.clone()])).collect()
    }
    match step {
        Step::PutPorts(list) => each(list, Step::PutPorts),
        Step::PutCells(list) => each(list, Step::PutCells),
        Step::PutHosts(list) => each(list, Step::PutHosts),
        Step::PutNets(list) => each(list, Step::PutNets),
        Step::PutPods(list) => each(list, Step::PutPods),
        Step::RemovePods(list) => each(list, Step::RemovePods),
        Step::RemoveHosts(list) => each(list, Step::RemoveHosts),
        Step::RemoveNets(list) => each(list, Step::RemoveNets),
        Step::RemoveCells(list) => each(list, Step::RemoveCells),
        Step::RemovePorts(list) => each(list, Step::RemovePorts),
        Step::Flags(_) | Step::Adopt(_) | Step::Epoch | Step::Grace => vec![step.clone()],
    }
}

/// One end of a flow: pod, direction, peer.
type Probe<'a> = (&'a ObjectName, Direction, IpAddr);

/// What is said, as numbers that are quick to compare.
#[derive(Default)]
struct Sayings(BTreeMap<Says, usize>);

impl Sayings {
    fn number(&mut self, says: Says) -> usize {
        let next = self.0.len();
        *self.0.entry(says).or_insert(next)
    }

    fn verdicts<'a>(&mut self, tables: &'a Tables, addresses: &[IpAddr]) -> BTreeMap<Probe<'a>, usize> {
        let mut known = BTreeMap::new();
        let mut verdicts = BTreeMap::new();
        let classes: Vec<_> = addresses
            .iter()
            .map(|&address| (address, tables.class(address)))
            .collect();
        for (name, rules) in &tables.pods {
            for direction in DIRECTIONS {
                let ruleset = side(*rules, direction);
                for &(address, class) in &classes {
                    let said = known
                        .entry((ruleset, class))
                        .or_insert_with(|| self.number(says(tables, ruleset, class)));
                    verdicts.insert((name, direction, address), *said);
                }
            }
        }
        verdicts
    }
}

/// Kernel tables under a plan, with the program runs that began since the last grace period.
struct Kernel<'a> {
    old: &'a Tables,
    new: &'a Tables,
    sayings: Sayings,
    old_verdicts: BTreeMap<Probe<'a>, usize>,
    new_verdicts: BTreeMap<Probe<'a>, usize>,
    now: Tables,
    /// States that a run may have read from, the present one last.
    window: Vec<Tables>,
    addresses: &'a [IpAddr],
    adopted: BTreeSet<(ObjectName, Direction)>,
    /// What flows of pods that stay were judged by last.
    judged: Vec<usize>,
    /// That changed, and the epoch has not moved since.
    stale: bool,
}

impl<'a> Kernel<'a> {
    fn new(old: &'a Tables, new: &'a Tables, addresses: &'a [IpAddr]) -> Self {
        let mut sayings = Sayings::default();
        let mut kernel = Self {
            old,
            new,
            old_verdicts: sayings.verdicts(old, addresses),
            new_verdicts: sayings.verdicts(new, addresses),
            sayings,
            now: old.clone(),
            window: vec![old.clone()],
            addresses,
            adopted: BTreeSet::new(),
            judged: Vec::new(),
            stale: false,
        };
        kernel.judged = kernel.judge();
        kernel
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Grace => {
                let last = self.window.len() - 1;
                self.window.drain(..last);
            }
            Step::Epoch => self.stale = false,
            Step::Adopt(list) => list.iter().for_each(|adoption| self.adopt(adoption)),
            Step::Flags(bits) => assert_eq!(
                bits & flags(&self.now),
                flags(&self.now),
                "flags cover the tables"
            ),
            _ => {
                self.now.apply(step);
                let judged = self.judge();
                self.stale |= judged != self.judged;
                self.judged = judged;
                self.window.push(self.now.clone());
                self.check();
            }
        }
    }

    fn judge(&mut self) -> Vec<usize> {
        let verdicts = self.sayings.verdicts(&self.now, self.addresses);
        let stays = |probe: &Probe<'_>| {
            self.old_verdicts.contains_key(probe) && self.new_verdicts.contains_key(probe)
        };
        verdicts
            .iter()
            .filter(|(probe, _)| stays(probe))
            .map(|(_, said)| *said)
            .collect()
    }

    fn adopt(&mut self, adoption: &Adoption) {
        let rules = self.now.pods[&adoption.pod];
        let begins = [
            (adoption.ingress, Direction::Ingress),
            (adoption.egress, Direction::Egress),
        ];
        for (_, direction) in begins.into_iter().filter(|(begins, _)| *begins) {
            let ruleset = side(rules, direction);
            assert!(ruleset != 0, "records while conntrack is read");
            assert_eq!(says(&self.now, ruleset, 0), Says::Everything, "and drops nothing");
            self.adopted.insert((adoption.pod.clone(), direction));
        }
    }

    /// Every class that a run may have found for `address` if it reads on now: the hash first, then the trie.
    fn classes(&self, address: IpAddr) -> BTreeSet<u32> {
        let mut found = BTreeSet::new();
        let mut missed = false;
        for state in &self.window {
            let exact = match address {
                IpAddr::V4(a) => state.hosts4.get(&a),
                IpAddr::V6(a) => state.hosts6.get(&a),
            };
            found.extend(exact);
            missed |= exact.is_none();
            if missed {
                found.insert(state.net_class(address, 128));
            }
        }
        found
    }

    /// Every run that reads its cell now finds the old or the new verdict, whenever it read what leads there.
    fn check(&mut self) {
        let classes: Vec<_> = self
            .addresses
            .iter()
            .map(|&address| (address, self.classes(address)))
            .collect();
        let mut known = BTreeMap::new();
        for name in self.now.pods.keys() {
            for direction in DIRECTIONS {
                let rulesets = self.rulesets(name, direction);
                for (address, classes) in &classes {
                    let probe = (name, direction, *address);
                    let (old, new) = (self.old_verdicts.get(&probe), self.new_verdicts.get(&probe));
                    for (&ruleset, &class) in
                        rulesets.iter().flat_map(|r| classes.iter().map(move |c| (r, c)))
                    {
                        let number = |sayings: &mut Sayings| sayings.number(says(&self.now, ruleset, class));
                        let found = *known
                            .entry((ruleset, class))
                            .or_insert_with(|| number(&mut self.sayings));
                        assert!(
                            Some(&found) == old || Some(&found) == new,
                            "{probe:?}: ruleset {ruleset} says of class {class}: {:?}",
                            says(&self.now, ruleset, class)
                        );
                    }
                }
            }
        }
    }

    /// Every ruleset that a run may have found.
    fn rulesets(&self, name: &ObjectName, direction: Direction) -> BTreeSet<u32> {
        let of = |tables: &Tables| tables.pods.get(name).map(|rules| side(*rules, direction));
        let rulesets: BTreeSet<u32> = self.window.iter().filter_map(of).collect();
        let begins = of(self.old) == Some(0) && of(self.new).is_some_and(|after| after != 0);
        if begins && !self.adopted.contains(&(name.clone(), direction)) {
            let open = |ruleset: &u32| says(&self.now, *ruleset, 0) == Says::Everything;
            assert!(rulesets.iter().all(open), "nothing is dropped before adoption");
        }
        rulesets
    }
}

pub(super) fn probes(old: &Snapshot, new: &Snapshot) -> Vec<IpAddr> {
    let ends = generate::ends(old).into_iter().chain(generate::ends(new));
    let addresses: BTreeSet<_> = ends.map(|end| end.address()).collect();
    addresses.into_iter().collect()
}

/// Follows `plan` from `old` to `new`, at most `count` writes far.
pub(super) fn follow(plan: &Plan, old: &Tables, new: &Tables, addresses: &[IpAddr], count: usize) -> Tables {
    let mut kernel = Kernel::new(old, new, addresses);
    let mut peak = old.sizes();
    for step in plan.steps.iter().flat_map(singly).take(count) {
        kernel.run(&step);
        let now = kernel.now.sizes();
        peak = Sizes::new(|map| peak.of(map).max(now.of(map)));
    }
    if count == usize::MAX {
        assert_eq!(kernel.now, *new, "the plan arrives");
        assert!(
            !kernel.stale,
            "the epoch moves after the last change of a verdict"
        );
        assert_eq!(plan.peak, peak);
    }
    kernel.now
}

/// Everything but the flags, which are always written where the scope is everything, and the wait for them where they were
/// the first that was written.
fn without_flags(plan: Plan) -> Vec<Step> {
    plan.steps
        .into_iter()
        .filter(|step| !matches!(step, Step::Flags(_)))
        .skip_while(|step| matches!(step, Step::Grace))
        .collect()
}

pub(super) fn shape() -> Shape {
    Shape {
        policies: 5,
        rules: 3,
        ..Shape::default()
    }
}

pub(super) fn batches() -> impl Strategy<Value = Vec<Vec<Event>>> {
    vec(vec(generate::events(shape()), 1..6), 1..4)
}

pub(super) fn compiled(snapshot: &Snapshot, ids: IdSource) -> Compiler {
    let mut compiler = Compiler::with_ids(LOCAL_NODE.into(), ids);
    compiler.load(snapshot);
    compiler
}

/// A plan is checked write by write for every pod and peer: dear, so few by default.
pub(super) fn config() -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").is_ok();
    let config = ProptestConfig::default();
    ProptestConfig {
        cases: if asked { config.cases } else { 48 },
        ..config
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_change_shows_the_old_or_the_new_policy(
        snapshot in generate::snapshots(shape()).prop_map(Readable),
        batches in batches(),
    ) {
        let mut snapshot = snapshot.0;
        let mut compiler = compiled(&snapshot, IdSource::new(1));
        let _ = compiler.take_dirty();
        for batch in batches {
            let (before, old) = (snapshot.clone(), compiler.tables().clone());
            batch.iter().cloned().for_each(|event| snapshot.apply(event));
            compiler.apply_all(batch);
            let dirty = compiler.take_dirty();
            let new = compiler.tables();
            let mut copy = IdSource::new(1 << 20);
            let by_keys = plan(&old, new, Scope::Dirty(&dirty), &mut copy);
            let mut copy = IdSource::new(1 << 20);
            let whole = plan(&old, new, Scope::Everything, &mut copy);
            follow(&by_keys, &old, new, &probes(&before, &snapshot), usize::MAX);
            prop_assert_eq!(without_flags(by_keys), without_flags(whole));
        }
    }

    #[test]
    fn a_restart_shows_the_old_or_the_new_policy_also_half_way_through_a_plan(
        first in generate::snapshots(shape()).prop_map(Readable),
        edits in batches(),
        killed_after in 0..80_usize,
    ) {
        let mut second = first.0.clone();
        edits.into_iter().flatten().for_each(|event| second.apply(event));
        let probes = probes(&first.0, &second);
        let (old, next) = (compiled(&first.0, IdSource::new(1)), compiled(&second, IdSource::new(1 << 16)));
        let interrupted = plan(old.tables(), next.tables(), Scope::Everything, &mut next.ids());
        let actual = follow(&interrupted, old.tables(), next.tables(), &probes, killed_after);

        let restarted = restarted(&second, &actual);
        let mut ids = restarted.ids();
        let rest = plan(&actual, restarted.tables(), Scope::Everything, &mut ids);
        follow(&rest, &actual, restarted.tables(), &probes, usize::MAX);
        prop_assert!(plan(restarted.tables(), restarted.tables(), Scope::Everything, &mut ids).is_empty());
    }
}
