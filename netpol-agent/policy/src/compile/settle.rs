//! After an event: from touched objects to rulesets, peer sets and the regions of ipBlocks.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use netpol_common::tables::CLASS_OTHER;

use super::{
    Compiler,
    entities::SpaceAt,
    nets::Region,
    peers::{MEMBER_NET, Member, SetId, Test, member, set_of},
};
use crate::{
    model::Direction,
    prefix::{inside, longest_match},
    tables::PodRules,
};

/// What one settling adds to and takes from the live peer sets.
#[derive(Default)]
pub(super) struct Change {
    pub(super) fresh: Vec<SetId>,
    pub(super) dead: Vec<SetId>,
    /// Where members of fresh or dead selectors' sets may be, with the fresh ones to try there.
    pub(super) scopes: BTreeMap<SpaceAt, Vec<SetId>>,
    /// ipBlocks that came or went.
    pub(super) nets: Vec<IpNet>,
    /// Rulesets that came.
    pub(super) rulesets: Vec<u32>,
}

impl Compiler {
    /// Brings the tables to what was staged.
    pub fn settle(&mut self) {
        self.settle_pods();
        let mut change = self.settle_sets();
        self.settle_namespaces();
        self.settle_nets(&mut change);
        self.settle_addresses(&change);
        self.settle_cells(&change);
        for set in change.dead {
            self.peers.remove(set, &mut self.objects.labels);
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
                let users = &mut self.peers.sets[*set].rulesets;
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
                self.peers.remove(*set, &mut self.objects.labels);
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
    fn add_scope(&self, id: SetId, fresh: bool, scopes: &mut BTreeMap<SpaceAt, Vec<SetId>>) {
        let set = &self.peers.sets[id];
        if set.is_net() {
            return;
        }
        let mut add = |at: SpaceAt| {
            let sets = scopes.entry(at).or_default();
            if fresh && sets.last() != Some(&id) {
                sets.push(id);
            }
        };
        for (nth, test) in (0..).zip(&set.tests) {
            match test {
                Test::Named(name, _) => self.objects.space_at(name).into_iter().for_each(&mut add),
                Test::Matching(..) => {
                    let wanted = self.objects.spaces.iter();
                    let wanted = wanted.filter(|(_, space)| space.matching.contains(&(id, nth)));
                    wanted.for_each(|(at, _)| add(at));
                }
                Test::Block(_) | Test::Any => self.objects.spaces.iter().for_each(|(at, _)| add(at)),
            }
        }
    }

    /// Namespaces whose labels changed → addresses of their pods.
    fn settle_namespaces(&mut self) {
        for name in std::mem::take(&mut self.objects.touched.namespaces) {
            if let Some(at) = self.objects.space_at(&name)
                && self.peers.rematch(at, &mut self.objects)
            {
                self.objects.touch_space(at);
            }
        }
    }

    /// Peer sets that are ipBlocks → regions and their classes.
    fn settle_nets(&mut self, change: &mut Change) {
        let is_net = |set: &&SetId| self.peers.sets[**set].is_net();
        let fresh: Vec<_> = change.fresh.iter().filter(is_net).copied().collect();
        let dead: BTreeSet<_> = change.dead.iter().filter(is_net).copied().collect();
        for &set in &fresh {
            self.change_borders(set, Self::add_border);
        }
        let mut changed: BTreeMap<IpNet, Vec<Member>> = BTreeMap::new();
        for &set in fresh.iter().chain(&dead) {
            for block in self.peers.sets[set].blocks() {
                change.nets.push(block.cidr());
                for (net, _) in self.regions.range(inside(block.cidr())) {
                    if block.covers(net) {
                        changed.entry(*net).or_default().push(MEMBER_NET | member(set, 0));
                    }
                }
            }
        }
        for (net, members) in changed {
            self.reclass_region(net, &dead, members);
        }
        for &set in &dead {
            self.change_borders(set, Self::remove_border);
        }
    }

    fn change_borders(&mut self, set: SetId, change: fn(&mut Self, IpNet)) {
        let borders: Vec<_> = self.peers.sets[set]
            .blocks()
            .flat_map(|block| block.borders())
            .collect();
        borders.into_iter().for_each(|border| change(self, border));
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

    /// Adds `members` to what a region is in, and takes the dead sets out.
    fn reclass_region(&mut self, net: IpNet, dead: &BTreeSet<SetId>, mut members: Vec<Member>) {
        let region = self.regions.get_mut(&net).expect("a region found before");
        members.extend_from_slice(self.classes.members(region.class));
        members.retain(|member| !dead.contains(&set_of(*member)));
        members.sort_unstable();
        members.dedup();
        let class = self.classes.intern(&members, &self.ids);
        if class != region.class {
            self.classes.shift(region.class, class);
            region.class = class;
            self.desired.net(net, Some(class));
        }
    }
}
