//! The compiler and the plan at 100 000 pods and 10 000 policies, and the rules that are hardest on them.

use std::time::{Duration, Instant};

use netpol_policy::{
    build::{block, matching, name, port, rule},
    compile::Compiler,
    model::{Event, Peers, Policy, PortSpec, Ports, Protocol, Rule, Selector},
    workload::{Cluster, Full, NODE, measure as measure_cluster},
};

use crate::row::{Row, spread};

const FULL: f64 = 2_000.0;
const POD: f64 = 1.0;
const POLICY: f64 = 20.0;

/// From event to steps, in milliseconds.
pub(crate) fn measure(quick: bool) -> Vec<Row> {
    let rounds = if quick { 5 } else { 25 };
    let cluster = Cluster::LARGE;
    let (full, changes) = measure_cluster(&cluster, rounds);
    let mut rows = of_full(&full);
    rows.extend(changes.iter().map(|change| {
        let total = change.compile + change.plan;
        let goal = match change.what {
            what if what.contains("policy") => Some(POLICY),
            what if what.contains("namespace") => None,
            _ => Some(POD),
        };
        row(change.what, &[total], goal)
    }));
    rows.extend(hard(&cluster, rounds.min(5)));
    rows
}

fn of_full(full: &Full) -> Vec<Row> {
    let mut rows = vec![
        row("everything, compiled", &[full.compile], Some(FULL)),
        row("everything, planned", &[full.plan], None),
    ];
    rows.extend(full.resident.map(|bytes| {
        let megabytes = bytes as f64 / 1e6;
        Row {
            unit: "MB",
            min: megabytes,
            median: megabytes,
            ..row("what the compiler keeps", &[Duration::ZERO], None)
        }
    }));
    rows
}

fn row(what: &str, times: &[Duration], goal: Option<f64>) -> Row {
    let (min, median) = spread(times.iter().map(|time| time.as_secs_f64() * 1e3).collect());
    Row {
        part: "compile",
        what: what.to_owned(),
        at: "100000 pods, 10000 policies".to_owned(),
        unit: "ms",
        min,
        median,
        goal,
    }
}

/// Policies that a person could write to be mean, new and gone again.
fn hard(cluster: &Cluster, rounds: usize) -> Vec<Row> {
    let mut compiler = Compiler::new(NODE.into(), 1);
    compiler.apply_all(cluster.events());
    let mut rows = Vec::new();
    let policies = [
        ("policy of 2000 overlapping ipBlocks", overlapping(1)),
        (
            "policy of 2000 overlapping ipBlocks with ports of their own",
            overlapping(2000),
        ),
        ("policy of 300 ports", many_ports()),
    ];
    for (what, policy) in policies {
        let [mut new, mut gone] = [Vec::new(), Vec::new()];
        for _ in 0..rounds {
            let start = Instant::now();
            compiler.apply(Event::Policy(policy.clone()));
            new.push(start.elapsed());
            let start = Instant::now();
            compiler.apply(Event::PolicyGone(policy.name.clone()));
            gone.push(start.elapsed());
        }
        rows.push(row(&format!("{what} new"), &new, Some(POLICY)));
        rows.push(row(&format!("{what} gone"), &gone, Some(POLICY)));
    }
    rows
}

fn of_local_pods(rules: Vec<Rule>) -> Policy {
    Policy {
        name: name("space-0/hard"),
        selector: Selector::default(),
        ingress: None,
        egress: Some(rules),
    }
}

/// Each block holds the next, or overlaps its hole; one rule each, with one of `ports` ports.
fn overlapping(ports: u16) -> Policy {
    let rules = (0..2000_u32).map(|at| {
        let len = 8 + at % 17;
        let address = std::net::Ipv4Addr::from((100 << 24) + at / 17 * 0x0001_0300);
        let net = ipnet::Ipv4Net::new_assert(address, len as u8).trunc();
        let hole = ipnet::Ipv4Net::new_assert(net.network(), len as u8 + 4);
        let tcp = port(
            Protocol::Tcp,
            PortSpec::Range(at as u16 % ports + 1, at as u16 % ports + 1),
        );
        rule(
            Peers::Of(vec![block(&net.to_string(), &[&hole.to_string()])]),
            Ports::Of(vec![tcp]),
        )
    });
    of_local_pods(rules.collect())
}

fn many_ports() -> Policy {
    let ports = (0..300).map(|at| port(Protocol::Tcp, PortSpec::Range(at * 7 + 1, at * 7 + 1)));
    let everyone = netpol_policy::build::pods(matching(""));
    of_local_pods(vec![rule(Peers::Of(vec![everyone]), Ports::Of(ports.collect()))])
}
