//! After an event: from touched objects to rulesets, peer sets and the regions of ipBlocks.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use ipnet::IpNet;
use netpol_common::tables::CLASS_OTHER;

use super::{
    Compiler,
    nets::Region,
    objects::SetId,
    peers::{MEMBER_NET, Member, set_of},
};
use crate::{
    model::{Direction, Str},
    prefix::{inside, longest_match},
    tables::PodRules,
};

/// What one settling adds to and takes from the live peer sets.
#[derive(Default)]
pub(super) struct Change {
    pub(super) fresh: Vec<SetId>,
    pub(super) dead: Vec<SetId>,
    /// Where members of fresh or dead selectors' sets may be, with the fresh ones to try there.
    pub(super) scopes: BTreeMap<Str, Vec<SetId>>,
    /// ipBlocks that came or went.
    pub(super) nets: Vec<IpNet>,
    /// Rulesets that came.
    pub(super) rulesets: Vec<u32>,
}

impl Compiler {
    pub(super) fn settle(&mut self) {
        self.settle_pods();
        let mut change = self.settle_sets();
        self.settle_namespaces();
        self.settle_nets(&mut change);
        self.settle_addresses(&change);
        self.settle_cells(&change);
        for set in change.dead {
            self.peers.remove(set, &mut self.objects);
        }
    }

    /// Touched local pods → rulesets.
    fn settle_pods(&mut self) {
        for name in std::mem::take(&mut self.objects.touched.local) {
            let before = self.desired.tables.pods.get(&name).copied();
            // Out of the map for a moment, so that the rest of the objects can be changed meanwhile.
            let local = self.objects.local.remove(&name);
            let after = local.as_ref().map(|local| {
                let mut acquire = |direction| {
                    self.rulesets
                        .acquire(local, direction, &mut self.objects, &mut self.peers, &self.ids)
                };
                PodRules {
                    ingress: acquire(Direction::Ingress),
                    egress: acquire(Direction::Egress),
                }
            });
            if let Some(before) = before {
                self.rulesets.release(before.ingress);
                self.rulesets.release(before.egress);
            }
            if before != after {
                self.desired.pod(&name, after);
            }
            if let Some(local) = local {
                self.objects.local.insert(name, local);
            }
        }
    }

    /// Rulesets → peer sets.
    fn settle_sets(&mut self) -> Change {
        let mut change = Change {
            fresh: std::mem::take(&mut self.rulesets.fresh_sets),
            ..Change::default()
        };
        let mut idle = BTreeSet::new();
        for (id, ruleset) in self.rulesets.sweep() {
            self.desired.remove_ruleset(id);
            for set in ruleset.peers.keys() {
                let users = &mut self
                    .peers
                    .sets
                    .get_mut(set)
                    .expect("a ruleset's sets live")
                    .rulesets;
                users.remove(&id);
                if users.is_empty() {
                    idle.insert(*set);
                }
            }
        }
        change.rulesets = std::mem::take(&mut self.rulesets.fresh);
        // Made and lost within one batch of events.
        change.fresh.retain(|set| {
            let lost = idle.remove(set);
            if lost {
                self.peers.remove(*set, &mut self.objects);
            }
            !lost
        });
        for &set in &change.fresh {
            self.peers.list(set, &mut self.objects, true);
            self.add_scope(set, true, &mut change.scopes);
        }
        for &set in &idle {
            self.add_scope(set, false, &mut change.scopes);
            self.peers.list(set, &mut self.objects, false);
        }
        change.dead = idle.into_iter().collect();
        change
    }

    /// Notes the namespaces in which pods may be members of `set`.
    fn add_scope(&self, id: SetId, fresh: bool, scopes: &mut BTreeMap<Str, Vec<SetId>>) {
        let set = &self.peers.sets[&id];
        if set.net().is_some() {
            return;
        }
        let mut add = |name: &Str| {
            let sets = scopes.entry(name.clone()).or_default();
            if fresh {
                sets.push(id);
            }
        };
        if let Some(name) = set.namespace() {
            add(name);
            return;
        }
        for (name, space) in &self.objects.namespaces {
            if !set.is_matching() || space.matching.contains(&id) {
                add(name);
            }
        }
    }

    /// Namespaces whose labels changed → addresses of their pods.
    fn settle_namespaces(&mut self) {
        for name in std::mem::take(&mut self.objects.touched.namespaces) {
            if self.peers.rematch(&name, &mut self.objects) {
                for &at in self.objects.namespaces[&name].pods.values() {
                    let addresses = self.objects.pods[at as usize]
                        .iter()
                        .flat_map(|pod| &pod.addresses);
                    self.objects.touched.addresses.extend(addresses.copied());
                }
            }
        }
    }

    /// Peer sets that are ipBlocks → regions and their classes.
    fn settle_nets(&mut self, change: &mut Change) {
        let block = |set: &SetId| {
            let key = self.peers.sets[set].key.clone();
            self.peers.sets[set].net().is_some().then_some((*set, key))
        };
        let fresh: Vec<_> = change.fresh.iter().filter_map(block).collect();
        let dead: Vec<_> = change.dead.iter().filter_map(block).collect();
        let mut changed: BTreeMap<IpNet, Vec<Member>> = BTreeMap::new();
        for (_, key) in &fresh {
            if let super::peers::Base::Block(block) = &key.base {
                block.borders().for_each(|border| self.add_border(border));
            }
        }
        for (set, key, comes) in fresh
            .iter()
            .map(|(set, key)| (set, key, true))
            .chain(dead.iter().map(|(set, key)| (set, key, false)))
        {
            if let super::peers::Base::Block(block) = &key.base {
                change.nets.push(block.cidr());
                for (net, _) in self.regions.range(inside(block.cidr())) {
                    if block.covers(net) {
                        let adds = changed.entry(*net).or_default();
                        if comes {
                            adds.push(MEMBER_NET | Member::from(*set) << 16);
                        }
                    }
                }
            }
        }
        let gone: HashSet<SetId> = dead.iter().map(|(set, _)| *set).collect();
        for (net, adds) in changed {
            self.reclass_region(net, &gone, adds);
        }
        for (_, key) in &dead {
            if let super::peers::Base::Block(block) = &key.base {
                block.borders().for_each(|border| self.remove_border(border));
            }
        }
    }

    /// A new border first changes nothing: its inside has the class that it had.
    fn add_border(&mut self, border: IpNet) {
        if !self.regions.contains_key(&border) {
            let class = longest_match(&self.regions, &border).map_or(CLASS_OTHER, |(_, region)| region.class);
            self.classes.shift(CLASS_OTHER, class);
            self.regions.insert(border, Region { refs: 0, class });
            self.desired.net(border, Some(class));
        }
        self.regions.get_mut(&border).expect("added above").refs += 1;
    }

    /// The last border's inside has the class of what is around it by now.
    fn remove_border(&mut self, border: IpNet) {
        let region = self.regions.get_mut(&border).expect("a live block's border");
        region.refs -= 1;
        if region.refs == 0 {
            self.classes.shift(region.class, CLASS_OTHER);
            self.regions.remove(&border);
            self.desired.net(border, None);
        }
    }

    fn reclass_region(&mut self, net: IpNet, gone: &HashSet<SetId>, adds: Vec<Member>) {
        let region = self.regions.get_mut(&net).expect("a region found before");
        let mut members = adds;
        let kept = self.classes.members(region.class).iter();
        members.extend(kept.filter(|member| !gone.contains(&set_of(**member))));
        members.sort_unstable();
        let class = self.classes.intern(&members, &self.ids);
        if class != region.class {
            self.classes.shift(region.class, class);
            region.class = class;
            self.desired.net(net, Some(class));
        }
    }
}
