//! Which object an event is about.

use netpol_policy::model::{Event, ObjectName, Str};

use super::parse::Object;

/// Which object; its order is that of dependency.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Key {
    Namespace(Str),
    Node(Str),
    Policy(ObjectName),
    Pod(ObjectName),
}

impl Key {
    pub(super) fn of(object: &Object) -> Self {
        match object {
            Object::Namespace(object) => Self::Namespace(object.name.clone()),
            Object::Node(object) => Self::Node(object.name.clone()),
            Object::Pod(object) => Self::Pod(object.name.clone()),
            Object::Policy(object) => Self::Policy(object.name.clone()),
        }
    }

    pub(super) fn gone(&self) -> Event {
        match self.clone() {
            Self::Namespace(name) => Event::NamespaceGone(name),
            Self::Node(name) => Event::NodeGone(name),
            Self::Pod(name) => Event::PodGone(name),
            Self::Policy(name) => Event::PolicyGone(name),
        }
    }

    pub(super) fn namespace(&self) -> Option<&Str> {
        match self {
            Self::Pod(name) | Self::Policy(name) => Some(&name.namespace),
            Self::Namespace(_) | Self::Node(_) => None,
        }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Namespace(name) => write!(f, "Namespace {name}"),
            Self::Node(name) => write!(f, "Node {name}"),
            Self::Pod(name) => write!(f, "Pod {name}"),
            Self::Policy(name) => write!(f, "NetworkPolicy {name}"),
        }
    }
}

/// That `object` is there.
pub(super) fn event(object: Object) -> Event {
    match object {
        Object::Namespace(object) => Event::Namespace(object),
        Object::Node(object) => Event::Node(object),
        Object::Pod(object) => Event::Pod(object),
        Object::Policy(object) => Event::Policy(object),
    }
}
