//! Taking programs off devices, from what the pins and markers say.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use aya::programs::tc::SchedClassifierLink;

use super::{
    clsact::{HANDLE, MARK_FILTER_AND_QDISC, PRIORITY},
    entries,
    hook::Direction,
    remove,
};
use crate::datapath::{
    error::Result,
    object::Pins,
    qdisc::{self, Qdisc},
};

/// Removes what the pin or marker at `path` stands for. The marker goes last, so that a killed run leaves it.
pub(super) fn detach_one(path: &Path, direction: Direction, name: Option<&str>) -> Result<()> {
    let Ok(mark) = fs::read_link(path) else {
        return remove(path);
    };
    if let Some(name) = name {
        let index = nix::net::if_::if_nametoindex(name).unwrap_or(0);
        if let Some(kind) = qdisc::ingress_qdisc(index)? {
            if let Ok(link) = SchedClassifierLink::attached(name, direction.tc(), PRIORITY, HANDLE, None) {
                // Already gone is as good. Dropping the link detaches it.
                drop(link);
            }
            if kind == Qdisc::Clsact
                && mark == Path::new(MARK_FILTER_AND_QDISC)
                && !qdisc::has_filters(index)?
            {
                qdisc::delete_clsact(index)?;
            }
        }
    }
    remove(path)
}

/// Whether some of the attachments are clsact filters, which only their own namespace can reach.
pub(crate) fn has_filters(pins: &Pins) -> Result<bool> {
    let names = entries(&pins.links())?;
    Ok(names
        .iter()
        .any(|name| fs::read_link(pins.links().join(name)).is_ok()))
}

/// Takes everything of ours off all devices of this namespace, and removes the pins of links.
pub(crate) fn detach_all(pins: &Pins, names: &BTreeMap<u32, String>) -> Result<usize> {
    let found = entries(&pins.links())?;
    // Ways out first: until the last moment every packet that is judged carries its mark.
    let mut places: Vec<(Direction, PathBuf, Option<&str>)> = found
        .iter()
        .map(|entry| {
            let (index, direction) = entry.split_once('-').unwrap_or((entry, ""));
            let direction = if direction == Direction::Egress.name() {
                Direction::Egress
            } else {
                Direction::Ingress
            };
            let name = index.parse().ok().and_then(|index: u32| names.get(&index));
            (direction, pins.links().join(entry), name.map(String::as_str))
        })
        .collect();
    places.sort_by_key(|place| std::cmp::Reverse(place.0));
    for (direction, path, name) in &places {
        detach_one(path, *direction, *name)?;
    }
    Ok(places.len())
}
