//! What a run found: two matrices side by side, differences explained, JSON.

use std::{collections::BTreeMap, fmt::Write as _};

use netpol_policy::oracle::{Oracle, Side};
use serde_json::{Value as Json, json};

use super::{
    Run, Scene,
    checks::{Answer, Check, Questions, Site, Via},
    matrix::Matrix,
};
use crate::net::{Outcome, Transport};

/// Differences that are explained in text, at most.
const MAX_SHOWN: usize = 20;

fn protocol(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "TCP",
        Transport::Udp => "UDP",
        Transport::Sctp => "SCTP",
    }
}

/// `service/NAMESPACE/NAME:PORT`, with the node whose port it is.
fn via_name(scene: &Scene, via: Via) -> String {
    let service = &scene.services[via.service];
    match (via.node, service.node_port) {
        (Some(node), Some(port)) => format!(
            "service/{} at node/{}:{port}",
            service.service, scene.layout.nodes[node].name
        ),
        _ => format!("service/{}:{}", service.service, service.port),
    }
}

fn open(answer: &Answer) -> bool {
    answer.outcome.reached()
}

/// What `-o json` prints.
#[must_use]
pub fn json(scene: &Scene, questions: &Questions<'_>, run: &Run) -> Json {
    let word = |open: bool| if open { "allow" } else { "deny" };
    let probes = run.checks.iter().zip(&run.answers).map(|(check, answer)| {
        let detail = match &answer.outcome {
            Outcome::Answered(name) => format!("answered by {name}"),
            Outcome::Refused => "refused".to_owned(),
            Outcome::Silent => "no answer".to_owned(),
            Outcome::Failed(error) => error.clone(),
        };
        json!({
            "from": questions.name(check.from),
            "to": questions.name(check.to),
            "source": check.probe.from,
            "address": check.probe.to.ip(),
            "family": if check.probe.to.is_ipv4() { 4 } else { 6 },
            "protocol": protocol(check.probe.transport),
            "port": check.flows.last().map(|flow| flow.port),
            "declared": check.declared,
            "via": check.via.map(|via| via_name(scene, via)),
            "got": word(open(answer)),
            "detail": detail,
            "expected": word(answer.expected),
            "same": answer.same,
            "tries": answer.tries,
        })
    });
    let ports = |site| {
        let list = questions.listens(site).into_iter();
        list.map(|(protocol, port, declared)| json!({"protocol": protocol.name(), "port": port, "declared": declared})).collect::<Vec<_>>()
    };
    let pods = scene.layout.pods.iter().enumerate().map(|(at, pod)| {
        json!({"name": pod.name.to_string(), "node": scene.layout.nodes[pod.node].name, "hostNetwork": pod.host_network,
            "addresses": pod.addresses, "ports": ports(Site::Pod(at))})
    });
    let services = scene.services.iter().map(|service| {
        let ends = service.backends.iter().map(|end| format!("{}", std::net::SocketAddr::new(end.address, end.port)));
        json!({"name": service.service.to_string(), "protocol": service.protocol.name(), "port": service.port,
            "addresses": service.addresses, "nodePort": service.node_port, "endpoints": ends.collect::<Vec<_>>()})
    });
    let nodes = scene.layout.nodes.iter().map(|node| json!({"name": node.name, "addresses": node.addresses, "podCIDRs": node.pods.map(|net| net.to_string())}));
    json!({
        "nodes": nodes.collect::<Vec<_>>(),
        "pods": pods.collect::<Vec<_>>(),
        "services": services.collect::<Vec<_>>(),
        "outside": scene.layout.outside,
        "undeclaredPort": questions.undeclared,
        "problems": scene.problems,
        "policies": run.snapshot.policies.keys().map(ToString::to_string).collect::<Vec<_>>(),
        "probes": probes.collect::<Vec<_>>(),
        "summary": {
            "probes": run.checks.len(),
            "allowed": run.answers.iter().filter(|answer| open(answer)).count(),
            "denied": run.answers.iter().filter(|answer| !open(answer)).count(),
            "differences": run.differences().count(),
            "seconds": run.time.as_secs_f64(),
        },
    })
}

/// The two matrices, with their legends.
#[must_use]
pub fn matrices(scene: &Scene, questions: &Questions<'_>, run: &Run, width: usize, colour: bool) -> String {
    Matrix::new(scene, questions, run).draw(width, colour)
}

/// One line: how many probes, and whether all went as they should.
#[must_use]
pub fn summary(run: &Run) -> String {
    let (all, through) = (
        run.checks.len(),
        run.answers.iter().filter(|answer| open(answer)).count(),
    );
    let differ = run.differences().count();
    let verdict = match differ {
        0 => "all as the oracle says".to_owned(),
        1 => "1 differs from the oracle".to_owned(),
        many => format!("{many} differ from the oracle"),
    };
    format!(
        "{all} probes in {:.1} s: {through} got through, {} did not; {verdict}",
        run.time.as_secs_f64(),
        all - through
    )
}

/// Each difference in a sentence or two, those of one pair together.
#[must_use]
pub fn differences(scene: &Scene, questions: &Questions<'_>, run: &Run) -> String {
    let oracle = Oracle::new(&run.snapshot);
    let mut pairs: BTreeMap<(Site, Site), Vec<(&Check, &Answer)>> = BTreeMap::new();
    for (check, answer) in run.differences() {
        pairs
            .entry((check.from, check.to))
            .or_default()
            .push((check, answer));
    }
    let mut text = String::new();
    for differences in pairs.values().take(MAX_SHOWN) {
        let (check, answer) = differences[0];
        let to = check.probe.to;
        let via = check
            .via
            .map(|via| format!(" by {}", via_name(scene, via)))
            .unwrap_or_default();
        let _ = writeln!(
            text,
            "DIFFERS  {} -> {}{via}, {} {} ({to}): {}, but the oracle {}",
            questions.name(check.from),
            questions.name(check.to),
            protocol(check.probe.transport),
            check.flows.last().map(|flow| flow.port).unwrap_or_default(),
            happened(answer, &questions.name(questions.host(check.to))),
            if answer.expected { "allows it" } else { "denies it" },
        );
        for flow in &check.flows {
            let verdict = oracle.evaluate(flow);
            let _ = writeln!(text, "    {}", side("the sender", "egress", &verdict.egress));
            let _ = writeln!(text, "    {}", side("the receiver", "ingress", &verdict.ingress));
        }
        if differences.len() > 1 {
            let rest: Vec<String> = differences[1..]
                .iter()
                .map(|(check, _)| format!("{} {}", protocol(check.probe.transport), check.probe.to))
                .collect();
            let _ = writeln!(text, "    the same between these two: {}", rest.join(", "));
        }
    }
    if pairs.len() > MAX_SHOWN {
        let _ = writeln!(
            text,
            "... and between {} more pairs (-o json shows all)",
            pairs.len() - MAX_SHOWN
        );
    }
    text
}

fn happened(answer: &Answer, right: &str) -> String {
    match &answer.outcome {
        Outcome::Answered(name) if name == right => "it got through".to_owned(),
        Outcome::Answered(name) => format!("{name} answered"),
        Outcome::Refused => "it got through and was refused".to_owned(),
        Outcome::Silent => "nothing came back".to_owned(),
        Outcome::Failed(error) => format!("it failed ({error})"),
    }
}

fn side(who: &str, direction: &str, side: &Side<'_>) -> String {
    let names = |list: &[&netpol_policy::model::ObjectName]| {
        list.iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ")
    };
    if !side.isolated {
        return format!("{who} is not isolated for {direction}");
    }
    let by = names(&side.isolating);
    if let Some(exempt) = side.exempt {
        return format!("{who} is isolated for {direction} by {by}, but this is exempt ({exempt:?})");
    }
    let rules: Vec<String> = side
        .allowing
        .iter()
        .map(|rule| format!("{} rule {}", rule.policy, rule.rule))
        .collect();
    if rules.is_empty() {
        format!("{who} is isolated for {direction} by {by}; no rule allows this")
    } else {
        format!(
            "{who} is isolated for {direction} by {by}; allowed by {}",
            rules.join(", ")
        )
    }
}
