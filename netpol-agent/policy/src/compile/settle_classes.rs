//! After an event: from touched addresses and changed peer sets to classes and cells.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use ipnet::IpNet;
use netpol_common::tables::{CLASS_ANY, CLASS_OTHER, CellKey};

use super::{
    Compiler,
    entities::AddressAt,
    peers::{MEMBER_NET, Member, PeerAt, SetId, member, number_of, set_of},
    ports::PortUnion,
    rulesets::Ruleset,
    settle::Change,
    slab::ByNumber,
};
use crate::prefix::longest_match;

/// Class → the members that addresses of it gain → their new class.
type Known = HashMap<u32, Vec<(Vec<Member>, u32)>, ByNumber>;

impl Compiler {
    pub(super) fn settle_addresses(&mut self, change: &Change) {
        let touched = std::mem::take(&mut self.objects.touched.addresses);
        for &at in &touched {
            self.reclass(at);
        }
        self.shift_members(change);
        for net in &change.nets {
            self.shift_nets(*net);
        }
        for at in touched {
            self.objects.addresses[at].touched = false;
            if !self.objects.addresses[at].is_claimed() {
                self.objects.remove_address(at);
            }
        }
    }

    /// Recomputes the class of one address from its owners' labels.
    fn reclass(&mut self, at: AddressAt) {
        let (objects, address) = (&self.objects, &self.objects.addresses[at]);
        let mut members: Vec<Member> = Vec::new();
        if address.is_shared() {
            self.push_shared(at, &mut members);
        } else if let Some(pod) = objects.owners(address).next() {
            let add = |peer: PeerAt, number| members.push(member(peer.0, number));
            self.peers.for_each(pod, address.ip, objects, add);
        }
        members.sort_unstable();
        members.dedup();
        self.assign_with_nets(at, members);
    }

    /// Nobody knows whose packets these are: a peer means them only if it means all who claim the address.
    fn push_shared(&self, at: AddressAt, members: &mut Vec<Member>) {
        let address = &self.objects.addresses[at];
        let meaning = self.objects.owners(address).map(|pod| {
            let mut peers = BTreeSet::new();
            self.peers
                .for_each(pod, address.ip, &self.objects, |peer, number| {
                    peers.insert((peer, number));
                });
            peers
        });
        let all = meaning.reduce(|all, one| &all & &one).unwrap_or_default();
        members.extend(all.into_iter().map(|((set, _), number)| member(set, number)));
    }

    /// Members of fresh sets come in, those of dead sets fall out; other addresses keep what they have.
    fn shift_members(&mut self, change: &Change) {
        let dead: HashSet<SetId, ByNumber> = change.dead.iter().copied().collect();
        let losing = dead.iter().flat_map(|set| &self.peers.sets[*set].classes);
        let losing: HashSet<u32, ByNumber> = losing.copied().collect();
        let mut known = Known::default();
        let mut adds = Vec::new();
        for (&space, fresh) in &change.scopes {
            // Out of the namespace for a moment, so that classes can be changed meanwhile.
            let pods = std::mem::take(&mut self.objects.spaces[space].pods);
            for &pod in pods.values() {
                for nth in 0..self.objects.pods[pod].addresses.len() {
                    let pod = &self.objects.pods[pod];
                    let at = pod.addresses[nth];
                    let address = &self.objects.addresses[at];
                    if address.touched {
                        continue;
                    }
                    adds.clear();
                    for &set in fresh {
                        self.peers
                            .push_if_in(set, pod, address.ip, &self.objects, &mut adds);
                    }
                    if address.is_shared() {
                        self.reclass(at);
                    } else if !adds.is_empty() || losing.contains(&address.class) {
                        self.move_by(at, &adds, &dead, change.nets.is_empty(), &mut known);
                    }
                }
            }
            self.objects.spaces[space].pods = pods;
        }
    }

    fn move_by(
        &mut self,
        at: AddressAt,
        adds: &[Member],
        dead: &HashSet<SetId, ByNumber>,
        nets_stay: bool,
        known: &mut Known,
    ) {
        let class = self.objects.addresses[at].class;
        let same_nets = nets_stay && (class != CLASS_OTHER || self.regions.is_empty());
        let moves = known.entry(class).or_default();
        if same_nets && let Some((_, to)) = moves.iter().find(|(known, _)| known == adds) {
            self.assign(at, *to);
            return;
        }
        let kept = self.classes.members(class).iter().copied();
        let kept = kept.filter(|member| member & MEMBER_NET == 0 && !dead.contains(&set_of(*member)));
        let mut members: Vec<Member> = adds.iter().copied().chain(kept).collect();
        members.sort_unstable();
        members.dedup();
        let to = self.assign_with_nets(at, members);
        if same_nets {
            moves.push((adds.to_vec(), to));
        }
    }

    /// Brings the exact entries within `net` up to date with the ipBlocks around them.
    fn shift_nets(&mut self, net: IpNet) {
        let tables = &self.desired.tables;
        let exact: Vec<(IpAddr, u32)> = match net {
            IpNet::V4(net) => {
                let hosts = tables.hosts4.range(net.network()..=net.broadcast());
                hosts.map(|(ip, class)| ((*ip).into(), *class)).collect()
            }
            IpNet::V6(net) => {
                let hosts = tables.hosts6.range(net.network()..=net.broadcast());
                hosts.map(|(ip, class)| ((*ip).into(), *class)).collect()
            }
        };
        for (ip, class) in exact {
            let members = self.classes.members(class).iter().copied();
            let members = members.filter(|member| member & MEMBER_NET == 0).collect();
            let at = self
                .objects
                .address_at(ip)
                .expect("only pods' addresses have entries");
            self.assign_with_nets(at, members);
        }
    }

    /// Gives an address the class of `members` (selectors' sets, sorted) and of the ipBlocks around it. In no
    /// selector's set, it has no exact entry.
    fn assign_with_nets(&mut self, at: AddressAt, mut members: Vec<Member>) -> u32 {
        if !members.is_empty() && !self.regions.is_empty() {
            let ip = IpNet::from(self.objects.addresses[at].ip);
            if let Some((_, region)) = longest_match(&self.regions, &ip) {
                members.extend_from_slice(self.classes.members(region.class));
            }
        }
        let class = self.classes.intern(&members, &self.ids);
        self.assign(at, class);
        class
    }

    fn assign(&mut self, at: AddressAt, class: u32) {
        let address = &mut self.objects.addresses[at];
        if address.class != class {
            self.classes.shift(address.class, class);
            address.class = class;
            self.desired.host(address.ip, class);
        }
    }

    /// Classes × rulesets → cells.
    pub(super) fn settle_cells(&mut self, change: &Change) {
        let (dead, fresh) = self.classes.sweep();
        let changed = dead.iter().map(|(class, _)| class).chain(&fresh);
        self.desired.log.classes.extend(changed);
        for (class, gone) in dead {
            for set in gone.members.iter().map(|member| set_of(*member)) {
                let set = &mut self.peers.sets[set];
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
                let set = &mut self.peers.sets[set];
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
        let sets = ruleset.peers.keys().map(|set| &self.peers.sets[*set].classes);
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
            match &self.peers.sets[set].key.port {
                None => union.add(ports),
                Some((_, protocol)) => union.add_port(*protocol, number_of(member)),
            }
        }
        union.normalise();
        union
    }
}
