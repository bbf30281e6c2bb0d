//! Which rules came close: those of the isolating policies that match the peer or the port, but not both.

use std::fmt::Write as _;

use netpol_policy::{
    model::{Direction, NamedPort, ObjectName, Peers, PortMatch, PortSpec, Ports, Rule, Snapshot},
    oracle::{Flow, Oracle, RuleRef, Side},
};

use super::{Question, protocol_name};

/// A rule that does not allow the flow, and what of it does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NearMiss {
    /// The policy.
    pub(super) policy: ObjectName,
    /// The rule's place in its list.
    pub(super) rule: u32,
    /// What does not fit.
    pub(super) miss: Miss,
}

/// What of a rule does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Miss {
    /// The peer fits; the rule allows only these ports.
    Ports(String),
    /// The port fits; the rule is for other peers.
    Peer,
}

/// The near misses of a side that denies, in order of policies and rules. The oracle itself is asked, once
/// with the ports of every rule left out and once with the peers.
#[must_use]
pub(super) fn near_misses(
    snapshot: &Snapshot,
    question: &Question<'_>,
    side: &Side<'_>,
    direction: Direction,
) -> Vec<NearMiss> {
    let flow = question.flow();
    let peer_fits = asked_with(snapshot, &flow, side, direction, |rule| rule.ports = Ports::Any);
    let port_fits = asked_with(snapshot, &flow, side, direction, |rule| rule.peers = Peers::Any);
    let destination: &[NamedPort] = match question.to.subjects[..] {
        [owner] => &owner.pod.ports,
        _ => &[],
    };
    let mut misses = Vec::new();
    for &name in &side.isolating {
        for rule in rules(snapshot, name, direction) {
            let key = (name.clone(), rule.index);
            let miss = match (&rule.ports, peer_fits.contains(&key), port_fits.contains(&key)) {
                (Ports::Of(ports), true, false) => Miss::Ports(describe(ports, destination)),
                (_, false, true) => Miss::Peer,
                _ => continue,
            };
            misses.push(NearMiss {
                policy: name.clone(),
                rule: rule.index,
                miss,
            });
        }
    }
    misses
}

fn rules<'s>(snapshot: &'s Snapshot, policy: &ObjectName, direction: Direction) -> &'s [Rule] {
    let policy = snapshot.policies.get(policy);
    let rules = policy.and_then(|policy| match direction {
        Direction::Ingress => policy.ingress.as_deref(),
        Direction::Egress => policy.egress.as_deref(),
    });
    rules.unwrap_or_default()
}

/// The rules that allow `flow` once each is changed by `change`.
fn asked_with(
    snapshot: &Snapshot,
    flow: &Flow,
    side: &Side<'_>,
    direction: Direction,
    change: fn(&mut Rule),
) -> Vec<(ObjectName, u32)> {
    let mut changed = snapshot.clone();
    changed.policies.retain(|name, _| side.isolating.contains(&name));
    for policy in changed.policies.values_mut() {
        let both = [&mut policy.ingress, &mut policy.egress];
        both.into_iter().flatten().flatten().for_each(change);
    }
    let oracle = Oracle::new(&changed);
    let verdict = oracle.evaluate(flow);
    let side = match direction {
        Direction::Ingress => verdict.ingress,
        Direction::Egress => verdict.egress,
    };
    let owned = |allowing: &RuleRef<'_>| (allowing.policy.clone(), allowing.rule);
    side.allowing.iter().map(owned).collect()
}

/// `TCP 80, TCP 8000-9000, UDP dns (53)`; a name that the destination does not have is said to be so.
fn describe(ports: &[PortMatch], destination: &[NamedPort]) -> String {
    const SHOWN: usize = 8;
    let mut text = String::new();
    for port in ports.iter().take(SHOWN) {
        let separator = if text.is_empty() { "" } else { ", " };
        let protocol = protocol_name(port.protocol.number());
        // Writing to a `String` does not fail.
        let _ = match &port.port {
            PortSpec::All => write!(text, "{separator}{protocol}"),
            PortSpec::Range(first, last) if first == last => write!(text, "{separator}{protocol} {first}"),
            PortSpec::Range(first, last) => write!(text, "{separator}{protocol} {first}-{last}"),
            PortSpec::Named(name) => {
                let there = destination
                    .iter()
                    .find(|p| p.name == *name && p.protocol == port.protocol);
                let number = there.map_or("no such port there".into(), |port| port.number.to_string());
                write!(text, "{separator}{protocol} {name} ({number})")
            }
        };
    }
    if ports.len() > SHOWN {
        let _ = write!(text, " and {} more", ports.len() - SHOWN);
    }
    text
}
