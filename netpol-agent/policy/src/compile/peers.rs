//! Peer sets: who a rule means, interned, and which of them an address is in.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use super::{
    labels::{Matcher, Pair},
    nets::Block,
    objects::{Namespace, Objects, Pod, SetId},
    ports::numbers,
};
use crate::model::{NAMESPACE_NAME_LABEL, NamespaceScope, Operator, Peer, Protocol, Selector, Str};

/// One membership of a class: a peer set, and for a set narrowed by a port's name the number that the name has.
/// Sorted, selectors stand before ipBlocks.
pub(super) type Member = u64;

/// Set in a [`Member`] whose set is an ipBlock that is not narrowed.
pub(super) const MEMBER_NET: Member = 1 << 63;

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

/// What makes two peers the same set.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct PeerKey {
    pub(super) base: Base,
    /// Narrowed to the pods that have a port of this name and protocol.
    pub(super) port: Option<(Str, Protocol)>,
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

enum Test {
    Named(Str, Matcher),
    Matching(Matcher, Matcher),
    Block,
    Any,
}

/// A live peer set.
pub(super) struct PeerSet {
    pub(super) key: Arc<PeerKey>,
    test: Test,
    /// Who uses it; it lives as long as somebody does.
    pub(super) rulesets: BTreeSet<u32>,
    /// The classes in it.
    pub(super) classes: BTreeSet<u32>,
}

impl PeerSet {
    /// The block, where this is one that is not narrowed: only these reach addresses that are no pod's.
    pub(super) fn net(&self) -> Option<&Block> {
        match (&self.key.base, &self.key.port) {
            (Base::Block(block), None) => Some(block),
            _ => None,
        }
    }

    /// The namespace to which it is fixed.
    pub(super) fn namespace(&self) -> Option<&Str> {
        match &self.test {
            Test::Named(name, _) => Some(name),
            _ => None,
        }
    }

    /// Whether it asks for namespaces by their labels.
    pub(super) fn is_matching(&self) -> bool {
        matches!(self.test, Test::Matching(..))
    }
}

/// Sets by a label that all in them have; the rest must be tried one by one.
#[derive(Default)]
struct Candidates {
    by_label: HashMap<Pair, BTreeSet<SetId>>,
    rest: BTreeSet<SetId>,
}

impl Candidates {
    fn list(&mut self, id: SetId, matcher: &Matcher, add: bool) {
        let Some(needs) = matcher.needs() else {
            change(&mut self.rest, id, add);
            return;
        };
        for &pair in needs {
            let sets = self.by_label.entry(pair).or_default();
            change(sets, id, add);
            if sets.is_empty() {
                self.by_label.remove(&pair);
            }
        }
    }

    fn with_label<'a>(&'a self, labels: &'a [Pair]) -> impl Iterator<Item = SetId> + 'a {
        labels
            .iter()
            .filter_map(|pair| self.by_label.get(pair))
            .flatten()
            .copied()
    }
}

fn change(sets: &mut BTreeSet<SetId>, id: SetId, add: bool) {
    if add {
        sets.insert(id);
    } else {
        sets.remove(&id);
    }
}

/// The live peer sets.
#[derive(Default)]
pub(super) struct Peers {
    pub(super) sets: BTreeMap<SetId, PeerSet>,
    ids: HashMap<Arc<PeerKey>, SetId>,
    last: SetId,
    fixed: HashMap<Str, Candidates>,
    global: Candidates,
    narrowed: HashMap<(Str, Protocol), BTreeSet<SetId>>,
}

impl Peers {
    pub(super) fn find(&self, key: &PeerKey) -> Option<SetId> {
        self.ids.get(key).copied()
    }

    /// The set of `key`, and whether it is new (then [`Self::list`] follows).
    pub(super) fn intern(&mut self, key: PeerKey, objects: &mut Objects) -> (SetId, bool) {
        if let Some(id) = self.find(&key) {
            return (id, false);
        }
        self.last += 1;
        let labels = &mut objects.labels;
        let test = match &key.base {
            Base::Pods { scope, pods } => {
                let pods = Matcher::new(pods, labels);
                match scope {
                    Scope::Named(name) => Test::Named(name.clone(), pods),
                    Scope::Matching(selector) => Test::Matching(Matcher::new(selector, labels), pods),
                }
            }
            Base::Block(_) => Test::Block,
            Base::Any => Test::Any,
        };
        let key = Arc::new(key);
        let set = PeerSet {
            key: key.clone(),
            test,
            rulesets: BTreeSet::new(),
            classes: BTreeSet::new(),
        };
        self.sets.insert(self.last, set);
        self.ids.insert(key, self.last);
        (self.last, true)
    }

    /// Enters a set into (or takes it out of) the indexes by which [`Self::members`] finds it.
    pub(super) fn list(&mut self, id: SetId, objects: &mut Objects, add: bool) {
        let set = &self.sets[&id];
        match (&set.test, &set.key.port) {
            (Test::Named(name, pods), _) => {
                self.fixed.entry(name.clone()).or_default().list(id, pods, add);
            }
            (Test::Matching(namespaces, pods), _) => {
                self.global.list(id, pods, add);
                for space in objects.namespaces.values_mut() {
                    if !add || namespaces.matches(&space.labels, &objects.labels) {
                        change(&mut space.matching, id, add);
                    }
                    if pods.needs().is_none() && (!add || space.matching.contains(&id)) {
                        change(&mut space.matching_rest, id, add);
                    }
                }
            }
            (Test::Block | Test::Any, Some(port)) => {
                let sets = self.narrowed.entry(port.clone()).or_default();
                change(sets, id, add);
                if sets.is_empty() {
                    self.narrowed.remove(port);
                }
            }
            (Test::Block | Test::Any, None) => {}
        }
    }

    /// Forgets a set that nobody uses and that is not listed any more.
    pub(super) fn remove(&mut self, id: SetId, objects: &mut Objects) {
        if let Some(set) = self.sets.remove(&id) {
            debug_assert!(
                set.classes.is_empty() && set.rulesets.is_empty(),
                "a dead set is not used"
            );
            self.ids.remove(&set.key);
            match &set.test {
                Test::Named(name, pods) => {
                    pods.release(&mut objects.labels);
                    if self
                        .fixed
                        .get(name)
                        .is_some_and(|c| c.by_label.is_empty() && c.rest.is_empty())
                    {
                        self.fixed.remove(name);
                    }
                }
                Test::Matching(namespaces, pods) => {
                    namespaces.release(&mut objects.labels);
                    pods.release(&mut objects.labels);
                }
                Test::Block | Test::Any => {}
            }
        }
    }

    /// Recomputes which sets want the namespace `name`; true where that changed.
    pub(super) fn rematch(&self, name: &Str, objects: &mut Objects) -> bool {
        let Some(space) = objects.namespaces.get_mut(name) else {
            return false;
        };
        let mut matching = BTreeSet::new();
        let mut rest = BTreeSet::new();
        // A set that nobody uses any more is not listed and goes in a moment.
        for (&id, set) in self.sets.iter().filter(|(_, set)| !set.rulesets.is_empty()) {
            if let Test::Matching(namespaces, pods) = &set.test
                && namespaces.matches(&space.labels, &objects.labels)
            {
                matching.insert(id);
                if pods.needs().is_none() {
                    rest.insert(id);
                }
            }
        }
        let changed = space.matching != matching;
        space.matching = matching;
        space.matching_rest = rest;
        changed
    }

    /// Every selector's (and narrowed) set that holds `pod` by its `address`, sorted into `out`.
    pub(super) fn members(&self, pod: &Pod, address: IpAddr, objects: &Objects, out: &mut Vec<Member>) {
        let space = &objects.namespaces[&pod.namespace];
        let mut try_set = |id: SetId| self.push_if_in(id, pod, address, space, objects, out);
        if let Some(candidates) = self.fixed.get(&pod.namespace) {
            candidates.with_label(&pod.labels).for_each(&mut try_set);
            candidates.rest.iter().copied().for_each(&mut try_set);
        }
        self.global.with_label(&pod.labels).for_each(&mut try_set);
        space.matching_rest.iter().copied().for_each(&mut try_set);
        for port in &pod.ports {
            if self.narrowed.is_empty() {
                break;
            }
            if let Some(sets) = self.narrowed.get(&(port.name.clone(), port.protocol)) {
                sets.iter().copied().for_each(&mut try_set);
            }
        }
        out.sort_unstable();
        out.dedup();
    }

    /// Pushes what makes `pod` a member of set `id` by its `address`, if it is one.
    pub(super) fn push_if_in(
        &self,
        id: SetId,
        pod: &Pod,
        address: IpAddr,
        space: &Namespace,
        objects: &Objects,
        out: &mut Vec<Member>,
    ) {
        let set = &self.sets[&id];
        let within = match &set.test {
            Test::Named(name, pods) => *name == pod.namespace && pods.matches(&pod.labels, &objects.labels),
            Test::Matching(_, pods) => {
                space.matching.contains(&id) && pods.matches(&pod.labels, &objects.labels)
            }
            Test::Block => matches!(&set.key.base, Base::Block(block) if block.contains(address)),
            Test::Any => true,
        };
        if !within {
            return;
        }
        let member = Member::from(id) << 16;
        match &set.key.port {
            None => out.push(member),
            Some((name, protocol)) => {
                out.extend(numbers(&pod.ports, name, *protocol).map(|number| member | Member::from(number)));
            }
        }
    }
}
