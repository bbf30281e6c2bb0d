//! Random snapshots and flows: the programs say what the oracle says, and for the reason that the tables give.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    net::IpAddr,
};

use anyhow::{Context, Result};
use netpol_common::{
    mark::{self, OUTSIDE},
    proto,
    reason::{ALLOWED, DENIED_EGRESS, DENIED_INGRESS, ITSELF, NODE as OWN_NODE, NOT_ISOLATED, name},
    tables::CLASS_OTHER,
};
use netpol_policy::{
    generate::{Readable, Shape, flows, large_rulesets, snapshots},
    model::{ObjectName, Snapshot},
    oracle::{End, Flow, Oracle},
};
use netpol_tests::{
    packet::{Ether, Ip, tcp},
    program::{Lab, NODE, within},
};
use proptest::{
    strategy::Strategy,
    test_runner::{Config, TestCaseError, TestRunner},
};

/// Where an end of a flow is, as the node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Pod(u32),
    OwnNode,
    Outside,
}

/// The running pods that own `address`; terminating ones only where there are no others.
fn owners(snapshot: &Snapshot, address: IpAddr) -> Vec<&ObjectName> {
    let running: Vec<_> = snapshot
        .pods
        .values()
        .filter(|pod| pod.is_endpoint() && pod.addresses.contains(&address))
        .collect();
    let staying = running.iter().any(|pod| !pod.terminating);
    running
        .iter()
        .filter(|pod| !staying || !pod.terminating)
        .map(|pod| &pod.name)
        .collect()
}

/// `None` where the node can not tell (several pods with one address: an error in the manifests).
fn place(lab: &Lab<'_>, snapshot: &Snapshot, end: &End) -> Option<Place> {
    let address = end.address();
    let local = |pod: &ObjectName| match lab.index(pod) {
        OUTSIDE => Place::Outside,
        index => Place::Pod(index),
    };
    match end {
        End::Pod(pod, _) if snapshot.pods[pod].is_endpoint() => Some(local(pod)),
        // A completed one's address is whose it is now: perhaps another node's.
        End::Pod(pod, _) if snapshot.pods[pod].host_network && !snapshot.pods[pod].completed => {
            let own = snapshot.pods[pod].node.as_deref() == Some(NODE);
            Some(if own { Place::OwnNode } else { Place::Outside })
        }
        End::Node(node, _) => Some(if &**node == NODE {
            Place::OwnNode
        } else {
            Place::Outside
        }),
        End::Pod(..) | End::Ip(_) => match owners(snapshot, address)[..] {
            [] => by_node(snapshot, address),
            [pod] => Some(local(pod)),
            _ => None,
        },
    }
}

fn by_node(snapshot: &Snapshot, address: IpAddr) -> Option<Place> {
    let nodes = snapshot
        .nodes
        .values()
        .filter(|node| node.addresses.contains(&address))
        .map(|node| &*node.name);
    let hosts = snapshot
        .pods
        .values()
        .filter(|pod| pod.host_network && !pod.completed && pod.addresses.contains(&address))
        .filter_map(|pod| pod.node.as_deref());
    let mut claims: Vec<_> = nodes.chain(hosts).collect();
    claims.sort_unstable();
    claims.dedup();
    match claims[..] {
        [] => Some(Place::Outside),
        [node] if node == NODE => Some(Place::OwnNode),
        [_] => Some(Place::Outside),
        _ => None,
    }
}

/// The first packet of `flow`. `None` where there is none of that family and protocol.
fn opening(flow: &Flow, sport: u16) -> Option<Vec<u8>> {
    let (from, to) = (flow.from.address(), flow.to.address());
    if from.is_ipv4() != to.is_ipv4() {
        return None;
    }
    let ip = Ip::new(from, to);
    let packet = match flow.protocol {
        proto::TCP => ip.tcp(sport, flow.port, tcp::SYN, b""),
        proto::UDP => ip.udp(sport, flow.port, b"?"),
        proto::SCTP => ip.sctp_init(sport, flow.port),
        proto::ICMP if from.is_ipv4() => ip.echo(sport),
        proto::ICMPV6 if from.is_ipv6() => ip.echo(sport),
        // Hop-by-hop options, and nothing behind them.
        0 if from.is_ipv6() => return None,
        other => ip.payload(other, b"payload"),
    };
    Some(Ether::default().frame(&packet))
}

/// What the program must say: reason, ruleset, class.
fn expected(lab: &Lab<'_>, oracle: &Oracle<'_>, flow: &Flow, from: Place, to: Place) -> (u8, u32, u32) {
    if from == Place::OwnNode {
        return (OWN_NODE, 0, 0);
    }
    if from == to {
        return (ITSELF, 0, 0);
    }
    let verdict = oracle.evaluate(flow);
    let tables = lab.tables();
    let rules = |place| match place {
        Place::Pod(index) => tables
            .pods
            .iter()
            .find(|(pod, _)| lab.index(pod) == index)
            .map(|(_, rules)| *rules),
        _ => None,
    };
    let (sender, receiver) = (rules(from).unwrap_or_default(), rules(to).unwrap_or_default());
    let mut decided = (NOT_ISOLATED, 0, CLASS_OTHER);
    if sender.egress != 0 {
        let class = tables.class(flow.to.address());
        if !verdict.egress.allowed {
            return (DENIED_EGRESS, sender.egress, class);
        }
        decided = (ALLOWED, sender.egress, class);
    }
    if receiver.ingress != 0 {
        let class = tables.class(flow.from.address());
        let reason = if verdict.ingress.allowed {
            ALLOWED
        } else {
            DENIED_INGRESS
        };
        decided = (reason, receiver.ingress, class);
    }
    decided
}

/// Runs every flow at its way out; how many could be run.
fn check(lab: &mut Lab<'_>, snapshot: &Snapshot, flows: &[Flow]) -> Result<usize> {
    lab.apply(snapshot)?;
    lab.forget_flows()?;
    let oracle = Oracle::new(snapshot);
    let mut ran = 0;
    let mut without_ports = BTreeSet::new();
    for (at, flow) in flows.iter().enumerate() {
        let (Some(from), Some(to)) = (place(lab, snapshot, &flow.from), place(lab, snapshot, &flow.to))
        else {
            continue;
        };
        let sender = match from {
            Place::Pod(index) => index,
            _ => OUTSIDE,
        };
        let receiver = match to {
            Place::Pod(index) => index,
            Place::Outside => OUTSIDE,
            // Delivered to the node itself: there is no way out.
            Place::OwnNode => continue,
        };
        if sender == OUTSIDE && receiver == OUTSIDE {
            continue;
        }
        let Some(frame) = opening(flow, 10_000 + u16::try_from(at % 50_000)?) else {
            continue;
        };
        // Without ports the second packet between two ends belongs to the conversation of the first.
        let ends = (flow.from.address(), flow.to.address(), flow.protocol);
        if !proto::has_ports(flow.protocol) && !without_ports.insert(ends) {
            continue;
        }
        let came = if from == Place::OwnNode {
            0
        } else {
            lab.device(sender)
        };
        let run = lab.leave(receiver, &frame, mark::sender(sender), came)?;
        let event = run.event.context("no event")?;
        let (reason, ruleset, class) = expected(lab, &oracle, flow, from, to);
        anyhow::ensure!(
            (event.reason, event.ruleset, event.class) == (reason, ruleset, class)
                && run.dropped == netpol_common::reason::is_drop(reason),
            "{}: the program says {} (ruleset {:#x}, class {}), expected {} (ruleset {ruleset:#x}, class {class})",
            Readable(flow),
            name(event.reason),
            event.ruleset,
            event.class,
            name(reason),
        );
        ran += 1;
    }
    Ok(ran)
}

/// As many cases as `PROPTEST_CASES` asks for, `cases` where it does not say; `flows_each` flows in each.
fn compare<S: Strategy<Value = Snapshot>>(
    cases: u32,
    flows_each: usize,
    snapshots: impl FnOnce() -> S + Send,
) -> Result<()> {
    let asked = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|text| text.parse().ok());
    let config = Config {
        // Each case is many flows; a nightly run counts flows.
        cases: asked.map_or(cases, |asked: u32| asked / flows_each as u32),
        failure_persistence: None,
        max_shrink_iters: 2_000,
        ..Config::default()
    };
    let ran = within(|lab| {
        let (lab, ran) = (RefCell::new(lab), Cell::new(0));
        let strategy = (snapshots().prop_map(Readable), proptest::num::u64::ANY);
        TestRunner::new(config)
            .run(&strategy, |(snapshot, seed)| {
                let flows = flows(&snapshot.0, flows_each, seed);
                let done = check(&mut lab.borrow_mut(), &snapshot.0, &flows);
                ran.set(ran.get() + done.map_err(|error| TestCaseError::fail(format!("{error:#}")))?);
                Ok(())
            })
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok(ran.get())
    })?;
    anyhow::ensure!(ran > 0, "no flow had an end on the node");
    println!("{ran} flows");
    Ok(())
}

#[test]
fn on_random_snapshots_the_programs_say_what_the_oracle_says() -> Result<()> {
    compare(150, 120, || snapshots(Shape::default()))
}

#[test]
fn with_hundreds_of_rules_in_one_ruleset_the_programs_say_what_the_oracle_says() -> Result<()> {
    compare(4, 400, || large_rulesets(300))
}
