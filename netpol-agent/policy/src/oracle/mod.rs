//! The reference evaluator: NetworkPolicy as its API text says it, object by object, without tables.
//!
//! It shares nothing with the compiler but the model, so that the two can be held against each other; where
//! they differ, the text decides. Quotations are from `k8s.io/api/networking/v1/types.go` ("types"), from the
//! label selectors of `k8s.io/apimachinery` ("labels"), and from the Kubernetes documentation, *Concepts /
//! Services, Load Balancing, and Networking / Network Policies* ("concepts").
//!
//! What the text leaves open is decided here; [`Oracle::evaluate`] and [`End`] say how.

mod index;
mod prepared;
mod rules;
mod selector;
pub use selector::selects;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use crate::model::{Direction, ObjectName, Snapshot, Str};
use index::Index;

/// One end of a flow.
///
/// What an end *is* decides whose policies are asked; as somebody's *peer* it counts by its address alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// A pod and the address by which it is meant. A `hostNetwork` pod is its node; a completed pod, or one
    /// that the snapshot does not have, is nothing but the address.
    Pod(ObjectName, IpAddr),
    /// An address: of the running pod or pods that own it; else of the node that has it (its `Node` object,
    /// or a running `hostNetwork` pod, says so); else of somebody outside.
    Ip(IpAddr),
    /// A node and the address by which it is meant.
    Node(Str, IpAddr),
}

impl End {
    /// The address by which the end is meant.
    #[must_use]
    pub const fn address(&self) -> IpAddr {
        match self {
            Self::Pod(_, address) | Self::Ip(address) | Self::Node(_, address) => *address,
        }
    }
}

/// A connection, or the first packet of an exchange, with the real destination (after DNAT).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Who opens it.
    pub from: End,
    /// To whom.
    pub to: End,
    /// The IP protocol number.
    pub protocol: u8,
    /// The destination port in host byte order; 0 for protocols without ports.
    pub port: u16,
}

/// A rule of a policy, in the list of the direction that was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleRef<'o> {
    /// The policy.
    pub policy: &'o ObjectName,
    /// The rule's place in `spec.ingress` or `spec.egress`, from 0.
    pub rule: u32,
}

/// Why rules were not asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Exemption {
    /// The other end is the node that the pod runs on.
    OwnNode,
    /// The other end is the pod itself.
    Itself,
}

/// What the policies of one end say.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Side<'o> {
    /// Some policy selects the pod for this direction.
    pub isolated: bool,
    /// This side lets the flow pass.
    pub allowed: bool,
    /// The policies that isolate the pod in this direction, in order of their names.
    pub isolating: Vec<&'o ObjectName>,
    /// Every rule that allows the flow, in order; empty where the pod is not isolated or rules were not asked.
    pub allowing: Vec<RuleRef<'o>>,
    /// Why rules were not asked.
    pub exempt: Option<Exemption>,
}

/// What both ends say.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Verdict<'o> {
    /// The sender's policies.
    pub egress: Side<'o>,
    /// The receiver's policies.
    pub ingress: Side<'o>,
}

impl Verdict<'_> {
    /// concepts: "For a connection from a source pod to a destination pod to be allowed, both the egress
    /// policy on the source pod and the ingress policy on the destination pod need to allow the connection."
    #[must_use]
    pub const fn allowed(&self) -> bool {
        self.egress.allowed && self.ingress.allowed
    }
}

/// The evaluator over one snapshot.
#[derive(Debug)]
pub struct Oracle<'a> {
    index: Index<'a>,
}

/// What the sender wants of the destination.
#[derive(Clone, Copy, Debug)]
struct Asked {
    protocol: u8,
    port: u16,
}

/// An end, resolved: whose policies are asked, and what the other side sees.
#[derive(Clone, Copy, Debug)]
struct Place<'o> {
    address: IpAddr,
    /// The pods whose packets these are.
    subjects: &'o [usize],
    /// The node whose packets these are.
    node: Option<&'o str>,
    /// The pods that own the address: as these the end is seen by selectors and named ports.
    owners: &'o [usize],
}

impl<'a> Oracle<'a> {
    /// Indexes `snapshot`: addresses to pods, pods to the policies that select them (the latter when asked).
    #[must_use]
    pub fn new(snapshot: &'a Snapshot) -> Self {
        Self {
            index: Index::new(snapshot),
        }
    }

    /// The verdict on `flow`, with every policy and rule that has a part in it.
    ///
    /// Where the API text is silent:
    /// - An address belongs to the running pods (not `hostNetwork`, not completed) that have it in
    ///   `status.podIPs`; where one of these is not terminating, the terminating ones do not count. Should
    ///   several remain (an error in the manifests), the address is in a selector's peer set only if *all* of
    ///   them match, a named port counts only if *all* of them have it, and an [`End::Ip`] is allowed what
    ///   the policies of *all* of them allow.
    /// - A pod without address is isolated as declared and nobody's peer.
    /// - An address that several nodes claim is nobody's own node.
    /// - IPv4 and IPv6 never match each other; `::ffff:a.b.c.d` is an IPv6 address.
    #[must_use]
    pub fn evaluate(&self, flow: &Flow) -> Verdict<'_> {
        self.between([&flow.from, &flow.to], flow.protocol, flow.port)
    }

    /// [`Self::evaluate`] for ends that somebody else keeps: from the first to the second.
    #[must_use]
    pub fn between(&self, ends: [&End; 2], protocol: u8, port: u16) -> Verdict<'_> {
        let [from, to] = ends.map(|end| self.place(end));
        let asked = Asked { protocol, port };
        Verdict {
            egress: self.side(Direction::Egress, from, to, asked),
            ingress: self.side(Direction::Ingress, to, from, asked),
        }
    }

    fn place<'o>(&'o self, end: &'o End) -> Place<'o> {
        let address = end.address();
        let owners = self.index.owners(address);
        let place = Place {
            address,
            subjects: &[],
            node: None,
            owners,
        };
        match end {
            End::Node(name, _) => Place {
                node: Some(name),
                ..place
            },
            End::Pod(name, _) => match self.index.pod(name) {
                Some(index::Standing::Endpoint(subject)) => Place {
                    subjects: std::slice::from_ref(subject),
                    ..place
                },
                // concepts: "Traffic to/from hostNetwork pods is treated the same as all other traffic
                // to/from the node IP."
                Some(index::Standing::Host(node)) => Place { node: *node, ..place },
                None => self.by_address(place),
            },
            End::Ip(_) => self.by_address(place),
        }
    }

    fn by_address<'o>(&'o self, place: Place<'o>) -> Place<'o> {
        if place.owners.is_empty() {
            Place {
                node: self.index.node(place.address),
                ..place
            }
        } else {
            Place {
                subjects: place.owners,
                ..place
            }
        }
    }

    /// An end that is no pod has no policies. Where an address has several owners all must agree.
    fn side<'o>(
        &'o self,
        direction: Direction,
        local: Place<'_>,
        remote: Place<'_>,
        asked: Asked,
    ) -> Side<'o> {
        let sides = local
            .subjects
            .iter()
            .map(|&subject| self.judge(direction, subject, remote, asked));
        sides.reduce(Side::and).unwrap_or(Side {
            isolated: false,
            allowed: true,
            isolating: Vec::new(),
            allowing: Vec::new(),
            exempt: None,
        })
    }

    /// types, ingress: "Traffic is allowed to a pod if there are no NetworkPolicies selecting the pod [...], OR
    /// if the traffic source is the pod's local node, OR if the traffic matches at least one ingress rule across
    /// all of the NetworkPolicy objects whose podSelector matches the pod." The same for egress.
    fn judge<'o>(
        &'o self,
        direction: Direction,
        subject: usize,
        remote: Place<'_>,
        asked: Asked,
    ) -> Side<'o> {
        let isolation = self.index.isolation(subject, direction);
        let isolated = isolation.len() > 0;
        let exempt = self.exemption(subject, remote);
        let target = match direction {
            Direction::Ingress => std::slice::from_ref(&subject),
            Direction::Egress => remote.owners,
        };
        let mut isolating = Vec::with_capacity(isolation.len());
        let mut allowing = Vec::new();
        for (policy, rules) in isolation {
            isolating.push(policy);
            let rules = if exempt.is_none() { rules } else { &[] };
            let matching = rules
                .iter()
                .filter(|rule| self.index.rule_matches(rule, remote, target, asked));
            allowing.extend(matching.map(|rule| RuleRef {
                policy,
                rule: rule.index,
            }));
        }
        Side {
            isolated,
            allowed: !isolated || exempt.is_some() || !allowing.is_empty(),
            isolating,
            allowing,
            exempt,
        }
    }

    fn exemption(&self, subject: usize, remote: Place<'_>) -> Option<Exemption> {
        // concepts: "(exception: a pod cannot block access to itself)". By whichever of its addresses.
        if !remote.subjects.is_empty() && remote.subjects.iter().all(|&other| other == subject) {
            return Some(Exemption::Itself);
        }
        // concepts: "(exception: traffic to and from the node where a Pod is running is always allowed,
        // regardless of the IP address of the Pod or the node)". Another node counts only by its address.
        let own = self.index.endpoint(subject).node.as_deref();
        (remote.node.is_some() && remote.node == own).then_some(Exemption::OwnNode)
    }
}

impl Side<'_> {
    /// Both sides must allow. Exempt only where both are, so that the rules that were asked stay visible.
    fn and(mut self, other: Self) -> Self {
        self.isolated |= other.isolated;
        self.allowed &= other.allowed;
        self.isolating.extend(other.isolating);
        self.isolating.sort_unstable();
        self.isolating.dedup();
        self.allowing.extend(other.allowing);
        self.allowing.sort_unstable();
        self.allowing.dedup();
        self.exempt = self.exempt.and(other.exempt);
        self
    }
}
