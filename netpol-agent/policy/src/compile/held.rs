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
