//! The agent: one loop that brings the kernel to what the source says.
//!
//! Whatever wakes the loop (a manifest, a device, a CNI result, a timer), it looks at the state and diffs; it never
//! acts on the kind of wake-up. A failed step leaves the policy in force and is tried again.

mod assigned;
pub mod latency;
mod report;
pub mod source;
mod start;
pub mod taint;

use std::{
    collections::BTreeMap,
    future::pending,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use netpol_policy::{
    compile::{Compiler, Dirty},
    ids::IdSource,
    model::{Event, Pod, Snapshot, Str},
    plan::{self, Scope},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep_until},
};

pub use self::start::run;
use self::{
    assigned::Assigned,
    latency::{Births, Latency},
    source::{Source, bad_input},
};
use crate::{
    datapath::{
        self, Datapath, LocalPod, Options,
        netlink::Announcements,
        report::Report,
        wakeups::{Wakeups, Watch},
    },
    serve::Shared,
    source::{Change, Loaded, Problem, Severity, effect},
};

/// Also without a wake-up we look at devices so often.
const RESYNC: Duration = Duration::from_secs(30);
/// As above while a pod and a veth wait for each other: the CNI cache may be on a file system without events, and
/// addresses in a pod's namespace announce nothing to us.
const RESYNC_UNBOUND: Duration = Duration::from_millis(200);
/// ... but not for ever so often: a pod whose manifest is early, a veth that is nobody's.
const UNBOUND_PATIENCE: u32 = 50;
/// First and longest pause before a failed step is tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Reports for `status` and the metrics are made at most so often.
const REPORTS: Duration = Duration::from_millis(200);
/// It is looked for policies without effect at most so often.
const EFFECTS: Duration = Duration::from_secs(10);

/// What to run.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the objects come from.
    pub from: source::From,
    /// The node whose pods are ours.
    pub node: String,
    /// The data path's options.
    pub datapath: Options,
    /// `NAMESPACE/NAME` or `NAMESPACE` of pods that may send from any address.
    pub exempt: Vec<String>,
    /// Bring the kernel up to date once and end; what is attached stays in force.
    pub once: bool,
    /// Where `/metrics`, `/healthz` and `/readyz` are served.
    pub listen: Option<SocketAddr>,
    /// Remove the start-up taint ([`taint::KEY`]) from the node once policy is in force.
    pub remove_taint: bool,
}

/// What ends the agent.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// A failure that lasts.
#[derive(Clone, Copy)]
struct Noted {
    since: u64,
    /// Not ours: see [`datapath::Error::is_environment`].
    environment: bool,
}

/// What a change concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Concern {
    /// Nothing that is not known already.
    Nothing,
    /// At most peers of this node's pods.
    Elsewhere,
    /// Pods of this node.
    Local,
}

struct Agent {
    config: Config,
    source: Source,
    datapath: Datapath,
    compiler: Compiler,
    ids: IdSource,
    /// What the compiler has changed since a plan was carried out last.
    dirty: Dirty,
    /// The kernel may hold anything, compare everything.
    unsure: bool,
    /// What the source says.
    snapshot: Snapshot,
    assigned: Assigned,
    problems: Vec<Problem>,
    /// Policies that have no effect, and when they were looked for.
    effects: (Vec<Problem>, Option<Instant>),
    failures: BTreeMap<String, Noted>,
    retry: Duration,
    unbound_looks: u32,
    /// When the kernel was last asked about everything.
    asked: Instant,
    /// When the change came that is not in the kernel yet.
    changed: Option<Instant>,
    births: Births,
    latency: Latency,
    /// What was last written for `status`, and when; and whether there is more to say.
    reported: Option<(Report, Instant)>,
    report_due: bool,
    shared: Arc<Shared>,
    started: u64,
}

impl Agent {
    fn new(config: Config, source: Source, loaded: Loaded, datapath: Datapath, shared: Arc<Shared>) -> Self {
        // Ids go on above those in the kernel, so that none ever has two meanings.
        let ids = IdSource::above(datapath.actual());
        let mut compiler = Compiler::with_ids(Str::from(config.node.as_str()), ids.clone());
        compiler.load(&loaded.snapshot);
        let mut agent = Self {
            config,
            source,
            datapath,
            compiler,
            ids,
            dirty: Dirty::default(),
            unsure: true,
            snapshot: loaded.snapshot,
            assigned: Assigned::default(),
            problems: Vec::new(),
            effects: (Vec::new(), None),
            failures: BTreeMap::new(),
            retry: RETRY.0,
            unbound_looks: 0,
            asked: Instant::now(),
            changed: None,
            births: Births::default(),
            latency: shared.latency.clone(),
            reported: None,
            report_due: true,
            shared,
            started: now(),
        };
        agent.look_for_effects();
        agent.note(loaded.problems);
        agent
    }

    async fn run(
        mut self,
        announcements: Wakeups<Announcements>,
        mut signals: Signals,
    ) -> anyhow::Result<()> {
        let mut cni = watch_cni(self.datapath.cni_cache());
        self.start();
        if self.config.once {
            return self.outcome();
        }
        self.remove_taint();
        let mut begun = Instant::now();
        loop {
            let idle = Instant::now();
            let wake = sleep_until(self.next_look());
            let mut closely = false;
            let mut concern = Concern::Local;
            tokio::select! {
                change = self.source.next() => {
                    let (change, came) = change?;
                    concern = self.take(change, came);
                }
                announced = announcements.next() => {
                    announced?;
                    self.unbound_looks = 0;
                }
                () = cni_changed(cni.as_ref()) => self.unbound_looks = 0,
                () = wake => {
                    closely = self.is_due();
                    if !closely && self.is_only_report() {
                        concern = Concern::Nothing;
                    }
                }
                () = signals.next() => break,
            }
            let woke = Instant::now();
            self.shared.alive();
            if cni.is_none() {
                // The runtime makes the directory with a node's first pod.
                cni = watch_cni(self.datapath.cni_cache());
            }
            // What woke us at once may have been waiting since we were busy: say rather too long than too short.
            let announced = if woke - idle < Duration::from_millis(1) {
                begun
            } else {
                woke
            };
            begun = woke;
            match concern {
                Concern::Local => self.reconcile(closely),
                Concern::Elsewhere if !self.failures.is_empty() => self.reconcile(closely),
                Concern::Elsewhere => {
                    let failures = self.enforce().err().into_iter().collect();
                    self.finish(failures);
                }
                Concern::Nothing => self.write_report(),
            }
            self.births.note(
                self.datapath.pod_devices(),
                announced,
                Instant::now(),
                &self.latency,
            );
        }
        tracing::info!("ending; what is attached stays in force (`netpol-agent cleanup` removes it)");
        self.report_due = true;
        self.reported = self.reported.take().map(|(report, _)| (report, begun - REPORTS));
        self.write_report();
        Ok(())
    }

    /// The first time: nothing was written so far; what an earlier run has pinned is in force.
    fn start(&mut self) {
        let mut failures = Vec::new();
        failures.extend(self.complete_pods().err());
        let pods = self.local_pods();
        failures.extend(self.datapath.set_pods(pods).err());
        failures.extend(self.datapath.look(false).err());
        // Pods that talk already get their programs before their rules, so that what they are about to be isolated
        // from is recorded, adopted and then judged, rather than cut.
        self.datapath.admit_running();
        failures.extend(self.datapath.bind().err());
        failures.extend(self.datapath.attach());
        // No report before the rules are written: it would call in force what is not.
        self.reconcile_after(false, failures);
        self.births.ignore(self.datapath.pod_devices());
    }

    fn remove_taint(&self) {
        let Some(watcher) = self.source.kubernetes().filter(|_| self.config.remove_taint) else {
            return;
        };
        if !self.failures.is_empty() {
            tracing::warn!(
                taint = taint::KEY,
                "not everything is in force: the start-up taint stays"
            );
            return;
        }
        let (client, runtime) = watcher.client();
        drop(runtime.spawn(taint::remove(client, self.config.node.clone())));
    }

    /// Takes in what the source says, and tells what it concerns.
    fn take(&mut self, change: Change, came: Instant) -> Concern {
        let mut concern = Concern::Nothing;
        let mut news = Vec::new();
        for event in change.events {
            if self.snapshot.holds(&event) {
                continue;
            }
            concern = concern.max(self.concern(&event));
            news.push(self.assigned.completed(event.clone(), &self.snapshot));
            self.snapshot.apply(event);
        }
        self.compiler.apply_all(news);
        if concern > Concern::Nothing {
            self.changed.get_or_insert(came);
            self.look_for_effects();
        }
        self.note(change.problems);
        concern
    }

    fn concern(&self, event: &Event) -> Concern {
        let node = self.config.node.as_str();
        let is_ours = |pod: &Pod| pod.node.as_deref() == Some(node);
        let local = match event {
            Event::Pod(pod) => is_ours(pod) || self.snapshot.pods.get(&pod.name).is_some_and(is_ours),
            Event::PodGone(name) => self.snapshot.pods.get(name).is_some_and(is_ours),
            _ => false,
        };
        if local { Concern::Local } else { Concern::Elsewhere }
    }

    /// Looks for policies without effect, now and again.
    fn look_for_effects(&mut self) {
        if self.effects.1.is_none_or(|then| then.elapsed() >= EFFECTS) {
            self.effects = (effect::without(&self.snapshot), Some(Instant::now()));
        }
    }

    /// Tells what is wrong with the source now and was not before.
    fn note(&mut self, mut problems: Vec<Problem>) {
        problems.extend(unknown_node(&self.config.node, &self.snapshot));
        problems.extend(no_results(self.datapath.cni_cache(), self.datapath.unbound()));
        problems.extend(self.effects.0.iter().cloned());
        if problems == self.problems {
            return;
        }
        for problem in &problems {
            if self.problems.iter().any(|old| old.is_same(problem)) {
                continue;
            }
            match problem.severity {
                Severity::Error => tracing::error!("{problem}"),
                Severity::Warning => tracing::warn!("{problem}"),
            }
        }
        self.problems = problems;
        self.report_due = true;
    }

    /// Brings the kernel to what the source and the devices say, each part as far as it goes.
    fn reconcile(&mut self, closely: bool) {
        let failures = self.complete_pods().err().into_iter().collect();
        self.reconcile_after(closely, failures);
    }

    /// Gives pods the addresses that the CNI has given them and the API does not tell yet.
    fn complete_pods(&mut self) -> datapath::Result<()> {
        let results = self.datapath.cni_results()?;
        let changed = self.assigned.update(&results, &self.snapshot, &self.config.node);
        if !changed.is_empty() {
            self.compiler.apply_all(changed);
        }
        Ok(())
    }

    /// [`Self::reconcile`] after steps that failed with `failures`.
    fn reconcile_after(&mut self, closely: bool, mut failures: Vec<datapath::Error>) {
        let pods = self.local_pods();
        failures.extend(self.datapath.set_pods(pods).err());
        failures.extend(self.datapath.look(closely).err());
        // Whose device is known by now, and whose rules are in place, does not wait for what other devices need.
        failures.extend(self.datapath.bind().err());
        // A new device gets its programs at once; until its pod and the pod's rules are known nothing passes.
        failures.extend(self.datapath.attach());
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

    /// Plans and writes the tables.
    fn enforce(&mut self) -> datapath::Result<()> {
        self.dirty.merge(self.compiler.take_dirty());
        // A pod that was created again under its name starts without rules, even if they are those of the one before.
        let ruled = &self.datapath.actual().pods;
        let bare = self.compiler.tables().pods.keys();
        self.dirty
            .pods
            .extend(bare.filter(|pod| !ruled.contains_key(*pod)).cloned());
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
                    return Err(datapath::Error::TooSmall(full));
                }
                Err(error) => {
                    self.unsure = true;
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
        if let Some(came) = self.changed.take() {
            self.latency.events.observe(came.elapsed().as_secs_f64());
        }
        Ok(())
    }

    /// Notes failures, tells those that are new, writes the report.
    fn finish(&mut self, failures: Vec<datapath::Error>) {
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

    fn next_look(&mut self) -> Instant {
        let (pods, devices) = self.datapath.unbound();
        let mut pause = if self.failures.is_empty() {
            RESYNC
        } else {
            self.retry
        };
        if pods > 0 && devices > 0 && self.unbound_looks < UNBOUND_PATIENCE {
            self.unbound_looks += 1;
            pause = pause.min(RESYNC_UNBOUND);
        }
        if self.report_due {
            pause = pause.min(REPORTS);
        }
        Instant::now() + pause.min(self.datapath.next_sweep())
    }

    /// Whether we woke up for nothing but a report that was put off.
    fn is_only_report(&self) -> bool {
        let (pods, devices) = self.datapath.unbound();
        self.report_due
            && self.failures.is_empty()
            && (pods == 0 || devices == 0)
            && !self.datapath.next_sweep().is_zero()
    }

    /// Whether it is time to ask the kernel about everything.
    fn is_due(&mut self) -> bool {
        let due = self.asked.elapsed() >= RESYNC;
        if due {
            self.asked = Instant::now();
        }
        due
    }

    fn local_pods(&self) -> Vec<LocalPod> {
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
            .filter_map(|name| self.snapshot.pods.get(name))
            .map(|pod| LocalPod {
                exempt: exempt(&pod.name.namespace, &pod.name.name),
                addresses: self.assigned.addresses(pod),
                name: pod.name.clone(),
                uid: pod.uid.clone(),
            })
            .collect()
    }

    fn outcome(&self) -> anyhow::Result<()> {
        match self.failures.iter().next() {
            Some((failure, noted)) if noted.environment => return Err(bad_input(failure).into()),
            Some((failure, _)) => anyhow::bail!("{failure}"),
            None => {}
        }
        if self.problems.iter().any(Problem::is_error) {
            let from = self.source.name();
            let message =
                format!("{from} has errors, see above: what could not be understood allows nothing");
            return Err(bad_input(message).into());
        }
        Ok(())
    }
}

/// Without CNI results a pod is told by a route, an alias or its own address, each of which comes later.
fn no_results(directory: &Path, (pods, devices): (usize, usize)) -> Option<Problem> {
    if directory.exists() || pods == 0 || devices == 0 {
        return None;
    }
    Some(Problem {
        file: None,
        line: None,
        severity: Severity::Warning,
        object: Some(format!("CNI results {}", directory.display())),
        field: None,
        message: "are not there: a pod's rules are in force only when a route, an alias or its address in the API says whose its \
                  veth is; until then it gets what --unknown-pods says"
            .to_owned(),
        help: "name the runtime's directory with --cni-cache, mounted into the agent's pod; or grant CAP_SYS_ADMIN, so that \
               pods' own namespaces can be asked"
            .to_owned(),
    })
}

/// A node that nobody names is most probably misspelt: nothing would be enforced.
fn unknown_node(node: &str, snapshot: &Snapshot) -> Option<Problem> {
    let is_node_of = |pod: &Pod| pod.node.as_deref() == Some(node);
    if snapshot.nodes.contains_key(node) || snapshot.pods.values().any(is_node_of) {
        return None;
    }
    Some(Problem {
        file: None,
        line: None,
        severity: Severity::Warning,
        object: Some(format!("Node {node}")),
        field: None,
        message: "no pod is on this node and no Node object has its name: nothing is enforced".to_owned(),
        help: "give --node the spec.nodeName of this node's pods".to_owned(),
    })
}

/// Seconds since 1970.
fn now() -> u64 {
    seconds(SystemTime::now())
}

/// Seconds from 1970 to `time`.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Watches the CNI cache; `None` where there is none (then new devices are looked at more often).
fn watch_cni(directory: &Path) -> Option<Wakeups<Watch>> {
    Wakeups::directory(directory)
        .inspect_err(
            |error| tracing::debug!(directory = %directory.display(), %error, "no CNI cache to watch"),
        )
        .ok()
}

async fn cni_changed(watch: Option<&Wakeups<Watch>>) {
    match watch {
        Some(watch) if watch.next().await.is_ok() => {}
        _ => pending().await,
    }
}
