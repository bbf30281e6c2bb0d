//! From what is known to what the kernel holds, each part as far as it goes.

use std::collections::BTreeMap;

use netpol_policy::{
    compile::Dirty,
    plan::{self, Scope},
};

use super::{Agent, Noted, RETRY, now};
use crate::datapath::{self, LocalPod};

impl Agent {
    /// Brings the kernel to what the source and the devices say, each part as far as it goes.
    pub(super) fn reconcile(&mut self, closely: bool) {
        let failures = self.complete_pods().err().into_iter().collect();
        self.reconcile_after(closely, failures);
    }

    /// Gives pods the addresses that the CNI has given them and the API does not tell yet.
    pub(super) fn complete_pods(&mut self) -> datapath::Result<()> {
        let results = self.datapath.cni_results()?;
        let changed = self.assigned.update(&results, &self.known.pods);
        if !changed.is_empty() {
            self.compiler.apply_all(changed);
        }
        Ok(())
    }

    /// [`Self::reconcile`] after steps that failed with `failures`.
    pub(super) fn reconcile_after(&mut self, closely: bool, mut failures: Vec<datapath::Error>) {
        let pods = self.local_pods();
        failures.extend(self.datapath.set_pods(pods).err());
        failures.extend(self.datapath.look(closely).err());
        // Whose device is known by now, and whose rules are in place, does not wait for what other devices need.
        failures.extend(self.datapath.bind().err());
        // A new device gets its programs at once; until its pod and the pod's rules are known nothing passes.
        let (unattached, more) = self.datapath.attach_next();
        failures.extend(unattached);
        self.more_devices = more;
        self.rule_bare_pods();
        let rules = self.enforce();
        let devices = self.datapath.bind();
        if rules.is_ok() && devices.is_ok() {
            failures.extend(self.datapath.take_over());
        }
        failures.extend(rules.err());
        failures.extend(devices.err());
        failures.extend(self.datapath.sweep().err());
        self.finish(failures);
    }

    /// A pod that was created again under its name starts without rules, even if they are those of the one before.
    fn rule_bare_pods(&mut self) {
        let ruled = &self.datapath.actual().pods;
        let bare = self.compiler.tables().pods.keys();
        self.dirty
            .pods
            .extend(bare.filter(|pod| !ruled.contains_key(*pod)).cloned());
    }

    /// Plans and writes the tables; whether there was anything to plan.
    pub(super) fn enforce(&mut self) -> datapath::Result<bool> {
        self.dirty.merge(self.compiler.take_dirty());
        let changed = self.changed.take();
        if !self.unsure && self.dirty.is_empty() {
            return Ok(false);
        }
        let scope = if self.unsure {
            Scope::Everything
        } else {
            Scope::Dirty(&self.dirty)
        };
        let desired = self.compiler.tables();
        let plan = plan::plan(self.datapath.actual(), desired, scope, &mut self.ids);
        if !plan.is_empty() {
            let begun = std::time::Instant::now();
            match self.datapath.execute(&plan, desired) {
                Ok(()) => {}
                Err(datapath::Error::TooSmall(full)) => {
                    // Nothing was written. Say whose policies need the room.
                    let full = Box::new(self.compiler.blame(*full));
                    self.changed = changed;
                    return Err(datapath::Error::TooSmall(full));
                }
                Err(error) => {
                    self.unsure = true;
                    self.changed = changed;
                    return Err(error);
                }
            }
            tracing::info!(
                steps = plan.steps.len(),
                pods = desired.pods.len(),
                cells = desired.cells.len(),
                took = ?begun.elapsed(),
                "policy in force"
            );
        }
        self.unsure = false;
        self.dirty = Dirty::default();
        if let Some(came) = changed {
            self.latency.events.observe(came.elapsed().as_secs_f64());
        }
        Ok(true)
    }

    /// Notes failures, tells those that are new, writes the report.
    pub(super) fn finish(&mut self, failures: Vec<datapath::Error>) {
        let mut noted = BTreeMap::new();
        for failure in failures {
            let environment = failure.is_environment();
            self.shared.failed(failure.kind());
            let text = format!("{:#}", anyhow::Error::from(failure));
            let known = self.failures.get(&text).copied();
            if known.is_none() {
                tracing::error!("{text}");
            }
            let since = known.map_or_else(now, |known| known.since);
            noted.insert(text, Noted { since, environment });
        }
        if noted.is_empty() {
            self.retry = RETRY.0;
        } else {
            self.retry = (self.retry * 2).min(RETRY.1);
        }
        self.failures = noted;
        self.report_due = true;
        self.write_report();
    }

    pub(super) fn local_pods(&self) -> Vec<LocalPod> {
        let exempt = |namespace: &str, name: &str| {
            self.config
                .exempt
                .iter()
                .any(|pattern| match pattern.split_once('/') {
                    Some((its_namespace, its_name)) => its_namespace == namespace && its_name == name,
                    None => pattern == namespace,
                })
        };
        self.compiler
            .tables()
            .pods
            .keys()
            .filter_map(|name| self.known.pods.get(name))
            .map(|pod| LocalPod {
                exempt: exempt(&pod.name.namespace, &pod.name.name),
                addresses: self.assigned.addresses(pod),
                name: pod.name.clone(),
                uid: pod.uid.clone(),
            })
            .collect()
    }
}
