//! Rulesets: all policies that select a pod in one direction, interned.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use netpol_common::tables::{RULESET_HAS_ANY, RULESET_NONE};

use super::{
    entities::{Local, Policy},
    objects::Objects,
    peers::{Base, PeerKey, Peers, SetId},
    ports::{PortUnion, numbers},
};
use crate::{
    ids::IdSource,
    model::{Direction, NamedPort, Peers as RulePeers, PortSpec, Ports, Protocol, Rule, Str},
};

/// What a rule allows for one peer set.
pub(super) enum Term {
    /// These ports.
    Ports(PortUnion),
    /// The number that the set's port name has at the peer.
    Named,
}

/// Equal keys allow the same and are named by the same policies.
#[derive(PartialEq, Eq, Hash)]
struct RulesetKey {
    direction: Direction,
    /// Versions of the policies' rules, in order of names.
    policies: Vec<u64>,
    /// What the names in the rules mean at the selected pod.
    ports: Vec<NamedPort>,
}

/// One ruleset.
pub(super) struct Ruleset {
    key: Arc<RulesetKey>,
    pub(super) policies: Vec<Arc<Policy>>,
    /// How many local pods use it.
    refs: u32,
    /// What everybody may.
    pub(super) any: PortUnion,
    /// What the members of a set may besides; nothing = the number behind the name.
    pub(super) peers: BTreeMap<SetId, PortUnion>,
}

impl Ruleset {
    pub(super) fn direction(&self) -> Direction {
        self.key.direction
    }

    /// What the names in ingress rules mean.
    pub(super) fn ports(&self) -> &[NamedPort] {
        &self.key.ports
    }
}

/// The live rulesets.
#[derive(Default)]
pub(super) struct Rulesets {
    pub(super) live: BTreeMap<u32, Ruleset>,
    ids: HashMap<Arc<RulesetKey>, u32>,
    /// Made since the last look; some may be dead already.
    pub(super) fresh: Vec<u32>,
    /// Peer sets made since the last look.
    pub(super) fresh_sets: Vec<SetId>,
    /// Lost their last pod at least once since the last look.
    pub(super) idle: Vec<u32>,
}

impl Rulesets {
    /// The ruleset of a pod in one direction, with one more reference.
    pub(super) fn acquire(
        &mut self,
        local: &Local,
        direction: Direction,
        objects: &mut Objects,
        peers: &mut Peers,
        ids: &IdSource,
    ) -> u32 {
        let isolating = |policy: &&Arc<Policy>| policy.rules(direction).is_some();
        let policies: Vec<_> = local.selected.values().filter(isolating).cloned().collect();
        if policies.is_empty() {
            return RULESET_NONE;
        }
        let key = RulesetKey {
            direction,
            policies: policies.iter().map(|policy| policy.version(direction)).collect(),
            ports: match direction {
                Direction::Ingress => resolved(&policies, &objects.pods[local.pod].ports),
                Direction::Egress => Vec::new(),
            },
        };
        let id = match self.ids.get(&key) {
            Some(&id) => id,
            None => self.make(key, policies, objects, peers, ids),
        };
        self.live.get_mut(&id).expect("found or made").refs += 1;
        id
    }

    /// Gives one reference back.
    pub(super) fn release(&mut self, id: u32) {
        if let Some(ruleset) = self.live.get_mut(&id) {
            ruleset.refs -= 1;
            if ruleset.refs == 0 {
                self.idle.push(id);
            }
        }
    }

    /// Gives every ruleset the id that `to` says; no two the same.
    pub(super) fn rename(&mut self, to: impl Fn(u32) -> u32) {
        let live = std::mem::take(&mut self.live).into_iter();
        self.live = live.map(|(id, ruleset)| (to(id), ruleset)).collect();
        self.ids.values_mut().for_each(|id| *id = to(*id));
    }

    /// Takes out what nobody uses any more, sorted.
    pub(super) fn sweep(&mut self) -> Vec<(u32, Ruleset)> {
        let mut idle = std::mem::take(&mut self.idle);
        idle.sort_unstable();
        idle.dedup();
        idle.retain(|id| self.live[id].refs == 0);
        let dead: Vec<_> = idle
            .into_iter()
            .filter_map(|id| Some((id, self.live.remove(&id)?)))
            .collect();
        for (_, ruleset) in &dead {
            self.ids.remove(&ruleset.key);
        }
        self.fresh.retain(|id| self.live.contains_key(id));
        dead
    }

    fn make(
        &mut self,
        key: RulesetKey,
        policies: Vec<Arc<Policy>>,
        objects: &mut Objects,
        peers: &mut Peers,
        ids: &IdSource,
    ) -> u32 {
        let mut any = PortUnion::default();
        let mut sets: BTreeMap<SetId, PortUnion> = BTreeMap::new();
        for policy in &policies {
            for rule in policy.rules(key.direction).unwrap_or_default() {
                for_each_term(policy, rule, key.direction, &key.ports, |peer, term| {
                    let union = match peer {
                        None => &mut any,
                        Some(peer) => {
                            let (set, new) = peers.intern(peer, &mut objects.labels);
                            if new {
                                self.fresh_sets.push(set);
                            }
                            sets.entry(set).or_default()
                        }
                    };
                    if let Term::Ports(ports) = term {
                        union.add(ports);
                    }
                });
            }
        }
        any.normalise();
        sets.values_mut().for_each(PortUnion::normalise);
        let id = ids.take() | if any.is_empty() { 0 } else { RULESET_HAS_ANY };
        for set in sets.keys() {
            peers.sets[*set].rulesets.insert(id);
        }
        let key = Arc::new(key);
        self.ids.insert(key.clone(), id);
        let ruleset = Ruleset {
            key,
            policies,
            refs: 0,
            any,
            peers: sets,
        };
        self.live.insert(id, ruleset);
        self.fresh.push(id);
        id
    }
}

/// What `names` of the policies' ingress rules mean at a pod with `ports`.
fn resolved(policies: &[Arc<Policy>], ports: &[NamedPort]) -> Vec<NamedPort> {
    let mut used: Vec<NamedPort> = Vec::new();
    for port in ports {
        let name: &(Str, Protocol) = &(port.name.clone(), port.protocol);
        if policies.iter().any(|policy| policy.names.contains(name)) {
            used.push(port.clone());
        }
    }
    used.sort_unstable();
    used.dedup();
    used
}

/// Takes a rule apart: for each peer set (`None`: everybody) what it allows. Nothing that allows nothing is visited.
pub(super) fn for_each_term(
    policy: &Policy,
    rule: &Rule,
    direction: Direction,
    resolved: &[NamedPort],
    mut visit: impl FnMut(Option<PeerKey>, &Term),
) {
    let mut ports = PortUnion::of_rule(&rule.ports);
    let mut names: Vec<(Str, Protocol)> = Vec::new();
    if let Ports::Of(list) = &rule.ports {
        for port in list {
            if let PortSpec::Named(name) = &port.port {
                match direction {
                    Direction::Ingress => numbers(resolved, name, port.protocol)
                        .for_each(|number| ports.add_port(port.protocol, number)),
                    Direction::Egress => names.push((name.clone(), port.protocol)),
                }
            }
        }
    }
    ports.normalise();
    let fixed = (!ports.is_empty()).then_some(Term::Ports(ports));
    let bases = match &rule.peers {
        RulePeers::Any => None,
        RulePeers::Of(list) => {
            let own = &policy.object.name.namespace;
            Some(list.iter().map(|peer| Base::new(peer, own)).collect::<Vec<_>>())
        }
    };
    for port in names {
        let bases = bases.clone().unwrap_or_else(|| vec![Base::Any]);
        if !bases.is_empty() {
            let port = Some(port);
            visit(Some(PeerKey { bases, port }), &Term::Named);
        }
    }
    let Some(fixed) = fixed else { return };
    let Some(bases) = bases else {
        visit(None, &fixed);
        return;
    };
    let (blocks, selectors): (Vec<_>, Vec<_>) =
        bases.into_iter().partition(|base| matches!(base, Base::Block(_)));
    for bases in [selectors, blocks] {
        if !bases.is_empty() {
            visit(Some(PeerKey { bases, port: None }), &fixed);
        }
    }
}
