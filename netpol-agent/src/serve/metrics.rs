//! The metrics, made at scrape time from plain numbers, so that none can drift. `docs/metrics.md` lists them; a test
//! compares the two.

use std::sync::atomic::AtomicU64;

use anyhow::{Context as _, Result};
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Metric, Registry, Unit},
};

use super::{Shared, process};
use crate::{
    agent::latency::Latency,
    datapath::{
        attach::Hook,
        report::{Live, Report},
    },
    source::kubernetes::health::{Counts, Status, Watch},
};

/// Everything that metrics are made of.
pub(super) struct Numbers<'a> {
    pub(super) node: &'a str,
    pub(super) latency: &'a Latency,
    pub(super) report: Option<&'a Report>,
    pub(super) source: Option<&'a Status>,
    pub(super) live: Option<&'a Live>,
    pub(super) ready: bool,
    pub(super) errors: Vec<(&'static str, u64)>,
    pub(super) process: process::Usage,
}

/// The text of one scrape.
pub(super) fn text(shared: &Shared) -> Result<String> {
    let live = Live::read(&shared.pins).context("reading the pinned maps")?;
    let report = shared.last_report();
    let source = shared.source();
    let numbers = Numbers {
        node: &shared.node,
        latency: &shared.latency,
        report: report.as_deref(),
        source: source.as_ref(),
        live: live.as_ref(),
        ready: shared.is_ready().0,
        errors: shared.errors(),
        process: process::Usage::now(),
    };
    numbers.encode()
}

type Labels = Vec<(&'static str, String)>;

/// A registry that is filled once.
#[derive(Default)]
struct Families(Registry);

impl Families {
    fn put(&mut self, name: &'static str, help: &'static str, unit: Option<Unit>, metric: impl Metric) {
        match unit {
            Some(unit) => self.0.register_with_unit(name, help, unit, metric),
            None => self.0.register(name, help, metric),
        }
    }

    fn gauges(
        &mut self,
        name: &'static str,
        help: &'static str,
        values: impl IntoIterator<Item = (Labels, f64)>,
    ) {
        let family = Family::<Labels, Gauge<f64, AtomicU64>>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).set(value);
        }
        self.put(name, help, None, family);
    }

    fn gauge(&mut self, name: &'static str, help: &'static str, value: f64) {
        self.gauges(name, help, [(Vec::new(), value)]);
    }

    fn counters(
        &mut self,
        name: &'static str,
        help: &'static str,
        unit: Option<Unit>,
        values: impl IntoIterator<Item = (Labels, u64)>,
    ) {
        let family = Family::<Labels, Counter>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).inc_by(value);
        }
        self.put(name, help, unit, family);
    }
}

fn flag(on: bool) -> f64 {
    f64::from(u8::from(on))
}

impl Numbers<'_> {
    pub(super) fn encode(&self) -> Result<String> {
        let mut families = Families(Registry::with_prefix("netpol"));
        self.agent(&mut families);
        self.policy(&mut families);
        self.kernel(&mut families);
        self.api(&mut families);
        let mut text = String::new();
        encode(&mut text, &families.0).context("writing the metrics")?;
        // The names of the process' own figures are everybody's.
        let mut process = Families::default();
        self.process(&mut process);
        let mut rest = String::new();
        encode(&mut rest, &process.0).context("writing the metrics")?;
        let end = text.len() - "# EOF\n".len();
        text.replace_range(end.., &rest);
        Ok(text)
    }

    fn agent(&self, families: &mut Families) {
        let version = vec![
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("node", self.node.to_owned()),
        ];
        families.gauges("build_info", "Version of the agent; always 1", [(version, 1.0)]);
        families.gauge(
            "ready",
            "1 once policy is in force and nothing fails",
            flag(self.ready),
        );
        let errors = self
            .errors
            .iter()
            .map(|(kind, count)| (vec![("kind", (*kind).to_owned())], *count));
        families.counters(
            "errors",
            "Failures of the agent's own steps, by kind",
            None,
            errors,
        );
        let help = "From a change at the source to the kernel, where it concerns this node";
        families.put(
            "event_enforced",
            help,
            Some(Unit::Seconds),
            self.latency.events.clone(),
        );
        let help = "From the announcement of a pod's veth to programs on it: nothing that policy might deny passes from then on";
        families.put(
            "pod_guarded",
            help,
            Some(Unit::Seconds),
            self.latency.guarded.clone(),
        );
        let help = "From the announcement of a pod's veth to its pod's rules in force on it";
        families.put(
            "pod_enforced",
            help,
            Some(Unit::Seconds),
            self.latency.enforced.clone(),
        );
    }

    fn policy(&self, families: &mut Families) {
        let Some(report) = self.report else { return };
        families.gauge(
            "policies",
            "NetworkPolicies of the cluster",
            report.policies.len() as f64,
        );
        families.gauge("rulesets", "Rulesets in the kernel", report.rulesets.len() as f64);
        families.gauge(
            "classes",
            "Classes of addresses that the node's policies tell apart",
            report.classes as f64,
        );
        let whole = |name: &String| {
            let device = report.devices.iter().find(|device| device.name == *name);
            device.is_some_and(|device| device.programs.len() == 2)
        };
        let with_device = report.pods.iter().filter(|pod| !pod.devices.is_empty()).count();
        let enforced = report
            .pods
            .iter()
            .filter(|pod| !pod.devices.is_empty() && pod.devices.iter().all(whole))
            .count();
        let state = |state: &str, count: usize| (vec![("state", state.to_owned())], count as f64);
        let unknown = report
            .devices
            .iter()
            .filter(|device| device.role == "pod" && device.detail == "not known yet");
        families.gauges(
            "pods",
            "Pods of this node by state",
            [
                state("enforced", enforced),
                state("unattached", with_device - enforced),
                state("without-device", report.pods.len() - with_device),
                state("unknown", unknown.count()),
            ],
        );
        let isolated =
            |direction: &str, count: usize| (vec![("direction", direction.to_owned())], count as f64);
        families.gauges(
            "isolated_pods",
            "Pods of this node that a policy isolates",
            [
                isolated(
                    "ingress",
                    report.pods.iter().filter(|pod| pod.ingress != 0).count(),
                ),
                isolated("egress", report.pods.iter().filter(|pod| pod.egress != 0).count()),
            ],
        );
        let attached = |role: &'static str, hook: Hook| {
            let on = report
                .devices
                .iter()
                .filter(|device| device.role == role && device.programs.contains(&hook));
            (
                vec![
                    ("interface", role.to_owned()),
                    ("program", hook.program().to_owned()),
                ],
                on.count() as f64,
            )
        };
        families.gauges(
            "programs_attached",
            "Programs on devices, by kind of device",
            [
                attached("pod", Hook::FromPod),
                attached("pod", Hook::ToPod),
                attached("outside", Hook::Arrive),
                attached("outside", Hook::Settle),
            ],
        );
        let problems = |severity: &str, errors: bool| {
            let count = report
                .problems
                .iter()
                .filter(|problem| problem.is_error() == errors)
                .count();
            (vec![("severity", severity.to_owned())], count as f64)
        };
        families.gauges(
            "problems",
            "What is wrong with objects of the source: `status` lists it",
            [problems("error", true), problems("warning", false)],
        );
        families.gauge(
            "failures",
            "Steps that fail at this moment: `status` lists them",
            report.errors.len() as f64,
        );
    }

    fn kernel(&self, families: &mut Families) {
        let Some(live) = self.live else { return };
        let map = |name: &str| vec![("map", name.to_owned())];
        let entries = live
            .maps
            .iter()
            .filter_map(|found| Some((map(&found.name), found.entries? as f64)));
        families.gauges("map_entries", "Entries of a map", entries);
        let capacity = live
            .maps
            .iter()
            .map(|found| (map(&found.name), f64::from(found.capacity)));
        families.gauges(
            "map_capacity_entries",
            "Entries that a map has room for",
            capacity,
        );
        let verdict = |verdict: &crate::datapath::report::VerdictReport| {
            let direction = match verdict.hook {
                Hook::ToPod | Hook::Arrive => "ingress",
                Hook::FromPod | Hook::Settle => "egress",
            };
            let outcome = if verdict.dropped { "dropped" } else { "passed" };
            vec![
                ("verdict", outcome.to_owned()),
                ("direction", direction.to_owned()),
                ("reason", verdict.reason.clone()),
                ("program", verdict.hook.program().to_owned()),
            ]
        };
        let help = "Packets by verdict: passed ones at to_pod and settle, dropped ones anywhere";
        let packets = live.verdicts.iter().map(|found| (verdict(found), found.packets));
        families.counters("verdict_packets", help, None, packets);
        let help = "Bytes, from the link layer on, by verdict";
        let bytes = live.verdicts.iter().map(|found| (verdict(found), found.bytes));
        families.counters("verdict", help, Some(Unit::Bytes), bytes);
        families.counters(
            "pod_dropped_packets",
            "Packets that were dropped for one pod",
            None,
            self.pod_drops(live),
        );
        families.counters(
            "epoch_changes",
            "How often policy has changed so that flows were judged again",
            None,
            [(Vec::new(), live.epoch)],
        );
    }

    /// By the pod whose rules decided; what concerns no pod of ours is among the verdicts.
    fn pod_drops(&self, live: &Live) -> Vec<(Labels, u64)> {
        let pods = self.report.map(|report| &*report.pods).unwrap_or_default();
        let label = |drop: &crate::datapath::report::DropReport| {
            let pod = pods.iter().find(|pod| pod.index == drop.pod && pod.index != 0)?;
            let (namespace, name) = pod.name.split_once('/')?;
            Some(vec![
                ("namespace", namespace.to_owned()),
                ("pod", name.to_owned()),
                ("reason", drop.reason.clone()),
                ("program", drop.hook.map_or("", Hook::program).to_owned()),
            ])
        };
        live.drops
            .iter()
            .filter_map(|drop| Some((label(drop)?, drop.packets)))
            .collect()
    }

    fn api(&self, families: &mut Families) {
        let Some(source) = self.source else { return };
        let watches = || source.watches.iter();
        let of = |plural: &&'static str| ("resource", (*plural).to_owned());
        let since_1970 = |time: std::time::SystemTime| {
            time.duration_since(std::time::UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs_f64()
        };
        families.gauges(
            "source_synced",
            "1 once a kind was listed",
            watches().map(|(plural, watch)| (vec![of(plural)], flag(watch.synced))),
        );
        families.gauge(
            "source_stale",
            "1 while the API server is not to be reached: what is in force stays",
            flag(source.stale_since().is_some()),
        );
        let last = source.last_success().map(|time| (Vec::new(), since_1970(time)));
        families.gauges(
            "source_last_success_timestamp_seconds",
            "When all watches were last in touch with the API server",
            last,
        );
        let by = |label: &'static str, counts: fn(&Watch) -> &Counts| {
            watches().flat_map(move |(plural, watch)| {
                counts(watch)
                    .iter()
                    .map(move |(value, count)| (vec![of(plural), (label, (*value).to_owned())], *count))
            })
        };
        families.counters(
            "source_events",
            "Objects that came from the API server",
            None,
            by("event", |watch| &watch.events),
        );
        families.counters(
            "source_lists",
            "Lists that came to their end",
            None,
            by("way", |watch| &watch.lists),
        );
        let bytes = watches().map(|(plural, watch)| (vec![of(plural)], watch.bytes));
        families.counters(
            "source_received",
            "What came from the API server",
            Some(Unit::Bytes),
            bytes,
        );
        let restarts = watches().map(|(plural, watch)| (vec![of(plural)], watch.restarts));
        families.counters(
            "watch_restarts",
            "Watches begun anew after a failure",
            None,
            restarts,
        );
        families.counters(
            "source_errors",
            "Failures of the API server's answers, by kind",
            None,
            by("kind", |watch| &watch.errors),
        );
    }

    fn process(&self, families: &mut Families) {
        let usage = &self.process;
        let cpu = Counter::<f64, AtomicU64>::default();
        cpu.inc_by(usage.cpu_seconds);
        families.put(
            "process_cpu",
            "User and system CPU time",
            Some(Unit::Seconds),
            cpu,
        );
        families.gauge(
            "process_resident_memory_bytes",
            "Resident memory",
            usage.resident_bytes as f64,
        );
        families.gauge(
            "process_start_time_seconds",
            "When the process started",
            usage.started_seconds,
        );
    }
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
