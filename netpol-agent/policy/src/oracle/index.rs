//! Who has which address, and which policies select whom: found once, asked often.

use std::{borrow::Cow, collections::HashMap, net::IpAddr, ops::Range, sync::OnceLock};

use super::{
    prepared::{PreparedPolicy, PreparedRule, SelectorPeers},
    selector::selects,
};
use crate::model::{Direction, Labels, Namespace, ObjectName, Pod, Snapshot};

/// A pod with addresses of its own, to which policies apply.
#[derive(Debug)]
struct Endpoint<'a> {
    pod: &'a Pod,
    /// Its namespace's labels, in [`Index::namespaces`].
    namespace: usize,
    /// The policies that select it, in [`Index::policies`], by direction; found at the first question.
    ingress: OnceLock<Vec<usize>>,
    egress: OnceLock<Vec<usize>>,
    /// Which selector peers mean it, by their number; found at the first question.
    meant_by: OnceLock<Box<[bool]>>,
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
    /// In order of their names.
    policies: Vec<PreparedPolicy<'a>>,
    /// Where each namespace's are in `policies`.
    policies_of: HashMap<&'a str, Range<usize>>,
    peers: SelectorPeers<'a>,
}

impl<'a> Index<'a> {
    pub(super) fn new(snapshot: &'a Snapshot) -> Self {
        let mut index = Self {
            endpoints: Vec::new(),
            namespaces: Vec::new(),
            pods: HashMap::new(),
            owners: HashMap::new(),
            nodes: HashMap::new(),
            policies: Vec::new(),
            policies_of: HashMap::new(),
            peers: SelectorPeers::default(),
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
        for (at, policy) in snapshot.policies.values().enumerate() {
            index.policies.push(index.peers.prepare(policy));
            let of = index.policies_of.entry(&policy.name.namespace);
            of.or_insert(at..at).end = at + 1;
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
            meant_by: OnceLock::new(),
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

    /// For each selector peer, by its number, whether it means the pod.
    pub(super) fn meant_by(&self, endpoint: usize) -> &[bool] {
        let Endpoint {
            pod,
            namespace,
            meant_by,
            ..
        } = &self.endpoints[endpoint];
        meant_by.get_or_init(|| self.peers.meaning(pod, &self.namespaces[*namespace]))
    }

    /// The policies that select the pod and relate to `direction`, with their rules for it.
    ///
    /// types, podSelector: "podSelector selects the pods to which this NetworkPolicy object applies. [...] An
    /// empty selector matches all pods in the policy's namespace. Multiple network policies can select the
    /// same set of pods. In this case, the ingress rules for each are combined additively."
    pub(super) fn isolation(
        &self,
        endpoint: usize,
        direction: Direction,
    ) -> impl ExactSizeIterator<Item = (&'a ObjectName, &[PreparedRule<'a>])> {
        let Endpoint {
            pod, ingress, egress, ..
        } = &self.endpoints[endpoint];
        let found = match direction {
            Direction::Ingress => ingress,
            Direction::Egress => egress,
        };
        let found = found.get_or_init(|| {
            let here = self
                .policies_of
                .get(&*pod.name.namespace)
                .cloned()
                .unwrap_or_default();
            here.filter(|&at| {
                let policy = &self.policies[at];
                rules(policy, direction).is_some() && selects(&policy.policy.selector, &pod.labels)
            })
            .collect()
        });
        found.iter().map(move |&at| {
            let policy = &self.policies[at];
            (&policy.policy.name, rules(policy, direction).unwrap_or_default())
        })
    }
}

/// types, policyTypes: "policyTypes is a list of rule types that the NetworkPolicy relates to." The model has
/// the resolved list: a direction that a policy relates to is `Some`, with or without rules.
///
/// types, ingress and egress: "If this field is empty then this NetworkPolicy does not allow any traffic (and
/// serves solely to ensure that the pods it selects are isolated by default)".
fn rules<'o, 'a>(policy: &'o PreparedPolicy<'a>, direction: Direction) -> Option<&'o [PreparedRule<'a>]> {
    match direction {
        Direction::Ingress => policy.ingress.as_deref(),
        Direction::Egress => policy.egress.as_deref(),
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
