//! Finds ends in a snapshot: who has which address, which names exist.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netpol_policy::{
    model::{ObjectName, Snapshot},
    oracle,
};

use super::{
    QueryError,
    end::{EndName, Found, Kind, Located, Subject},
};

/// The addresses and nodes of one snapshot.
#[derive(Debug)]
pub struct Ends<'a> {
    snapshot: &'a Snapshot,
    pods: HashMap<&'a ObjectName, Subject<'a>>,
    /// The running pods that own an address; more than one only where the manifests contradict themselves.
    owners: HashMap<IpAddr, Vec<Subject<'a>>>,
    /// The node that has an address; `None` where several claim it.
    nodes_at: HashMap<IpAddr, Option<&'a str>>,
    /// Every node that is named anywhere, with its addresses: those of its `Node` object, else those of its
    /// `hostNetwork` pods.
    nodes: BTreeMap<&'a str, Vec<IpAddr>>,
}

impl<'a> Ends<'a> {
    /// Indexes `snapshot`.
    #[must_use]
    pub fn new(snapshot: &'a Snapshot) -> Self {
        let mut ends = Self {
            snapshot,
            pods: HashMap::new(),
            owners: HashMap::new(),
            nodes_at: HashMap::new(),
            nodes: BTreeMap::new(),
        };
        for node in snapshot.nodes.values() {
            ends.add_node(&node.name, &node.addresses);
        }
        for (index, pod) in snapshot.pods.values().enumerate() {
            let subject = Subject { pod, index };
            ends.pods.insert(&pod.name, subject);
            if pod.completed {
                continue;
            }
            match (&pod.node, pod.host_network) {
                (Some(node), true) => ends.add_node(node, &pod.addresses),
                (Some(node), false) => drop(ends.nodes.entry(node).or_default()),
                (None, _) => {}
            }
            if !pod.host_network {
                ends.add_pod(subject);
            }
        }
        ends
    }

    fn add_node(&mut self, node: &'a str, addresses: &[IpAddr]) {
        let of_node = self.nodes.entry(node).or_default();
        if of_node.is_empty() || !self.snapshot.nodes.contains_key(node) {
            let new = addresses.iter().filter(|new| !of_node.contains(new));
            of_node.extend(new.copied().collect::<Vec<_>>());
        }
        for &address in addresses {
            let known = self.nodes_at.entry(address).or_insert(Some(node));
            if *known != Some(node) {
                *known = None;
            }
        }
    }

    /// A pod that is being deleted has lost its address to one that is not.
    fn add_pod(&mut self, subject: Subject<'a>) {
        for &address in &subject.pod.addresses {
            let owners = self.owners.entry(address).or_default();
            let staying = |owner: &Subject<'_>| !owner.pod.terminating;
            if subject.pod.terminating && owners.iter().any(staying) {
                continue;
            }
            if !subject.pod.terminating {
                owners.retain(staying);
            }
            owners.push(subject);
        }
    }

    /// What `name` means here.
    ///
    /// # Errors
    /// Nothing has this name, or what has it can not be an end: a pod that is completed or has no address,
    /// a node whose addresses nobody gives.
    pub fn find(&self, name: &EndName) -> Result<Found<'a>, QueryError> {
        match name {
            EndName::Pod(name) => self.pod(name),
            EndName::Node(name) => self.node(name),
            EndName::Address(address) => Ok(self.address(*address)),
        }
    }

    fn pod(&self, name: &ObjectName) -> Result<Found<'a>, QueryError> {
        let Some(&subject) = self.pods.get(name) else {
            return Err(self.unknown_pod(name));
        };
        let pod = subject.pod;
        if pod.completed {
            return Err(QueryError::Completed(name.clone()));
        }
        let node = pod.node.as_deref();
        let mut addresses = pod.addresses.clone();
        if pod.host_network && addresses.is_empty() {
            addresses = node
                .and_then(|node| self.nodes.get(node).cloned())
                .unwrap_or_default();
        }
        if addresses.is_empty() {
            return Err(if pod.host_network {
                QueryError::HostPodWithoutAddress(name.clone())
            } else {
                QueryError::PodWithoutAddress(name.clone())
            });
        }
        let at = addresses.into_iter().map(|address| Located {
            address,
            end: oracle::End::Pod(name.clone(), address),
            kind: if pod.host_network { Kind::Node } else { Kind::Pod },
            subjects: if pod.host_network { vec![] } else { vec![subject] },
            node: node.filter(|_| pod.host_network),
        });
        Ok(Found {
            label: name.to_string(),
            at: at.collect(),
            ports: Some(&pod.ports),
        })
    }

    /// A node of which no address is known can still be told apart from all others by its name: that is
    /// enough for its own pods, which it always reaches, so it stands for the unspecified address.
    fn node(&self, name: &str) -> Result<Found<'a>, QueryError> {
        let Some((&name, addresses)) = self.nodes.get_key_value(name) else {
            return Err(QueryError::UnknownNode {
                name: name.into(),
                known: super::some_of(self.nodes.keys()),
            });
        };
        let unspecified = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let addresses = if addresses.is_empty() {
            &unspecified[..]
        } else {
            addresses
        };
        let at = addresses.iter().map(|&address| Located {
            address,
            end: oracle::End::Node(name.into(), address),
            kind: Kind::Node,
            subjects: vec![],
            node: Some(name),
        });
        Ok(Found {
            label: format!("node/{name}"),
            at: at.collect(),
            ports: None,
        })
    }

    fn address(&self, address: IpAddr) -> Found<'a> {
        let subjects = self.owners.get(&address).cloned().unwrap_or_default();
        let node = if subjects.is_empty() {
            self.nodes_at.get(&address).copied().flatten()
        } else {
            None
        };
        let label = match (&subjects[..], node) {
            ([], Some(node)) => format!("node/{node}"),
            ([], None) => address.to_string(),
            (pods, _) => super::join(pods.iter().map(|owner| &owner.pod.name)),
        };
        let ports = match subjects[..] {
            [owner] => Some(&owner.pod.ports[..]),
            _ => None,
        };
        let kind = match (subjects.is_empty(), node) {
            (false, _) => Kind::Pod,
            (true, Some(_)) => Kind::Node,
            (true, None) => Kind::Address,
        };
        let at = Located {
            address,
            end: oracle::End::Ip(address),
            kind,
            subjects,
            node,
        };
        Found {
            label,
            at: vec![at],
            ports,
        }
    }

    fn unknown_pod(&self, name: &ObjectName) -> QueryError {
        let pods = || self.snapshot.pods.keys();
        let namesakes = super::some_of(pods().filter(|pod| pod.name == name.name));
        let neighbours = super::some_of(pods().filter(|pod| pod.namespace == name.namespace));
        let hint = if name.name.parse::<u8>().is_ok() && name.namespace.parse::<IpAddr>().is_ok() {
            "an end is one address, not a prefix".into()
        } else if !namesakes.is_empty() {
            format!("did you mean {namesakes}?")
        } else if !neighbours.is_empty() {
            format!("namespace {} has {neighbours}", name.namespace)
        } else {
            format!("there are no pods in namespace {}", name.namespace)
        };
        QueryError::UnknownPod {
            name: name.clone(),
            hint,
        }
    }
}
