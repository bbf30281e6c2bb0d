use std::net::{IpAddr, Ipv4Addr};

use netpol_common::{
    proto::{TCP, UDP},
    tables::{CLASS_ANY, Cell, CellKey, RULESET_HAS_ANY, Range},
};

use super::*;
use crate::{
    model::{
        Labels, NamedPort, NamespaceScope, ObjectName, Operator, Peer, Peers as RulePeers, Pod, Policy,
        PortMatch, PortSpec, Ports, Protocol, Requirement, Rule, Selector,
    },
    plan::{Map, MapFull, Scope, Sizes, plan},
    tables::PodRules,
};

fn selector(pairs: &[(&str, &str)]) -> Selector {
    let requirement = |(key, value): &(&str, &str)| Requirement {
        key: Str::from(*key),
        operator: Operator::In(vec![Str::from(*value)]),
    };
    Selector {
        requirements: pairs.iter().map(requirement).collect(),
    }
}

fn pod(name: &str, node: &str, last: u8, app: &str) -> Pod {
    Pod {
        name: ObjectName::new("default", name),
        uid: "".into(),
        labels: Labels::from_iter([("app", app)]),
        node: Some(node.into()),
        host_network: false,
        completed: false,
        terminating: false,
        addresses: vec![Ipv4Addr::new(10, 0, 0, last).into()],
        ports: Vec::new(),
    }
}

fn tcp(port: PortSpec) -> PortMatch {
    PortMatch {
        protocol: Protocol::Tcp,
        port,
    }
}

fn from(app: &str) -> RulePeers {
    RulePeers::Of(vec![Peer::Pods {
        namespaces: NamespaceScope::Own,
        pods: selector(&[("app", app)]),
    }])
}

fn policy(name: &str, app: &str) -> Policy {
    Policy {
        name: ObjectName::new("default", name),
        selector: selector(&[("app", app)]),
        ingress: None,
        egress: None,
    }
}

fn address(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, last).into()
}

#[test]
fn one_policy_gives_exactly_these_tables() {
    let mut compiler = Compiler::new("here".into(), 7);
    compiler.apply(Event::Pod(pod("db", "here", 1, "db")));
    compiler.apply(Event::Pod(pod("api", "there", 2, "api")));
    compiler.apply(Event::Policy(Policy {
        ingress: Some(vec![Rule {
            index: 0,
            peers: from("api"),
            ports: Ports::Of(vec![tcp(PortSpec::Range(5432, 5432))]),
        }]),
        ..policy("db", "db")
    }));
    let cell = Cell {
        ranges: [
            Range {
                lo: 5432,
                hi: 5432,
                proto: TCP.into(),
            },
            Range::UNUSED,
            Range::UNUSED,
        ],
        ..Cell::default()
    };
    let rules = PodRules {
        ingress: 7,
        egress: 0,
    };
    let expected = Tables {
        hosts4: BTreeMap::from([(Ipv4Addr::new(10, 0, 0, 2), 8)]),
        cells: BTreeMap::from([(CellKey { ruleset: 7, class: 8 }, cell)]),
        pods: BTreeMap::from([(ObjectName::new("default", "db"), rules)]),
        ..Tables::default()
    };
    assert_eq!(*compiler.tables(), expected);
    let name = ObjectName::new("default", "db");
    assert_eq!(compiler.explain_cell(7, 8, TCP, 5432), [(name.clone(), 0)]);
    assert_eq!(compiler.explain_cell(7, 8, UDP, 5432), []);
    assert_eq!(
        compiler.ruleset_policies(7),
        Some((crate::model::Direction::Ingress, vec![name.clone()]))
    );

    compiler.apply(Event::PolicyGone(name.clone()));
    let unisolated = Tables {
        pods: BTreeMap::from([(name, PodRules::default())]),
        ..Tables::default()
    };
    assert_eq!(*compiler.tables(), unisolated);
}

#[test]
fn named_egress_port_means_what_each_peer_calls_so() {
    let mut compiler = Compiler::new("here".into(), 1);
    let named = |last, number| Pod {
        ports: vec![NamedPort {
            name: "web".into(),
            protocol: Protocol::Tcp,
            number,
        }],
        ..pod(&format!("web-{last}"), "there", last, "web")
    };
    compiler.apply_all([
        Event::Pod(pod("client", "here", 1, "client")),
        Event::Policy(Policy {
            egress: Some(vec![Rule {
                index: 0,
                peers: RulePeers::Any,
                ports: Ports::Of(vec![tcp(PortSpec::Named("web".into()))]),
            }]),
            ..policy("out", "client")
        }),
        Event::Pod(named(2, 80)),
        Event::Pod(named(3, 8080)),
    ]);
    let tables = compiler.tables();
    let ruleset = tables.pods[&ObjectName::new("default", "client")].egress;
    let allowed =
        |last| [80, 8080].map(|port| tables.allows(ruleset, tables.class(address(last)), TCP, port));
    assert_eq!(
        [2, 3, 4].map(allowed),
        [[true, false], [false, true], [false, false]]
    );
}

#[test]
fn rules_without_peers_are_the_default_cell() {
    let mut compiler = Compiler::new("here".into(), 1);
    compiler.apply(Event::Pod(pod("db", "here", 1, "db")));
    compiler.apply(Event::Policy(Policy {
        ingress: Some(vec![Rule {
            index: 0,
            peers: RulePeers::Any,
            ports: Ports::Any,
        }]),
        ..policy("open", "db")
    }));
    let key = CellKey {
        ruleset: 1 | RULESET_HAS_ANY,
        class: CLASS_ANY,
    };
    assert_eq!(compiler.tables().cells.keys().collect::<Vec<_>>(), [&key]);
}

#[test]
fn a_full_table_names_the_policies_that_fill_it() {
    let block = |count: u8| {
        let net = |third| ipnet::Ipv4Net::new_assert(Ipv4Addr::new(192, 0, third, 0), 24).into();
        let block = |third| Peer::IpBlock {
            cidr: net(third),
            except: Vec::new(),
        };
        let rule = Rule {
            index: 0,
            peers: RulePeers::Of((0..count).map(block).collect()),
            ports: Ports::Any,
        };
        Some(vec![rule])
    };
    let mut compiler = Compiler::new("here".into(), 1);
    compiler.apply_all([
        Event::Pod(pod("db", "here", 1, "db")),
        Event::Policy(Policy {
            ingress: block(2),
            ..policy("few", "db")
        }),
        Event::Policy(Policy {
            ingress: block(5),
            ..policy("many", "db")
        }),
    ]);
    let plan = plan(
        &Tables::default(),
        compiler.tables(),
        Scope::Everything,
        &mut compiler.ids(),
    );
    let limits = Sizes::new(|map| if map == Map::Nets4 { 4 } else { 100 });
    let full = plan.fits(&limits).map_err(|full| compiler.blame(full));
    let expected = MapFull {
        map: Map::Nets4,
        need: 5,
        limit: 4,
        largest: vec![
            (ObjectName::new("default", "many"), 5),
            (ObjectName::new("default", "few"), 2),
        ],
    };
    assert_eq!(full, Err(expected.clone()));
    assert_eq!(
        expected.to_string(),
        "map nets4 is too small: the change needs 5 entries, it holds 4; most are for policy default/many (5), \
         policy default/few (2); what was in force stays: raise the capacity of nets4 or narrow the policies"
    );
}

#[test]
fn all_ip_blocks_of_a_rule_are_one_class() {
    let block = |third| Peer::IpBlock {
        cidr: ipnet::Ipv4Net::new_assert(Ipv4Addr::new(192, 0, third, 0), 24).into(),
        except: Vec::new(),
    };
    let mut compiler = Compiler::new("here".into(), 1);
    compiler.apply(Event::Pod(pod("db", "here", 1, "db")));
    compiler.apply(Event::Policy(Policy {
        ingress: Some(vec![Rule {
            index: 0,
            peers: RulePeers::Of((0..100).map(block).collect()),
            ports: Ports::Any,
        }]),
        ..policy("blocks", "db")
    }));
    let sizes = compiler.tables().sizes();
    assert_eq!((sizes.of(Map::Nets4), sizes.of(Map::Cells)), (100, 1));
}
