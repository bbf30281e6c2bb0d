//! Who may reach whom: every ordered pair of ends, at one port or over all of them.

use std::collections::HashMap;

use netpol_policy::{
    model::{ObjectName, Snapshot},
    oracle::{Exemption, RuleRef, Side},
};

use super::{
    Family, Found, Judge, Mismatch, PortName, QueryError, Question, Transport,
    end::locate,
    reach::{PortRange, Reaches},
};

/// What every pair is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// One port (by number, or by a name that each destination resolves), or a protocol without ports.
    One(Transport, Option<PortName>),
    /// Every protocol and port.
    Everything,
}

/// How much of what was asked is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Extent {
    /// Nothing.
    None,
    /// Some ports.
    Some,
    /// All of it.
    All,
}

/// One direction of a pair.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Way<'o> {
    /// How much this side allows.
    pub extent: Extent,
    /// Some policy selects the pod for this direction.
    pub isolated: bool,
    /// The policies that isolate it, by name.
    pub isolating: Vec<&'o ObjectName>,
    /// The rules that allow what both sides allow, or, where that is nothing, what this side allows; in order.
    pub rules: Vec<RuleRef<'o>>,
    /// Why rules were not asked.
    pub exempt: Option<Exemption>,
}

impl<'o> Way<'o> {
    /// The policies that decide: those that allow, else those that isolate.
    #[must_use]
    pub fn policies(&self) -> Vec<&'o ObjectName> {
        if self.extent == Extent::None {
            return self.isolating.clone();
        }
        let mut names: Vec<_> = self.rules.iter().map(|rule| rule.policy).collect();
        names.dedup();
        names
    }

    pub(super) fn of(side: Side<'o>, extent: Extent) -> Self {
        Self {
            extent,
            isolated: side.isolated,
            isolating: side.isolating,
            rules: if extent == Extent::None {
                Vec::new()
            } else {
                side.allowing
            },
            exempt: side.exempt,
        }
    }
}

/// What one pair was answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Outcome<'o> {
    /// A verdict.
    Answer {
        /// How much both sides together allow.
        extent: Extent,
        /// Where that is [`Extent::Some`]: what.
        ports: Vec<PortRange>,
        /// The sender's side.
        egress: Way<'o>,
        /// The receiver's side.
        ingress: Way<'o>,
    },
    /// The question does not apply: the destination has no port of that name, or no family is common.
    NotApplicable(String),
}

/// Every pair of `ends`, answered. Equal answers are stored once.
#[derive(Debug)]
pub struct Matrix<'o> {
    size: usize,
    outcomes: Vec<Outcome<'o>>,
    pairs: Vec<u32>,
}

impl<'o> Matrix<'o> {
    /// Asks every ordered pair.
    ///
    /// # Errors
    /// The oracle and the tables disagree about one.
    pub fn new(
        snapshot: &Snapshot,
        judge: &'o Judge<'_>,
        ends: &[Found<'_>],
        asked: &Asked,
        family: Option<Family>,
    ) -> Result<Self, Mismatch> {
        let reaches = Reaches::new(snapshot, judge);
        let mut matrix = Self {
            size: ends.len(),
            outcomes: Vec::new(),
            pairs: Vec::with_capacity(ends.len() * ends.len()),
        };
        let mut known = HashMap::new();
        for from in ends {
            for to in ends {
                let outcome = match asked {
                    Asked::One(transport, port) => {
                        one(judge, Question::new(from, to, *transport, port.as_ref(), family))?
                    }
                    Asked::Everything => match locate(from, to, family) {
                        Ok([from, to]) => reaches.ask(from, to)?,
                        Err(error) => Outcome::NotApplicable(error.to_string()),
                    },
                };
                let id = *known.entry(outcome).or_insert_with_key(|outcome| {
                    matrix.outcomes.push(outcome.clone());
                    matrix.outcomes.len() - 1
                });
                matrix.pairs.push(u32::try_from(id).unwrap_or(u32::MAX));
            }
        }
        Ok(matrix)
    }

    /// The number of ends.
    #[must_use]
    pub const fn size(&self) -> usize {
        self.size
    }

    /// The answer's number: equal numbers, equal answers.
    #[must_use]
    pub fn id(&self, from: usize, to: usize) -> u32 {
        self.pairs[from * self.size + to]
    }

    /// The answer.
    #[must_use]
    pub fn outcome(&self, from: usize, to: usize) -> &Outcome<'o> {
        &self.outcomes[self.id(from, to) as usize]
    }
}

fn one<'o>(
    judge: &'o Judge<'_>,
    question: Result<Question<'_>, QueryError>,
) -> Result<Outcome<'o>, Mismatch> {
    let question = match question {
        Ok(question) => question,
        Err(error) => return Ok(Outcome::NotApplicable(error.to_string())),
    };
    let verdict = judge.ask(&question)?;
    let extent = |allowed| if allowed { Extent::All } else { Extent::None };
    Ok(Outcome::Answer {
        extent: extent(verdict.allowed()),
        ports: Vec::new(),
        egress: {
            let allowed = extent(verdict.egress.allowed);
            Way::of(verdict.egress, allowed)
        },
        ingress: {
            let allowed = extent(verdict.ingress.allowed);
            Way::of(verdict.ingress, allowed)
        },
    })
}
