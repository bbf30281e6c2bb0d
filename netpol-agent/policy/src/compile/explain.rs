//! Which policies stand behind a cell, a ruleset or a full table, for people.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use netpol_common::{
    proto,
    tables::{CellKey, PortsKey},
};

use super::{
    Compiler,
    entities::Policy,
    peers::{PeerSet, SetId, number_of, set_of},
    rulesets::{Ruleset, Term, for_each_term},
};
use crate::{
    model::{Direction, ObjectName},
    plan::{Map, MapFull},
};

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Live classes.
    pub classes: usize,
    /// Live rulesets.
    pub rulesets: usize,
    /// Live peer sets.
    pub peer_sets: usize,
    /// Port sets that did not fit into a cell.
    pub port_sets: usize,
    /// Running pods with a network of their own, of all nodes.
    pub pods: usize,
    /// Namespaces, also those that are known by what is in them alone.
    pub namespaces: usize,
    /// Policies, also those that matter to no pod of this node.
    pub policies: usize,
    /// Running pods of this node.
    pub local_pods: usize,
}

impl Compiler {
    /// The policies, with their rules' indexes, that allow `port` (host byte order) of `protocol` (an IP
    /// protocol number) between a pod with `ruleset` and peers of `class`; sorted. Empty where none does,
    /// and for a ruleset that is not live.
    #[must_use]
    pub fn explain_cell(&self, ruleset: u32, class: u32, protocol: u8, port: u16) -> Vec<(ObjectName, u32)> {
        let Some(ruleset) = self.rulesets.live.get(&ruleset) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for policy in &ruleset.policies {
            for rule in policy.rules(ruleset.direction()).unwrap_or_default() {
                let mut allows = false;
                for_each_term(
                    policy,
                    rule,
                    ruleset.direction(),
                    ruleset.ports(),
                    |peer, term| {
                        let set = match peer {
                            None => None,
                            Some(peer) => match self.peers.find(&peer) {
                                None => return,
                                found => found,
                            },
                        };
                        allows |= self.term_allows(set, term, class, protocol, port);
                    },
                );
                if allows {
                    found.push((policy.object.name.clone(), rule.index));
                }
            }
        }
        found
    }

    fn term_allows(&self, set: Option<u32>, term: &Term, class: u32, protocol: u8, port: u16) -> bool {
        let members = self.classes.members(class).iter();
        let mut of_set = members.filter(|member| Some(set_of(**member)) == set);
        match term {
            Term::Ports(ports) => {
                let allowed = ports.all
                    || proto::has_ports(protocol)
                        && ports
                            .ranges
                            .iter()
                            .any(|range| range.proto == protocol && (range.lo..=range.hi).contains(&port));
                allowed && (set.is_none() || of_set.next().is_some())
            }
            Term::Named => {
                let agrees = set.and_then(|set| self.peers.sets[set].key.port.as_ref());
                agrees.is_some_and(|(_, named)| named.number() == protocol)
                    && of_set.any(|member| number_of(*member) == port)
            }
        }
    }

    /// The policies that isolate the pods with `ruleset`, and the direction. `None` for a ruleset that is not live.
    #[must_use]
    pub fn ruleset_policies(&self, ruleset: u32) -> Option<(Direction, Vec<ObjectName>)> {
        let ruleset = self.rulesets.live.get(&ruleset)?;
        let names = ruleset.policies.iter().map(|policy| policy.object.name.clone());
        Some((ruleset.direction(), names.collect()))
    }

    /// How many classes there are.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.classes.live.len()
    }

    /// How much there is.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            classes: self.classes(),
            rulesets: self.rulesets.live.len(),
            peer_sets: self.peers.sets.len(),
            port_sets: self.desired.port_sets(),
            pods: self.objects.pods.len(),
            namespaces: self.objects.spaces.len(),
            policies: self
                .objects
                .spaces
                .iter()
                .map(|(_, space)| space.policies.len())
                .sum(),
            local_pods: self.objects.local.len(),
        }
    }

    /// The error of a plan that does not fit, with the policies that need most of the table's entries.
    #[must_use]
    pub fn blame(&self, full: MapFull) -> MapFull {
        let mut largest: Vec<_> = self.needs(full.map).into_iter().collect();
        largest.sort_by(|(a, x), (b, y)| y.cmp(x).then(a.cmp(b)));
        largest.retain(|(_, entries)| *entries > 0);
        largest.truncate(3);
        MapFull { largest, ..full }
    }

    /// How many entries of `map` each policy has a part in.
    fn needs(&self, map: Map) -> BTreeMap<ObjectName, usize> {
        let tables = &self.desired.tables;
        let (mut v4, mut v6) = (HashMap::new(), HashMap::new());
        tables
            .hosts4
            .values()
            .for_each(|class| *v4.entry(*class).or_insert(0) += 1);
        tables
            .hosts6
            .values()
            .for_each(|class| *v6.entry(*class).or_insert(0) += 1);
        let in_classes = |set: &PeerSet, sizes: &HashMap<u32, usize>| -> usize {
            set.classes.iter().filter_map(|class| sizes.get(class)).sum()
        };
        let borders = |set: &PeerSet, v4: bool| {
            let borders = set.blocks().flat_map(|block| block.borders());
            borders.filter(|net| net.addr().is_ipv4() == v4).count()
        };
        let mut needs = BTreeMap::new();
        for (&id, ruleset) in &self.rulesets.live {
            for policy in &ruleset.policies {
                let sets = self.sets_of(policy, ruleset);
                let sets = sets.iter().map(|set| &self.peers.sets[*set]);
                let entries: usize = match map {
                    Map::Hosts4 => sets.map(|set| in_classes(set, &v4)).sum(),
                    Map::Hosts6 => sets.map(|set| in_classes(set, &v6)).sum(),
                    Map::Nets4 => sets.map(|set| borders(set, true)).sum(),
                    Map::Nets6 => sets.map(|set| borders(set, false)).sum(),
                    Map::Cells => sets.map(|set| set.classes.len()).sum(),
                    Map::Ports => self.chunks_of(id),
                    Map::Pods => 0,
                };
                let most: &mut usize = needs.entry(policy.object.name.clone()).or_default();
                // Cells are a ruleset's own, the rest is shared by all.
                *most = match map {
                    Map::Cells => *most + entries,
                    _ => (*most).max(entries),
                };
            }
        }
        needs
    }

    /// The peer sets that `policy` names.
    fn sets_of(&self, policy: &Policy, ruleset: &Ruleset) -> BTreeSet<SetId> {
        let mut sets = BTreeSet::new();
        for rule in policy.rules(ruleset.direction()).unwrap_or_default() {
            for_each_term(policy, rule, ruleset.direction(), ruleset.ports(), |peer, _| {
                sets.extend(peer.and_then(|peer| self.peers.find(&peer)));
            });
        }
        sets
    }

    /// How many chunks of port sets the cells of a ruleset refer to.
    fn chunks_of(&self, ruleset: u32) -> usize {
        let tables = &self.desired.tables;
        let key = |class| CellKey { ruleset, class };
        let cells = tables.cells.range(key(0)..=key(u32::MAX));
        let sets: BTreeSet<u32> = cells
            .map(|(_, cell)| cell.ports)
            .filter(|set| *set != 0)
            .collect();
        let key = |set, chunk, proto| PortsKey { set, chunk, proto };
        let chunks = |set| {
            tables
                .ports
                .range(key(set, 0, 0)..=key(set, u16::MAX, u16::MAX))
                .count()
        };
        sets.into_iter().map(chunks).sum()
    }
}
