//! A verdict as people read it.

use netpol_policy::{
    model::{Direction, ObjectName, Snapshot},
    oracle::{Exemption, Side, Verdict},
};

use super::{
    Found, Kind, Question, SideAnswer, join,
    near::{Miss, NearMiss, near_misses},
    protocol_name,
};

/// One answered question, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Story {
    /// `TCP 5432`, or `ICMP`.
    pub service: String,
    /// The verdict and what decided, in one sentence.
    pub sentence: String,
    /// What the sender's policies say.
    pub egress: Vec<String>,
    /// What the receiver's policies say.
    pub ingress: Vec<String>,
}

impl Story {
    /// Tells what `verdict` says about `question`, with the rules that came close where it denies.
    #[must_use]
    pub fn new(
        snapshot: &Snapshot,
        [from, to]: [&Found<'_>; 2],
        question: &Question<'_>,
        verdict: &Verdict<'_>,
    ) -> Self {
        let teller = Teller {
            from: &from.label,
            to: &to.label,
            service: service(question),
        };
        let side = |direction| {
            let (side, local) = match direction {
                Direction::Egress => (&verdict.egress, question.from.kind),
                Direction::Ingress => (&verdict.ingress, question.to.kind),
            };
            let mut lines = vec![teller.side(side, direction, local)];
            if !side.allowed {
                let misses = near_misses(snapshot, question, side, direction);
                lines.extend(teller.misses(snapshot, side, direction, &misses));
            }
            lines
        };
        Self {
            egress: side(Direction::Egress),
            ingress: side(Direction::Ingress),
            sentence: teller.sentence(verdict),
            service: teller.service,
        }
    }
}

fn service(question: &Question<'_>) -> String {
    let protocol = protocol_name(question.protocol);
    if netpol_common::proto::has_ports(question.protocol) {
        format!("{protocol} {}", question.port)
    } else {
        protocol.into()
    }
}

struct Teller<'t> {
    from: &'t str,
    to: &'t str,
    service: String,
}

impl Teller<'_> {
    fn sentence(&self, verdict: &Verdict<'_>) -> String {
        let Self { from, to, service } = self;
        if verdict.allowed() {
            let out = self.reason(&verdict.egress, Direction::Egress);
            let into = self.reason(&verdict.ingress, Direction::Ingress);
            let because = match (out, into) {
                (None, None) => "neither is isolated".to_owned(),
                (Some(only), None) | (None, Some(only)) => only,
                (Some(out), Some(into)) if out == into => out,
                (Some(out), Some(into)) => format!("{out}, and {into}"),
            };
            return format!("{from} may reach {to} on {service}: {because}.");
        }
        let denials: Vec<String> = [
            (&verdict.egress, "egress", from),
            (&verdict.ingress, "ingress", to),
        ]
        .into_iter()
        .filter(|(side, ..)| !side.allowed)
        .map(|(side, word, pod)| format!("{pod} is isolated for {word} by {}", join(&side.isolating)))
        .collect();
        format!(
            "{from} may not reach {to} on {service}: {}, and no rule allows it.",
            denials.join(", ")
        )
    }

    /// Why this side lets the flow pass; nothing where nothing holds it.
    fn reason(&self, side: &Side<'_>, direction: Direction) -> Option<String> {
        match (side.isolated, side.exempt) {
            (false, _) => None,
            (true, Some(Exemption::Itself)) => Some("a pod may always reach itself".into()),
            (true, Some(Exemption::OwnNode)) => {
                Some("a pod and its own node may always reach each other".into())
            }
            (true, None) => {
                let word = word(direction);
                Some(format!("{} allows it for {word}", policies(side)))
            }
        }
    }

    fn side(&self, side: &Side<'_>, direction: Direction, local: Kind) -> String {
        let (pod, far, preposition) = match direction {
            Direction::Egress => (self.from, self.to, "to"),
            Direction::Ingress => (self.to, self.from, "from"),
        };
        let (word, service) = (word(direction), &self.service);
        match (local, side.isolated, side.exempt) {
            (Kind::Node, ..) if pod.starts_with("node/") => {
                format!("{pod} is a node: no policy applies to it")
            }
            (Kind::Node, ..) => format!("{pod} uses its node's network: no policy applies to it"),
            (Kind::Address, ..) => format!("{pod} is outside the cluster: no policy applies to it"),
            (Kind::Pod, false, _) => format!("{pod} is not isolated: no policy selects it for {word}"),
            (Kind::Pod, true, Some(Exemption::Itself)) => {
                format!(
                    "{pod} is isolated by {}, but a pod may always reach itself",
                    join(&side.isolating)
                )
            }
            (Kind::Pod, true, Some(Exemption::OwnNode)) => format!(
                "{pod} is isolated by {}, but {far} is its own node: always allowed",
                join(&side.isolating)
            ),
            (Kind::Pod, true, None) if side.allowed => {
                let rules = side.allowing.iter();
                let rules = rules.map(|rule| format!("{} (rule {})", rule.policy, rule.rule));
                format!(
                    "{pod} is isolated by {}; allowed by {}",
                    join(&side.isolating),
                    join(rules)
                )
            }
            (Kind::Pod, true, None) => format!(
                "{pod} is isolated by {}; no rule allows {service} {preposition} {far}",
                join(&side.isolating)
            ),
        }
    }

    fn misses(
        &self,
        snapshot: &Snapshot,
        side: &Side<'_>,
        direction: Direction,
        misses: &[NearMiss],
    ) -> Vec<String> {
        const SHOWN: usize = 8;
        let (far, preposition) = match direction {
            Direction::Egress => (self.to, "to"),
            Direction::Ingress => (self.from, "from"),
        };
        let service = &self.service;
        let close = misses
            .iter()
            .take(SHOWN)
            .map(|NearMiss { policy, rule, miss }| match miss {
                Miss::Ports(ports) => {
                    format!("{policy} (rule {rule}) matches {far}, but allows only {ports}")
                }
                Miss::Peer => format!("{policy} (rule {rule}) allows {service}, but not {preposition} {far}"),
            });
        let mut lines: Vec<String> = close.collect();
        if misses.len() > SHOWN {
            lines.push(format!(
                "{} more rules match either the peer or the port",
                misses.len() - SHOWN
            ));
        }
        if side
            .isolating
            .iter()
            .all(|policy| has_no_rules(snapshot, policy, direction))
        {
            let whole = if side.isolating.len() == 1 {
                "it has"
            } else {
                "they have"
            };
            lines.push(format!(
                "{whole} no {} rules: everything is denied",
                word(direction)
            ));
        }
        lines
    }
}

fn has_no_rules(snapshot: &Snapshot, policy: &ObjectName, direction: Direction) -> bool {
    let policy = snapshot.policies.get(policy);
    let rules = policy.and_then(|policy| match direction {
        Direction::Ingress => policy.ingress.as_ref(),
        Direction::Egress => policy.egress.as_ref(),
    });
    rules.is_some_and(Vec::is_empty)
}

const fn word(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

fn policies(side: &Side<'_>) -> String {
    join(SideAnswer(side).policies())
}
