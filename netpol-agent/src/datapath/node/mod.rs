//! The data path of one node: slots, devices, settings and tables, brought to what the agent desires.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use aya::{Ebpf, TestRun as _, programs::TestRunOptions};
use netpol_common::{
    mark::MAX_INDEX,
    pod::{NODE_INDEX, POD_EXEMPT, state},
};
use netpol_policy::{model::ObjectName, tables::Tables};

use super::{
    attach::{Attachments, Hook, Mode, Target},
    binder::{Binder, LocalPod, owners},
    devices::{Role, Seen, tunnels},
    error::{Error, Result},
    kernel::Kernel,
    maps::Maps,
    object::{self, CLOCK, Capacities, Loaded, Pins, classifier, slots_file},
    pods::{Changes, Slots},
    settings::{self, Settings},
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
}

/// The loaded object and everything that it stands on.
pub struct Datapath {
    options: Options,
    kernel: Kernel,
    mode: Mode,
    pub(super) ebpf: Ebpf,
    pub(super) maps: Maps,
    pub(super) slots: Slots,
    attachments: Attachments,
    binder: Binder,
    pub(super) hz: u64,
    /// Devices that an earlier run had attached to: what is behind them was judged until now.
    watched: BTreeSet<u32>,
    /// What the kernel's tables hold.
    pub(super) actual: Tables,
    pub(super) pods: Vec<LocalPod>,
    pub(super) roles: BTreeMap<u32, Role>,
    pub(super) seen: Seen,
    /// Holds the lock on the pins.
    _loaded: Lock,
}

type Lock = nix::fcntl::Flock<std::fs::File>;

impl Datapath {
    /// Loads the programs and reads back what an earlier run has pinned; changes nothing that is in force.
    ///
    /// # Errors
    /// Any; nothing is attached then.
    pub fn open(options: Options) -> Result<Self> {
        let kernel = Kernel::probe(options.pins.root())?;
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
            lock,
        } = object::load(options.pins.clone(), &options.capacities)?;
        let maps = Maps::new(&mut found, capacity)?;
        let hz = match maps.config()?.hz {
            0 => measure_hz(&mut ebpf)?,
            // Pins do not outlive the kernel that wrote this.
            hz => hz,
        };
        let slots = Slots::load(&slots_file(&options.files), first_incarnation(), |index| {
            maps.incarnation(index)
        })?;
        let actual = read_back(&maps, &slots)?;
        let attachments = Attachments::new(&pins, mode);
        pins.note_files(&options.files)?;
        Ok(Self {
            binder: Binder::new(options.cni_cache.clone(), options.outside.clone()),
            watched: attachments.pinned()?.into_iter().collect(),
            options,
            kernel,
            mode,
            ebpf,
            maps,
            slots,
            attachments,
            hz,
            actual,
            pods: Vec::new(),
            roles: BTreeMap::new(),
            seen: Seen::default(),
            _loaded: lock,
        })
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

    /// Gives each of `pods` its slot, addresses and settings. Their rules come by the plan, their devices by
    /// [`Self::bind`].
    ///
    /// # Errors
    /// A map can not be written, or there are more pods than indices: those are named, all others are in place.
    pub fn set_pods(&mut self, pods: Vec<LocalPod>) -> Result<()> {
        self.pods = pods;
        if self.seen.devices.is_empty() {
            // The settings also tell of devices: what an earlier run has written must not be taken back meanwhile.
            self.observe(false)?;
        }
        let changes = self
            .slots
            .assign(self.pods.iter().map(|pod| (&pod.name, &pod.uid)));
        if changes != Changes::default() {
            // Before the kernel knows: a slot that is noted and not in the kernel is no slot after a restart.
            self.slots.save(&slots_file(&self.options.files))?;
        }
        self.free(&changes)?;
        self.write_config()?;
        self.write_pods();
        self.write_local()?;
        match changes.refused.first() {
            Some(pod) => Err(Error::TooManyPods(MAX_INDEX, pod.to_string())),
            None => Ok(()),
        }
    }

    /// Ends the lives of slots that are nobody's: those freed now, and those that no file accounts for.
    fn free(&mut self, changes: &Changes) -> Result<()> {
        let held: BTreeSet<u32> = self.slots.iter().map(|(_, slot)| slot.index).collect();
        let mut ended: BTreeSet<u32> = changes.freed.iter().map(|slot| slot.index).collect();
        ended.extend(
            (1..=MAX_INDEX).filter(|index| !held.contains(index) && self.maps.incarnation(*index) != 0),
        );
        if ended.is_empty() {
            return Ok(());
        }
        for (device, index) in self.maps.ifaces()? {
            if ended.contains(&index) {
                self.maps.set_iface(device, None)?;
            }
        }
        for (address, index) in self.maps.local()? {
            if ended.contains(&index) {
                self.maps.set_local(address, None)?;
            }
        }
        ended.iter().for_each(|index| self.maps.free_pod(*index));
        self.maps.forget_drops(&ended)?;
        let slots = &self.slots;
        self.actual.pods.retain(|name, _| slots.get(name).is_some());
        // A new life of a name starts without rules.
        for (name, _) in &changes.taken {
            self.actual.pods.remove(name);
        }
        Ok(())
    }

    fn write_pods(&mut self) {
        for pod in &self.pods {
            if let Some(slot) = self.slots.get(&pod.name) {
                let flags = if pod.exempt { POD_EXEMPT } else { 0 };
                self.maps.set_pod(slot, flags, &pod.addresses);
            }
        }
    }

    /// Whose each address is that somebody else must not send from: a pod's, or the node's own as pods see it.
    fn write_local(&mut self) -> Result<()> {
        let mut desired: BTreeMap<IpAddr, u32> = gateways(&self.seen, &self.roles)
            .into_iter()
            .map(|address| (address, NODE_INDEX))
            .collect();
        let pods = owners(&self.pods).into_iter();
        desired.extend(pods.filter_map(|(address, name)| Some((address, self.slots.get(&name)?.index))));
        let actual = self.maps.local()?;
        for (address, index) in &desired {
            if actual.get(address) != Some(index) {
                self.maps.set_local(*address, Some(*index))?;
            }
        }
        for address in actual.keys().filter(|address| !desired.contains_key(address)) {
            self.maps.set_local(*address, None)?;
        }
        Ok(())
    }

    fn write_config(&mut self) -> Result<()> {
        let flag = |on: bool, flag: u64| if on { flag } else { 0 };
        self.maps.set_flags(
            state::FLAG_UNKNOWN_PASS | state::FLAG_POLICE_NODE,
            flag(
                self.options.unknown == UnknownPods::Allow,
                state::FLAG_UNKNOWN_PASS,
            ) | flag(self.options.police_node, state::FLAG_POLICE_NODE),
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

    /// Looks at the devices of the calling thread's network namespace and at what names their pods; `closely`, also
    /// at whether somebody has removed what is attached.
    ///
    /// # Errors
    /// netlink or the CNI cache can not be read.
    pub fn look(&mut self, closely: bool) -> Result<()> {
        let failure = self.observe(closely)?;
        self.write_config()?;
        self.write_local()?;
        failure.map_or(Ok(()), Err)
    }

    /// As [`Self::look`], without telling the kernel; returns what could not be asked.
    fn observe(&mut self, closely: bool) -> Result<Option<Error>> {
        let seen = super::netlink::look()?;
        let before = &self.seen.devices;
        // Devices that are gone are tidied up.
        let same = |index| match (before.get(&index), seen.devices.get(&index)) {
            (Some(before), Some(now)) => before.is(now),
            _ => true,
        };
        self.attachments.verify(closely, same)?;
        let (roles, failure) = self.binder.roles(&seen, &self.pods)?;
        self.roles = roles;
        self.seen = seen;
        Ok(failure)
    }

    /// Tells the kernel whose each device is. A pod whose rules are not in place is left out, so that its packets are
    /// dropped rather than passed without rules.
    ///
    /// # Errors
    /// A map can not be written.
    pub fn bind(&mut self) -> Result<()> {
        let mut desired = BTreeMap::new();
        for (device, role) in &self.roles {
            let Role::Pod(pod) = role else { continue };
            let Some(pod) = pod.as_ref().filter(|pod| self.actual.pods.contains_key(*pod)) else {
                continue;
            };
            if let Some(slot) = self.slots.get(pod) {
                desired.insert(*device, slot.index);
            }
        }
        let actual = self.maps.ifaces()?;
        for (device, index) in &desired {
            if actual.get(device) != Some(index) {
                self.maps.set_iface(*device, Some(*index))?;
            }
        }
        for device in actual.keys().filter(|device| !desired.contains_key(device)) {
            self.maps.set_iface(*device, None)?;
        }
        Ok(())
    }

    /// Takes note that pods on devices that no earlier run has attached to already run, and that nothing has judged them so
    /// far: their connections are adopted when their isolation begins. (A pod on another device without rules has lost
    /// them: it stays cut off until it has new ones.)
    pub fn admit_running(&mut self) {
        for (device, role) in &self.roles {
            let Role::Pod(Some(pod)) = role else { continue };
            if !self.watched.contains(device) && self.slots.get(pod).is_some() {
                self.actual.pods.entry(pod.clone()).or_default();
            }
        }
    }

    /// Puts the programs on all devices, ways in before ways out, and takes them off what needs none.
    /// Each failure is returned; the other devices are served all the same.
    pub fn attach(&mut self) -> Vec<Error> {
        let mut failures = Vec::new();
        let mut places: Vec<(Hook, u32, &str)> = Vec::new();
        for (index, role) in &self.roles {
            let Some(device) = self.seen.devices.get(index) else {
                continue;
            };
            let hooks = match role {
                Role::Pod(_) => [Hook::FromPod, Hook::ToPod],
                Role::Outside => [Hook::Arrive, Hook::Settle],
                Role::None(_) => continue,
            };
            places.extend(hooks.map(|hook| (hook, *index, device.name.as_str())));
        }
        // No way out enforces before every way in tells who sends.
        places.sort_by_key(|(hook, index, _)| (!hook.is_way_in(), *index));
        for (hook, index, name) in places {
            if let Err(error) = self
                .attachments
                .attach(&mut self.ebpf, Target { index, name }, hook)
            {
                // A device that went meanwhile will be announced.
                if nix::net::if_::if_nametoindex(name) == Ok(index) {
                    failures.push(error);
                }
            }
        }
        failures.extend(self.tidy().err());
        failures
    }

    /// Takes programs off devices that need none, and removes the pins of devices that are gone.
    fn tidy(&mut self) -> Result<()> {
        for index in self.attachments.pinned()? {
            let name = self.seen.devices.get(&index).map(|device| device.name.clone());
            if matches!(self.roles.get(&index), None | Some(Role::None(_))) {
                self.attachments.detach(index, name.as_deref())?;
            }
        }
        Ok(())
    }

    /// Devices with their roles and the programs that are on them, by ifindex.
    #[must_use]
    pub fn devices(&self) -> Vec<(&str, u32, &Role, Vec<Hook>)> {
        self.roles
            .iter()
            .filter_map(|(index, role)| {
                let device = self.seen.devices.get(index)?;
                Some((device.name.as_str(), *index, role, self.attachments.on(*index)))
            })
            .collect()
    }

    /// The pod's index, if it has one.
    #[must_use]
    pub fn index(&self, pod: &ObjectName) -> Option<u32> {
        self.slots.get(pod).map(|slot| slot.index)
    }

    /// Local pods for which no device was found, and veths that no pod is known for.
    #[must_use]
    pub fn unbound(&self) -> (usize, usize) {
        let bound: BTreeSet<&ObjectName> = self
            .roles
            .values()
            .filter_map(|role| match role {
                Role::Pod(pod) => pod.as_ref(),
                _ => None,
            })
            .collect();
        let pods = self.pods.iter().filter(|pod| !bound.contains(&pod.name)).count();
        let devices = self
            .roles
            .values()
            .filter(|role| **role == Role::Pod(None))
            .count();
        (pods, devices)
    }
}

/// The node's addresses that pods have as neighbours: those of the bridges that pods are ports of, and of the host
/// sides of their veths.
fn gateways(seen: &Seen, roles: &BTreeMap<u32, Role>) -> BTreeSet<IpAddr> {
    let veths = roles
        .iter()
        .filter(|(_, role)| matches!(role, Role::Pod(_)))
        .map(|(index, _)| *index);
    let masters = veths.clone().filter_map(|index| seen.devices.get(&index)?.master);
    veths
        .chain(masters)
        .filter_map(|index| seen.addresses.get(&index))
        .flatten()
        .map(ipnet::IpNet::addr)
        .collect()
}

/// What the kernel's tables hold.
pub(super) fn read_back(maps: &Maps, slots: &Slots) -> Result<Tables> {
    let mut tables = maps.read_tables()?;
    tables.pods = slots
        .iter()
        .map(|(name, slot)| (name.clone(), maps.rules(slot.index)))
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

/// The kernel's `jiffies64`, which flow entries are stamped with: read by a program, as nothing else tells.
pub(super) fn jiffies(ebpf: &mut Ebpf) -> Result<u64> {
    let packet = [0; 64];
    let mut answer = [0; 64];
    let mut options = TestRunOptions::new();
    options.data_in = Some(&packet);
    options.data_out = Some(&mut answer);
    classifier(ebpf, CLOCK)?
        .test_run(options)
        .map_err(Error::program("running the program `clock`"))?;
    Ok(u64::from_le_bytes(answer[..8].try_into().expect("eight bytes")))
}

fn measure_hz(ebpf: &mut Ebpf) -> Result<u64> {
    let (start, first) = (Instant::now(), jiffies(ebpf)?);
    std::thread::sleep(Duration::from_millis(120));
    let (last, took) = (jiffies(ebpf)?, start.elapsed());
    Ok(settings::hz(last.saturating_sub(first), took.as_nanos() as u64))
}
