//! What is scraped, and what the page about it says.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, UNIX_EPOCH},
};

use super::*;
use crate::{
    datapath::report::{DropReport, MapReport, VerdictReport},
    source::kubernetes::health::Watch,
};

fn live() -> Live {
    let verdict = |hook, reason: &str, dropped| VerdictReport {
        hook,
        reason: reason.to_owned(),
        dropped,
        packets: 3,
        bytes: 300,
    };
    Live {
        epoch: 4,
        maps: vec![MapReport {
            name: "cells".to_owned(),
            entries: Some(1),
            capacity: 8,
        }],
        drops: vec![DropReport {
            pod: 1,
            hook: Some(Hook::ToPod),
            reason: "denied-ingress".to_owned(),
            packets: 2,
            bytes: 200,
        }],
        verdicts: vec![
            verdict(Hook::Settle, "allowed", false),
            verdict(Hook::ToPod, "denied-ingress", true),
        ],
        ..Live::default()
    }
}

fn source() -> Status {
    let watch = Watch {
        synced: true,
        failing_since: Some(UNIX_EPOCH + Duration::from_secs(7)),
        why: Some("no answer".to_owned()),
        heard: Some(UNIX_EPOCH + Duration::from_secs(7)),
        restarts: 2,
        events: BTreeMap::from([("apply", 5)]),
        lists: BTreeMap::from([("streamed", 1)]),
        errors: BTreeMap::from([("expired", 1)]),
        bytes: 900,
    };
    Status {
        watches: BTreeMap::from([("pods", watch)]),
    }
}

fn scraped() -> String {
    let latency = Latency::default();
    latency.guarded.observe(0.004);
    Numbers {
        node: "n1",
        latency: &latency,
        report: Some(&Report::example()),
        source: Some(&source()),
        live: Some(&live()),
        ready: true,
        errors: vec![("capacity", 1)],
        process: process::Usage::default(),
    }
    .encode()
    .unwrap()
}

/// Name, type and labels of every family.
type Shape = BTreeSet<(String, String, BTreeSet<String>)>;

fn shape(text: &str) -> Shape {
    let mut kinds = BTreeMap::new();
    let mut labels: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let total = if kind == "counter" { "_total" } else { "" };
            kinds.insert(format!("{name}{total}"), kind.to_owned());
        } else if let Some((name, rest)) = line.split_once('{') {
            let keys = rest
                .split("\",")
                .filter_map(|part| Some(part.split_once("=\"")?.0.trim_start_matches(',').to_owned()));
            labels.entry(name.to_owned()).or_default().extend(keys);
        }
    }
    let of = |(name, kind): (String, String)| {
        let labels = labels.get(&name).cloned().unwrap_or_default();
        (name, kind, labels)
    };
    kinds.into_iter().map(of).collect()
}

fn documented() -> Shape {
    let page = include_str!("../../../docs/metrics.md");
    page.lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.strip_prefix("| `")?.split('|').map(str::trim).collect();
            let [name, kind @ ("gauge" | "counter" | "histogram"), labels, ..] = cells[..] else {
                return None;
            };
            let labels = labels
                .split(',')
                .map(|label| label.trim().trim_matches('`').to_owned());
            Some((
                name.trim_end_matches('`').to_owned(),
                kind.to_owned(),
                labels.filter(|label| !label.is_empty()).collect(),
            ))
        })
        .collect()
}

#[test]
fn the_page_lists_what_is_scraped() {
    let (scraped, documented) = (shape(&scraped()), documented());
    let only = |a: &Shape, b: &Shape| a.difference(b).cloned().collect::<Vec<_>>();
    assert_eq!(only(&scraped, &documented), [], "not in docs/metrics.md");
    assert_eq!(only(&documented, &scraped), [], "only in docs/metrics.md");
}

#[test]
fn values_are_what_they_were_made_of() {
    let text = scraped();
    for line in [
        r#"netpol_verdict_packets_total{verdict="dropped",direction="ingress",reason="denied-ingress",program="to_pod"} 3"#,
        r#"netpol_verdict_bytes_total{verdict="passed",direction="egress",reason="allowed",program="settle"} 300"#,
        r#"netpol_pod_dropped_packets_total{namespace="prod",pod="db",reason="denied-ingress",program="to_pod"} 2"#,
        r#"netpol_pods{state="enforced"} 1.0"#,
        r#"netpol_isolated_pods{direction="ingress"} 1.0"#,
        r#"netpol_programs_attached{interface="pod",program="from_pod"} 1.0"#,
        r#"netpol_map_capacity_entries{map="cells"} 8.0"#,
        r#"netpol_source_lists_total{resource="pods",way="streamed"} 1"#,
        r#"netpol_watch_restarts_total{resource="pods"} 2"#,
        "netpol_source_stale 1.0",
        "netpol_source_last_success_timestamp_seconds 7.0",
        "netpol_pod_guarded_seconds_count 1",
    ] {
        assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
    assert_eq!(text.matches("# EOF").count(), 1);
}
