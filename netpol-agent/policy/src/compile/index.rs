//! Which peers may mean a pod, without asking each.

use std::collections::{BTreeSet, HashMap};

use super::{
    entities::Pod,
    labels::{Matcher, Pair},
    objects::Objects,
    peers::{PeerAt, Test},
    slab::ByNumber,
};
use crate::model::{Protocol, Str};

/// Peers by a label that all whom they mean have; the rest must be tried one by one.
#[derive(Default)]
struct Candidates {
    by_label: HashMap<Pair, BTreeSet<PeerAt>, ByNumber>,
    rest: BTreeSet<PeerAt>,
}

impl Candidates {
    fn list(&mut self, peer: PeerAt, matcher: &Matcher, add: bool) {
        let Some(needs) = matcher.needs() else {
            change(&mut self.rest, peer, add);
            return;
        };
        for &pair in needs {
            let peers = self.by_label.entry(pair).or_default();
            change(peers, peer, add);
            if peers.is_empty() {
                self.by_label.remove(&pair);
            }
        }
    }

    fn with_label<'a>(&'a self, labels: &'a [Pair]) -> impl Iterator<Item = PeerAt> + 'a {
        labels
            .iter()
            .filter_map(|pair| self.by_label.get(pair))
            .flatten()
            .copied()
    }

    fn is_empty(&self) -> bool {
        self.by_label.is_empty() && self.rest.is_empty()
    }
}

fn change(peers: &mut BTreeSet<PeerAt>, peer: PeerAt, add: bool) {
    if add {
        peers.insert(peer);
    } else {
        peers.remove(&peer);
    }
}

/// The live peers by whom they may mean.
#[derive(Default)]
pub(super) struct Index {
    /// Those of one namespace.
    named: HashMap<Str, Candidates>,
    /// Those that ask for namespaces by label. The ones that need no label of the pod are in the namespaces.
    matching: Candidates,
    /// ipBlocks and "everybody", narrowed by the name of a port.
    narrowed: HashMap<(Str, Protocol), BTreeSet<PeerAt>>,
}

impl Index {
    pub(super) fn list(
        &mut self,
        peer: PeerAt,
        test: &Test,
        port: Option<&(Str, Protocol)>,
        objects: &mut Objects,
        add: bool,
    ) {
        match (test, port) {
            (Test::Named(name, pods), _) => {
                let candidates = self.named.entry(name.clone()).or_default();
                candidates.list(peer, pods, add);
                if candidates.is_empty() {
                    self.named.remove(name);
                }
            }
            (Test::Matching(namespaces, pods), _) => {
                self.matching.list(peer, pods, add);
                for (_, space) in objects.spaces.iter_mut() {
                    if !add || namespaces.matches(&space.labels, &objects.labels) {
                        change(&mut space.matching, peer, add);
                        if pods.needs().is_none() {
                            change(&mut space.matching_rest, peer, add);
                        }
                    }
                }
            }
            (Test::Block(_) | Test::Any, Some(port)) => {
                let peers = self.narrowed.entry(port.clone()).or_default();
                change(peers, peer, add);
                if peers.is_empty() {
                    self.narrowed.remove(port);
                }
            }
            (Test::Block(_) | Test::Any, None) => {}
        }
    }

    /// Every peer that may mean `pod`, some perhaps twice.
    pub(super) fn candidates(&self, pod: &Pod, objects: &Objects, mut visit: impl FnMut(PeerAt)) {
        let space = &objects.spaces[pod.space];
        if let Some(named) = self.named.get(&space.name) {
            named.with_label(&pod.labels).for_each(&mut visit);
            named.rest.iter().copied().for_each(&mut visit);
        }
        self.matching.with_label(&pod.labels).for_each(&mut visit);
        space.matching_rest.iter().copied().for_each(&mut visit);
        if self.narrowed.is_empty() {
            return;
        }
        for port in pod.ports.iter() {
            if let Some(peers) = self.narrowed.get(&(port.name.clone(), port.protocol)) {
                peers.iter().copied().for_each(&mut visit);
            }
        }
    }
}
