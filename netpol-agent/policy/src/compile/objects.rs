//! The objects as the compiler keeps them, kept up to date.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use super::{
    entities::{Address, AddressAt, Local, Namespace, Pod, PodAt, Policy, SpaceAt},
    labels::{LabelStore, Pair},
    shared::Shared,
    slab::Slab,
};
use crate::model::{self, NamedPort, ObjectName, Str};

/// What the last events touched.
#[derive(Default)]
pub(super) struct Touched {
    pub(super) addresses: Vec<AddressAt>,
    pub(super) local: BTreeSet<ObjectName>,
    pub(super) namespaces: BTreeSet<Str>,
}

/// Everything known.
pub(super) struct Objects {
    node: Str,
    pub(super) labels: LabelStore,
    pub(super) spaces: Slab<Namespace>,
    pub(super) by_name: BTreeMap<Str, SpaceAt>,
    pub(super) pods: Slab<Pod>,
    ports: Shared<[NamedPort]>,
    pub(super) addresses: Slab<Address>,
    by_ip: HashMap<IpAddr, AddressAt>,
    pub(super) local: BTreeMap<ObjectName, Local>,
    versions: u64,
    pub(super) touched: Touched,
}

impl Objects {
    pub(super) fn new(node: Str) -> Self {
        Self {
            node,
            labels: LabelStore::default(),
            spaces: Slab::default(),
            by_name: BTreeMap::new(),
            pods: Slab::default(),
            ports: Shared::default(),
            addresses: Slab::default(),
            by_ip: HashMap::new(),
            local: BTreeMap::new(),
            versions: 0,
            touched: Touched::default(),
        }
    }

    pub(super) fn space_at(&self, name: &Str) -> Option<SpaceAt> {
        self.by_name.get(name).copied()
    }

    pub(super) fn address_at(&self, ip: IpAddr) -> Option<AddressAt> {
        self.by_ip.get(&ip).copied()
    }

    pub(super) fn put_pod(&mut self, pod: model::Pod) {
        if !pod.is_endpoint() {
            self.remove_pod(&pod.name);
            return;
        }
        let name = pod.name.clone();
        let space = self.space(&name.namespace);
        let new = self.admit(space, pod);
        if let Some(&at) = self.spaces[space].pods.get(&name.name) {
            if self.pods[at] == new {
                self.labels.release(&new.labels);
                return;
            }
            self.leave(&name, at);
            let old = std::mem::replace(&mut self.pods[at], new);
            self.ports.release(old.ports);
            self.enter(&name, at);
        } else {
            let at = self.pods.insert(new);
            self.spaces[space].pods.insert(name.name.clone(), at);
            self.enter(&name, at);
        }
    }

    pub(super) fn is_local(&self, pod: &model::Pod) -> bool {
        pod.node.as_ref() == Some(&self.node)
    }

    fn admit(&mut self, space: SpaceAt, pod: model::Pod) -> Pod {
        let local = self.is_local(&pod);
        let mut ips = pod.addresses;
        ips.sort_unstable();
        ips.dedup();
        Pod {
            space,
            labels: self.labels.acquire(&pod.labels),
            addresses: ips.into_iter().map(|ip| self.address(ip)).collect(),
            ports: self.ports.get(&pod.ports),
            local,
            terminating: pod.terminating,
        }
    }

    fn address(&mut self, ip: IpAddr) -> AddressAt {
        if let Some(at) = self.address_at(ip) {
            return at;
        }
        let at = self.addresses.insert(Address::new(ip));
        self.by_ip.insert(ip, at);
        at
    }

    /// Has the class of `at` computed anew.
    pub(super) fn touch(&mut self, at: AddressAt) {
        let address = &mut self.addresses[at];
        if !address.touched {
            address.touched = true;
            self.touched.addresses.push(at);
        }
    }

    /// As [`Self::touch`], for every address of a namespace's pods.
    pub(super) fn touch_space(&mut self, at: SpaceAt) {
        let pods = self.spaces[at].pods.values();
        let addresses: Vec<_> = pods.flat_map(|&pod| &self.pods[pod].addresses).copied().collect();
        addresses.into_iter().for_each(|address| self.touch(address));
    }

    /// Forgets an address that nobody claims any more.
    pub(super) fn remove_address(&mut self, at: AddressAt) {
        let address = self.addresses.remove(at);
        self.by_ip.remove(&address.ip);
    }

    fn enter(&mut self, name: &ObjectName, at: PodAt) {
        for at_address in self.pods[at].addresses.clone() {
            self.addresses[at_address].add(at);
            self.touch(at_address);
        }
        let pod = &self.pods[at];
        if pod.local {
            let policies = self.spaces[pod.space].policies.iter();
            let selected = policies
                .filter(|(_, policy)| policy.selects(pod, &self.labels))
                .map(|(name, policy)| (name.clone(), policy.clone()))
                .collect();
            self.local.insert(name.clone(), Local { pod: at, selected });
            self.touched.local.insert(name.clone());
        }
    }

    fn leave(&mut self, name: &ObjectName, at: PodAt) {
        let labels = std::mem::take(&mut self.pods[at].labels);
        self.labels.release(&labels);
        for at_address in self.pods[at].addresses.clone() {
            self.addresses[at_address].remove(at);
            self.touch(at_address);
        }
        if self.pods[at].local {
            self.local.remove(name);
            self.touched.local.insert(name.clone());
        }
    }

    pub(super) fn remove_pod(&mut self, name: &ObjectName) {
        let Some(space) = self.space_at(&name.namespace) else {
            return;
        };
        if let Some(at) = self.spaces[space].pods.remove(&name.name) {
            self.leave(name, at);
            let old = self.pods.remove(at);
            self.ports.release(old.ports);
            self.drop_empty(space);
        }
    }

    pub(super) fn put_policy(&mut self, object: model::Policy) {
        let name = object.name.clone();
        let space = self.space(&name.namespace);
        let old = self.spaces[space].policies.get(&name.name).cloned();
        if old.as_ref().is_some_and(|old| old.object == object) {
            return;
        }
        let mut next_version = || {
            self.versions += 1;
            self.versions
        };
        let policy = Arc::new(Policy::new(
            object,
            old.as_deref(),
            &mut self.labels,
            &mut next_version,
        ));
        self.select(&name, Some(&policy));
        self.spaces[space].policies.insert(name.name, policy);
        if let Some(old) = old {
            old.release(&mut self.labels);
        }
    }

    pub(super) fn remove_policy(&mut self, name: &ObjectName) {
        let Some(space) = self.space_at(&name.namespace) else {
            return;
        };
        if let Some(old) = self.spaces[space].policies.remove(&name.name) {
            old.release(&mut self.labels);
            self.select(name, None);
            self.drop_empty(space);
        }
    }

    /// Brings the local pods of the policy's namespace up to date.
    fn select(&mut self, name: &ObjectName, policy: Option<&Arc<Policy>>) {
        let first = ObjectName::new(name.namespace.clone(), "");
        for (pod_name, local) in self.local.range_mut(first..) {
            if pod_name.namespace != name.namespace {
                break;
            }
            let pod = &self.pods[local.pod];
            let before = local.selected.remove(&name.name);
            let after = policy.filter(|policy| policy.selects(pod, &self.labels));
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
        let space = self.space(&object.name);
        self.relabel(space, labels, true);
    }

    pub(super) fn remove_namespace(&mut self, name: &Str) {
        if let Some(space) = self.space_at(name) {
            let labels = self
                .labels
                .acquire(&model::Namespace::new(name.clone(), []).labels);
            self.relabel(space, labels, false);
            self.drop_empty(space);
        }
    }

    fn relabel(&mut self, at: SpaceAt, labels: Box<[Pair]>, defined: bool) {
        let space = &mut self.spaces[at];
        space.defined = defined;
        let old = std::mem::replace(&mut space.labels, labels);
        if old != space.labels {
            self.touched.namespaces.insert(space.name.clone());
        }
        self.labels.release(&old);
    }

    /// The namespace `name`, made with its name label only where it is new.
    fn space(&mut self, name: &Str) -> SpaceAt {
        if let Some(at) = self.space_at(name) {
            return at;
        }
        let labels = self
            .labels
            .acquire(&model::Namespace::new(name.clone(), []).labels);
        let at = self.spaces.insert(Namespace::new(name.clone(), labels));
        self.by_name.insert(name.clone(), at);
        self.touched.namespaces.insert(name.clone());
        at
    }

    fn drop_empty(&mut self, at: SpaceAt) {
        let space = &self.spaces[at];
        if space.is_unused() {
            let space = self.spaces.remove(at);
            self.by_name.remove(&space.name);
            self.labels.release(&space.labels);
        }
    }

    #[cfg(test)]
    pub(super) fn is_vacant(&self) -> bool {
        self.labels.is_vacant()
            && self.spaces.is_empty()
            && self.by_name.is_empty()
            && self.pods.is_empty()
            && self.ports.is_empty()
            && self.addresses.is_empty()
            && self.by_ip.is_empty()
            && self.local.is_empty()
    }

    /// Who of the claimants owns an address: those that are not terminating, if there is one.
    pub(super) fn owners<'a>(&'a self, address: &'a Address) -> impl Iterator<Item = &'a Pod> {
        let pods = address.claimants().map(|at| &self.pods[at]);
        let alive = pods.clone().any(|pod| !pod.terminating);
        pods.filter(move |pod| !alive || !pod.terminating)
    }
}
