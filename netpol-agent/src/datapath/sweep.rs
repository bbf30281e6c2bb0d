//! Removes flows that nobody can use any more.
//!
//! To the programs an entry that is too old does not exist, but it takes a place: thousands of finished exchanges a
//! minute would in the end push an idle connection out of its table, which forgets what was heard of least recently.
//! Reading through system calls does not count as hearing of it.

use std::{
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use aya::maps::{Array, HashMap, Map, MapData, MapError};
use netpol_common::{
    event::maps,
    flow::{Flow, Key4, Key6, lifetime, timeout},
    mark::OUTSIDE,
    pod::{Config, Pod},
};

use super::{
    Datapath,
    abi::{Abi, Plain, SHAPES},
    error::{Error, Result, os_error},
    node::jiffies,
    object::{self, Pins},
};

/// At most so long between two sweeps.
const LONGEST: Duration = Duration::from_secs(30);
/// At least so long between two sweeps.
const SHORTEST: Duration = Duration::from_secs(1);
/// Entries that are looked at in one go, and the pause after them: a sweep is in no hurry.
const STEP: (usize, Duration) = (1024, Duration::from_millis(2));

/// What a sweep found in one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Swept {
    /// The table.
    pub map: &'static str,
    /// Entries that stay.
    pub kept: usize,
    /// Entries that were removed.
    pub removed: usize,
    /// Entries that there is room for.
    pub capacity: u32,
}

impl Swept {
    /// Whether the table is about to forget flows that live.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.kept * 10 >= self.capacity as usize * 9
    }
}

/// When the last sweep began, and the one that is under way.
#[derive(Debug, Default)]
pub(super) struct Sweeper {
    begun: Option<Instant>,
    running: Option<JoinHandle<Result<Vec<Swept>>>>,
}

impl Datapath {
    /// How long until [`Self::sweep`] has something to do.
    #[must_use]
    pub fn next_sweep(&self) -> Duration {
        let Sweeper { begun, running } = &self.sweeper;
        let wait = begun.map_or(Duration::ZERO, |begun| {
            self.sweep_interval().saturating_sub(begun.elapsed())
        });
        match running {
            Some(running) if !running.is_finished() => wait.max(SHORTEST),
            _ => wait,
        }
    }

    /// A datagram's entry is dead weight after that time, so this is how often it is worth looking.
    fn sweep_interval(&self) -> Duration {
        Duration::from_secs(self.options.settings.timeouts[timeout::UNANSWERED]).clamp(SHORTEST, LONGEST)
    }

    /// Where it is due, sweeps the flow tables on a thread of its own; says how the last sweep ended.
    ///
    /// # Errors
    /// The last sweep failed, or none can be begun.
    pub fn sweep(&mut self) -> Result<()> {
        if !self.next_sweep().is_zero() {
            return Ok(());
        }
        self.sweeper.begun = Some(Instant::now());
        if let Some(running) = self.sweeper.running.take() {
            // A panic there is a defect, and was printed; the next sweep is another's.
            running.join().unwrap_or(Ok(Vec::new()))?.iter().for_each(tell);
        }
        let (pins, now) = (self.options.pins.clone(), jiffies(&mut self.ebpf)?);
        let thread = thread::Builder::new().name("sweep".to_owned());
        let running = thread.spawn(move || sweep(&pins, now));
        self.sweeper.running =
            Some(running.map_err(Error::io("starting the thread that sweeps the flow tables"))?);
        Ok(())
    }
}

fn tell(swept: &Swept) {
    let Swept {
        map,
        kept,
        removed,
        capacity,
    } = *swept;
    if swept.is_crowded() {
        tracing::warn!(
            map,
            kept,
            capacity,
            "a flow table is full: the flows heard of least recently are forgotten; make it larger with --map-size"
        );
    } else {
        tracing::debug!(map, kept, removed, capacity, "swept");
    }
}

/// Removes every entry of the pinned flow tables that is older than its state allows at `now` (`jiffies64`), or
/// that names a pod which is gone.
///
/// # Errors
/// A map can not be read.
pub fn sweep(pins: &Pins, now: u64) -> Result<Vec<Swept>> {
    let open = |name: &'static str| {
        let shape = SHAPES.iter().find(|shape| shape.name == name);
        object::pinned(pins, shape.ok_or(Error::Missing { kind: "map", name })?)
    };
    let config: Array<MapData, Plain<Config>> =
        open(maps::CONFIG)?
            .0
            .try_into()
            .map_err(Error::map(maps::CONFIG, "opening", 0))?;
    let pods: Array<MapData, Plain<Pod>> =
        open(maps::PODS)?
            .0
            .try_into()
            .map_err(Error::map(maps::PODS, "opening", 0))?;
    let config = config
        .get(&0, 0)
        .map_err(Error::map(maps::CONFIG, "reading", 0))?
        .0;
    let of = Lives { config, pods, now };
    Ok(vec![
        of.table::<Key4>(maps::OPENING4, true, open(maps::OPENING4)?)?,
        of.table::<Key6>(maps::OPENING6, true, open(maps::OPENING6)?)?,
        of.table::<Key4>(maps::FLOWS4, false, open(maps::FLOWS4)?)?,
        of.table::<Key6>(maps::FLOWS6, false, open(maps::FLOWS6)?)?,
    ])
}

/// What says whether an entry is still any use.
struct Lives {
    config: Config,
    pods: Array<MapData, Plain<Pod>>,
    now: u64,
}

impl Lives {
    fn table<K: Proto>(
        &self,
        map: &'static str,
        opening: bool,
        (found, capacity): (Map, u32),
    ) -> Result<Swept> {
        let failed = |error| Error::map(map, "sweeping", capacity)(error);
        let mut table: HashMap<MapData, Plain<K>, Plain<Flow>> = found.try_into().map_err(failed)?;
        // All keys first: the walk begins anew at a key that is gone. Bounded, as others come and go meanwhile.
        let keys: Vec<_> = table
            .keys()
            .take(capacity as usize)
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        let (mut kept, mut removed) = (0, 0);
        for (at, key) in keys.into_iter().enumerate() {
            if at % STEP.0 == STEP.0 - 1 {
                thread::sleep(STEP.1);
            }
            // Read and removed in one breath: what a program renews in between is opened again by its next packet.
            match table.get(&key, 0) {
                Ok(flow) if self.is_dead(&flow.0, opening, key.0.proto()) => {
                    removed += usize::from(gone_is_fine(table.remove(&key)).map_err(failed)?);
                }
                Ok(_) => kept += 1,
                Err(error) => {
                    gone_is_fine(Err(error)).map_err(failed)?;
                }
            }
        }
        Ok(Swept {
            map,
            kept,
            removed,
            capacity,
        })
    }

    fn is_dead(&self, flow: &Flow, opening: bool, proto: u8) -> bool {
        let age = self.now.saturating_sub(flow.seen);
        age > self.config.timeouts[lifetime(flow.state, opening, proto)]
            || !self.is_alive(flow.from, flow.from_inc)
            || !self.is_alive(flow.to, flow.to_inc)
    }

    fn is_alive(&self, index: u32, incarnation: u32) -> bool {
        index == OUTSIDE
            || self
                .pods
                .get(&index, 0)
                // What can not be read is not known to be gone.
                .map_or(true, |pod| pod.0.incarnation == incarnation)
    }
}

/// Whether it was there.
fn gone_is_fine(result: Result<(), MapError>) -> Result<bool, MapError> {
    match result {
        Ok(()) => Ok(true),
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(false),
        Err(error) if os_error(&error) == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A key's protocol.
trait Proto: Abi {
    fn proto(&self) -> u8;
}

impl Proto for Key4 {
    fn proto(&self) -> u8 {
        self.proto as u8
    }
}

impl Proto for Key6 {
    fn proto(&self) -> u8 {
        self.proto as u8
    }
}
