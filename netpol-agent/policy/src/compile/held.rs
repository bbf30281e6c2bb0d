//! What the compiler knows of the objects, for who does not want to keep them a second time.

use super::{
    Compiler,
    entities::{Namespace, Pod, Policy},
    objects::Objects,
};
use crate::model::{self, Event, ObjectName, Str};

impl Compiler {
    /// Whether `event` changes nothing: all that decides of its object is known already. A pod of another node is the same with another UID.
    #[must_use]
    pub fn holds(&self, event: &Event) -> bool {
        let objects = &self.objects;
        match event {
            Event::Namespace(object) => {
                let space = objects.namespace(&object.name).filter(|space| space.defined);
                space.is_some_and(|space| objects.labels.are(&space.labels, &object.labels))
            }
            Event::Pod(object) => match objects.pod(&object.name) {
                Some(pod) => object.is_endpoint() && objects.is(pod, object),
                None => !object.is_endpoint(),
            },
            Event::Policy(object) => objects
                .policy(&object.name)
                .is_some_and(|policy| policy.object == *object),
            Event::NamespaceGone(name) => objects.namespace(name).is_none_or(|space| !space.defined),
            Event::PodGone(name) => objects.pod(name).is_none(),
            Event::PolicyGone(name) => objects.policy(name).is_none(),
            Event::Node(_) | Event::NodeGone(_) => true,
        }
    }

    /// Every policy, in order of names.
    pub fn policies(&self) -> impl Iterator<Item = &model::Policy> {
        let spaces = self.objects.by_name.values().map(|at| &self.objects.spaces[*at]);
        spaces.flat_map(|space| space.policies.values().map(|policy| &policy.object))
    }
}

impl Objects {
    fn namespace(&self, name: &Str) -> Option<&Namespace> {
        self.space_at(name).map(|at| &self.spaces[at])
    }

    fn pod(&self, name: &ObjectName) -> Option<&Pod> {
        let at = self.namespace(&name.namespace)?.pods.get(&name.name)?;
        Some(&self.pods[*at])
    }

    fn policy(&self, name: &ObjectName) -> Option<&Policy> {
        self.namespace(&name.namespace)?
            .policies
            .get(&name.name)
            .map(|policy| &**policy)
    }

    /// Whether `pod` is what `object` would be.
    fn is(&self, pod: &Pod, object: &model::Pod) -> bool {
        let mut ips = object.addresses.clone();
        ips.sort_unstable();
        ips.dedup();
        let known = pod.addresses.iter().map(|at| self.addresses[*at].ip);
        pod.local == self.is_local(object)
            && pod.terminating == object.terminating
            && known.eq(ips)
            && *pod.ports == *object.ports
            && self.labels.are(&pod.labels, &object.labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Labels, NamedPort, Namespace, Policy, Protocol, Selector};

    fn pod() -> model::Pod {
        model::Pod {
            name: ObjectName::new("prod", "db"),
            uid: "1".into(),
            labels: [("app", "db")].into_iter().collect(),
            node: Some("n2".into()),
            host_network: false,
            completed: false,
            terminating: false,
            addresses: vec!["10.0.0.5".parse().expect("an address")],
            ports: vec![NamedPort {
                name: "sql".into(),
                protocol: Protocol::Tcp,
                number: 5432,
            }],
        }
    }

    #[test]
    fn all_that_decides_of_a_pod_is_news() {
        let mut compiler = Compiler::new("n1".into(), 1);
        assert!(!compiler.holds(&Event::Pod(pod())));
        compiler.apply(Event::Pod(pod()));
        assert!(compiler.holds(&Event::Pod(pod())));
        assert!(!compiler.holds(&Event::PodGone(pod().name)));
        let changes: [fn(&mut model::Pod); 9] = [
            |pod| pod.labels = [("app", "api")].into_iter().collect(),
            |pod| pod.labels = [("app", "db"), ("tier", "a")].into_iter().collect(),
            |pod| pod.labels = Labels::default(),
            |pod| pod.node = Some("n1".into()),
            |pod| pod.host_network = true,
            |pod| pod.completed = true,
            |pod| pod.terminating = true,
            |pod| pod.addresses.push("fd00::5".parse().expect("an address")),
            |pod| pod.ports[0].number = 5433,
        ];
        for (at, change) in changes.into_iter().enumerate() {
            let mut changed = pod();
            change(&mut changed);
            assert!(!compiler.holds(&Event::Pod(changed)), "change {at}");
        }
        let elsewhere: [fn(&mut model::Pod); 2] =
            [|pod| pod.uid = "2".into(), |pod| pod.node = Some("n3".into())];
        for change in elsewhere {
            let mut changed = pod();
            change(&mut changed);
            assert!(compiler.holds(&Event::Pod(changed)), "decides nothing");
        }
    }

    #[test]
    fn namespaces_and_policies_are_news_once() {
        let policy = |ingress| {
            Event::Policy(Policy {
                name: ObjectName::new("prod", "p"),
                selector: Selector::default(),
                ingress,
                egress: None,
            })
        };
        let labelled = Namespace::new("prod", [("env".into(), "dev".into())]);
        let mut compiler = Compiler::new("n1".into(), 1);
        let steps = [
            Event::Namespace(Namespace::new("prod", [])),
            Event::Namespace(labelled),
            policy(Some(Vec::new())),
            policy(None),
            Event::PolicyGone(ObjectName::new("prod", "p")),
            Event::NamespaceGone("prod".into()),
        ];
        for event in steps {
            assert!(!compiler.holds(&event), "{event:?} is new");
            compiler.apply(event.clone());
            assert!(compiler.holds(&event), "{event:?} is known");
        }
    }
}
