//! The objects as the compiler keeps them: only what decides, by number and by address.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::labels::{LabelStore, Matcher, Pair};
use crate::model::{self, Direction, NamedPort, ObjectName, PortSpec, Ports, Protocol, Rule, Str};

/// Index of a pod in [`Objects::pods`].
pub(super) type PodAt = u32;
/// Id of a peer set.
pub(super) type SetId = u32;

/// A pod that can have an address.
#[derive(PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) namespace: Str,
    pub(super) labels: Box<[Pair]>,
    pub(super) addresses: Box<[IpAddr]>,
    pub(super) ports: Box<[NamedPort]>,
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

#[derive(Default)]
pub(super) struct Namespace {
    /// Whether the object exists; else it has the name label only.
    pub(super) defined: bool,
    pub(super) labels: Box<[Pair]>,
    pub(super) pods: BTreeMap<Str, PodAt>,
    pub(super) policies: BTreeMap<Str, Arc<Policy>>,
    /// The live peer sets whose namespace selector matches.
    pub(super) matching: BTreeSet<SetId>,
    /// Those of `matching` whose pod selector needs no particular label.
    pub(super) matching_rest: BTreeSet<SetId>,
}

/// A pod of this node.
pub(super) struct Local {
    pub(super) pod: PodAt,
    /// The policies that select it, by name.
    pub(super) selected: BTreeMap<Str, Arc<Policy>>,
}

/// An address that some pod claims.
#[derive(Default)]
pub(super) struct Address {
    pub(super) owners: Vec<PodAt>,
    /// Class of the exact entry; 0 = none, the prefixes decide.
    pub(super) class: u32,
}

/// What the last events touched.
#[derive(Default)]
pub(super) struct Touched {
    pub(super) addresses: BTreeSet<IpAddr>,
    pub(super) local: BTreeSet<ObjectName>,
    pub(super) namespaces: BTreeSet<Str>,
}

/// Everything known.
pub(super) struct Objects {
    node: Str,
    pub(super) labels: LabelStore,
    pub(super) namespaces: BTreeMap<Str, Namespace>,
    pub(super) pods: Vec<Option<Pod>>,
    free: Vec<PodAt>,
    pub(super) addresses: BTreeMap<IpAddr, Address>,
    pub(super) local: BTreeMap<ObjectName, Local>,
    versions: u64,
    pub(super) touched: Touched,
}

impl Objects {
    pub(super) fn new(node: Str) -> Self {
        Self {
            node,
            labels: LabelStore::default(),
            namespaces: BTreeMap::new(),
            pods: Vec::new(),
            free: Vec::new(),
            addresses: BTreeMap::new(),
            local: BTreeMap::new(),
            versions: 0,
            touched: Touched::default(),
        }
    }

    pub(super) fn pod(&self, at: PodAt) -> &Pod {
        self.pods[at as usize]
            .as_ref()
            .expect("an index in use names a pod")
    }

    pub(super) fn put_pod(&mut self, pod: model::Pod) {
        if !pod.is_endpoint() {
            self.remove_pod(&pod.name);
            return;
        }
        let name = pod.name.clone();
        let new = self.admit(pod);
        let space = self.namespace(&name.namespace);
        let Some(&at) = space.pods.get(&name.name) else {
            let at = self.free.pop().unwrap_or_else(|| {
                self.pods.push(None);
                u32::try_from(self.pods.len() - 1).expect("fewer than 2^32 pods")
            });
            self.namespace(&name.namespace).pods.insert(name.name.clone(), at);
            self.enter(&name, at, new);
            return;
        };
        if *self.pod(at) == new {
            self.labels.release(&new.labels);
            return;
        }
        self.leave(&name, at);
        self.enter(&name, at, new);
    }

    fn admit(&mut self, pod: model::Pod) -> Pod {
        let mut addresses = pod.addresses;
        addresses.sort_unstable();
        addresses.dedup();
        Pod {
            labels: self.labels.acquire(&pod.labels),
            addresses: addresses.into(),
            ports: pod.ports.into(),
            local: pod.node.as_ref() == Some(&self.node),
            terminating: pod.terminating,
            namespace: pod.name.namespace,
        }
    }

    fn enter(&mut self, name: &ObjectName, at: PodAt, pod: Pod) {
        for &address in &pod.addresses {
            self.addresses.entry(address).or_default().owners.push(at);
            self.touched.addresses.insert(address);
        }
        if pod.local {
            let policies = &self.namespaces[&name.namespace].policies;
            let selected = policies
                .iter()
                .filter(|(_, policy)| policy.matcher.matches(&pod.labels, &self.labels))
                .map(|(name, policy)| (name.clone(), policy.clone()))
                .collect();
            self.local.insert(name.clone(), Local { pod: at, selected });
            self.touched.local.insert(name.clone());
        }
        self.pods[at as usize] = Some(pod);
    }

    fn leave(&mut self, name: &ObjectName, at: PodAt) {
        let pod = self.pods[at as usize]
            .take()
            .expect("an index in use names a pod");
        self.labels.release(&pod.labels);
        for address in &pod.addresses {
            if let Some(entry) = self.addresses.get_mut(address) {
                entry.owners.retain(|&owner| owner != at);
            }
            self.touched.addresses.insert(*address);
        }
        if pod.local {
            self.local.remove(name);
            self.touched.local.insert(name.clone());
        }
    }

    pub(super) fn remove_pod(&mut self, name: &ObjectName) {
        let Some(space) = self.namespaces.get_mut(&name.namespace) else {
            return;
        };
        if let Some(at) = space.pods.remove(&name.name) {
            self.leave(name, at);
            self.free.push(at);
            self.drop_empty(&name.namespace);
        }
    }

    pub(super) fn put_policy(&mut self, object: model::Policy) {
        let name = object.name.clone();
        let old = self.namespace(&name.namespace).policies.get(&name.name).cloned();
        if old.as_ref().is_some_and(|old| old.object == object) {
            return;
        }
        let mut version = |new: &Option<Vec<Rule>>, old: Option<(&Option<Vec<Rule>>, u64)>| match old {
            Some((old, version)) if old == new => version,
            _ => {
                self.versions += 1;
                self.versions
            }
        };
        let before = old.as_deref();
        let policy = Arc::new(Policy {
            ingress_version: version(
                &object.ingress,
                before.map(|p| (&p.object.ingress, p.ingress_version)),
            ),
            egress_version: version(
                &object.egress,
                before.map(|p| (&p.object.egress, p.egress_version)),
            ),
            names: named_ports(object.ingress.as_deref().unwrap_or_default()),
            matcher: Matcher::new(&object.selector, &mut self.labels),
            object,
        });
        self.select(&name, Some(&policy));
        self.namespace(&name.namespace).policies.insert(name.name, policy);
        if let Some(old) = old {
            old.matcher.release(&mut self.labels);
        }
    }

    pub(super) fn remove_policy(&mut self, name: &ObjectName) {
        let Some(space) = self.namespaces.get_mut(&name.namespace) else {
            return;
        };
        if let Some(old) = space.policies.remove(&name.name) {
            old.matcher.release(&mut self.labels);
            self.select(name, None);
            self.drop_empty(&name.namespace);
        }
    }

    /// Brings the local pods of the policy's namespace up to date.
    fn select(&mut self, name: &ObjectName, policy: Option<&Arc<Policy>>) {
        let first = ObjectName::new(name.namespace.clone(), "");
        for (pod_name, local) in self.local.range_mut(first..) {
            if pod_name.namespace != name.namespace {
                break;
            }
            let pod = self.pods[local.pod as usize]
                .as_ref()
                .expect("an index in use names a pod");
            let before = local.selected.remove(&name.name);
            let after = policy.filter(|policy| policy.matcher.matches(&pod.labels, &self.labels));
            if before.is_some() || after.is_some() {
                self.touched.local.insert(pod_name.clone());
            }
            if let Some(policy) = after {
                local.selected.insert(name.name.clone(), policy.clone());
            }
        }
    }

    pub(super) fn put_namespace(&mut self, object: &model::Namespace) {
        let labels = self.labels.acquire(&object.labels);
        self.relabel(&object.name, labels, true);
    }

    pub(super) fn remove_namespace(&mut self, name: &Str) {
        if self.namespaces.contains_key(name) {
            let labels = self
                .labels
                .acquire(&model::Namespace::new(name.clone(), []).labels);
            self.relabel(name, labels, false);
            self.drop_empty(name);
        }
    }

    fn relabel(&mut self, name: &Str, labels: Box<[Pair]>, defined: bool) {
        let space = self.namespace(name);
        space.defined = defined;
        let old = std::mem::replace(&mut space.labels, labels);
        if old != space.labels {
            self.touched.namespaces.insert(name.clone());
        }
        self.labels.release(&old);
    }

    /// The namespace `name`, made with its name label only where it is new.
    fn namespace(&mut self, name: &Str) -> &mut Namespace {
        if !self.namespaces.contains_key(name) {
            let labels = self
                .labels
                .acquire(&model::Namespace::new(name.clone(), []).labels);
            let space = Namespace {
                labels,
                ..Namespace::default()
            };
            self.namespaces.insert(name.clone(), space);
            self.touched.namespaces.insert(name.clone());
        }
        self.namespaces.get_mut(name).expect("made above")
    }

    fn drop_empty(&mut self, name: &Str) {
        if let Some(space) = self.namespaces.get(name)
            && !space.defined
            && space.pods.is_empty()
            && space.policies.is_empty()
            && let Some(space) = self.namespaces.remove(name)
        {
            self.labels.release(&space.labels);
        }
    }

    #[cfg(test)]
    pub(super) fn is_vacant(&self) -> bool {
        self.labels.is_vacant()
            && self.namespaces.is_empty()
            && self.pods.iter().all(Option::is_none)
            && self.addresses.is_empty()
            && self.local.is_empty()
    }

    /// Who of the claimants owns an address: those that are not terminating, if there is one.
    pub(super) fn owners(&self, address: &Address) -> impl Iterator<Item = &Pod> {
        let running = |at: &&PodAt| !self.pod(**at).terminating;
        let alive = address.owners.iter().any(|at| running(&at));
        address
            .owners
            .iter()
            .filter(move |at| !alive || running(at))
            .map(|&at| self.pod(at))
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
