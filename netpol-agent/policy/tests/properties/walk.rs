//! The compiled tables asked as the programs ask them, against the oracle.

use std::{cell::Cell, collections::BTreeMap, net::IpAddr};

use netpol_policy::{
    compile::Compiler,
    generate::Readable,
    model::{Direction, ObjectName, Snapshot, Str},
    oracle::{End, Flow, Oracle, RuleRef, Side},
    tables::{PodRules, Tables},
};

/// How often a property compared what, so that one that compares nothing fails.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Flows that were judged.
    pub(crate) flows: Cell<u64>,
    /// Local ends whose rules were asked, and passed.
    pub(crate) passed: Cell<u64>,
    /// Local ends whose rules were asked, and denied.
    pub(crate) denied: Cell<u64>,
    /// Local ends that are not isolated.
    pub(crate) open: Cell<u64>,
}

pub(crate) fn count(cell: &Cell<u64>) {
    cell.set(cell.get() + 1);
}

impl Tally {
    /// # Panics
    /// If the rules hardly ever passed, or hardly ever denied.
    pub(crate) fn assert_balanced(&self) {
        let [passed, denied, open] = [&self.passed, &self.denied, &self.open].map(Cell::get);
        let least = (passed + denied + open) / 50;
        assert!(
            passed > least && denied > least,
            "the flows are lopsided: {self:?}"
        );
    }
}

/// One compiler for each node of a cluster.
pub(crate) struct Compilers(BTreeMap<Str, Compiler>);

impl Compilers {
    pub(crate) fn new(snapshot: &Snapshot) -> Self {
        let mut this = Self::empty();
        this.each(|compiler| compiler.load(snapshot));
        this
    }

    pub(crate) fn empty() -> Self {
        let nodes = ["node-1", "node-2"].map(Str::from);
        Self(nodes.map(|node| (node.clone(), Compiler::new(node, 1))).into())
    }

    pub(crate) fn each(&mut self, change: impl Fn(&mut Compiler)) {
        self.0.values_mut().for_each(change);
    }

    pub(crate) fn tables(&self) -> impl Iterator<Item = &Tables> {
        self.0.values().map(Compiler::tables)
    }

    /// The node of `pod`, as its compiler sees it.
    fn local(&self, snapshot: &Snapshot, pod: &ObjectName) -> Option<&Compiler> {
        let pod = snapshot.pods.get(pod).filter(|pod| pod.is_endpoint())?;
        self.0.get(pod.node.as_ref()?)
    }
}

/// Whether every flow gets from the tables the verdict, and from the compiler the rules, that the oracle names.
pub(crate) fn agree(
    snapshot: &Snapshot,
    compilers: &Compilers,
    flows: &[Flow],
    tally: &Tally,
) -> Result<(), String> {
    let oracle = Oracle::new(snapshot);
    for flow in flows {
        count(&tally.flows);
        let verdict = oracle.evaluate(flow);
        let sides = [
            (Direction::Egress, &flow.from, &flow.to, &verdict.egress),
            (Direction::Ingress, &flow.to, &flow.from, &verdict.ingress),
        ];
        for (direction, local, remote, expected) in sides {
            // An end that is given as an address is some pod's end, too, when it is given as that pod.
            let End::Pod(pod, _) = local else { continue };
            let Some(compiler) = compilers.local(snapshot, pod) else {
                continue;
            };
            side(compiler, pod, direction, remote.address(), flow, expected, tally)
                .map_err(|difference| format!("{}: {direction:?} of {pod}: {difference}", Readable(flow)))?;
        }
    }
    Ok(())
}

fn side(
    compiler: &Compiler,
    pod: &ObjectName,
    direction: Direction,
    peer: IpAddr,
    flow: &Flow,
    expected: &Side<'_>,
    tally: &Tally,
) -> Result<(), String> {
    let tables = compiler.tables();
    let PodRules { ingress, egress } = *tables.pods.get(pod).ok_or("the tables do not have the pod")?;
    let ruleset = match direction {
        Direction::Ingress => ingress,
        Direction::Egress => egress,
    };
    let isolated = ruleset != netpol_common::tables::RULESET_NONE;
    if isolated != expected.isolated {
        return Err(format!(
            "isolated by the tables: {isolated}, by the oracle: {expected:?}"
        ));
    }
    // Neither the own node's packets nor a pod's to itself reach a ruleset.
    if expected.exempt.is_some() {
        return Ok(());
    }
    let class = tables.class(peer);
    let allowed = tables.allows(ruleset, class, flow.protocol, flow.port);
    if allowed != expected.allowed {
        return Err(format!(
            "the tables say {} (ruleset {ruleset:#x}, class {class}), the oracle {expected:?}",
            if allowed { "allow" } else { "deny" }
        ));
    }
    count(match (isolated, allowed) {
        (false, _) => &tally.open,
        (true, true) => &tally.passed,
        (true, false) => &tally.denied,
    });
    let named = compiler.explain_cell(ruleset, class, flow.protocol, flow.port);
    let named: Vec<_> = named
        .iter()
        .map(|(policy, rule)| RuleRef { policy, rule: *rule })
        .collect();
    if named != expected.allowing {
        return Err(format!(
            "the compiler names {named:?}, the oracle {:?}",
            expected.allowing
        ));
    }
    Ok(())
}
