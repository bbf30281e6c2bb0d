//! What the agent tells `status`.

use std::collections::BTreeMap;

use netpol_policy::model::Direction;

use tokio::time::Instant;

use super::{Agent, Noted, now, seconds};
use crate::datapath::{
    attach::Hook,
    devices::Role,
    object::report_file,
    report::{DeviceReport, Failure, PodReport, Report, RulesetReport},
};

impl Agent {
    /// Writes the report if it is due and says anything new, not more often than [`super::REPORTS`]: `updated` is when
    /// something changed.
    pub(super) fn write_report(&mut self) {
        let early = self
            .reported
            .as_ref()
            .is_some_and(|(_, then)| then.elapsed() < super::REPORTS);
        let due = self.report_due || self.unwritten.is_some() || self.is_stale_changed();
        if !due || early {
            return;
        }
        self.report_due = false;
        let mut report = self.report();
        if let Some((reported, then)) = &mut self.reported {
            report.updated = reported.updated;
            if report == *reported && self.unwritten.is_none() {
                // It was made: the next is not made earlier for having said nothing.
                *then = Instant::now();
                return;
            }
            report.updated = now();
        }
        let written = report.write(&report_file(&self.config.datapath.files));
        self.shared.report(report.clone());
        self.reported = Some((report, Instant::now()));
        match written {
            Ok(()) => self.unwritten = None,
            Err(error) => self.note_unwritten(error),
        }
    }

    /// Without a report `status` says that there is none; an old one would be taken for what is.
    fn note_unwritten(&mut self, error: crate::datapath::Error) {
        let _is_read_only = std::fs::remove_file(report_file(&self.config.datapath.files));
        self.shared.failed(error.kind());
        let text = format!("{:#}", anyhow::Error::from(error));
        if self.unwritten.as_ref() != Some(&text) {
            tracing::error!(
                "{text}: `netpol-agent status` has nothing to tell; policy is in force all the same"
            );
        }
        self.unwritten = Some(text);
    }

    /// What the reports say of the policies, whose number may be large, is written down when they change.
    pub(super) fn name_policies(&mut self) {
        let names = self.compiler.policies().map(|policy| policy.name.to_string());
        self.policies = names.collect::<Vec<_>>().into();
        self.report_due = true;
    }

    fn is_stale_changed(&self) -> bool {
        let said = self.reported.as_ref().map(|(report, _)| report.stale_since);
        said.is_some_and(|said| said != self.stale_since())
    }

    fn stale_since(&self) -> Option<u64> {
        self.source.health()?.stale_since().map(seconds)
    }

    fn report(&self) -> Report {
        let devices: Vec<DeviceReport> = self.datapath.devices().into_iter().map(device_report).collect();
        Report {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.config.node.clone(),
            pid: std::process::id(),
            started: self.started,
            updated: now(),
            source: self.source.name(),
            stale_since: self.stale_since(),
            kernel: self.datapath.kernel().clone(),
            attach: self.datapath.mode(),
            // Before the first plan is carried out there is nothing to be in force.
            in_force: self.failures.is_empty() && !self.unsure,
            errors: self.failure_reports(),
            problems: self.problems.clone(),
            pods: self.pod_reports(&devices),
            devices,
            classes: self.compiler.classes(),
            policies: self.policies.clone(),
            rulesets: self.ruleset_reports(),
        }
    }

    /// What fails, oldest first.
    fn failure_reports(&self) -> Vec<Failure> {
        let report = |(error, noted): (&String, &Noted)| Failure {
            since: noted.since,
            error: error.clone(),
        };
        let mut failures: Vec<_> = self.failures.iter().map(report).collect();
        failures.sort_by_key(|failure| failure.since);
        failures
    }

    /// The rulesets that the kernel holds.
    fn ruleset_reports(&self) -> Vec<RulesetReport> {
        let actual = self.datapath.actual();
        let mut counts: BTreeMap<u32, (usize, usize)> = BTreeMap::new();
        for key in actual.cells.keys() {
            counts.entry(key.ruleset).or_default().0 += 1;
        }
        for rules in actual.pods.values() {
            for id in [rules.ingress, rules.egress].into_iter().filter(|id| *id != 0) {
                counts.entry(id).or_default().1 += 1;
            }
        }
        let report = |(id, (cells, pods))| {
            let (direction, policies) = match self.compiler.ruleset_policies(id) {
                Some((Direction::Ingress, policies)) => ("ingress", policies),
                Some((Direction::Egress, policies)) => ("egress", policies),
                None => ("", Vec::new()),
            };
            RulesetReport {
                id,
                cells,
                pods,
                direction: direction.to_owned(),
                policies: policies.iter().map(ToString::to_string).collect(),
            }
        };
        counts.into_iter().map(report).collect()
    }

    fn pod_reports(&self, devices: &[DeviceReport]) -> Vec<PodReport> {
        let actual = self.datapath.actual();
        let mut of_pod: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for device in devices.iter().filter(|device| device.role == "pod") {
            of_pod
                .entry(&device.detail)
                .or_default()
                .push(device.name.clone());
        }
        self.local_pods()
            .into_iter()
            .map(|pod| {
                let rules = actual.pods.get(&pod.name).copied().unwrap_or_default();
                let name = pod.name.to_string();
                PodReport {
                    index: self.datapath.index(&pod.name).unwrap_or(0),
                    devices: of_pod.remove(&*name).unwrap_or_default(),
                    addresses: pod.addresses,
                    ingress: rules.ingress,
                    egress: rules.egress,
                    name,
                }
            })
            .collect()
    }
}

fn device_report((name, index, role, programs): (&str, u32, &Role, Vec<Hook>)) -> DeviceReport {
    let (role, detail) = match role {
        Role::Pod(Some(pod)) => ("pod", pod.to_string()),
        Role::Pod(None) => ("pod", "not known yet".to_owned()),
        Role::Outside => ("outside", String::new()),
        Role::None(why) => ("none", (*why).to_owned()),
    };
    DeviceReport {
        name: name.to_owned(),
        index,
        role: role.to_owned(),
        detail,
        programs,
    }
}
