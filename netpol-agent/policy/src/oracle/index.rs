//! Who has which address, and which policies select whom: found once, asked often.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::OnceLock,
};

use super::selector::selects;
use crate::model::{Direction, Labels, Namespace, ObjectName, Pod, Policy, Snapshot};

/// A pod with addresses of its own, to which policies apply.
#[derive(Debug)]
struct Endpoint<'a> {
    pod: &'a Pod,
    /// Its namespace's labels, in [`Index::namespaces`].
    namespace: usize,
    /// The policies that select it, by direction; found at the first question.
    ingress: OnceLock<Vec<&'a Policy>>,
    egress: OnceLock<Vec<&'a Policy>>,
}

/// What a named pod is.
#[derive(Debug)]
pub(super) enum Standing<'a> {
    /// A pod of the pod network.
    Endpoint(usize),
    /// A running `hostNetwork` pod, on this node (if it is bound to one).
    Host(Option<&'a str>),
}

#[derive(Debug)]
pub(super) struct Index<'a> {
    endpoints: Vec<Endpoint<'a>>,
    namespaces: Vec<Cow<'a, Labels>>,
    pods: HashMap<&'a ObjectName, Standing<'a>>,
    owners: HashMap<IpAddr, Vec<usize>>,
    /// `None` where several nodes claim the address.
    nodes: HashMap<IpAddr, Option<&'a str>>,
    policies: BTreeMap<&'a str, Vec<&'a Policy>>,
}

impl<'a> Index<'a> {
    pub(super) fn new(snapshot: &'a Snapshot) -> Self {
        let mut index = Self {
            endpoints: Vec::new(),
            namespaces: Vec::new(),
            pods: HashMap::new(),
            owners: HashMap::new(),
            nodes: HashMap::new(),
            policies: BTreeMap::new(),
        };
        let mut namespaces = HashMap::new();
        // Completed pods have given their addresses back: they are nobody.
        for pod in snapshot.pods.values().filter(|pod| !pod.completed) {
            if pod.is_endpoint() {
                let namespace = *namespaces.entry(&pod.name.namespace).or_insert_with(|| {
                    index.namespaces.push(namespace_labels(snapshot, pod));
                    index.namespaces.len() - 1
                });
                index.add_endpoint(pod, namespace);
            } else {
                let node = pod.node.as_deref();
                index.pods.insert(&pod.name, Standing::Host(node));
                for &address in node.map_or(&[][..], |_| &pod.addresses) {
                    index.add_node(address, node);
                }
            }
        }
        for node in snapshot.nodes.values() {
            for &address in &node.addresses {
                index.add_node(address, Some(&node.name));
            }
        }
        for policy in snapshot.policies.values() {
            let namespace = &*policy.name.namespace;
            index.policies.entry(namespace).or_default().push(policy);
        }
        index
    }

    /// A pod that is not terminating takes an address from those that are; equals share it.
    fn add_endpoint(&mut self, pod: &'a Pod, namespace: usize) {
        let this = self.endpoints.len();
        for &address in &pod.addresses {
            let owners = self.owners.entry(address).or_default();
            let rivals_terminate = owners.first().map(|&rival| self.endpoints[rival].pod.terminating);
            match rivals_terminate {
                Some(false) if pod.terminating => {}
                Some(true) if !pod.terminating => *owners = vec![this],
                _ if owners.last() == Some(&this) => {}
                _ => owners.push(this),
            }
        }
        self.pods.insert(&pod.name, Standing::Endpoint(this));
        self.endpoints.push(Endpoint {
            pod,
            namespace,
            ingress: OnceLock::new(),
            egress: OnceLock::new(),
        });
    }

    fn add_node(&mut self, address: IpAddr, node: Option<&'a str>) {
        let known = self.nodes.entry(address).or_insert(node);
        if *known != node {
            *known = None;
        }
    }

    pub(super) fn owners(&self, address: IpAddr) -> &[usize] {
        self.owners.get(&address).map_or(&[], |owners| owners)
    }

    pub(super) fn node(&self, address: IpAddr) -> Option<&'a str> {
        self.nodes.get(&address).copied().flatten()
    }

    pub(super) fn pod(&self, name: &ObjectName) -> Option<&Standing<'a>> {
        self.pods.get(name)
    }

    pub(super) fn endpoint(&self, endpoint: usize) -> &'a Pod {
        self.endpoints[endpoint].pod
    }

    pub(super) fn namespace(&self, endpoint: usize) -> &Labels {
        &self.namespaces[self.endpoints[endpoint].namespace]
    }

    /// The policies that select the pod and relate to `direction`.
    ///
    /// types, podSelector: "podSelector selects the pods to which this NetworkPolicy object applies. [...] An
    /// empty selector matches all pods in the policy's namespace. Multiple network policies can select the
    /// same set of pods. In this case, the ingress rules for each are combined additively."
    pub(super) fn isolation(&self, endpoint: usize, direction: Direction) -> &[&'a Policy] {
        let Endpoint {
            pod, ingress, egress, ..
        } = &self.endpoints[endpoint];
        let found = match direction {
            Direction::Ingress => ingress,
            Direction::Egress => egress,
        };
        found.get_or_init(|| {
            let here = self.policies.get(&*pod.name.namespace).into_iter().flatten();
            here.filter(|policy| relates_to(policy, direction) && selects(&policy.selector, &pod.labels))
                .copied()
                .collect()
        })
    }
}

/// types, policyTypes: "policyTypes is a list of rule types that the NetworkPolicy relates to." The model has
/// the resolved list: a direction that a policy relates to is `Some`, with or without rules.
///
/// types, ingress and egress: "If this field is empty then this NetworkPolicy does not allow any traffic (and
/// serves solely to ensure that the pods it selects are isolated by default)".
fn relates_to(policy: &Policy, direction: Direction) -> bool {
    match direction {
        Direction::Ingress => policy.ingress.is_some(),
        Direction::Egress => policy.egress.is_some(),
    }
}

/// concepts: "The Kubernetes control plane sets an immutable label kubernetes.io/metadata.name on all
/// namespaces, the value of the label is the namespace name." Of a namespace that the snapshot does not have,
/// this label is all that is known.
fn namespace_labels<'a>(snapshot: &'a Snapshot, pod: &Pod) -> Cow<'a, Labels> {
    match snapshot.namespaces.get(&pod.name.namespace) {
        Some(namespace) => Cow::Borrowed(&namespace.labels),
        None => Cow::Owned(Namespace::new(pod.name.namespace.clone(), []).labels),
    }
}
