//! From one ABI version to another, newer or older, without a gap.
//!
//! The new set of maps and programs is built beside the old one. A map that means the same to both is *shared*: the same
//! kernel object, pinned in both trees, so that flows are seen by the programs of both while the links change. What a
//! verdict is looked up in is shared as a whole or not at all: ids of classes and rulesets mean something only together. If it is not,
//! the new tables are filled before the first link changes. Marks and the numbers of pods mean the same to both, or the
//! takeover is refused: a mark written by one way in is read by either's way out.

use std::{collections::BTreeMap, path::PathBuf};

use aya::maps::{Array, Map, MapData, MapInfo};
use netpol_common::{event::maps, layout, pod::state};

use super::{
    Datapath,
    abi::{SHAPES, Shape},
    attach::entries,
    error::{Error, Result},
    node::Order,
    object::has_shape,
    pins::Pins,
};

/// Which tuples were allowed: a flow moves from one table to another.
const FLOWS: &[&str] = &[maps::FLOWS4, maps::FLOWS6, maps::OPENING4, maps::OPENING6];

/// What is shared or not whatever becomes of the others; all that is in neither is policy.
const ALONE: &[&str] = &[
    maps::FRAGS,
    maps::QUOTAS,
    maps::DROPS,
    maps::VERDICTS,
    maps::EVENTS,
];

/// Trees of other ABI versions whose place is about to be taken.
#[derive(Debug)]
pub(crate) struct Takeover {
    /// All of them; the last is the one in force.
    from: Vec<Pins>,
    /// What a verdict is looked up in is the same for both.
    pub(crate) shares_policy: bool,
    /// Which connections were allowed, too.
    pub(crate) shares_flows: bool,
    /// Our tree is built by this run.
    pub(crate) begins: bool,
}

/// The trees beside `pins`; `None` where there are none.
///
/// # Errors
/// [`Error::Incompatible`] where their marks mean something else, [`Error::OtherNamespace`] where their devices are not here.
pub(crate) fn find(pins: &Pins) -> Result<Option<Takeover>> {
    let mut from = Pins::versions(pins.parent())?;
    from.retain(|other| other.root() != pins.root());
    let links = |pins: &Pins| entries(&pins.links()).map(|links| links.len());
    let mut counted: Vec<(usize, Pins)> = Vec::new();
    for other in from {
        if !other.is_here()? {
            return Err(other.other_namespace()?);
        }
        counted.push((links(&other)?, other));
    }
    counted.sort_by_key(|(links, pins)| (*links, pins.version()));
    let Some((most, last)) = counted.last() else {
        return Ok(None);
    };
    let layouts = last.layouts()?;
    if layouts.get(layout::MARK.0) != Some(&layout::MARK.1) {
        return Err(Error::Incompatible {
            path: last.root().to_path_buf(),
            what: layout::MARK.0,
        });
    }
    if pins.root().exists() && links(pins)? == 0 && *most > 0 {
        // A run was killed before it changed a link, or after it had lost the last: what is there is of no use.
        pins.discard()?;
    }
    let begins = !pins.root().exists();
    let mut takeover = Takeover {
        shares_policy: false,
        shares_flows: false,
        begins,
        from: Vec::new(),
    };
    if begins {
        takeover.shares_flows = fit(last, &layouts, |name| FLOWS.contains(&name))?;
        // Without its flows a pod's connections are adopted as when its isolation begins: from empty tables.
        takeover.shares_policy = takeover.shares_flows && fit(last, &layouts, is_policy)?;
    } else {
        takeover.shares_policy = is_same(pins, last, maps::PODS)?;
        takeover.shares_flows = is_same(pins, last, maps::FLOWS4)?;
    }
    takeover.from = counted.into_iter().map(|(_, pins)| pins).collect();
    Ok(Some(takeover))
}

fn is_policy(name: &str) -> bool {
    !FLOWS.contains(&name) && !ALONE.contains(&name)
}

/// Whether all of these maps of another version mean the same.
fn fit(other: &Pins, layouts: &BTreeMap<String, u16>, which: impl Fn(&str) -> bool) -> Result<bool> {
    SHAPES
        .iter()
        .filter(|shape| which(shape.name))
        .try_fold(true, |all, shape| Ok(all && fits(other, shape, layouts)?))
}

/// Whether a map of another version means the same.
fn fits(other: &Pins, shape: &Shape, layouts: &BTreeMap<String, u16>) -> Result<bool> {
    let path = other.map(shape.name);
    if layouts.get(shape.name) != Some(&layout::of(shape.name)) || !path.exists() {
        return Ok(false);
    }
    let info = MapInfo::from_pin(&path).map_err(Error::map(shape.name, "reading the pin", 0))?;
    Ok(has_shape(shape, &info))
}

/// Whether both trees have the same map.
fn is_same(one: &Pins, other: &Pins, name: &'static str) -> Result<bool> {
    let id = |pins: &Pins| {
        let path = pins.map(name);
        if !path.exists() {
            return Ok(None);
        }
        MapInfo::from_pin(&path)
            .map(|info| Some(info.id()))
            .map_err(Error::map(name, "reading the pin", 0))
    };
    Ok(id(one)? == id(other)?)
}

impl Takeover {
    /// The one in force.
    fn last(&self) -> Option<&Pins> {
        self.from.last()
    }

    /// Where links of theirs are.
    pub(crate) fn links(&self) -> Vec<PathBuf> {
        self.from.iter().rev().map(Pins::links).collect()
    }

    /// Pins what means the same to both in `stage`, too.
    ///
    /// # Errors
    /// A map can not be opened or pinned.
    pub(crate) fn share(&self, stage: &Pins) -> Result<()> {
        let Some(last) = self.last() else { return Ok(()) };
        let layouts = last.layouts()?;
        let mut anew = Vec::new();
        for shape in SHAPES {
            let name = shape.name;
            let shared = if FLOWS.contains(&name) {
                self.shares_flows
            } else if is_policy(name) {
                self.shares_policy
            } else {
                fits(last, shape, &layouts)?
            };
            if !shared {
                anew.push(name);
                continue;
            }
            let map = MapData::from_pin(last.map(name)).map_err(Error::map(name, "opening the pin", 0))?;
            map.pin(stage.map(name))
                .map_err(Error::caused(format!("pinning {}", stage.map(name).display())))?;
        }
        tracing::info!(
            from = %last.root().display(),
            anew = ?anew,
            "taking over from another version; maps that mean the same are shared until its last program has gone"
        );
        Ok(())
    }

    /// Their policy epoch, the highest where there are several. Flows that are shared say under which they were judged.
    ///
    /// # Errors
    /// The map can not be read.
    pub(crate) fn epoch(&self) -> Result<u64> {
        let failed = |error| Error::map(maps::STATE, "reading another version's", 0)(error);
        let of = |tree: &Pins| {
            let map = MapData::from_pin(tree.map(maps::STATE)).and_then(Map::from_map_data);
            let array = map.and_then(Array::<MapData, u64>::try_from).map_err(failed)?;
            array.get(&state::EPOCH, 0).map_err(failed)
        };
        self.from
            .iter()
            .try_fold(0, |highest, tree| Ok(of(tree)?.max(highest)))
    }

    /// Where they say which pod has which index.
    ///
    /// # Errors
    /// It can not be told, or nobody knows.
    pub(crate) fn slots(&self) -> Result<PathBuf> {
        let Some(last) = self.last() else {
            return Ok(PathBuf::new());
        };
        last.files()?
            .into_iter()
            .nth(1)
            .filter(|path| path.exists())
            .ok_or_else(|| Error::Incompatible {
                path: last.root().to_path_buf(),
                what: "pods.json",
            })
    }
}

impl Datapath {
    /// After the rules are in place: puts our programs in the place of another version's, and removes what is left of it.
    /// Does nothing where there is none. Each failure is returned; what failed is tried again by the next call.
    pub fn take_over(&mut self) -> Vec<Error> {
        let Some(takeover) = &self.takeover else {
            return Vec::new();
        };
        let shares_flows = takeover.shares_flows;
        self.attachments.release();
        // Their ways in find replies in their flows, ours in ours. Where these are not the same, connections that begin
        // meanwhile are in those of whichever way out has judged them: only ours have a grace for what they do not know.
        let mut failures = self.attach_in(if shares_flows {
            Order::InFirst
        } else {
            Order::OutFirst
        });
        // What can not be attached here was not attached there either: it keeps nothing of theirs.
        let left = |links: &PathBuf| entries(links).is_ok_and(|links| !links.is_empty());
        let none_left = |takeover: &Takeover| !takeover.links().iter().any(left);
        if failures.is_empty() || self.takeover.as_ref().is_some_and(none_left) {
            if !shares_flows {
                // What has begun since the rules were written.
                self.adopt_isolated();
            }
            failures.extend(self.end_takeover().err());
        }
        failures
    }

    fn end_takeover(&mut self) -> Result<()> {
        let Some(takeover) = &self.takeover else {
            return Ok(());
        };
        let seen = &self.seen.devices;
        for old in &takeover.from {
            let name = |index| seen.get(&index).map(|device| device.name.clone());
            self.attachments.take_off(&old.links(), name)?;
            old.discard()?;
            tracing::info!(from = %old.root().display(), "has taken over; nothing is left of it");
        }
        self.takeover = None;
        self.attachments.forget_others();
        Ok(())
    }
}
