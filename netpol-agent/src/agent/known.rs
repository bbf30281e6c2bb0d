//! What the source says of this node. What it says of the rest of the cluster the compiler alone keeps, in fewer words.

use std::collections::BTreeMap;

use netpol_policy::{
    compile::Compiler,
    model::{Event, ObjectName, Pod},
};

/// What a change concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Concern {
    /// Nothing that is not known already.
    Nothing,
    /// At most peers of this node's pods.
    Elsewhere,
    /// Pods of this node.
    Local,
}

/// This node and its pods, as the source has them.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) node: String,
    /// Whether a Node object has its name.
    pub(super) is_node: bool,
    pub(super) pods: BTreeMap<ObjectName, Pod>,
}

impl Known {
    pub(super) fn new(node: String) -> Self {
        Self {
            node,
            is_node: false,
            pods: BTreeMap::new(),
        }
    }

    fn is_ours(&self, pod: &Pod) -> bool {
        pod.node.as_deref() == Some(&*self.node)
    }

    /// What `event` concerns; `compiler` knows what came before it.
    pub(super) fn concern(&self, event: &Event, compiler: &Compiler) -> Concern {
        let (local, held) = match event {
            Event::Pod(pod) if self.is_ours(pod) => (true, self.pods.get(&pod.name) == Some(pod)),
            Event::Pod(Pod { name, .. }) | Event::PodGone(name) if self.pods.contains_key(name) => {
                (true, false)
            }
            Event::Node(node) => (false, *node.name != *self.node || self.is_node),
            Event::NodeGone(name) => (false, **name != *self.node || !self.is_node),
            event => (false, compiler.holds(event)),
        };
        match (held, local) {
            (true, _) => Concern::Nothing,
            (false, true) => Concern::Local,
            (false, false) => Concern::Elsewhere,
        }
    }

    pub(super) fn apply(&mut self, event: &Event) {
        match event {
            Event::Pod(pod) if self.is_ours(pod) => drop(self.pods.insert(pod.name.clone(), pod.clone())),
            Event::Pod(Pod { name, .. }) | Event::PodGone(name) => drop(self.pods.remove(name)),
            Event::Node(node) => self.is_node |= *node.name == *self.node,
            Event::NodeGone(name) => self.is_node &= **name != *self.node,
            Event::Namespace(_) | Event::NamespaceGone(_) | Event::Policy(_) | Event::PolicyGone(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use netpol_policy::model::{Labels, Node};

    use super::*;

    fn pod(node: &str, uid: &str) -> Event {
        Event::Pod(Pod {
            name: ObjectName::new("prod", "db"),
            uid: uid.into(),
            labels: Labels::default(),
            node: Some(node.into()),
            host_network: false,
            completed: false,
            terminating: false,
            addresses: vec!["10.0.0.5".parse().expect("an address")],
            ports: Vec::new(),
        })
    }

    #[test]
    fn what_is_known_already_concerns_nobody() {
        let (mut known, mut compiler) = (Known::new("n1".to_owned()), Compiler::new("n1".into(), 1));
        let node = |name: &str| {
            Event::Node(Node {
                name: name.into(),
                addresses: Vec::new(),
            })
        };
        let gone = Event::PodGone(ObjectName::new("prod", "db"));
        let steps = [
            (gone.clone(), Concern::Nothing),
            (pod("n2", "1"), Concern::Elsewhere),
            (pod("n2", "1"), Concern::Nothing),
            // Which of another node's pods it is decides nothing.
            (pod("n2", "2"), Concern::Nothing),
            (pod("n1", "2"), Concern::Local),
            (pod("n1", "2"), Concern::Nothing),
            (pod("n1", "3"), Concern::Local),
            (pod("n2", "3"), Concern::Local),
            (gone.clone(), Concern::Elsewhere),
            (pod("n1", "4"), Concern::Local),
            (gone.clone(), Concern::Local),
            (gone, Concern::Nothing),
            (node("n2"), Concern::Nothing),
            (node("n1"), Concern::Elsewhere),
            (node("n1"), Concern::Nothing),
            (Event::NodeGone("n2".into()), Concern::Nothing),
            (Event::NodeGone("n1".into()), Concern::Elsewhere),
            (Event::NodeGone("n1".into()), Concern::Nothing),
        ];
        for (at, (event, concern)) in steps.into_iter().enumerate() {
            assert_eq!(known.concern(&event, &compiler), concern, "step {at}: {event:?}");
            known.apply(&event);
            compiler.apply(event);
        }
    }
}
