//! Everything that one end may send to another, over all protocols and ports.

use std::{collections::BTreeSet, fmt};

use netpol_policy::{
    model::{PortSpec, Ports, Protocol, Rule, Snapshot},
    oracle::{RuleRef, Side, Verdict},
};

use super::{
    Judge, Located, Mismatch, Question,
    matrix::{Extent, Outcome, Way},
};

/// Ports of one protocol, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortRange {
    /// The protocol.
    pub protocol: Protocol,
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

/// `TCP 80`, `TCP 8000-9000`, or `TCP` for all of them.
impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = self.protocol.name();
        match (self.first, self.last) {
            (1, u16::MAX) => f.write_str(protocol),
            (first, last) if first == last => write!(f, "{protocol} {first}"),
            (first, last) => write!(f, "{protocol} {first}-{last}"),
        }
    }
}

/// A protocol without ports that no rule can name: only what allows everything allows it.
const NO_PORTS: u8 = 255;
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// Asks pairs about everything.
pub(super) struct Reaches<'s, 'o, 'a> {
    snapshot: &'s Snapshot,
    judge: &'o Judge<'a>,
}

impl<'s, 'o, 'a> Reaches<'s, 'o, 'a> {
    pub(super) const fn new(snapshot: &'s Snapshot, judge: &'o Judge<'a>) -> Self {
        Self { snapshot, judge }
    }

    /// Verdicts change only at ports that a rule of an isolating policy begins or ends with, so each interval
    /// between these is asked once.
    pub(super) fn ask(&self, from: &Located<'_>, to: &Located<'_>) -> Result<Outcome<'o>, Mismatch> {
        let question = |protocol, port| Question {
            from,
            to,
            protocol,
            port,
        };
        let whole = self.judge.ask(&question(NO_PORTS, 0))?;
        if whole.allowed() {
            return Ok(Outcome::Answer {
                extent: Extent::All,
                ports: Vec::new(),
                egress: Way::of(whole.egress, Extent::All),
                ingress: Way::of(whole.ingress, Extent::All),
            });
        }
        let mut sum = Sum::new(whole);
        for protocol in PROTOCOLS {
            let starts = self.starts(protocol, &sum.whole, to);
            let mut starts = starts.into_iter().peekable();
            while let Some(first) = starts.next() {
                let last = starts.peek().map_or(u16::MAX, |next| next - 1);
                let verdict = self.judge.ask(&question(protocol.number(), first))?;
                sum.add(
                    PortRange {
                        protocol,
                        first,
                        last,
                    },
                    verdict,
                );
            }
        }
        Ok(sum.outcome())
    }

    /// Where the intervals of `protocol` begin; the first at 1.
    fn starts(&self, protocol: Protocol, whole: &Verdict<'_>, to: &Located<'_>) -> BTreeSet<u16> {
        let mut starts = BTreeSet::from([1]);
        let mut interval = |first: u16, last: u16| {
            starts.insert(first.max(1));
            starts.extend(last.checked_add(1));
        };
        let egress = self.rules(&whole.egress, |policy| policy.egress.as_deref());
        let ingress = self.rules(&whole.ingress, |policy| policy.ingress.as_deref());
        for rule in egress.chain(ingress) {
            let Ports::Of(ports) = &rule.ports else { continue };
            for port in ports.iter().filter(|port| port.protocol == protocol) {
                match &port.port {
                    PortSpec::All => {}
                    PortSpec::Range(first, last) => interval(*first, *last),
                    PortSpec::Named(name) => {
                        let declared = to.subjects.iter().flat_map(|owner| &owner.pod.ports);
                        declared
                            .filter(|port| port.name == *name)
                            .for_each(|port| interval(port.number, port.number));
                    }
                }
            }
        }
        starts
    }

    fn rules(
        &self,
        side: &Side<'_>,
        of: fn(&netpol_policy::model::Policy) -> Option<&[Rule]>,
    ) -> impl Iterator<Item = &'s Rule> {
        let policies = side
            .isolating
            .iter()
            .filter_map(|name| self.snapshot.policies.get(*name));
        let rules: Vec<&Rule> = policies.filter_map(of).flatten().collect();
        rules.into_iter()
    }
}

/// The verdicts on all intervals, added up.
struct Sum<'o> {
    whole: Verdict<'o>,
    ports: Vec<PortRange>,
    egress: Part<'o>,
    ingress: Part<'o>,
}

/// One side's part of it.
struct Part<'o> {
    some: bool,
    /// The rules that allow what both sides allow.
    both: BTreeSet<RuleRef<'o>>,
    /// The rules that allow what only this side allows.
    alone: BTreeSet<RuleRef<'o>>,
}

impl<'o> Sum<'o> {
    fn new(whole: Verdict<'o>) -> Self {
        let part = |side: &Side<'o>| Part {
            some: side.allowed,
            both: BTreeSet::new(),
            alone: side.allowing.iter().copied().collect(),
        };
        Self {
            egress: part(&whole.egress),
            ingress: part(&whole.ingress),
            ports: Vec::new(),
            whole,
        }
    }

    fn add(&mut self, range: PortRange, verdict: Verdict<'o>) {
        self.egress.some |= verdict.egress.allowed;
        self.ingress.some |= verdict.ingress.allowed;
        if !verdict.allowed() {
            self.egress.alone.extend(verdict.egress.allowing);
            self.ingress.alone.extend(verdict.ingress.allowing);
            return;
        }
        self.egress.both.extend(verdict.egress.allowing);
        self.ingress.both.extend(verdict.ingress.allowing);
        match self.ports.last_mut() {
            Some(last)
                if last.protocol == range.protocol && last.last.checked_add(1) == Some(range.first) =>
            {
                last.last = range.last;
            }
            _ => self.ports.push(range),
        }
    }

    fn outcome(self) -> Outcome<'o> {
        let nothing = self.ports.is_empty();
        let way = |side: Side<'o>, part: Part<'o>| {
            let extent = match (side.allowed, part.some) {
                (true, _) => Extent::All,
                (false, true) => Extent::Some,
                (false, false) => Extent::None,
            };
            let rules = if nothing { part.alone } else { part.both };
            Way {
                rules: rules.into_iter().collect(),
                ..Way::of(side, extent)
            }
        };
        Outcome::Answer {
            extent: if nothing { Extent::None } else { Extent::Some },
            ports: self.ports,
            egress: way(self.whole.egress, self.egress),
            ingress: way(self.whole.ingress, self.ingress),
        }
    }
}
