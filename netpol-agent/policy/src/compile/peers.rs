//! Peer sets: who a rule means, interned, and which of them an address is in.
//!
//! All selectors of one rule are one set, and so are all its ipBlocks: what they allow is the same, so it does not matter
//! which of them an address is in, and ten thousand ipBlocks of one rule make one class instead of ten thousand.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use super::{
    entities::{Pod, SpaceAt},
    index::Index,
    labels::{LabelStore, Matcher},
    nets::Block,
    objects::Objects,
    ports::numbers,
    slab::Slab,
};
use crate::model::{NAMESPACE_NAME_LABEL, NamespaceScope, Operator, Peer, Protocol, Selector, Str};

/// Number of a peer set.
pub(super) type SetId = u32;

/// A peer: its set, and its place in it.
pub(super) type PeerAt = (SetId, u32);

/// One membership of a class: a peer set, and for a set narrowed by a port's name the number that the name has.
/// Sorted, selectors stand before ipBlocks.
pub(super) type Member = u64;

/// Set in a [`Member`] whose set is of ipBlocks that are not narrowed.
pub(super) const MEMBER_NET: Member = 1 << 63;

/// The member of set `id` (not of ipBlocks) with `number`, or 0.
pub(super) fn member(id: SetId, number: u16) -> Member {
    Member::from(id) << 16 | Member::from(number)
}

/// The set of a member.
pub(super) fn set_of(member: Member) -> SetId {
    ((member & !MEMBER_NET) >> 16) as SetId
}

/// The number of a member of a narrowed set.
pub(super) fn number_of(member: Member) -> u16 {
    (member & 0xffff) as u16
}

/// Which namespaces, with the policy's own filled in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Scope {
    Named(Str),
    Matching(Selector),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Base {
    Pods { scope: Scope, pods: Selector },
    Block(Block),
    Any,
}

impl Base {
    pub(super) fn new(peer: &Peer, own: &Str) -> Self {
        match peer {
            Peer::Pods { namespaces, pods } => Self::Pods {
                scope: match namespaces {
                    NamespaceScope::Own => Scope::Named(own.clone()),
                    NamespaceScope::Matching(selector) => named(selector).map_or_else(
                        || Scope::Matching(selector.clone()),
                        |name| Scope::Named(name.clone()),
                    ),
                },
                pods: pods.clone(),
            },
            Peer::IpBlock { cidr, except } => Self::Block(Block::new(*cidr, except)),
        }
    }
}

/// The namespace of a selector that can match one only, by the label that always is its name.
fn named(selector: &Selector) -> Option<&Str> {
    match &*selector.requirements {
        [only] if &*only.key == NAMESPACE_NAME_LABEL => match &only.operator {
            Operator::In(names) if names.len() == 1 => names.first(),
            _ => None,
        },
        _ => None,
    }
}

/// What makes two peer sets the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct PeerKey {
    /// Whoever one of these means. Without `port`, selectors or ipBlocks, not both.
    pub(super) bases: Vec<Base>,
    /// Narrowed to the pods that have a port of this name and protocol.
    pub(super) port: Option<(Str, Protocol)>,
}

/// How to tell whether a pod is meant by one peer.
pub(super) enum Test {
    Named(Str, Matcher),
    Matching(Matcher, Matcher),
    Block(Block),
    Any,
}

impl Test {
    fn new(base: &Base, labels: &mut LabelStore) -> Self {
        match base {
            Base::Pods { scope, pods } => {
                let pods = Matcher::new(pods, labels);
                match scope {
                    Scope::Named(name) => Self::Named(name.clone(), pods),
                    Scope::Matching(selector) => Self::Matching(Matcher::new(selector, labels), pods),
                }
            }
            Base::Block(block) => Self::Block(block.clone()),
            Base::Any => Self::Any,
        }
    }

    fn release(&self, labels: &mut LabelStore) {
        match self {
            Self::Named(_, pods) => pods.release(labels),
            Self::Matching(namespaces, pods) => {
                namespaces.release(labels);
                pods.release(labels);
            }
            Self::Block(_) | Self::Any => {}
        }
    }
}

/// A live peer set.
pub(super) struct PeerSet {
    pub(super) key: Arc<PeerKey>,
    pub(super) tests: Box<[Test]>,
    /// Who uses it; it lives as long as somebody does.
    pub(super) rulesets: BTreeSet<u32>,
    /// The classes in it.
    pub(super) classes: BTreeSet<u32>,
}

impl PeerSet {
    /// Whether it is of ipBlocks, not narrowed: only these reach addresses that are no pod's.
    pub(super) fn is_net(&self) -> bool {
        self.key.port.is_none() && matches!(&*self.tests, [Test::Block(_), ..])
    }

    /// Its ipBlocks.
    pub(super) fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.tests.iter().filter_map(|test| match test {
            Test::Block(block) => Some(block),
            _ => None,
        })
    }
}

/// The live peer sets.
#[derive(Default)]
pub(super) struct Peers {
    pub(super) sets: Slab<PeerSet>,
    ids: HashMap<Arc<PeerKey>, SetId>,
    index: Index,
}

impl Peers {
    pub(super) fn find(&self, key: &PeerKey) -> Option<SetId> {
        self.ids.get(key).copied()
    }

    /// The set of `key`, and whether it is new (then [`Self::list`] follows).
    pub(super) fn intern(&mut self, key: PeerKey, labels: &mut LabelStore) -> (SetId, bool) {
        if let Some(id) = self.find(&key) {
            return (id, false);
        }
        let tests = key.bases.iter().map(|base| Test::new(base, labels)).collect();
        let key = Arc::new(key);
        let id = self.sets.insert(PeerSet {
            key: key.clone(),
            tests,
            rulesets: BTreeSet::new(),
            classes: BTreeSet::new(),
        });
        self.ids.insert(key, id);
        (id, true)
    }

    /// Enters a set into (or takes it out of) the index by which [`Self::for_each`] finds it.
    pub(super) fn list(&mut self, id: SetId, objects: &mut Objects, add: bool) {
        let set = &self.sets[id];
        for (at, test) in (0..).zip(&set.tests) {
            self.index
                .list((id, at), test, set.key.port.as_ref(), objects, add);
        }
    }

    /// Forgets a set that nobody uses and that is not listed any more.
    pub(super) fn remove(&mut self, id: SetId, labels: &mut LabelStore) {
        let set = self.sets.remove(id);
        debug_assert!(
            set.classes.is_empty() && set.rulesets.is_empty(),
            "a dead set is not used"
        );
        self.ids.remove(&set.key);
        set.tests.iter().for_each(|test| test.release(labels));
    }

    /// Recomputes which peers want the namespace `at`; true where that changed.
    pub(super) fn rematch(&self, at: SpaceAt, objects: &mut Objects) -> bool {
        let space = &mut objects.spaces[at];
        let mut matching = BTreeSet::new();
        let mut rest = BTreeSet::new();
        // A set that nobody uses any more is not listed and goes in a moment.
        for (id, set) in self.sets.iter().filter(|(_, set)| !set.rulesets.is_empty()) {
            for (nth, test) in (0..).zip(&set.tests) {
                if let Test::Matching(namespaces, pods) = test
                    && namespaces.matches(&space.labels, &objects.labels)
                {
                    matching.insert((id, nth));
                    if pods.needs().is_none() {
                        rest.insert((id, nth));
                    }
                }
            }
        }
        let changed = space.matching != matching;
        space.matching = matching;
        space.matching_rest = rest;
        changed
    }

    /// Visits every peer that means `pod` by its address `ip`, some perhaps twice, but for ipBlocks that are not
    /// narrowed; with the number of the port where it is narrowed, else 0.
    pub(super) fn for_each(
        &self,
        pod: &Pod,
        ip: IpAddr,
        objects: &Objects,
        mut visit: impl FnMut(PeerAt, u16),
    ) {
        self.index.candidates(pod, objects, |peer| {
            let set = &self.sets[peer.0];
            if is_meant(&set.tests[peer.1 as usize], peer, pod, ip, objects) {
                for_each_number(set, pod, |number| visit(peer, number));
            }
        });
    }

    /// Pushes what makes `pod` a member of set `id` by its address `ip`, if it is one.
    pub(super) fn push_if_in(
        &self,
        id: SetId,
        pod: &Pod,
        ip: IpAddr,
        objects: &Objects,
        out: &mut Vec<Member>,
    ) {
        let set = &self.sets[id];
        let mut tests = (0..).zip(&set.tests);
        if tests.any(|(at, test)| is_meant(test, (id, at), pod, ip, objects)) {
            for_each_number(set, pod, |number| out.push(member(id, number)));
        }
    }
}

fn is_meant(test: &Test, peer: PeerAt, pod: &Pod, ip: IpAddr, objects: &Objects) -> bool {
    let space = &objects.spaces[pod.space];
    match test {
        Test::Named(name, pods) => *name == space.name && pods.matches(&pod.labels, &objects.labels),
        Test::Matching(_, pods) => {
            space.matching.contains(&peer) && pods.matches(&pod.labels, &objects.labels)
        }
        Test::Block(block) => block.contains(ip),
        Test::Any => true,
    }
}

fn for_each_number(set: &PeerSet, pod: &Pod, mut visit: impl FnMut(u16)) {
    match &set.key.port {
        None => visit(0),
        Some((name, protocol)) => numbers(&pod.ports, name, *protocol).for_each(visit),
    }
}
