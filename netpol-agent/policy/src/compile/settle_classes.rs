//! After an event: from touched addresses and changed peer sets to classes and cells.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use ipnet::IpNet;
use netpol_common::tables::{CLASS_ANY, CLASS_OTHER, CellKey};

use super::{
    Compiler,
    objects::SetId,
    peers::{MEMBER_NET, Member, number_of, set_of},
    ports::PortUnion,
    rulesets::Ruleset,
    settle::Change,
};
use crate::prefix::longest_match;

impl Compiler {
    pub(super) fn settle_addresses(&mut self, change: &Change) {
        let touched = std::mem::take(&mut self.objects.touched.addresses);
        for &address in &touched {
            self.reclass(address);
        }
        self.shift_members(change, &touched);
        for net in &change.nets {
            let within = self.objects.addresses.range(net.network()..=net.broadcast());
            let exact: Vec<_> = within
                .filter(|(address, entry)| entry.class != CLASS_OTHER && !touched.contains(*address))
                .map(|(address, entry)| (*address, entry.class))
                .collect();
            for (address, class) in exact {
                let members = self.classes.members(class).iter().copied();
                let members = members.filter(|member| member & MEMBER_NET == 0).collect();
                self.assign_with_nets(address, members);
            }
        }
    }

    /// Recomputes the class of one address from all its owners' labels.
    fn reclass(&mut self, address: IpAddr) {
        let Some(entry) = self.objects.addresses.get(&address) else {
            return;
        };
        let mut members: Vec<Member> = Vec::new();
        let mut one: Vec<Member> = Vec::new();
        for (at, pod) in self.objects.owners(entry).enumerate() {
            one.clear();
            self.peers.members(pod, address, &self.objects, &mut one);
            if at == 0 {
                members.clone_from(&one);
            } else {
                // Nobody knows whose packets these are: only what all claimants may is allowed.
                members.retain(|member| one.binary_search(member).is_ok());
            }
        }
        self.assign_with_nets(address, members);
        if self.objects.addresses[&address].owners.is_empty() {
            self.objects.addresses.remove(&address);
        }
    }

    /// Members of fresh sets come in, those of dead sets fall out; other addresses keep what they have.
    fn shift_members(&mut self, change: &Change, touched: &BTreeSet<IpAddr>) {
        let dead: HashSet<SetId> = change.dead.iter().copied().collect();
        let losing: HashSet<u32> = dead
            .iter()
            .flat_map(|set| &self.peers.sets[set].classes)
            .copied()
            .collect();
        let mut moves: Vec<(IpAddr, Vec<Member>)> = Vec::new();
        let mut shared: Vec<IpAddr> = Vec::new();
        for (name, fresh) in &change.scopes {
            let Some(space) = self.objects.namespaces.get(name) else {
                continue;
            };
            for &at in space.pods.values() {
                let pod = self.objects.pod(at);
                for address in pod.addresses.iter().filter(|address| !touched.contains(*address)) {
                    let entry = &self.objects.addresses[address];
                    if entry.owners.len() > 1 {
                        shared.push(*address);
                        continue;
                    }
                    let mut adds = Vec::new();
                    for &set in fresh {
                        self.peers
                            .push_if_in(set, pod, *address, space, &self.objects, &mut adds);
                    }
                    if !adds.is_empty() || losing.contains(&entry.class) {
                        moves.push((*address, adds));
                    }
                }
            }
        }
        let mut known: HashMap<(u32, Vec<Member>), u32> = HashMap::new();
        for (address, adds) in moves {
            self.move_by(address, adds, &dead, change.nets.is_empty(), &mut known);
        }
        shared.sort_unstable();
        shared.dedup();
        for address in shared {
            self.reclass(address);
        }
    }

    fn move_by(
        &mut self,
        address: IpAddr,
        adds: Vec<Member>,
        dead: &HashSet<SetId>,
        nets_stay: bool,
        known: &mut HashMap<(u32, Vec<Member>), u32>,
    ) {
        let class = self.objects.addresses[&address].class;
        let same_nets = nets_stay && class != CLASS_OTHER;
        let mut key = (class, adds);
        if same_nets && let Some(&to) = known.get(&key) {
            self.assign(address, to);
            return;
        }
        let kept = self.classes.members(class).iter().copied();
        let kept = kept.filter(|member| member & MEMBER_NET == 0 && !dead.contains(&set_of(*member)));
        let mut members: Vec<Member> = key.1.iter().copied().chain(kept).collect();
        members.sort_unstable();
        let to = self.assign_with_nets(address, members);
        if same_nets {
            key.1.shrink_to_fit();
            known.insert(key, to);
        }
    }

    /// Gives `address` the class of `members` (selectors' sets, sorted) and of the ipBlocks around it. In no
    /// selector's set, it has no exact entry.
    fn assign_with_nets(&mut self, address: IpAddr, mut members: Vec<Member>) -> u32 {
        if !members.is_empty()
            && let Some((_, region)) = longest_match(&self.regions, &IpNet::from(address))
        {
            members.extend_from_slice(self.classes.members(region.class));
        }
        let class = self.classes.intern(&members, &self.ids);
        self.assign(address, class);
        class
    }

    fn assign(&mut self, address: IpAddr, class: u32) {
        let entry = self
            .objects
            .addresses
            .get_mut(&address)
            .expect("an address in use");
        if entry.class != class {
            self.classes.shift(entry.class, class);
            entry.class = class;
            self.desired.host(address, class);
        }
    }

    /// Classes × rulesets → cells.
    pub(super) fn settle_cells(&mut self, change: &Change) {
        let (dead, fresh) = self.classes.sweep();
        let changed = dead.iter().map(|(class, _)| class).chain(&fresh);
        self.desired.dirty.classes.extend(changed);
        for (class, gone) in dead {
            for set in gone.members.iter().map(|member| set_of(*member)) {
                let set = self.peers.sets.get_mut(&set).expect("sets outlive their classes");
                set.classes.remove(&class);
                for &ruleset in &set.rulesets {
                    self.desired.remove_cell(CellKey { ruleset, class });
                }
            }
        }
        for &ruleset in &change.rulesets {
            self.add_ruleset_cells(ruleset);
        }
        for class in fresh {
            let mut rulesets = BTreeSet::new();
            for set in self.classes.members(class).iter().map(|member| set_of(*member)) {
                let set = self.peers.sets.get_mut(&set).expect("a live class's sets live");
                set.classes.insert(class);
                rulesets.extend(&set.rulesets);
            }
            for ruleset in rulesets {
                self.add_cell(ruleset, class);
            }
        }
    }

    /// The cells of a new ruleset with the classes that were there before.
    fn add_ruleset_cells(&mut self, id: u32) {
        let ruleset = &self.rulesets.live[&id];
        let default = CellKey {
            ruleset: id,
            class: CLASS_ANY,
        };
        self.desired.add_cell(default, &ruleset.any, &self.ids);
        let sets = ruleset.peers.keys().map(|set| &self.peers.sets[set].classes);
        let classes: BTreeSet<u32> = sets.flatten().copied().collect();
        for class in classes {
            self.add_cell(id, class);
        }
    }

    fn add_cell(&mut self, ruleset: u32, class: u32) {
        let union = self.allowed(&self.rulesets.live[&ruleset], class);
        self.desired
            .add_cell(CellKey { ruleset, class }, &union, &self.ids);
    }

    /// The union of the ports of every rule of `ruleset` that matches `class`.
    fn allowed(&self, ruleset: &Ruleset, class: u32) -> PortUnion {
        let mut union = ruleset.any.clone();
        for &member in self.classes.members(class) {
            let set = set_of(member);
            let Some(ports) = ruleset.peers.get(&set) else {
                continue;
            };
            match &self.peers.sets[&set].key.port {
                None => union.add(ports),
                Some((_, protocol)) => union.add_port(*protocol, number_of(member)),
            }
        }
        union.normalise();
        union
    }
}
