//! What `status` shows: what the agent last wrote about itself, and what the kernel holds right now.

use std::{
    fs::{self, File},
    io,
    ops::Deref,
    path::Path,
    sync::Arc,
};

use netpol_common::{
    event::{Count, DropKey, hook, maps as names},
    layout, reason,
};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize, Serializer};

use super::{
    abi::SHAPES,
    attach::{Hook, Mode},
    error::{Error, Result},
    kernel::Kernel,
    maps,
    object::{self, Pins},
};
use crate::source::Problem;

/// Many names, of which one copy does for all reports until one changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "Vec<String>")]
pub struct Names(Arc<[String]>);

impl From<Vec<String>> for Names {
    fn from(names: Vec<String>) -> Self {
        Self(names.into())
    }
}

impl Deref for Names {
    type Target = [String];

    fn deref(&self) -> &[String] {
        &self.0
    }
}

impl Serialize for Names {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.0[..].serialize(serializer)
    }
}

/// Written by the agent after each change; times are seconds since 1970.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The agent's version.
    pub version: String,
    /// `--node`
    pub node: String,
    /// The agent's process.
    pub pid: u32,
    /// When it started.
    pub started: u64,
    /// When this was written.
    pub updated: u64,
    /// The directory of manifests, or the API server's address.
    pub source: String,
    /// Since when the API server is not to be reached: what is in force is as of then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_since: Option<u64>,
    /// What the kernel offers.
    pub kernel: Kernel,
    /// How programs are attached.
    pub attach: Mode,
    /// Whether the kernel enforces exactly what the source says; else `errors` says what is missing.
    pub in_force: bool,
    /// What failed and is tried again, oldest first.
    pub errors: Vec<Failure>,
    /// What is wrong with the source.
    pub problems: Vec<Problem>,
    /// Every device of the node's network namespace.
    pub devices: Vec<DeviceReport>,
    /// The node's pods.
    pub pods: Vec<PodReport>,
    /// Classes of addresses that matter to this node.
    #[serde(default)]
    pub classes: usize,
    /// Names of all policies of the source.
    pub policies: Names,
    /// Rulesets in the kernel.
    pub rulesets: Vec<RulesetReport>,
}

/// One failed operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// When it failed first.
    pub since: u64,
    /// Operation, object, cause, remedy.
    pub error: String,
}

/// One device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceReport {
    /// Its name.
    pub name: String,
    /// Its ifindex.
    pub index: u32,
    /// `pod`, `outside` or `none`.
    pub role: String,
    /// The pod, or why it gets no programs.
    pub detail: String,
    /// What is attached.
    pub programs: Vec<Hook>,
}

/// One local pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodReport {
    /// `namespace/name`
    pub name: String,
    /// Its index in the kernel; 0 = none was free.
    pub index: u32,
    /// Its addresses.
    pub addresses: Vec<std::net::IpAddr>,
    /// Its devices.
    pub devices: Vec<String>,
    /// The ruleset of what may come in; 0 = not isolated.
    pub ingress: u32,
    /// The ruleset of what may go out; 0 = not isolated.
    pub egress: u32,
}

/// One ruleset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RulesetReport {
    /// Its id.
    pub id: u32,
    /// How many classes of peers it has a cell for.
    pub cells: usize,
    /// How many of the node's pods use it, as ingress or egress.
    pub pods: usize,
    /// `ingress` or `egress`; empty where only the kernel knows it, as the policies have changed.
    #[serde(default)]
    pub direction: String,
    /// The policies that it joins, sorted.
    #[serde(default)]
    pub policies: Vec<String>,
}

/// What the pins say at this moment, with or without an agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// Whether a process holds the pins.
    pub running: bool,
    /// The policy epoch: moves whenever flows have to be judged again.
    pub epoch: u64,
    /// Maps in the ABI's order.
    pub maps: Vec<MapReport>,
    /// Pinned programs.
    pub programs: Vec<String>,
    /// Pinned links, `IFINDEX-DIRECTION`.
    pub links: Vec<String>,
    /// Dropped packets, by pod, hook and reason.
    pub drops: Vec<DropReport>,
    /// Every verdict that was given at all: passed packets at the ways out, dropped ones anywhere.
    #[serde(default)]
    pub verdicts: Vec<VerdictReport>,
    /// Pods that opened more at once than their quota: the answers to the rest were not recognised.
    #[serde(default)]
    pub refused: Vec<RefusedReport>,
}

/// Openings of one pod that were not recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedReport {
    /// The pod's index.
    pub pod: u32,
    /// Openings beyond the quota since the pod started.
    pub openings: u32,
}

/// One verdict's counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictReport {
    /// Where.
    pub hook: Hook,
    /// Why (`netpol_common::reason`).
    pub reason: String,
    /// Whether that means dropped.
    pub dropped: bool,
    /// Packets.
    pub packets: u64,
    /// Bytes from the link layer on.
    pub bytes: u64,
}

/// One drop counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropReport {
    /// The index of the pod whose rules decided; 0 = none.
    pub pod: u32,
    /// Where.
    pub hook: Option<Hook>,
    /// Why (`netpol_common::reason`).
    pub reason: String,
    /// Packets.
    pub packets: u64,
    /// Bytes from the link layer on.
    pub bytes: u64,
}

/// One pinned map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapReport {
    /// Its name.
    pub name: String,
    /// Entries in use; `None` for arrays and the ring.
    pub entries: Option<usize>,
    /// `max_entries` (bytes, for the ring).
    pub capacity: u32,
}

#[cfg(test)]
impl Report {
    /// One with something of everything, for tests of what is made of it.
    pub(crate) fn example() -> Self {
        Self {
            version: "1.0.0".to_owned(),
            node: "n1".to_owned(),
            pid: 7,
            started: 1,
            updated: 2,
            source: "https://10.96.0.1".to_owned(),
            stale_since: None,
            kernel: Kernel {
                release: "6.18.0".to_owned(),
                tcx: true,
                btf: true,
            },
            attach: Mode::Tcx,
            in_force: true,
            errors: Vec::new(),
            problems: Vec::new(),
            devices: vec![DeviceReport {
                name: "veth1".to_owned(),
                index: 5,
                role: "pod".to_owned(),
                detail: "prod/db".to_owned(),
                programs: vec![Hook::FromPod, Hook::ToPod],
            }],
            pods: vec![PodReport {
                name: "prod/db".to_owned(),
                index: 1,
                addresses: vec![std::net::Ipv4Addr::new(10, 0, 0, 5).into()],
                devices: vec!["veth1".to_owned()],
                ingress: 3,
                egress: 0,
            }],
            classes: 2,
            policies: vec!["prod/p".to_owned()].into(),
            rulesets: Vec::new(),
        }
    }
}

impl Live {
    /// Reads the pins; `None` where nothing is pinned.
    ///
    /// # Errors
    /// A pinned map can not be opened, or is not of this version.
    pub fn read(pins: &Pins) -> Result<Option<Self>> {
        let looking = || Error::io(format!("looking at {}", pins.root().display()));
        if !pins.root().try_exists().map_err(looking())? {
            return Ok(None);
        }
        let mut live = Self {
            running: is_held(pins.root())?,
            programs: listed(&pins.root().join("progs"))?,
            links: listed(&pins.root().join("links"))?,
            ..Self::default()
        };
        let layouts = pins.layouts()?;
        for shape in SHAPES {
            // Another version's map is none that we can read where it means something else.
            let known = layouts.get(shape.name) == Some(&layout::of(shape.name));
            if !known || !pins.map(shape.name).exists() {
                continue;
            }
            let (map, capacity) = object::pinned(pins, shape)?;
            live.maps.push(MapReport {
                name: shape.name.to_owned(),
                entries: maps::fill(&map, shape.name),
                capacity,
            });
            match shape.name {
                names::STATE => live.epoch = maps::epoch(map)?,
                names::VERDICTS => {
                    live.verdicts = maps::verdicts(map)?
                        .into_iter()
                        .filter_map(verdict_report)
                        .collect()
                }
                names::DROPS => live.drops = maps::drops(map)?.into_iter().map(drop_report).collect(),
                names::QUOTAS => {
                    let refused = maps::refused(map)?.into_iter();
                    live.refused = refused
                        .map(|(pod, openings)| RefusedReport { pod, openings })
                        .collect();
                }
                _ => {}
            }
        }
        Ok(Some(live))
    }
}

fn hook_of(hook: u8) -> Option<Hook> {
    match hook {
        hook::FROM_POD => Some(Hook::FromPod),
        hook::TO_POD => Some(Hook::ToPod),
        hook::ARRIVE => Some(Hook::Arrive),
        hook::SETTLE => Some(Hook::Settle),
        _ => None,
    }
}

/// `None` for what has not happened.
fn verdict_report(((hook, reason), count): ((u8, u8), Count)) -> Option<VerdictReport> {
    let hook = hook_of(hook).filter(|_| count.packets > 0)?;
    Some(VerdictReport {
        hook,
        reason: reason::name(reason).to_owned(),
        dropped: reason::is_drop(reason),
        packets: count.packets,
        bytes: count.bytes,
    })
}

fn drop_report((key, count): (DropKey, Count)) -> DropReport {
    DropReport {
        pod: key.pod,
        hook: hook_of(key.hook as u8),
        reason: reason::name(key.reason as u8).to_owned(),
        packets: count.packets,
        bytes: count.bytes,
    }
}

/// Whether an agent has locked the pins.
fn is_held(root: &Path) -> Result<bool> {
    let directory = File::open(root).map_err(Error::io(format!("opening {}", root.display())))?;
    match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
        Ok(_) => Ok(false),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(true),
        Err((_, errno)) => Err(Error::io(format!("locking {}", root.display()))(errno.into())),
    }
}

fn listed(directory: &Path) -> Result<Vec<String>> {
    let mut names = super::attach::entries(directory)?;
    names.sort_unstable();
    Ok(names)
}

impl Report {
    /// Whether all that the manifests say is in force: nothing failed, and all of it was understood.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.in_force && !self.problems.iter().any(Problem::is_error)
    }

    /// Reads what an agent wrote; `None` where there is nothing.
    ///
    /// # Errors
    /// The file can not be read or understood.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(format!("reading {}", path.display()))(error)),
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| Error::io(format!("reading {}", path.display()))(error.into()))
    }

    /// Writes it as a whole.
    ///
    /// # Errors
    /// The directory can not be made or written.
    pub fn write(&self, path: &Path) -> Result<()> {
        super::pods::write_whole(path, self)
    }
}
