//! One node without an agent: devices for the programs to run on, and a snapshot in the maps.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result};
use netpol_common::{
    event::maps,
    flow::{Flow, Frag, FragKey, Key4, Key6, Quota},
    mark,
    pod::{Config, OUTSIDE_INDEX, Pod, door, rulesets, state},
    tables::{Cell, CellKey, PortsChunk, PortsKey},
};
use netpol_policy::{
    compile,
    model::{ObjectName, Snapshot},
    tables::Tables,
};

use super::machine::{Hook, Input, Machine, Run};
use crate::net::{Namespace, Rig};

/// The node whose pods are local.
pub const NODE: &str = "node-1";
/// What each table of flows and fragments holds.
pub const FLOWS: u32 = 1024;
/// What each table of peers, cells, ports and drops holds.
const PEERS: u32 = 4096;
/// Devices of local pods: as many as the generator of snapshots makes pods, and some.
const DEVICES: usize = 12;
/// Long enough for any test, in jiffies of any length.
const LONG: u64 = 1 << 32;

/// The object with a snapshot in its maps, and devices.
#[derive(Debug)]
pub struct Lab<'m> {
    /// The object.
    pub machine: &'m mut Machine,
    devices: Vec<u32>,
    outside: [u32; 2],
    pods: BTreeMap<ObjectName, u32>,
    tables: Tables,
    incarnation: u32,
    epoch: u64,
}

/// The object is loaded once a process, as the verifier takes longer than all packets of a test; tests take turns.
static MACHINE: Mutex<Option<Machine>> = Mutex::new(None);

/// Runs `work` on a thread in a network namespace that has the devices, with the object's maps as if just loaded.
///
/// # Errors
/// Those of loading, and of `work`.
pub fn within<T: Send>(work: impl FnOnce(&mut Lab<'_>) -> Result<T> + Send) -> Result<T> {
    // Small tables: large ones take long to allocate (flows), or to walk while they are nearly empty.
    let sizes = [
        (maps::FLOWS4, FLOWS),
        (maps::FLOWS6, FLOWS),
        (maps::OPENING4, FLOWS),
        (maps::OPENING6, FLOWS),
        (maps::FRAGS, FLOWS),
        (maps::HOSTS4, PEERS),
        (maps::HOSTS6, PEERS),
        (maps::CELLS, PEERS),
        (maps::PORTS, PEERS),
        (maps::DROPS, PEERS),
    ];
    let mut machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    if machine.is_none() {
        *machine = Some(Machine::load(&sizes)?);
    }
    in_namespace(machine.as_mut().context("loaded a moment ago")?, work)
}

/// As [`within`], with an object of one's own.
///
/// # Errors
/// Those of `work`, and of making the namespace.
pub fn in_namespace<T: Send>(
    machine: &mut Machine,
    work: impl FnOnce(&mut Lab<'_>) -> Result<T> + Send,
) -> Result<T> {
    let rig = Rig::new("nptest")?;
    let namespace = rig.namespace("lab")?;
    let names = |end: &str| {
        (0..DEVICES)
            .map(move |at| format!("{end}{at}"))
            .collect::<Vec<_>>()
    };
    let (near, far) = (names("pod"), names("far"));
    let mut lines: Vec<String> = near
        .iter()
        .zip(&far)
        .map(|(near, far)| format!("link add {near} type veth peer name {far}"))
        .collect();
    lines.push("link add out0 type veth peer name out1".to_owned());
    namespace.ip_batch(&lines)?;
    namespace.run(|| work(&mut Lab::new(machine, &namespace, &near)?))
}

impl<'m> Lab<'m> {
    fn new(machine: &'m mut Machine, namespace: &Namespace, devices: &[String]) -> Result<Self> {
        let mut lab = Self {
            machine,
            devices: devices
                .iter()
                .map(|name| namespace.ifindex(name))
                .collect::<Result<_>>()?,
            outside: [namespace.ifindex("out0")?, namespace.ifindex("out1")?],
            pods: BTreeMap::new(),
            tables: Tables::default(),
            incarnation: 0,
            epoch: 1,
        };
        for index in 0..=DEVICES as u32 {
            lab.machine.store(maps::PODS, index, Pod::default())?;
            lab.machine.store(maps::QUOTAS, index, Quota::default())?;
        }
        lab.machine.clear::<FragKey, Frag>(maps::FRAGS)?;
        lab.machine.clear_drops()?;
        lab.forget_flows()?;
        lab.configure(|_| {})?;
        lab.apply(&Snapshot::default())?;
        Ok(lab)
    }

    /// Writes the settings: long timeouts, no tunnels, every source looked up, with `change` made to them.
    ///
    /// # Errors
    /// Where the map can not be written.
    pub fn configure(&mut self, change: impl FnOnce(&mut Config)) -> Result<()> {
        let mut config = Config {
            timeouts: [LONG; 8],
            hz: 250,
            quota: 512,
            quota_window: LONG,
            events_per_second: u32::MAX,
            ..Config::default()
        };
        change(&mut config);
        self.machine.store(maps::CONFIG, 0, config)
    }

    /// Compiles `snapshot` and replaces everything in the maps but the flows; the epoch moves. Pods keep their index and
    /// incarnation as long as they are there.
    ///
    /// # Errors
    /// Where a map can not be written.
    pub fn apply(&mut self, snapshot: &Snapshot) -> Result<()> {
        self.tables = compile::full(snapshot, NODE);
        self.write_tables()?;
        self.write_pods(snapshot)?;
        self.epoch += 1;
        self.write_state()
    }

    /// The compiled tables.
    #[must_use]
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// The index of a local pod; `mark::OUTSIDE` for everybody else.
    #[must_use]
    pub fn index(&self, pod: &ObjectName) -> u32 {
        self.pods.get(pod).copied().unwrap_or(mark::OUTSIDE)
    }

    /// The device of the pod with this index; of the outside for 0.
    #[must_use]
    pub fn device(&self, index: u32) -> u32 {
        if index == mark::OUTSIDE {
            self.outside[0]
        } else {
            self.devices[index as usize - 1]
        }
    }

    /// A second outside device.
    #[must_use]
    pub fn other_outside(&self) -> u32 {
        self.outside[1]
    }

    /// Gives the pod with this index another life: its entries no longer count.
    ///
    /// # Errors
    /// Where the map can not be written.
    pub fn reincarnate(&mut self, index: u32) -> Result<()> {
        self.incarnation += 1;
        let incarnation = self.incarnation;
        self.change_pod(index, |pod| pod.incarnation = incarnation)
    }

    /// Changes the slot of a pod.
    ///
    /// # Errors
    /// Where the map can not be written.
    pub fn change_pod(&mut self, index: u32, change: impl FnOnce(&mut Pod)) -> Result<()> {
        let mut pod = self.machine.read(maps::PODS, index)?;
        change(&mut pod);
        self.machine.store(maps::PODS, index, pod)
    }

    /// Moves the epoch and nothing else.
    ///
    /// # Errors
    /// Where the map can not be written.
    pub fn next_epoch(&mut self) -> Result<()> {
        self.epoch += 1;
        self.write_state()
    }

    /// Sets and clears bits of the `FLAGS` word until the next [`Self::apply`].
    ///
    /// # Errors
    /// Where the map can not be written.
    pub fn flags(&mut self, set: u64, clear: u64) -> Result<()> {
        let flags: u64 = self.machine.read(maps::STATE, state::FLAGS)?;
        self.machine
            .store(maps::STATE, state::FLAGS, (flags | set) & !clear)
    }

    /// All flows that are recorded: unanswered first, then answered, each IPv4 then IPv6.
    ///
    /// # Errors
    /// Where a map can not be read.
    pub fn flows(&mut self) -> Result<Vec<Flow>> {
        let mut flows = Vec::new();
        for (v4, v6) in [(maps::OPENING4, maps::OPENING6), (maps::FLOWS4, maps::FLOWS6)] {
            flows.extend(
                self.machine
                    .entries::<Key4, Flow>(v4)?
                    .into_iter()
                    .map(|(_, flow)| flow),
            );
            flows.extend(
                self.machine
                    .entries::<Key6, Flow>(v6)?
                    .into_iter()
                    .map(|(_, flow)| flow),
            );
        }
        Ok(flows)
    }

    /// Makes all flows older by so many jiffies, as if nothing had been heard of them since.
    ///
    /// # Errors
    /// Where a map can not be read or written.
    pub fn age(&mut self, jiffies: u64) -> Result<()> {
        let older = |flow: Flow| Flow {
            seen: flow.seen.saturating_sub(jiffies),
            ..flow
        };
        for (v4, v6) in [(maps::OPENING4, maps::OPENING6), (maps::FLOWS4, maps::FLOWS6)] {
            for (key, flow) in self.machine.entries::<Key4, Flow>(v4)? {
                self.machine.insert(v4, key, older(flow))?;
            }
            for (key, flow) in self.machine.entries::<Key6, Flow>(v6)? {
                self.machine.insert(v6, key, older(flow))?;
            }
        }
        Ok(())
    }

    /// Forgets all flows.
    ///
    /// # Errors
    /// Where a map can not be written.
    pub fn forget_flows(&mut self) -> Result<()> {
        for (v4, v6) in [(maps::OPENING4, maps::OPENING6), (maps::FLOWS4, maps::FLOWS6)] {
            self.machine.clear::<Key4, Flow>(v4)?;
            self.machine.clear::<Key6, Flow>(v6)?;
        }
        Ok(())
    }

    /// `frame` as it comes in at the end `from` (0 = outside) and goes out at the end `to`, as the kernel
    /// would carry it: the mark in between is kept. The second run is missing where the first dropped it.
    ///
    /// # Errors
    /// As [`Machine::run`].
    pub fn cross(&mut self, from: u32, to: u32, frame: &[u8]) -> Result<(Run, Option<Run>)> {
        let input = Input {
            ifindex: self.device(from),
            ingress_ifindex: self.device(from),
            ..Input::default()
        };
        let hook = if from == mark::OUTSIDE {
            Hook::Arrive
        } else {
            Hook::FromPod
        };
        let way_in = self.machine.run(hook, frame, input)?;
        if way_in.dropped {
            return Ok((way_in, None));
        }
        let way_out = self.leave(to, frame, way_in.mark, self.device(from))?;
        Ok((way_in, Some(way_out)))
    }

    /// `frame` with `mark` at the way out of the end `to`.
    ///
    /// # Errors
    /// As [`Machine::run`].
    pub fn leave(&mut self, to: u32, frame: &[u8], mark: u32, ingress_ifindex: u32) -> Result<Run> {
        let hook = if to == mark::OUTSIDE {
            Hook::Settle
        } else {
            Hook::ToPod
        };
        let input = Input {
            mark,
            ifindex: self.device(to),
            ingress_ifindex,
        };
        self.machine.run(hook, frame, input)
    }

    fn write_state(&mut self) -> Result<()> {
        let pods = self.tables.pods.values();
        let ingress = pods.clone().any(|pod| pod.ingress != 0);
        let isolated = pods.clone().any(|pod| pod.ingress | pod.egress != 0);
        let flags = [
            (ingress, state::FLAG_ANY_INGRESS),
            (isolated, state::FLAG_ANY_ISOLATED),
            (!self.tables.nets4.is_empty(), state::FLAG_NETS4),
            (!self.tables.nets6.is_empty(), state::FLAG_NETS6),
            (true, state::FLAG_EVENTS_ALL),
        ];
        let flags: u64 = flags.iter().filter(|(on, _)| *on).map(|(_, bit)| bit).sum();
        self.machine.store(maps::STATE, state::FLAGS, flags)?;
        self.machine.store(maps::STATE, state::EPOCH, self.epoch)
    }

    fn write_tables(&mut self) -> Result<()> {
        let Self { machine, tables, .. } = self;
        machine.clear::<u32, u32>(maps::HOSTS4)?;
        machine.clear::<[u32; 4], u32>(maps::HOSTS6)?;
        machine.clear_nets::<u32>(maps::NETS4)?;
        machine.clear_nets::<[u32; 4]>(maps::NETS6)?;
        machine.clear::<CellKey, Cell>(maps::CELLS)?;
        machine.clear::<PortsKey, PortsChunk>(maps::PORTS)?;
        for (address, class) in &tables.hosts4 {
            machine.insert(maps::HOSTS4, v4(*address), *class)?;
        }
        for (address, class) in &tables.hosts6 {
            machine.insert(maps::HOSTS6, v6(*address), *class)?;
        }
        for (net, class) in &tables.nets4 {
            machine.insert_net(maps::NETS4, net.prefix_len(), v4(net.network()), *class)?;
        }
        for (net, class) in &tables.nets6 {
            machine.insert_net(maps::NETS6, net.prefix_len(), v6(net.network()), *class)?;
        }
        for (key, cell) in &tables.cells {
            machine.insert(maps::CELLS, *key, *cell)?;
        }
        for (key, chunk) in &tables.ports {
            machine.insert(maps::PORTS, *key, *chunk)?;
        }
        Ok(())
    }

    fn write_pods(&mut self, snapshot: &Snapshot) -> Result<()> {
        let local = snapshot
            .pods
            .values()
            .filter(|pod| pod.node.as_deref() == Some(NODE) && pod.is_endpoint());
        let local: BTreeMap<_, _> = local.map(|pod| (pod.name.clone(), pod)).collect();
        self.machine.clear::<u32, u32>(maps::LOCAL4)?;
        self.machine.clear::<[u32; 4], u32>(maps::LOCAL6)?;
        self.machine.clear::<u32, u32>(maps::IFACES)?;
        for ifindex in &self.devices {
            self.machine.store(maps::DOORS, door::slot(*ifindex), 0u64)?;
        }
        for ifindex in self.outside {
            self.door(ifindex, OUTSIDE_INDEX)?;
        }
        for index in self
            .pods
            .iter()
            .filter(|(name, _)| !local.contains_key(*name))
            .map(|(_, index)| *index)
        {
            self.machine.store(maps::PODS, index, Pod::default())?;
        }
        self.pods.retain(|name, _| local.contains_key(name));
        for (name, pod) in local {
            let index = self.slot(&name)?;
            let rules = self.tables.pods.get(&name).copied().unwrap_or_default();
            let mut slot: Pod = self.machine.read(maps::PODS, index)?;
            slot.rulesets = rulesets(rules.ingress, rules.egress);
            (slot.addr4, slot.addr6) = ([0; 4], [0; 4]);
            for address in &pod.addresses {
                match address {
                    IpAddr::V4(address) => {
                        slot.addr4 = [v4(*address), 0, 0, 0];
                        self.machine.insert(maps::LOCAL4, slot.addr4[0], index)?;
                    }
                    IpAddr::V6(address) => {
                        slot.addr6 = v6(*address);
                        self.machine.insert(maps::LOCAL6, slot.addr6, index)?;
                    }
                }
            }
            self.machine.store(maps::PODS, index, slot)?;
            self.door(self.device(index), index)?;
        }
        Ok(())
    }

    /// Says what is behind a device: a pod, or one of the `*_INDEX`.
    ///
    /// # Errors
    /// Where a map can not be written.
    pub fn door(&mut self, device: u32, index: u32) -> Result<()> {
        self.machine.insert(maps::IFACES, device, index)?;
        self.machine
            .store(maps::DOORS, door::slot(device), door::word(device, index))
    }

    /// The index of a pod, and a new life in a free slot where it has none.
    fn slot(&mut self, name: &ObjectName) -> Result<u32> {
        if let Some(index) = self.pods.get(name) {
            return Ok(*index);
        }
        let index = (1..=self.devices.len() as u32)
            .find(|index| !self.pods.values().any(|used| used == index))
            .context("more local pods than devices")?;
        self.incarnation += 1;
        let pod = Pod {
            incarnation: self.incarnation,
            ..Pod::default()
        };
        self.machine.store(maps::PODS, index, pod)?;
        self.pods.insert(name.clone(), index);
        Ok(index)
    }
}

/// An address as the maps hold it: network byte order.
fn v4(address: std::net::Ipv4Addr) -> u32 {
    u32::from(address).to_be()
}

fn v6(address: std::net::Ipv6Addr) -> [u32; 4] {
    let bytes = address.octets();
    [0, 4, 8, 12].map(|at| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes")))
}
