//! Addresses that the CNI has given to pods and that the API does not tell yet.
//!
//! `status.podIPs` follows a pod's start by a second or so; the CNI's result is there before the pod's first process. Until the
//! API confirms it, it counts as the pod's address: for its own packets, and as a peer in other pods' rules.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use netpol_policy::model::{Event, ObjectName, Pod};

use crate::datapath::cni::Attachment;

/// What stands in for what the API does not tell yet.
#[derive(Debug, Default)]
pub(super) struct Assigned(BTreeMap<ObjectName, Vec<IpAddr>>);

impl Assigned {
    /// The pod's addresses as they count: the CNI's while the API gives none.
    pub(super) fn addresses(&self, pod: &Pod) -> Vec<IpAddr> {
        let stand_in = self.0.get(&pod.name).filter(|_| pod.addresses.is_empty());
        stand_in.unwrap_or(&pod.addresses).clone()
    }

    fn complete(&self, pod: Pod) -> Pod {
        Pod {
            addresses: self.addresses(&pod),
            ..pod
        }
    }

    /// What the source says, with the CNI's addresses where it gives none. A pod that has its own addresses now, or is another or no endpoint, needs
    /// no stand-in any more.
    pub(super) fn completed(&mut self, event: Event, known: &BTreeMap<ObjectName, Pod>) -> Event {
        match event {
            Event::Pod(pod) => {
                let same = known.get(&pod.name).is_some_and(|known| known.uid == pod.uid);
                if !same || !pod.addresses.is_empty() || !pod.is_endpoint() {
                    self.0.remove(&pod.name);
                }
                Event::Pod(self.complete(pod))
            }
            Event::PodGone(name) => {
                self.0.remove(&name);
                Event::PodGone(name)
            }
            other => other,
        }
    }

    /// Takes in what the CNI's results say now about `pods`, which are this node's, and returns those that change by it.
    pub(super) fn update(&mut self, results: &[Attachment], pods: &BTreeMap<ObjectName, Pod>) -> Vec<Event> {
        let mut now: BTreeMap<ObjectName, Vec<IpAddr>> = BTreeMap::new();
        for result in results.iter().filter(|result| !result.addresses.is_empty()) {
            let Some(pod) = pods.get(&result.pod) else {
                continue;
            };
            let counts = pod.is_endpoint() && pod.addresses.is_empty() && result.is_of(&pod.uid);
            if counts {
                now.insert(result.pod.clone(), result.addresses.clone());
            }
        }
        let names: BTreeSet<&ObjectName> = now.keys().chain(self.0.keys()).collect();
        let changed: Vec<Pod> = names
            .into_iter()
            .filter(|name| now.get(*name) != self.0.get(*name))
            .filter_map(|name| pods.get(name).cloned())
            .collect();
        self.0 = now;
        changed
            .into_iter()
            .map(|pod| Event::Pod(self.complete(pod)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use netpol_policy::model::Labels;

    use super::*;

    fn pod(uid: &str, addresses: &[&str]) -> Pod {
        Pod {
            name: ObjectName::new("prod", "db"),
            uid: uid.into(),
            labels: Labels::default(),
            node: Some("n1".into()),
            host_network: false,
            completed: false,
            terminating: false,
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            ports: Vec::new(),
        }
    }

    fn result(uid: &str) -> Attachment {
        Attachment {
            pod: ObjectName::new("prod", "db"),
            uid: Some(uid.to_owned()),
            host: vec!["veth1".to_owned()],
            addresses: vec!["10.0.0.5".parse().unwrap()],
        }
    }

    fn only(pod: Pod) -> BTreeMap<ObjectName, Pod> {
        BTreeMap::from([(pod.name.clone(), pod)])
    }

    #[test]
    fn the_cni_stands_in_until_the_api_tells() {
        let mut assigned = Assigned::default();
        let silent = only(pod("1", &[]));
        assert_eq!(
            assigned.update(&[result("1")], &silent),
            [Event::Pod(pod("1", &["10.0.0.5"]))]
        );
        // Nothing new; and an update that still tells no address.
        assert_eq!(assigned.update(&[result("1")], &silent), []);
        assert_eq!(
            assigned.completed(Event::Pod(pod("1", &[])), &silent),
            Event::Pod(pod("1", &["10.0.0.5"]))
        );
        // The API's word counts.
        let told = Event::Pod(pod("1", &["10.0.0.6"]));
        assert_eq!(assigned.completed(told.clone(), &silent), told);
        assert_eq!(
            assigned.update(&[result("1")], &only(pod("1", &["10.0.0.6"]))),
            []
        );
    }

    #[test]
    fn a_result_of_another_life_does_not_count() {
        let of = |uid: &str, result: Attachment| Assigned::default().update(&[result], &only(pod(uid, &[])));
        assert_eq!(of("2", result("1")), []);
        let mut assigned = Assigned::default();
        let silent = only(pod("1", &[]));
        assigned.update(&[result("1")], &silent);
        // Created again under its name.
        let again = Event::Pod(pod("2", &[]));
        assert_eq!(assigned.completed(again.clone(), &silent), again);
        // The network of the pod is taken down before the API says anything.
        assigned.update(&[result("1")], &silent);
        assert_eq!(assigned.update(&[], &silent), [Event::Pod(pod("1", &[]))]);
    }
}
