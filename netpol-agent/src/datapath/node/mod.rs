//! The data path of one node: slots, devices, settings and tables, brought to what the agent desires.

mod clock;
mod places;
mod pods;

pub use self::places::Guard;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aya::Ebpf;
use netpol_common::pod::state;
use netpol_policy::{
    model::ObjectName,
    tables::{PodRules, Tables},
};

use self::clock::measure_hz;
pub(super) use self::{clock::jiffies, places::Order};
use super::{
    attach::{Attachments, Mode},
    binder::{Binder, LocalPod},
    cni::Attachment,
    devices::{Role, Seen, tunnels},
    error::{Error, Result},
    kernel::Kernel,
    lock::Locks,
    maps::Maps,
    object::{self, Capacities, Loaded, Pins, slots_file},
    pods::{Slots, check_writable},
    settings::{self, Settings},
    sweep::Sweeper,
    takeover::Takeover,
};

/// What devices get whose pod nobody has named yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum UnknownPods {
    /// Their packets are dropped until the pod is known.
    Deny,
    /// Everything passes until the pod is known.
    Allow,
}

/// How to run the data path.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to pin.
    pub pins: Pins,
    /// Where the agent keeps its files: `FILES.json` is its report, `FILES.pods.json` says which pod has which index.
    pub files: PathBuf,
    /// TCX or clsact; `None`: what the kernel offers.
    pub attach: Option<Mode>,
    /// Map capacities.
    pub capacities: Capacities,
    /// Flow lifetimes and quotas.
    pub settings: Settings,
    /// What veths get that nobody knows.
    pub unknown: UnknownPods,
    /// Judge the node's own packets to its pods, too.
    pub police_node: bool,
    /// CNI's result cache.
    pub cni_cache: PathBuf,
    /// Device names that are outside whatever they look like.
    pub outside: Vec<String>,
    /// How long to wait for another agent to end: [`Datapath::open_when_free`].
    pub lock_wait: Duration,
}

/// The loaded object and everything that it stands on.
pub struct Datapath {
    pub(super) options: Options,
    pub(super) sweeper: Sweeper,
    kernel: Kernel,
    mode: Mode,
    pub(super) ebpf: Ebpf,
    pub(super) maps: Maps,
    pub(super) slots: Slots,
    /// The file of slots does not say what `slots` does.
    unsaved: bool,
    pub(super) attachments: Attachments,
    binder: Binder,
    pub(super) hz: u64,
    /// Devices that an earlier run had attached to: what is behind them was judged until now.
    watched: BTreeSet<u32>,
    /// What the kernel's tables hold.
    pub(super) actual: Tables,
    /// Pods that were given the grace for mid-stream TCP, and whose policy has not been edited since.
    pub(super) graced: BTreeSet<ObjectName>,
    pub(super) pods: Vec<LocalPod>,
    pub(super) roles: BTreeMap<u32, Role>,
    /// Devices of which the kernel knows whose they are, so that the pod's rules are in force on them.
    pub(super) bound: BTreeSet<u32>,
    pub(super) seen: Seen,
    /// See [`Self::unbound`].
    unbound: (usize, usize),
    /// The other ABI version whose place is about to be taken.
    pub(super) takeover: Option<Takeover>,
    /// Held on the pins.
    _locks: Locks,
}

impl Datapath {
    /// Loads the programs and reads back what an earlier run has pinned; changes nothing that is in force.
    ///
    /// # Errors
    /// Any; nothing is attached then.
    pub fn open(options: Options, kernel: Kernel) -> Result<Self> {
        check_writable(&slots_file(&options.files))?;
        let mode = options
            .attach
            .unwrap_or(if kernel.tcx { Mode::Tcx } else { Mode::Clsact });
        if mode == Mode::Tcx && !kernel.tcx {
            return Err(Error::NoTcx);
        }
        let Loaded {
            pins,
            mut ebpf,
            maps: mut found,
            capacity,
            locks,
            takeover,
        } = object::load(options.pins.clone(), &options.capacities)?;
        let mut maps = Maps::new(&mut found, capacity)?;
        // Tables that no program of another version reads, and that are empty: its slots and its flows go on.
        let anew = takeover
            .as_ref()
            .filter(|takeover| takeover.begins && !takeover.shares_policy);
        if let Some(takeover) = takeover.as_ref().filter(|takeover| !takeover.shares_policy) {
            // Above every one under which a shared flow was judged. Two above: what is adopted has the one between, or it would
            // be judged already to the programs that are in force until ours are.
            maps.set_epoch(maps.epoch().max(takeover.epoch()?) + 2);
        }
        if !maps.is_settled() {
            // An agent was killed before it moved the epoch, or a version that does not say. What it wrote may be just what is
            // wanted: then nothing would be written, and what was revoked would go on.
            maps.move_epoch();
            maps.settle();
        }
        let hz = match maps.config()?.hz {
            0 => measure_hz(&mut ebpf)?,
            // Pins do not outlive the kernel that wrote this.
            hz => hz,
        };
        let noted = match anew {
            Some(takeover) => takeover.slots()?,
            None => slots_file(&options.files),
        };
        let slots = Slots::load(&noted, first_incarnation(), |index| {
            anew.is_none().then(|| maps.incarnation(index))
        })?;
        let actual = read_back(&maps, &slots)?;
        let (others, held) = takeover.as_ref().map_or((Vec::new(), false), |takeover| {
            (takeover.links(), !takeover.shares_policy)
        });
        let attachments = Attachments::new(&pins, mode, others, held);
        pins.note_files(&options.files)?;
        Ok(Self {
            binder: Binder::new(&options.cni_cache, options.outside.clone()),
            watched: attachments.pinned_by_any()?.into_iter().collect(),
            options,
            kernel,
            mode,
            ebpf,
            maps,
            slots,
            unsaved: false,
            attachments,
            hz,
            actual,
            graced: BTreeSet::new(),
            pods: Vec::new(),
            roles: BTreeMap::new(),
            bound: BTreeSet::new(),
            seen: Seen::default(),
            unbound: (0, 0),
            sweeper: Sweeper::default(),
            takeover,
            _locks: locks,
        })
    }

    /// As [`Self::open`]; where another agent holds the pins, says so by `held` and waits until it has ended, at most [`Options::lock_wait`].
    /// May be dropped at any time before it is ready.
    ///
    /// # Errors
    /// Any; [`Error::Locked`] where the other has not ended by then.
    pub async fn open_when_free(
        options: Options,
        kernel: Kernel,
        mut held: impl FnMut(String),
    ) -> Result<Self> {
        const PAUSE: Duration = Duration::from_millis(100);
        let end = std::time::Instant::now() + options.lock_wait;
        let mut told = false;
        loop {
            match Self::open(options.clone(), kernel.clone()) {
                Err(Error::Locked { path, holder }) if std::time::Instant::now() < end => {
                    if !std::mem::replace(&mut told, true) {
                        let text =
                            format!("another netpol-agent{holder} holds the pins: waiting for it to end");
                        tracing::warn!(path = %path.display(), seconds = options.lock_wait.as_secs(), "{text}");
                        held(text);
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                opened => return opened,
            }
        }
    }

    /// What the kernel's tables hold.
    #[must_use]
    pub fn actual(&self) -> &Tables {
        &self.actual
    }

    /// What the kernel offers.
    #[must_use]
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// How programs are attached.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The directory where the container runtime says whose a veth is.
    #[must_use]
    pub fn cni_cache(&self) -> &std::path::Path {
        self.binder.directory()
    }

    /// Looks at the runtime's CNI results and returns them, the newest last.
    ///
    /// # Errors
    /// The directory is there and can not be read.
    pub fn cni_results(&mut self) -> Result<Vec<Attachment>> {
        self.binder.look_at_cache()?;
        Ok(self.binder.attachments().into_iter().cloned().collect())
    }

    /// The pod's index, if it has one.
    #[must_use]
    pub fn index(&self, pod: &ObjectName) -> Option<u32> {
        self.slots.get(pod).map(|slot| slot.index)
    }

    fn write_config(&mut self) -> Result<()> {
        let flag = |on: bool, flag: u64| if on { flag } else { 0 };
        self.maps.set_flags(
            state::FLAG_UNKNOWN_PASS | state::FLAG_POLICE_NODE | state::FLAG_BARE,
            flag(
                self.options.unknown == UnknownPods::Allow,
                state::FLAG_UNKNOWN_PASS,
            ) | flag(self.options.police_node, state::FLAG_POLICE_NODE)
                | flag(self.has_bare(), state::FLAG_BARE),
        );
        let addresses: Vec<IpAddr> = self
            .pods
            .iter()
            .flat_map(|pod| pod.addresses.iter().copied())
            .collect();
        let config = settings::config(&self.options.settings, self.hz, &addresses, &tunnels(&self.seen));
        if self.maps.config()? != config {
            self.maps.set_config(&config)?;
        }
        Ok(())
    }
}

/// What the kernel's tables hold. A slot without rules is a pod's that no policy isolates, or one whose rules were never
/// written: only a device that was bound to it, which happens after its rules, tells the first from the second.
pub(super) fn read_back(maps: &Maps, slots: &Slots) -> Result<Tables> {
    let mut tables = maps.read_tables()?;
    let bound: BTreeSet<u32> = maps.ifaces()?.into_values().collect();
    tables.pods = slots
        .iter()
        .map(|(name, slot)| (name, slot.index, maps.rules(slot.index)))
        .filter(|(_, index, rules)| *rules != PodRules::default() || bound.contains(index))
        .map(|(name, _, rules)| (name.clone(), rules))
        .collect();
    Ok(tables)
}

/// Where incarnations begin if the file of slots is gone: later than any earlier run began, as long as it handed out
/// less than one a second.
fn first_incarnation() -> u32 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    u32::try_from(now.as_secs()).unwrap_or(1)
}
