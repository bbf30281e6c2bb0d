//! The objects that NetworkPolicy speaks about, parsed and defaulted.
//!
//! Sources (manifests, later the API server) parse their objects into these types once. A rule that could
//! not be understood is left out by the source (it allows nothing) while its policy goes on isolating.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;

/// A string shared between many objects (label keys, values, names).
pub type Str = Arc<str>;

/// `namespace/name` of a namespaced object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    /// `metadata.namespace`
    pub namespace: Str,
    /// `metadata.name`
    pub name: Str,
}

impl ObjectName {
    /// Both parts.
    pub fn new(namespace: impl Into<Str>, name: impl Into<Str>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl std::fmt::Display for ObjectName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Labels, sorted by key, one value a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Labels(Box<[(Str, Str)]>);

impl Labels {
    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0
            .binary_search_by(|(k, _)| (**k).cmp(key))
            .ok()
            .map(|at| &*self.0[at].1)
    }

    /// Key and value, in order of keys.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (&**k, &**v))
    }

    /// As [`Self::iter`], for who keeps the strings.
    pub fn pairs(&self) -> impl ExactSizeIterator<Item = (&Str, &Str)> {
        self.0.iter().map(|(k, v)| (k, v))
    }
}

impl<K: Into<Str>, V: Into<Str>> FromIterator<(K, V)> for Labels {
    /// The last value of a repeated key wins.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let map: BTreeMap<Str, Str> = pairs.into_iter().map(|(k, v)| (k.into(), v.into())).collect();
        Self(map.into_iter().collect())
    }
}

/// The label that every namespace has.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// `metadata.name`
    pub name: Str,
    /// `metadata.labels`; always holds [`NAMESPACE_NAME_LABEL`].
    pub labels: Labels,
}

impl Namespace {
    /// A namespace with `labels` and the label that the API server always sets.
    pub fn new(name: impl Into<Str>, labels: impl IntoIterator<Item = (Str, Str)>) -> Self {
        let name = name.into();
        let own = (Str::from(NAMESPACE_NAME_LABEL), name.clone());
        Self {
            labels: labels.into_iter().chain([own]).collect(),
            name,
        }
    }
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `metadata.name`
    pub name: Str,
    /// `status.addresses` that are IP addresses.
    pub addresses: Vec<IpAddr>,
}

/// A transport protocol that NetworkPolicy can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP, the default.
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl Protocol {
    /// The IP protocol number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => netpol_common::proto::TCP,
            Self::Udp => netpol_common::proto::UDP,
            Self::Sctp => netpol_common::proto::SCTP,
        }
    }

    /// The name in the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

/// A named container port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamedPort {
    /// `containers[*].ports[*].name`
    pub name: Str,
    /// `.protocol`
    pub protocol: Protocol,
    /// `.containerPort`
    pub number: u16,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub name: ObjectName,
    /// `metadata.uid`; empty where a manifest gives none.
    pub uid: Str,
    /// `metadata.labels`
    pub labels: Labels,
    /// `spec.nodeName`
    pub node: Option<Str>,
    /// `spec.hostNetwork`: the pod is its node; no policy selects it and only ipBlocks match it.
    pub host_network: bool,
    /// `status.phase` is `Succeeded` or `Failed`: the pod has no address any more.
    pub completed: bool,
    /// `metadata.deletionTimestamp` is set. Where another running pod has the same address, that one owns it.
    pub terminating: bool,
    /// Every entry of `status.podIPs` (or `podIP`), at most one a family.
    pub addresses: Vec<IpAddr>,
    /// Named ports of containers and of sidecars (init containers with `restartPolicy: Always`), sorted.
    pub ports: Vec<NamedPort>,
}

impl Pod {
    /// Whether the pod can have an address of its own in the pod network.
    #[must_use]
    pub fn is_endpoint(&self) -> bool {
        !self.host_network && !self.completed
    }
}

/// `matchExpressions[*].operator`; `matchLabels` is `In` with one value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operator {
    /// The key exists and its value is one of these (sorted).
    In(Vec<Str>),
    /// The key does not exist, or its value is none of these (sorted).
    NotIn(Vec<Str>),
    /// The key exists.
    Exists,
    /// The key does not exist.
    DoesNotExist,
}

/// One requirement of a selector.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Requirement {
    /// The label's key.
    pub key: Str,
    /// What is required of it.
    pub operator: Operator,
}

/// A label selector: all requirements must hold; the empty selector matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Selector {
    /// Sorted, without repetition.
    pub requirements: Vec<Requirement>,
}

/// Which namespaces' pods a peer means.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NamespaceScope {
    /// No `namespaceSelector`: the policy's own namespace.
    Own,
    /// `namespaceSelector`
    Matching(Selector),
}

/// One entry of `from` or `to`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Peer {
    /// `podSelector` and/or `namespaceSelector`; an absent `podSelector` is the empty selector.
    Pods {
        /// Which namespaces.
        namespaces: NamespaceScope,
        /// Which of their pods.
        pods: Selector,
    },
    /// `ipBlock`
    IpBlock {
        /// `cidr`, host bits masked.
        cidr: IpNet,
        /// `except`, host bits masked, each within `cidr`; sorted.
        except: Vec<IpNet>,
    },
}

/// `from` or `to` of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Peers {
    /// Absent or empty: everyone.
    Any,
    /// Any of these.
    Of(Vec<Peer>),
}

/// `port` and `endPort` of a rule's port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PortSpec {
    /// Absent: every port of the protocol.
    All,
    /// `port` to `endPort`, both included; one number where they are equal.
    Range(u16, u16),
    /// A name, resolved at each destination pod (name and protocol must agree).
    Named(Str),
}

/// One entry of a rule's `ports`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortMatch {
    /// `protocol`, TCP where absent.
    pub protocol: Protocol,
    /// `port`, `endPort`
    pub port: PortSpec,
}

/// `ports` of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ports {
    /// Absent or empty: every protocol and port.
    Any,
    /// Any of these.
    Of(Vec<PortMatch>),
}

/// One rule of `spec.ingress` or `spec.egress`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rule {
    /// Its place in the object's list, also where rules before it were not understood.
    pub index: u32,
    /// Who.
    pub peers: Peers,
    /// What.
    pub ports: Ports,
}

/// A NetworkPolicy with `policyTypes` resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Namespace and name.
    pub name: ObjectName,
    /// `spec.podSelector`
    pub selector: Selector,
    /// `Some` where the policy isolates its pods for ingress; each rule allows.
    pub ingress: Option<Vec<Rule>>,
    /// `Some` where the policy isolates its pods for egress; each rule allows.
    pub egress: Option<Vec<Rule>>,
}

/// The direction as the isolated pod sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

/// Everything that decides, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// By name. A pod or policy in a namespace that is not here sees it with the name label only.
    pub namespaces: BTreeMap<Str, Namespace>,
    /// By name.
    pub nodes: BTreeMap<Str, Node>,
    /// By namespace and name.
    pub pods: BTreeMap<ObjectName, Pod>,
    /// By namespace and name.
    pub policies: BTreeMap<ObjectName, Policy>,
}

/// One change of the snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A namespace is there, new or changed.
    Namespace(Namespace),
    /// A node is there, new or changed.
    Node(Node),
    /// A pod is there, new or changed.
    Pod(Pod),
    /// A policy is there, new or changed.
    Policy(Policy),
    /// The namespace is gone.
    NamespaceGone(Str),
    /// The node is gone.
    NodeGone(Str),
    /// The pod is gone.
    PodGone(ObjectName),
    /// The policy is gone.
    PolicyGone(ObjectName),
}

impl Snapshot {
    /// Whether `event` would change nothing.
    #[must_use]
    pub fn holds(&self, event: &Event) -> bool {
        match event {
            Event::Namespace(object) => self.namespaces.get(&object.name) == Some(object),
            Event::Node(object) => self.nodes.get(&object.name) == Some(object),
            Event::Pod(object) => self.pods.get(&object.name) == Some(object),
            Event::Policy(object) => self.policies.get(&object.name) == Some(object),
            Event::NamespaceGone(name) => !self.namespaces.contains_key(name),
            Event::NodeGone(name) => !self.nodes.contains_key(name),
            Event::PodGone(name) => !self.pods.contains_key(name),
            Event::PolicyGone(name) => !self.policies.contains_key(name),
        }
    }

    /// What leads from nothing to this: namespaces and policies first, so that no pod is judged without them.
    pub fn into_events(self) -> impl Iterator<Item = Event> {
        let namespaces = self.namespaces.into_values().map(Event::Namespace);
        let nodes = self.nodes.into_values().map(Event::Node);
        let policies = self.policies.into_values().map(Event::Policy);
        let pods = self.pods.into_values().map(Event::Pod);
        namespaces.chain(nodes).chain(policies).chain(pods)
    }

    /// Applies one change.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Namespace(object) => drop(self.namespaces.insert(object.name.clone(), object)),
            Event::Node(object) => drop(self.nodes.insert(object.name.clone(), object)),
            Event::Pod(object) => drop(self.pods.insert(object.name.clone(), object)),
            Event::Policy(object) => drop(self.policies.insert(object.name.clone(), object)),
            Event::NamespaceGone(name) => drop(self.namespaces.remove(&name)),
            Event::NodeGone(name) => drop(self.nodes.remove(&name)),
            Event::PodGone(name) => drop(self.pods.remove(&name)),
            Event::PolicyGone(name) => drop(self.policies.remove(&name)),
        }
    }
}
