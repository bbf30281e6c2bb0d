//! Pods, policies, namespaces and addresses: only what decides, by number.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use netpol_common::tables::CLASS_OTHER;

use super::{
    labels::{LabelStore, Matcher, Pair},
    peers::PeerAt,
};
use crate::model::{self, Direction, NamedPort, PortSpec, Ports, Protocol, Rule, Str};

/// Number of a pod.
pub(super) type PodAt = u32;
/// Number of an address.
pub(super) type AddressAt = u32;
/// Number of a namespace.
pub(super) type SpaceAt = u32;

/// A pod that can have an address.
#[derive(PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) space: SpaceAt,
    pub(super) labels: Box<[Pair]>,
    pub(super) addresses: Box<[AddressAt]>,
    /// Shared: replicas have the same.
    pub(super) ports: Arc<[NamedPort]>,
    pub(super) local: bool,
    pub(super) terminating: bool,
}

/// A policy with what the compiler needs again and again.
pub(super) struct Policy {
    pub(super) object: model::Policy,
    matcher: Matcher,
    /// Changes with the rules; with it, equal rulesets are equal keys.
    ingress_version: u64,
    egress_version: u64,
    /// Named ports of the ingress rules: they mean what the selected pod calls so.
    pub(super) names: BTreeSet<(Str, Protocol)>,
}

impl Policy {
    /// `object` in place of `old`; what did not change keeps its version.
    pub(super) fn new(
        object: model::Policy,
        old: Option<&Self>,
        labels: &mut LabelStore,
        next_version: &mut impl FnMut() -> u64,
    ) -> Self {
        let mut version = |direction, new: &Option<Vec<Rule>>| match old {
            Some(old) if old.rules(direction) == new.as_deref() => old.version(direction),
            _ => next_version(),
        };
        Self {
            ingress_version: version(Direction::Ingress, &object.ingress),
            egress_version: version(Direction::Egress, &object.egress),
            names: named_ports(object.ingress.as_deref().unwrap_or_default()),
            matcher: Matcher::new(&object.selector, labels),
            object,
        }
    }

    pub(super) fn selects(&self, pod: &Pod, labels: &LabelStore) -> bool {
        self.matcher.matches(&pod.labels, labels)
    }

    /// Gives back what the selector refers to; it must not be asked afterwards.
    pub(super) fn release(&self, labels: &mut LabelStore) {
        self.matcher.release(labels);
    }

    /// The rules of one direction; `None` where the policy does not isolate it.
    pub(super) fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.object.ingress.as_deref(),
            Direction::Egress => self.object.egress.as_deref(),
        }
    }

    pub(super) fn version(&self, direction: Direction) -> u64 {
        match direction {
            Direction::Ingress => self.ingress_version,
            Direction::Egress => self.egress_version,
        }
    }
}

/// A namespace that exists, or that some object is in.
pub(super) struct Namespace {
    pub(super) name: Str,
    /// Whether the object exists; else it has the name label only.
    pub(super) defined: bool,
    pub(super) labels: Box<[Pair]>,
    pub(super) pods: BTreeMap<Str, PodAt>,
    pub(super) policies: BTreeMap<Str, Arc<Policy>>,
    /// The live peers whose namespace selector matches.
    pub(super) matching: BTreeSet<PeerAt>,
    /// Those of `matching` whose pod selector needs no particular label.
    pub(super) matching_rest: BTreeSet<PeerAt>,
}

impl Namespace {
    pub(super) fn new(name: Str, labels: Box<[Pair]>) -> Self {
        Self {
            name,
            defined: false,
            labels,
            pods: BTreeMap::new(),
            policies: BTreeMap::new(),
            matching: BTreeSet::new(),
            matching_rest: BTreeSet::new(),
        }
    }

    /// Whether nothing needs it.
    pub(super) fn is_unused(&self) -> bool {
        !self.defined && self.pods.is_empty() && self.policies.is_empty()
    }
}

/// A pod of this node.
pub(super) struct Local {
    pub(super) pod: PodAt,
    /// The policies that select it, by name.
    pub(super) selected: BTreeMap<Str, Arc<Policy>>,
}

/// An address that some pod claims.
pub(super) struct Address {
    pub(super) ip: IpAddr,
    /// Class of the exact entry; 0 = none, the prefixes decide.
    pub(super) class: u32,
    /// Whether it is in [`Touched::addresses`].
    pub(super) touched: bool,
    /// Almost always one.
    first: Option<PodAt>,
    others: Vec<PodAt>,
}

impl Address {
    pub(super) fn new(ip: IpAddr) -> Self {
        Self {
            ip,
            class: CLASS_OTHER,
            touched: false,
            first: None,
            others: Vec::new(),
        }
    }

    pub(super) fn claimants(&self) -> impl Iterator<Item = PodAt> + Clone + '_ {
        self.first.iter().chain(&self.others).copied()
    }

    pub(super) fn is_claimed(&self) -> bool {
        self.first.is_some()
    }

    pub(super) fn is_shared(&self) -> bool {
        !self.others.is_empty()
    }

    pub(super) fn add(&mut self, pod: PodAt) {
        match self.first {
            None => self.first = Some(pod),
            Some(_) => self.others.push(pod),
        }
    }

    pub(super) fn remove(&mut self, pod: PodAt) {
        if self.first == Some(pod) {
            self.first = self.others.pop();
        } else {
            self.others.retain(|&other| other != pod);
        }
    }
}

fn named_ports(rules: &[Rule]) -> BTreeSet<(Str, Protocol)> {
    let lists = rules.iter().filter_map(|rule| match &rule.ports {
        Ports::Of(list) => Some(list),
        Ports::Any => None,
    });
    let named = lists.flatten().filter_map(|port| match &port.port {
        PortSpec::Named(name) => Some((name.clone(), port.protocol)),
        _ => None,
    });
    named.collect()
}
