//! Policies that mean nothing to any pod: accepted by every API server, and mostly a slip of the pen.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet, HashMap},
};

use super::{
    Compiler,
    entities::{Namespace, Pod, Policy, SpaceAt},
    labels::{Matcher, Pair},
    objects::Objects,
    slab::ByNumber,
};
use crate::model::{
    Direction, NamespaceScope, ObjectName, Peer, Peers, PortSpec, Ports, Protocol, Rule, Selector, Str,
};

/// What of a policy means nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Idle {
    /// All of it: it selects no pod, while its namespace has pods.
    Selector,
    /// The peer at `at` of rule `rule` matches no pod.
    Peer {
        /// `from` or `to`.
        direction: Direction,
        /// [`Rule::index`]
        rule: u32,
        /// Its place in the list.
        at: usize,
    },
    /// Nobody has the port that rule `rule` names at `at`: of an ingress rule no pod that the policy selects, of an egress
    /// rule no pod at all.
    Port {
        /// `ingress` or `egress`.
        direction: Direction,
        /// [`Rule::index`]
        rule: u32,
        /// Its place in the list.
        at: usize,
        /// The port's name.
        name: Str,
        /// Its protocol.
        protocol: Protocol,
    },
}

impl Compiler {
    /// What has no effect, in order of policies; it is looked no further once there are `most`.
    #[must_use]
    pub fn without_effect(&self, most: usize) -> Vec<(ObjectName, Idle)> {
        let mut look = Look {
            objects: &self.objects,
            by_label: OnceCell::new(),
            anywhere: BTreeMap::new(),
            ports: OnceCell::new(),
            found: Vec::new(),
        };
        for at in self.objects.by_name.values() {
            let space = &self.objects.spaces[*at];
            for policy in space.policies.values() {
                if look.found.len() >= most {
                    return look.found;
                }
                look.policy(space, policy);
            }
        }
        look.found
    }
}

struct Look<'c> {
    objects: &'c Objects,
    /// The namespaces with each label.
    by_label: OnceCell<HashMap<Pair, Vec<SpaceAt>, ByNumber>>,
    /// Whether pods of any namespace match, by both selectors: few policies have their own.
    anywhere: BTreeMap<(&'c Selector, &'c Selector), bool>,
    /// The named ports of all pods.
    ports: OnceCell<BTreeSet<(&'c Str, Protocol)>>,
    found: Vec<(ObjectName, Idle)>,
}

impl<'c> Look<'c> {
    fn policy(&mut self, space: &Namespace, policy: &'c Policy) {
        let selected: Vec<&Pod> = self
            .pods_of(space)
            .filter(|pod| policy.selects(pod, &self.objects.labels))
            .collect();
        if selected.is_empty() {
            // A namespace without pods waits for them; one with pods, of which none is meant, is worth a word.
            if !space.pods.is_empty() {
                self.say(policy, Idle::Selector);
            }
            return;
        }
        for direction in [Direction::Ingress, Direction::Egress] {
            for rule in policy.rules(direction).unwrap_or_default() {
                self.peers(space, policy, rule, direction);
                self.named_ports(policy, rule, direction, &selected);
            }
        }
    }

    fn say(&mut self, policy: &Policy, idle: Idle) {
        self.found.push((policy.object.name.clone(), idle));
    }

    /// Running pods of a namespace.
    fn pods_of(&self, space: &Namespace) -> impl Iterator<Item = &'c Pod> {
        let objects = self.objects;
        space.pods.values().map(|at| &objects.pods[*at])
    }

    fn has(&self, space: &Namespace, pods: &Matcher) -> bool {
        self.pods_of(space)
            .any(|pod| pods.matches(&pod.labels, &self.objects.labels))
    }

    fn peers(&mut self, space: &Namespace, policy: &'c Policy, rule: &'c Rule, direction: Direction) {
        let Peers::Of(peers) = &rule.peers else { return };
        for (at, peer) in peers.iter().enumerate() {
            let Peer::Pods { namespaces, pods } = peer else {
                continue;
            };
            let matches = match namespaces {
                NamespaceScope::Own => self.has(space, &Matcher::find(pods, &self.objects.labels)),
                NamespaceScope::Matching(namespaces) => self.anywhere(namespaces, pods),
            };
            if !matches {
                let rule = rule.index;
                self.say(policy, Idle::Peer { direction, rule, at });
            }
        }
    }

    fn anywhere(&mut self, namespaces: &'c Selector, pods: &'c Selector) -> bool {
        if let Some(known) = self.anywhere.get(&(namespaces, pods)) {
            return *known;
        }
        let labels = &self.objects.labels;
        let (wanted, matcher) = (Matcher::find(namespaces, labels), Matcher::find(pods, labels));
        let matches = |space: &Namespace| wanted.matches(&space.labels, labels) && self.has(space, &matcher);
        let found = match wanted.needs() {
            Some(pairs) => {
                let by_label = self.by_label.get_or_init(|| by_label(self.objects));
                let mut spaces = pairs.iter().filter_map(|pair| by_label.get(pair)).flatten();
                spaces.any(|at| matches(&self.objects.spaces[*at]))
            }
            None => self.objects.spaces.iter().any(|(_, space)| matches(space)),
        };
        self.anywhere.insert((namespaces, pods), found);
        found
    }

    fn all_ports(&self) -> &BTreeSet<(&'c Str, Protocol)> {
        self.ports.get_or_init(|| all_ports(self.objects))
    }

    fn named_ports(&mut self, policy: &Policy, rule: &Rule, direction: Direction, selected: &[&Pod]) {
        let Ports::Of(ports) = &rule.ports else { return };
        for (at, port) in ports.iter().enumerate() {
            let PortSpec::Named(name) = &port.port else {
                continue;
            };
            let mut known = selected.iter().flat_map(|pod| pod.ports.iter());
            let is_known = match direction {
                Direction::Ingress => {
                    known.any(|known| known.name == *name && known.protocol == port.protocol)
                }
                Direction::Egress => self.all_ports().contains(&(name, port.protocol)),
            };
            if !is_known {
                let idle = Idle::Port {
                    direction,
                    rule: rule.index,
                    at,
                    name: name.clone(),
                    protocol: port.protocol,
                };
                self.say(policy, idle);
            }
        }
    }
}

fn all_ports(objects: &Objects) -> BTreeSet<(&Str, Protocol)> {
    let pods = objects.pods.iter().flat_map(|(_, pod)| pod.ports.iter());
    pods.map(|port| (&port.name, port.protocol)).collect()
}

fn by_label(objects: &Objects) -> HashMap<Pair, Vec<SpaceAt>, ByNumber> {
    let mut found: HashMap<Pair, Vec<SpaceAt>, ByNumber> = HashMap::default();
    for (at, space) in objects.spaces.iter() {
        for pair in &space.labels {
            found.entry(*pair).or_default().push(at);
        }
    }
    found
}

#[cfg(test)]
#[path = "effect_tests.rs"]
mod tests;
