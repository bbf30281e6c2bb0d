//! The agent: one loop that brings the kernel to what the source says.
//!
//! Whatever wakes the loop (a manifest, a device, a CNI result, a timer), it looks at the state and diffs; it never
//! acts on the kind of wake-up. A failed step leaves the policy in force and is tried again.

mod assigned;
mod first;
mod known;
pub mod latency;
mod problems;
mod reconcile;
mod report;
pub mod source;
mod start;
pub mod taint;
mod waiting;

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
    model::Event,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep_until},
};

pub use self::start::run;
use self::{
    assigned::Assigned,
    first::First,
    known::{Concern, Known},
    latency::{Births, Latency},
    problems::Found,
    source::{Source, bad_input},
    waiting::Waits,
};
use crate::{
    datapath::{
        Datapath, Options,
        netlink::Announcements,
        report::{Names, Report},
        wakeups::{Wakeups, Watch},
    },
    serve::Shared,
    source::{Change, Problem},
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
const REPORTS: Duration = Duration::from_millis(500);

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
    /// What the source says of this node.
    known: Known,
    assigned: Assigned,
    problems: Vec<Problem>,
    found: Found,
    failures: BTreeMap<String, Noted>,
    retry: Duration,
    unbound_looks: u32,
    /// Devices wait for their programs.
    more_devices: bool,
    /// When the kernel was last asked about everything.
    asked: Instant,
    /// When the change came that is not in the kernel yet.
    changed: Option<Instant>,
    births: Births,
    latency: Latency,
    /// What was last written for `status`, and when; and whether there is more to say.
    reported: Option<(Report, Instant)>,
    report_due: bool,
    /// Why the last report could not be written.
    unwritten: Option<String>,
    /// The names of all policies.
    policies: Names,
    shared: Arc<Shared>,
    started: u64,
    taint: taint::Removal,
}

impl Agent {
    fn new(config: Config, source: Source, first: First, datapath: Datapath, shared: Arc<Shared>) -> Self {
        // Ids go on above those in the kernel, so that none ever has two meanings.
        let First {
            mut compiler,
            known,
            problems,
            ..
        } = first;
        let ids = compiler.ids();
        ids.pass(datapath.actual());
        compiler.settle();
        let mut agent = Self {
            config,
            source,
            datapath,
            compiler,
            ids,
            dirty: Dirty::default(),
            unsure: true,
            known,
            assigned: Assigned::default(),
            problems: Vec::new(),
            found: Found::default(),
            failures: BTreeMap::new(),
            retry: RETRY.0,
            unbound_looks: 0,
            more_devices: false,
            asked: Instant::now(),
            changed: None,
            births: Births::default(),
            latency: shared.latency.clone(),
            reported: None,
            report_due: true,
            unwritten: None,
            policies: Names::default(),
            shared,
            started: now(),
            taint: taint::Removal::default(),
        };
        agent.name_policies();
        agent.look_for_effects();
        agent.note(problems);
        agent
    }

    async fn run(
        mut self,
        announcements: Wakeups<Announcements>,
        mut signals: Signals,
        waits: Waits,
    ) -> anyhow::Result<()> {
        let mut cni = watch_cni(&self.config.datapath.cni_cache);
        self.start();
        // The report says it all.
        drop(waits);
        if self.config.once {
            return self.outcome();
        }
        let mut begun = Instant::now();
        loop {
            self.remove_taint();
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
                () = cni_changed(&mut cni) => self.unbound_looks = 0,
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
            self.look_for_due_effects();
            if cni.is_none() {
                cni = watch_cni(&self.config.datapath.cni_cache);
            }
            // What woke us at once may have been waiting since we were busy: say rather too long than too short.
            let announced = if woke - idle < Duration::from_millis(1) {
                begun
            } else {
                woke
            };
            begun = woke;
            match concern {
                Concern::Elsewhere if self.failures.is_empty() => match self.enforce() {
                    // Most of what happens elsewhere is of no pod that a rule here means.
                    Ok(false) => {
                        self.write_report();
                        continue;
                    }
                    done => self.finish(done.err().into_iter().collect()),
                },
                Concern::Local | Concern::Elsewhere => self.reconcile(closely),
                Concern::Nothing => {
                    self.write_report();
                    continue;
                }
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
        // What means what the kernel holds already is not written again beside it. By now the compiler knows all that the agent
        // before knew, so that it is most of it.
        self.compiler.keep(self.datapath.actual());
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

    /// Takes in what the source says, and tells what it concerns.
    fn take(&mut self, change: Change, came: Instant) -> Concern {
        let mut concern = Concern::Nothing;
        let mut policies = false;
        for event in change.events {
            if matches!(&event, Event::Node(node) if *node.name == *self.known.node) {
                self.taint.node_came();
            }
            let its = self.known.concern(&event, &self.compiler);
            if its > Concern::Nothing {
                let completed = self.assigned.completed(event.clone(), &self.known.pods);
                self.known.apply(&event);
                policies |= matches!(event, Event::Policy(_) | Event::PolicyGone(_));
                // At once: the next event may undo it.
                self.compiler.stage(completed);
            }
            concern = concern.max(its);
        }
        self.compiler.settle();
        if policies {
            self.name_policies();
        }
        if concern > Concern::Nothing {
            self.changed.get_or_insert(came);
            self.effects_may_change();
        }
        self.note(change.problems);
        concern
    }

    fn next_look(&mut self) -> Instant {
        if self.more_devices {
            return Instant::now();
        }
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
        let next = Instant::now() + pause.min(self.datapath.next_sweep());
        self.effects_due().map_or(next, |due| next.min(due))
    }

    /// Whether we woke up for nothing but a report that was put off.
    fn is_only_report(&self) -> bool {
        let (pods, devices) = self.datapath.unbound();
        self.report_due
            && !self.more_devices
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

/// Seconds since 1970.
fn now() -> u64 {
    seconds(SystemTime::now())
}

/// Seconds from 1970 to `time`.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Watches the CNI cache; `None` where that can't be (then new devices are looked at more often).
fn watch_cni(directory: &Path) -> Option<Wakeups<Watch>> {
    Wakeups::cni_results(directory)
        .inspect_err(
            |error| tracing::debug!(directory = %directory.display(), %error, "the CNI cache is not watched"),
        )
        .ok()
}

async fn cni_changed(watch: &mut Option<Wakeups<Watch>>) {
    let Some(open) = watch else { return pending().await };
    if open.next().await.is_err() {
        *watch = None;
    }
}
