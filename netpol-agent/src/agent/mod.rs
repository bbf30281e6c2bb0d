//! The agent: one loop that brings the kernel to what the source says.
//!
//! Whatever wakes the loop (a manifest, a device, a CNI result, a timer), it looks at the state and diffs; it never
//! acts on the kind of wake-up. A failed step leaves the policy in force and is tried again.

mod report;

use std::{
    collections::BTreeMap,
    future::pending,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use netpol_policy::{
    compile::{Compiler, Dirty},
    ids::IdSource,
    model::{Pod, Snapshot, Str},
    plan::{self, Scope},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep_until},
};

use crate::{
    datapath::{
        self, Datapath, LocalPod, Options,
        netlink::Announcements,
        report::Report,
        wakeups::{Wakeups, Watch},
    },
    source::{
        Problem, Severity,
        manifests::{Change, Loaded, Watcher},
    },
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

/// What to run.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of manifests.
    pub manifests: PathBuf,
    /// The node whose pods are ours.
    pub node: String,
    /// The data path's options.
    pub datapath: Options,
    /// `NAMESPACE/NAME` or `NAMESPACE` of pods that may send from any address.
    pub exempt: Vec<String>,
    /// Bring the kernel up to date once and end; what is attached stays in force.
    pub once: bool,
}

/// Runs until a signal ends it. Everything stays in force when it ends, however it ends.
///
/// # Errors
/// The source or the data path can not be opened at all, or, with `once`, something could not be put in force.
pub fn run(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let config = Config {
        // `status` shows it, from anywhere.
        manifests: std::path::absolute(&config.manifests).map_err(bad_input)?,
        ..config
    };
    runtime.block_on(async {
        // First: a signal that comes while we write waits until what was begun is in force.
        let mut signals = Signals::listen()?;
        let (loaded, watcher) = Watcher::start(&config.manifests).map_err(bad_input)?;
        let announcements = Wakeups::devices()?;
        let datapath = tokio::select! {
            opened = Datapath::open_when_free(config.datapath.clone()) => opened?,
            _ = signals.terminate.recv() => return Ok(()),
            _ = signals.interrupt.recv() => return Ok(()),
        };
        Agent::new(config, loaded, datapath)
            .run(watcher, announcements, signals)
            .await
    })
}

fn bad_input(error: impl std::fmt::Display) -> crate::cli::BadInput {
    crate::cli::BadInput(error.to_string())
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
}

/// A failure that lasts.
#[derive(Clone, Copy)]
struct Noted {
    since: u64,
    /// Not ours: see [`datapath::Error::is_environment`].
    environment: bool,
}

struct Agent {
    config: Config,
    datapath: Datapath,
    compiler: Compiler,
    ids: IdSource,
    /// What the compiler has changed since a plan was carried out last.
    dirty: Dirty,
    /// The kernel may hold anything, compare everything.
    unsure: bool,
    snapshot: Snapshot,
    problems: Vec<Problem>,
    failures: BTreeMap<String, Noted>,
    retry: Duration,
    unbound_looks: u32,
    /// When the kernel was last asked about everything.
    asked: Instant,
    /// What was last written for `status`.
    reported: Option<Report>,
    started: u64,
}

impl Agent {
    fn new(config: Config, loaded: Loaded, datapath: Datapath) -> Self {
        // Ids go on above those in the kernel, so that none ever has two meanings.
        let ids = IdSource::above(datapath.actual());
        let mut compiler = Compiler::with_ids(Str::from(config.node.as_str()), ids.clone());
        compiler.load(&loaded.snapshot);
        let mut agent = Self {
            config,
            datapath,
            compiler,
            ids,
            dirty: Dirty::default(),
            unsure: true,
            snapshot: loaded.snapshot,
            problems: Vec::new(),
            failures: BTreeMap::new(),
            retry: RETRY.0,
            unbound_looks: 0,
            asked: Instant::now(),
            reported: None,
            started: now(),
        };
        agent.note(loaded.problems);
        agent
    }

    async fn run(
        mut self,
        mut watcher: Watcher,
        announcements: Wakeups<Announcements>,
        mut signals: Signals,
    ) -> anyhow::Result<()> {
        let cni = watch_cni(self.datapath.cni_cache());
        self.start();
        if self.config.once {
            return self.outcome();
        }
        loop {
            let wake = sleep_until(self.next_look());
            let mut closely = false;
            tokio::select! {
                change = watcher.next() => match change {
                    Some(change) => self.take(change),
                    None => anyhow::bail!("the thread that watches {} has ended", self.config.manifests.display()),
                },
                announced = announcements.next() => {
                    announced?;
                    self.unbound_looks = 0;
                }
                () = cni_changed(cni.as_ref()) => self.unbound_looks = 0,
                () = wake => closely = self.is_due(),
                _ = signals.terminate.recv() => break,
                _ = signals.interrupt.recv() => break,
            }
            self.reconcile(closely);
        }
        tracing::info!("ending; what is attached stays in force (`netpol-agent cleanup` removes it)");
        Ok(())
    }

    /// The first time: nothing was written so far; what an earlier run has pinned is in force.
    fn start(&mut self) {
        let pods = self.local_pods();
        let mut failures = Vec::new();
        failures.extend(self.datapath.set_pods(pods).err());
        failures.extend(self.datapath.look(false).err());
        // Pods that talk already get their programs before their rules, so that what they are about to be isolated
        // from is recorded, adopted and then judged, rather than cut.
        self.datapath.admit_running();
        failures.extend(self.datapath.bind().err());
        failures.extend(self.datapath.attach());
        // No report before the rules are written: it would call in force what is not.
        self.reconcile_after(false, failures);
    }

    fn take(&mut self, change: Change) {
        for event in &change.events {
            self.snapshot.apply(event.clone());
        }
        self.compiler.apply_all(change.events);
        self.note(change.problems);
    }

    /// Tells what is wrong with the source now and was not before.
    fn note(&mut self, mut problems: Vec<Problem>) {
        problems.extend(unknown_node(&self.config.node, &self.snapshot));
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
    }

    /// Brings the kernel to what the source and the devices say, each part as far as it goes.
    fn reconcile(&mut self, closely: bool) {
        self.reconcile_after(closely, Vec::new());
    }

    /// [`Self::reconcile`] after steps that failed with `failures`.
    fn reconcile_after(&mut self, closely: bool, mut failures: Vec<datapath::Error>) {
        let pods = self.local_pods();
        failures.extend(self.datapath.set_pods(pods).err());
        failures.extend(self.datapath.look(closely).err());
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
        Ok(())
    }

    /// Notes failures, tells those that are new, writes the report.
    fn finish(&mut self, failures: Vec<datapath::Error>) {
        let mut noted = BTreeMap::new();
        for failure in failures {
            let environment = failure.is_environment();
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
        Instant::now() + pause.min(self.datapath.next_sweep())
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
                name: pod.name.clone(),
                uid: pod.uid.clone(),
                addresses: pod.addresses.clone(),
                exempt: exempt(&pod.name.namespace, &pod.name.name),
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
            let dir = self.config.manifests.display();
            let message = format!("{dir} has errors, see above: what could not be understood allows nothing");
            return Err(bad_input(message).into());
        }
        Ok(())
    }
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
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
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
