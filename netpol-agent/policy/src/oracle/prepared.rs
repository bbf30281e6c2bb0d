//! Policies with their selector peers numbered, so that whom a selector means is found once for each pod.

use std::collections::HashMap;

use ipnet::IpNet;

use super::selector::selects;
use crate::model::{Labels, NamespaceScope, Peer, Peers, Pod, Policy, Ports, Rule, Selector};

/// A policy; a direction is `Some` where the policy relates to it.
#[derive(Debug)]
pub(super) struct PreparedPolicy<'a> {
    pub(super) policy: &'a Policy,
    pub(super) ingress: Option<Vec<PreparedRule<'a>>>,
    pub(super) egress: Option<Vec<PreparedRule<'a>>>,
}

#[derive(Debug)]
pub(super) struct PreparedRule<'a> {
    pub(super) index: u32,
    pub(super) ports: &'a Ports,
    /// `None`: everyone.
    pub(super) peers: Option<Vec<PreparedPeer<'a>>>,
}

#[derive(Debug)]
pub(super) enum PreparedPeer<'a> {
    IpBlock {
        cidr: &'a IpNet,
        except: &'a [IpNet],
    },
    /// A number of [`SelectorPeers`].
    Pods(usize),
}

/// Whose pods a selector peer means: an own namespace is told from another's by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Scope<'a> {
    Named(&'a str),
    Matching(&'a Selector),
}

/// Every different selector peer of the snapshot, numbered.
#[derive(Debug, Default)]
pub(super) struct SelectorPeers<'a> {
    all: Vec<(Scope<'a>, &'a Selector)>,
    numbers: HashMap<(Scope<'a>, &'a Selector), usize>,
}

impl<'a> SelectorPeers<'a> {
    pub(super) fn prepare(&mut self, policy: &'a Policy) -> PreparedPolicy<'a> {
        let mut direction = |rules: &'a Option<Vec<Rule>>| {
            let rules = rules.as_ref()?.iter();
            Some(rules.map(|rule| self.rule(policy, rule)).collect())
        };
        PreparedPolicy {
            policy,
            ingress: direction(&policy.ingress),
            egress: direction(&policy.egress),
        }
    }

    fn rule(&mut self, policy: &'a Policy, rule: &'a Rule) -> PreparedRule<'a> {
        let peers = match &rule.peers {
            Peers::Any => None,
            Peers::Of(peers) => Some(peers.iter().map(|peer| self.peer(policy, peer)).collect()),
        };
        PreparedRule {
            index: rule.index,
            ports: &rule.ports,
            peers,
        }
    }

    fn peer(&mut self, policy: &'a Policy, peer: &'a Peer) -> PreparedPeer<'a> {
        match peer {
            Peer::IpBlock { cidr, except } => PreparedPeer::IpBlock { cidr, except },
            Peer::Pods { namespaces, pods } => {
                let scope = match namespaces {
                    NamespaceScope::Own => Scope::Named(&policy.name.namespace),
                    NamespaceScope::Matching(selector) => Scope::Matching(selector),
                };
                let number = *self.numbers.entry((scope, pods)).or_insert_with(|| {
                    self.all.push((scope, pods));
                    self.all.len() - 1
                });
                PreparedPeer::Pods(number)
            }
        }
    }

    /// For each selector peer, by its number, whether it means `pod`.
    ///
    /// types, podSelector of a peer: "if present but empty, it selects all pods. If namespaceSelector is also
    /// set, then the NetworkPolicyPeer as a whole selects the pods matching podSelector in the Namespaces
    /// selected by NamespaceSelector. Otherwise it selects the pods matching podSelector in the policy's own
    /// namespace."
    ///
    /// types, namespaceSelector: "if present but empty, it selects all namespaces. If podSelector is also set
    /// [...]. Otherwise it selects all pods in the namespaces selected by namespaceSelector." (The model has the
    /// empty selector for an absent podSelector.)
    pub(super) fn meaning(&self, pod: &Pod, namespace: &Labels) -> Box<[bool]> {
        let means = |(scope, pods): &(Scope<'_>, &Selector)| {
            let in_scope = match scope {
                Scope::Named(name) => *pod.name.namespace == **name,
                Scope::Matching(selector) => selects(selector, namespace),
            };
            in_scope && selects(pods, &pod.labels)
        };
        self.all.iter().map(means).collect()
    }
}
