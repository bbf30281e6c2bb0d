//! Local pods' indices: who is which slot of the kernel's `pods` array.
//!
//! A flow entry names a pod by index and incarnation. Incarnations only grow, so that no entry of a former
//! holder of an index ever counts for its next; indices are handed out round robin, so that even that is rare.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use netpol_common::mark::MAX_INDEX;
use netpol_policy::model::{ObjectName, Str};
use serde::{Deserialize, Serialize};

use super::error::{Error, Result};

/// One pod's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// 1..=[`MAX_INDEX`]
    pub index: u32,
    /// Which life of the index.
    pub incarnation: u32,
}

/// Who is where. Kept in a file beside the pins: the kernel knows indices only, and a restarted agent must find
/// each pod in the slot that its flows name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slots {
    pods: BTreeMap<ObjectName, (Str, Slot)>,
    next: u32,
    incarnation: u32,
}

/// What a new set of pods changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// No longer anybody's.
    pub freed: Vec<Slot>,
    /// Pods that are new, or new lives of a name.
    pub taken: Vec<(ObjectName, Slot)>,
    /// Pods for which no index is free.
    pub refused: Vec<ObjectName>,
}

impl Slots {
    /// Nobody is anywhere; incarnations begin at `incarnation`.
    #[must_use]
    pub fn new(incarnation: u32) -> Self {
        Self {
            pods: BTreeMap::new(),
            next: 1,
            incarnation: incarnation.max(1),
        }
    }

    /// The slot of `pod`.
    #[must_use]
    pub fn get(&self, pod: &ObjectName) -> Option<Slot> {
        self.pods.get(pod).map(|(_, slot)| *slot)
    }

    /// The slot of this life of `pod`.
    #[must_use]
    pub fn of(&self, pod: &ObjectName, uid: &Str) -> Option<Slot> {
        self.pods
            .get(pod)
            .filter(|(ours, _)| ours == uid)
            .map(|(_, slot)| *slot)
    }

    /// Everyone.
    pub fn iter(&self) -> impl Iterator<Item = (&ObjectName, Slot)> {
        self.pods.iter().map(|(name, (_, slot))| (name, *slot))
    }

    /// Makes room for exactly `pods` (name and UID). The same name with another UID is another pod.
    pub fn assign<'a>(&mut self, pods: impl IntoIterator<Item = (&'a ObjectName, &'a Str)>) -> Changes {
        let pods: BTreeMap<_, _> = pods.into_iter().collect();
        let mut changes = Changes::default();
        self.pods.retain(|name, (uid, slot)| {
            let stays = pods.get(name).is_some_and(|wanted| *wanted == uid);
            if !stays {
                changes.freed.push(*slot);
            }
            stays
        });
        let mut used: BTreeSet<u32> = self.pods.values().map(|(_, slot)| slot.index).collect();
        // What is freed now is not taken now: its old entries in other maps go first.
        used.extend(changes.freed.iter().map(|slot| slot.index));
        for (name, uid) in pods {
            if self.pods.contains_key(name) {
                continue;
            }
            let Some(index) = self.free(&used) else {
                changes.refused.push(name.clone());
                continue;
            };
            used.insert(index);
            let slot = Slot {
                index,
                incarnation: self.incarnation,
            };
            self.incarnation += 1;
            self.next = index % MAX_INDEX + 1;
            self.pods.insert(name.clone(), (uid.clone(), slot));
            changes.taken.push((name.clone(), slot));
        }
        changes
    }

    /// The first free index from where the last search ended.
    fn free(&self, used: &BTreeSet<u32>) -> Option<u32> {
        (self.next..=MAX_INDEX)
            .chain(1..self.next)
            .find(|index| !used.contains(index))
    }

    /// Reads what [`Self::save`] wrote. `kernel` tells the incarnation that the kernel has for an index: pods for which
    /// it has another are not who they were; `None`: it can not be asked, the file is right. `incarnation` is where to go on at least.
    ///
    /// # Errors
    /// The file exists and can not be read. One that is not understood counts as absent: every pod then gets a new
    /// slot, and its flows are judged as new ones.
    pub fn load(path: &Path, incarnation: u32, kernel: impl Fn(u32) -> Option<u32>) -> Result<Self> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::new(incarnation)),
            Err(error) => return Err(Error::io(format!("reading {}", path.display()))(error)),
        };
        let saved: Saved = match serde_json::from_slice(&bytes) {
            Ok(saved) => saved,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "ignoring what an earlier run noted about pods");
                return Ok(Self::new(incarnation));
            }
        };
        let pods = saved
            .pods
            .into_iter()
            .filter(|pod| kernel(pod.index).is_none_or(|known| known == pod.incarnation))
            .map(|pod| {
                let slot = Slot {
                    index: pod.index,
                    incarnation: pod.incarnation,
                };
                (
                    ObjectName::new(pod.namespace, pod.name),
                    (Str::from(pod.uid), slot),
                )
            })
            .collect();
        Ok(Self {
            pods,
            next: saved.next.clamp(1, MAX_INDEX),
            incarnation: saved.incarnation.max(incarnation),
        })
    }

    /// Writes the file as a whole, so that a killed agent leaves the old or the new one.
    ///
    /// # Errors
    /// The directory can not be made or written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let saved = Saved {
            next: self.next,
            incarnation: self.incarnation,
            pods: self
                .pods
                .iter()
                .map(|(name, (uid, slot))| SavedPod {
                    namespace: name.namespace.to_string(),
                    name: name.name.to_string(),
                    uid: uid.to_string(),
                    index: slot.index,
                    incarnation: slot.incarnation,
                })
                .collect(),
        };
        write_whole(path, &saved)
    }
}

#[derive(Serialize, Deserialize)]
struct Saved {
    next: u32,
    incarnation: u32,
    pods: Vec<SavedPod>,
}

#[derive(Serialize, Deserialize)]
struct SavedPod {
    namespace: String,
    name: String,
    uid: String,
    index: u32,
    incarnation: u32,
}

/// Whether the agent's files can be written, asked before anything is changed.
pub(crate) fn check_writable(file: &Path) -> Result<()> {
    let directory = file.parent().unwrap_or(Path::new("."));
    let probe = fresh(file);
    fs::create_dir_all(directory)
        .and_then(|()| fs::write(&probe, []))
        .and_then(|()| fs::remove_file(&probe))
        .map_err(|source| Error::State {
            directory: directory.to_owned(),
            source,
        })
}

/// Where a file is written before it is renamed.
fn fresh(path: &Path) -> PathBuf {
    let mut fresh = PathBuf::from(path).into_os_string();
    fresh.push(".new");
    fresh.into()
}

/// Writes `value` as JSON under another name and renames it.
pub(crate) fn write_whole(path: &Path, value: &impl Serialize) -> Result<()> {
    let failed = || Error::io(format!("writing {}", path.display()));
    let bytes = serde_json::to_vec_pretty(value).map_err(|error| failed()(error.into()))?;
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(failed())?;
    }
    let fresh = fresh(path);
    fs::write(&fresh, bytes).map_err(failed())?;
    fs::rename(&fresh, path).map_err(failed())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> ObjectName {
        ObjectName::new("default", name)
    }

    fn assign(slots: &mut Slots, pods: &[(&str, &str)]) -> Changes {
        let pods: Vec<_> = pods
            .iter()
            .map(|(pod, uid)| (name(pod), Str::from(*uid)))
            .collect();
        slots.assign(pods.iter().map(|(name, uid)| (name, uid)))
    }

    fn slot(index: u32, incarnation: u32) -> Slot {
        Slot { index, incarnation }
    }

    #[test]
    fn indices_go_round() {
        let mut slots = Slots::new(7);
        let first = assign(&mut slots, &[("a", "1"), ("b", "2")]);
        assert_eq!(
            first,
            Changes {
                taken: vec![(name("a"), slot(1, 7)), (name("b"), slot(2, 8))],
                ..Changes::default()
            }
        );
        // `a` is deleted and comes again: another index, another incarnation.
        let second = assign(&mut slots, &[("a", "9"), ("b", "2")]);
        assert_eq!(
            second,
            Changes {
                freed: vec![slot(1, 7)],
                taken: vec![(name("a"), slot(3, 9))],
                ..Changes::default()
            }
        );
        assert_eq!(assign(&mut slots, &[("a", "9"), ("b", "2")]), Changes::default());
        slots.next = MAX_INDEX;
        let third = assign(&mut slots, &[("a", "9"), ("b", "2"), ("c", ""), ("d", "")]);
        assert_eq!(
            third.taken,
            [(name("c"), slot(MAX_INDEX, 10)), (name("d"), slot(1, 11))]
        );
    }

    #[test]
    fn freed_slots_are_not_taken_at_once_and_full_is_said() {
        let mut slots = Slots::new(1);
        let pods: Vec<_> = (0..MAX_INDEX)
            .map(|pod| (name(&pod.to_string()), Str::from("")))
            .collect();
        let refused = |slots: &mut Slots, pods: &[(ObjectName, Str)]| {
            slots.assign(pods.iter().map(|(name, uid)| (name, uid)))
        };
        assert_eq!(refused(&mut slots, &pods).refused, []);
        let mut others = pods.clone();
        others[5].0 = name("late");
        let changes = refused(&mut slots, &others);
        assert_eq!((changes.refused, changes.freed.len()), (vec![name("late")], 1));
        // The next time the slot is free.
        assert_eq!(refused(&mut slots, &others).taken.len(), 1);
    }

    #[test]
    fn file_survives_a_restart_where_the_kernel_agrees() {
        let path = std::env::temp_dir().join(format!("netpol-slots-{}.json", std::process::id()));
        let mut slots = Slots::new(1);
        assign(&mut slots, &[("a", "1"), ("b", "2")]);
        slots.save(&path).unwrap();
        let same = Slots::load(&path, 1, Some).unwrap();
        let rebooted = Slots::load(&path, 40, |index| Some(if index == 2 { 2 } else { 0 })).unwrap();
        fs::write(&path, "{").unwrap();
        let broken = Slots::load(&path, 5, |_| Some(0)).unwrap();
        fs::remove_file(&path).unwrap();
        let absent = Slots::load(&path, 5, |_| Some(0)).unwrap();
        assert_eq!(same, slots);
        assert_eq!(rebooted.iter().collect::<Vec<_>>(), [(&name("b"), slot(2, 2))]);
        assert_eq!(rebooted.incarnation, 40);
        assert_eq!((broken, absent), (Slots::new(5), Slots::new(5)));
    }
}
