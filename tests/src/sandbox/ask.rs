//! Listeners everywhere, and the answers to all questions.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Mutex,
    time::Duration,
};

use anyhow::Result;
use netpol_policy::{model::Snapshot, oracle::Oracle};

use super::{
    build::Network,
    by_service::another_port,
    checks::{Answer, Check, Questions, Site, transport},
    layout::Layout,
    services::Backend,
};
use crate::net::{Namespace, Outcome, Probe, Responder, Transport, patience, probe_all};

/// How long the first answer may take: most probes that are never answered cost this.
const PATIENCE: Duration = Duration::from_millis(700);
/// How long, when a probe that should have been answered is tried again.
const MORE_PATIENCE: Duration = Duration::from_secs(2);
/// Namespaces that probe at one time, 256 probes each: within the usual limit of open files.
const AT_ONCE: usize = 16;

/// Listeners of every site, until dropped.
///
/// # Errors
/// A port can not be listened on.
pub(super) fn listen(network: &Network, questions: &Questions<'_>) -> Result<Vec<Responder>> {
    let outside: Vec<IpAddr> = questions.layout.outside.clone();
    let mut responders = Vec::new();
    // Several pods of a node's network may give the same port: one process has it.
    let mut endpoints: BTreeMap<Site, BTreeSet<(Transport, SocketAddr)>> = BTreeMap::new();
    for site in questions.sites() {
        let addresses: Vec<IpAddr> = match site {
            Site::Outside(at) => vec![outside[at]],
            _ => [true, false]
                .into_iter()
                .filter_map(|v4| questions.address(site, v4))
                .collect(),
        };
        let ports = questions.listens(site);
        let own = addresses.iter().flat_map(|address| {
            ports
                .iter()
                .map(move |(protocol, port, _)| (transport(*protocol), SocketAddr::new(*address, *port)))
        });
        endpoints.entry(questions.host(site)).or_default().extend(own);
        // A Service may lead to a port that no container declares.
        let behind = questions.services.iter().flat_map(|service| {
            let here = |backend: &&Backend| {
                addresses.contains(&backend.address) && questions.behind(backend) == site
            };
            let speaks = transport(service.protocol);
            let backends = service.backends.iter().filter(here);
            backends.map(move |backend| (speaks, SocketAddr::new(backend.address, backend.port)))
        });
        endpoints.entry(questions.host(site)).or_default().extend(behind);
    }
    for (host, endpoints) in endpoints {
        let namespace = namespace(network, questions.layout, host);
        responders.push(Responder::start(namespace, &questions.name(host), endpoints)?);
    }
    Ok(responders)
}

fn namespace<'n>(network: &'n Network, layout: &Layout, site: Site) -> &'n Namespace {
    match site {
        Site::Pod(at) => network.pods[at]
            .as_ref()
            .unwrap_or(&network.nodes[layout.pods[at].node]),
        Site::Node(at) => &network.nodes[at],
        Site::Outside(_) => &network.outside,
    }
}

/// Asks everything. What should be answered and is not is asked up to three times (a busy machine is slow); what gets
/// through and should not is never excused.
///
/// # Errors
/// `stop` says so.
pub(super) fn ask(
    network: &Network,
    questions: &Questions<'_>,
    checks: &[Check],
    snapshot: &Snapshot,
    stop: &(dyn Fn() -> Result<()> + Sync),
) -> Result<Vec<Answer>> {
    let oracle = Oracle::new(snapshot);
    let expected: Vec<bool> = checks
        .iter()
        .map(|check| check.flows.iter().all(|flow| oracle.evaluate(flow).allowed()))
        .collect();
    let mut outcomes: Vec<Outcome> = vec![Outcome::Silent; checks.len()];
    let mut tries = vec![0; checks.len()];
    let mut open: Vec<usize> = (0..checks.len()).collect();
    let limits = [PATIENCE, patience(MORE_PATIENCE), patience(MORE_PATIENCE)];
    for (again, limit) in (0..).zip(limits) {
        let probe = |at: usize| Probe {
            from_port: another_port(checks[at].probe.from_port, again),
            ..checks[at].probe
        };
        for (at, outcome) in round(network, questions, checks, &open, (&probe, limit), stop)? {
            outcomes[at] = outcome;
            tries[at] += 1;
        }
        open.retain(|at| {
            let again = expected[*at] || matches!(outcomes[*at], Outcome::Failed(_));
            again && !same(questions, &checks[*at], expected[*at], &outcomes[*at])
        });
        if open.is_empty() {
            break;
        }
    }
    let answers = checks.iter().zip(expected).zip(outcomes).zip(tries);
    Ok(answers
        .map(|(((check, expected), outcome), tries)| Answer {
            same: same(questions, check, expected, &outcome),
            expected,
            outcome,
            tries,
        })
        .collect())
}

fn same(questions: &Questions<'_>, check: &Check, expected: bool, outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Answered(name) => expected && *name == questions.name(questions.host(check.to)),
        Outcome::Silent => !expected,
        // Somebody listens on everything that is asked, and a policy never answers.
        Outcome::Refused | Outcome::Failed(_) => false,
    }
}

/// Each namespace probes on a thread of its own.
fn round(
    network: &Network,
    questions: &Questions<'_>,
    checks: &[Check],
    open: &[usize],
    (probe, limit): (&(dyn Fn(usize) -> Probe + Sync), Duration),
    stop: &(dyn Fn() -> Result<()> + Sync),
) -> Result<Vec<(usize, Outcome)>> {
    let mut work: BTreeMap<&str, (&Namespace, Vec<usize>)> = BTreeMap::new();
    for at in open {
        let namespace = namespace(network, questions.layout, checks[*at].from);
        work.entry(namespace.name())
            .or_insert((namespace, Vec::new()))
            .1
            .push(*at);
    }
    let queue = Mutex::new(work.into_values());
    let results = Mutex::new(Vec::new());
    let next = || {
        queue
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .next()
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((namespace, indices)) = next().filter(|_| stop().is_ok()) {
                    let probes: Vec<Probe> = indices.iter().map(|at| probe(*at)).collect();
                    let outcomes = probe_all(namespace, &probes, limit);
                    let mut results = results.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    results.extend(indices.into_iter().zip(outcomes));
                }
            });
        }
    });
    stop()?;
    Ok(results
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner))
}
