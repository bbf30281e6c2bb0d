//! A large cluster, the same at every call: what benches compile.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net};

use crate::model::{
    Event, Labels, NamedPort, Namespace, NamespaceScope, ObjectName, Operator, Peer, Peers, Pod, Policy,
    PortMatch, PortSpec, Ports, Protocol, Requirement, Rule, Selector, Str,
};

/// The node whose tables are compiled.
pub const NODE: &str = "node-0";

mod measure;

pub use measure::{Change, Full, measure};

const APPS: usize = 20;
const TEAMS: usize = 25;

/// How large the cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Pods, spread evenly over namespaces and nodes; two addresses each.
    pub pods: usize,
    /// Policies, spread evenly over namespaces.
    pub policies: usize,
    /// Pods of [`NODE`].
    pub local: usize,
    /// ipBlocks of one more policy, which selects local pods.
    pub blocks: usize,
}

impl Cluster {
    /// 100 000 pods, 10 000 policies, 100 local pods.
    pub const LARGE: Self = Self {
        pods: 100_000,
        policies: 10_000,
        local: 100,
        blocks: 0,
    };

    fn namespaces(&self) -> usize {
        self.pods.div_ceil(200).max(1)
    }

    fn nodes(&self) -> usize {
        (self.pods / self.local.max(1)).max(1)
    }

    /// Everything in it: namespaces, policies, pods.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        let mut names = Names::default();
        let namespaces = (0..self.namespaces()).map(|at| Event::Namespace(namespace(at, &mut names)));
        let mut events: Vec<_> = namespaces.collect();
        events.extend((0..self.policies).map(|at| Event::Policy(self.policy(at, &mut names))));
        if self.blocks > 0 {
            events.push(Event::Policy(self.block_policy("blocks", &mut names)));
        }
        events.extend((0..self.pods).map(|at| Event::Pod(self.pod(at, &mut names))));
        events
    }

    /// Pod `at`.
    pub fn pod(&self, at: usize, names: &mut Names) -> Pod {
        let (space, app) = (at % self.namespaces(), at / self.namespaces() % APPS);
        // A cluster's addresses are handed out by node. Each node gets pods of many namespaces: the factor is prime.
        let nth = at / self.nodes();
        let node = (at * 7919 + nth) % self.nodes();
        let bits = (10 << 24) + node as u32 * 256 + nth as u32;
        let text = |names: &mut Names, text: String| names.get(&text);
        let labels = [
            ("app", format!("app-{app}")),
            ("app.kubernetes.io/instance", format!("release-{space}")),
            ("pod-template-hash", format!("hash-{space}-{app}")),
            ("tier", format!("tier-{}", app % 3)),
            ("version", format!("v{}", at % 2)),
        ];
        let labels = labels.map(|(key, value)| (names.get(key), text(names, value)));
        let port = |name: &str, number: usize, names: &mut Names| NamedPort {
            name: names.get(name),
            protocol: Protocol::Tcp,
            number: number as u16,
        };
        Pod {
            name: ObjectName::new(names.get(&format!("space-{space}")), format!("app-{app}-{at}")),
            uid: format!("00000000-0000-4000-8000-{at:012x}").into(),
            labels: Labels::from_iter(labels),
            node: Some(names.get(&format!("node-{node}"))),
            host_network: false,
            completed: false,
            terminating: false,
            addresses: vec![
                IpAddr::V4(Ipv4Addr::from_bits(bits)),
                IpAddr::V6(Ipv6Addr::from_bits(0xfd00 << 112 | u128::from(bits))),
            ],
            ports: vec![port("http", 8080 + app % 2, names), port("metrics", 9090, names)],
        }
    }

    /// Policy `at`: what people write, in turns.
    pub fn policy(&self, at: usize, names: &mut Names) -> Policy {
        let (space, turn) = (at % self.namespaces(), at / self.namespaces());
        let (app, other) = (turn % APPS, (turn + 7) % APPS);
        let app_label = |names: &mut Names, app: usize| equals("app", &format!("app-{app}"), names);
        let peer_app = app_label(names, other);
        let team = equals("team", &format!("team-{}", space % TEAMS), names);
        let own = |pods| Peer::Pods {
            namespaces: NamespaceScope::Own,
            pods,
        };
        let in_namespaces = |namespaces, pods| Peer::Pods {
            namespaces: NamespaceScope::Matching(namespaces),
            pods,
        };
        let ingress = match turn % 4 {
            0 => vec![rule(
                0,
                Peers::Of(vec![own(peer_app.clone())]),
                vec![named("http", names)],
            )],
            1 => vec![
                rule(
                    0,
                    Peers::Of(vec![in_namespaces(team, peer_app.clone())]),
                    vec![tcp(8080)],
                ),
                rule(1, Peers::Any, vec![tcp(9090)]),
            ],
            2 => {
                let monitoring = equals("kubernetes.io/metadata.name", "space-1", names);
                let monitor = in_namespaces(monitoring, app_label(names, 3));
                vec![rule(
                    0,
                    Peers::Of(vec![monitor, own(Selector::default())]),
                    vec![tcp(9090)],
                )]
            }
            _ => vec![rule(
                0,
                Peers::Of(vec![lan(space)]),
                vec![tcp(443), tcp(80), udp(53)],
            )],
        };
        let dns = equals("kubernetes.io/metadata.name", "space-0", names);
        let egress = vec![
            rule(
                0,
                Peers::Of(vec![in_namespaces(dns, app_label(names, 0))]),
                vec![udp(53), tcp(53)],
            ),
            rule(1, Peers::Of(vec![own(peer_app)]), vec![named("http", names)]),
        ];
        Policy {
            name: ObjectName::new(names.get(&format!("space-{space}")), format!("policy-{turn}")),
            selector: app_label(names, app),
            ingress: Some(ingress),
            egress: turn.is_multiple_of(3).then_some(egress),
        }
    }

    /// A policy with as many ipBlocks as the cluster says, half of them with a hole, for the pods of one namespace.
    pub fn block_policy(&self, name: &str, names: &mut Names) -> Policy {
        let block = |at: usize| {
            let net = |address: usize, len| {
                IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::from_bits(address as u32), len))
            };
            let base = (100 << 24) + at * 256;
            let hole = net(base + 16, 28);
            Peer::IpBlock {
                cidr: net(base, 24),
                except: if at.is_multiple_of(2) {
                    vec![hole]
                } else {
                    Vec::new()
                },
            }
        };
        Policy {
            name: ObjectName::new(names.get("space-0"), name),
            selector: Selector::default(),
            ingress: None,
            egress: Some(vec![rule(
                0,
                Peers::Of((0..self.blocks).map(block).collect()),
                vec![tcp(443)],
            )]),
        }
    }
}

/// Strings shared by many objects, as sources share them.
#[derive(Debug, Default)]
pub struct Names(HashMap<String, Str>);

impl Names {
    fn get(&mut self, text: &str) -> Str {
        if let Some(known) = self.0.get(text) {
            return known.clone();
        }
        let new = Str::from(text);
        self.0.insert(text.to_owned(), new.clone());
        new
    }
}

/// Namespace `at`.
pub fn namespace(at: usize, names: &mut Names) -> Namespace {
    let team = (names.get("team"), names.get(&format!("team-{}", at % TEAMS)));
    Namespace::new(names.get(&format!("space-{at}")), [team])
}

fn equals(key: &str, value: &str, names: &mut Names) -> Selector {
    let requirement = Requirement {
        key: names.get(key),
        operator: Operator::In(vec![names.get(value)]),
    };
    Selector {
        requirements: vec![requirement],
    }
}

fn lan(space: usize) -> Peer {
    let net = |address, len| IpNet::V4(Ipv4Net::new_assert(address, len));
    let third = u8::try_from(space % 256).unwrap_or_default();
    Peer::IpBlock {
        cidr: net(Ipv4Addr::new(192, 168, 0, 0), 16),
        except: vec![net(Ipv4Addr::new(192, 168, third, 0), 24)],
    }
}

fn rule(index: u32, peers: Peers, ports: Vec<PortMatch>) -> Rule {
    Rule {
        index,
        peers,
        ports: Ports::Of(ports),
    }
}

fn port(protocol: Protocol, port: PortSpec) -> PortMatch {
    PortMatch { protocol, port }
}

fn tcp(number: u16) -> PortMatch {
    port(Protocol::Tcp, PortSpec::Range(number, number))
}

fn udp(number: u16) -> PortMatch {
    port(Protocol::Udp, PortSpec::Range(number, number))
}

fn named(name: &str, names: &mut Names) -> PortMatch {
    port(Protocol::Tcp, PortSpec::Named(names.get(name)))
}
