//! Which policies stand behind a cell or a ruleset, for people.

use netpol_common::{proto, tables::CellKey};

use super::{
    Compiler,
    peers::{number_of, set_of},
    rulesets::{Ruleset, Term, for_each_term},
};
use crate::model::{Direction, ObjectName};

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

    /// How much there is.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            classes: self.classes.live.len(),
            rulesets: self.rulesets.live.len(),
            peer_sets: self.peers.sets.len(),
            port_sets: self.desired.port_sets(),
            pods: self.objects.pods.len(),
            policies: self
                .objects
                .spaces
                .iter()
                .map(|(_, space)| space.policies.len())
                .sum(),
            local_pods: self.objects.local.len(),
        }
    }

    /// The rulesets with the most cells, largest first: what fills that map.
    #[must_use]
    pub fn largest_rulesets(&self, count: usize) -> Vec<(usize, Vec<ObjectName>)> {
        let cells = |id: u32| {
            let from = CellKey {
                ruleset: id,
                class: 0,
            };
            let to = CellKey {
                ruleset: id,
                class: u32::MAX,
            };
            self.desired.tables.cells.range(from..=to).count()
        };
        let names = |ruleset: &Ruleset| ruleset.policies.iter().map(|p| p.object.name.clone()).collect();
        let mut sizes: Vec<_> = self
            .rulesets
            .live
            .iter()
            .map(|(&id, ruleset)| (cells(id), names(ruleset)))
            .collect();
        sizes.sort_by(|a, b| b.cmp(a));
        sizes.truncate(count);
        sizes
    }
}
