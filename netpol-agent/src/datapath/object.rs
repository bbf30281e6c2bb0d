//! The eBPF object: loaded with its maps under the pin path, and the pinned maps without it.

use std::{collections::BTreeMap, fs, io, path::Path};

pub use super::pins::Pins;
pub(crate) use super::pins::{report_file, slots_file};
use super::{
    abi::{SHAPES, Shape},
    attach::Hook,
    error::{Error, Result},
    kernel,
    lock::Locks,
    takeover::{self, Takeover},
};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData, MapError, MapInfo},
    programs::SchedClassifier,
};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/netpol.o"));

/// The program that reads the kernel's clock.
pub(crate) const CLOCK: &str = "clock";

/// Capacities that the administrator chose, by map name.
pub type Capacities = BTreeMap<String, u32>;

/// What was loaded.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) pins: Pins,
    pub(crate) ebpf: Ebpf,
    pub(crate) maps: BTreeMap<&'static str, Map>,
    pub(crate) capacity: BTreeMap<&'static str, u32>,
    pub(crate) locks: Locks,
    /// Agents of other ABI versions whose place this one takes.
    pub(crate) takeover: Option<Takeover>,
}

/// Loads the object: reuses the maps that are pinned, those of another ABI version too where they mean the same, pins the
/// others, loads and pins the programs. Nothing is attached.
pub(crate) fn load(pins: Pins, capacities: &Capacities) -> Result<Loaded> {
    if OBJECT.is_empty() {
        return Err(Error::NoObject);
    }
    kernel::lift_memlock();
    let fresh = !pins.parent().exists();
    let mut locks = Locks::take(&pins)?;
    let loaded = load_locked(&pins, capacities, &mut locks);
    if loaded.is_err() && fresh {
        // What was refused leaves nothing behind: the locks say that nobody else uses it yet.
        let _tidied = fs::remove_dir_all(pins.root());
        let _not_empty = fs::remove_dir(pins.parent());
    }
    let ((ebpf, maps, capacity), takeover) = loaded?;
    Ok(Loaded {
        pins,
        ebpf,
        maps,
        capacity,
        locks,
        takeover,
    })
}

fn load_locked(
    pins: &Pins,
    capacities: &Capacities,
    locks: &mut Locks,
) -> Result<(Objects, Option<Takeover>)> {
    let takeover = takeover::find(pins)?;
    if pins.root().exists() {
        return Ok((load_below(pins, capacities)?, takeover));
    }
    // Built under another name: whoever finds the tree finds all of it.
    let stage = pins.stage();
    stage.create()?;
    locks.add(&stage)?;
    stage.note_layouts()?;
    if let Some(takeover) = &takeover {
        takeover.share(&stage)?;
    }
    let objects = load_below(&stage, capacities);
    if objects.is_err() {
        let _tidied = fs::remove_dir_all(stage.root());
    }
    let objects = objects?;
    fs::rename(stage.root(), pins.root())
        .map_err(Error::io(format!("creating {}", pins.root().display())))?;
    Ok((objects, takeover))
}

type Objects = (Ebpf, BTreeMap<&'static str, Map>, BTreeMap<&'static str, u32>);

/// The object, its maps and their capacities.
fn load_below(pins: &Pins, capacities: &Capacities) -> Result<Objects> {
    pins.claim_namespace()?;
    pins.check_layouts()?;
    let capacity_before = check_pinned(pins)?;
    for (name, wanted) in capacities {
        if let Some((name, has)) = capacity_before.get_key_value(name.as_str())
            && has != wanted
        {
            tracing::warn!(
                map = name,
                has,
                wanted,
                "a pinned map keeps its capacity until `netpol-agent cleanup`"
            );
        }
    }

    let mut loader = EbpfLoader::new();
    // Legacy maps and no relocations against kernel types: BTF of the kernel is not needed.
    loader.btf(None);
    for shape in SHAPES {
        loader.map_pin_path(shape.name, pins.map(shape.name));
        if let Some(entries) = shape.entries {
            loader.map_max_entries(shape.name, entries);
        }
    }
    for (name, entries) in capacities {
        loader.map_max_entries(name, *entries);
    }
    let mut ebpf = loader.load(OBJECT).map_err(load_error)?;
    load_programs(&mut ebpf, pins)?;

    let mut maps = BTreeMap::new();
    for shape in SHAPES {
        let map = ebpf.take_map(shape.name).ok_or(Error::Missing {
            kind: "map",
            name: shape.name,
        })?;
        maps.insert(shape.name, map);
    }
    let capacity = check_pinned(pins)?;
    Ok((ebpf, maps, capacity))
}

fn load_error(error: aya::EbpfError) -> Error {
    let operation = || match &error {
        aya::EbpfError::MapError(MapError::CreateError { name, .. }) => format!("creating map `{name}`"),
        _ => "creating the BPF maps".to_owned(),
    };
    match super::error::os_error(&error) {
        Some(libc::EPERM | libc::EACCES) if kernel::memlock_counts() && nix::unistd::geteuid().is_root() => {
            Error::NoMemory {
                operation: operation(),
            }
        }
        Some(libc::EPERM | libc::EACCES) => Error::NotPermitted {
            operation: operation(),
        },
        // E2BIG: no map may be so large.
        Some(libc::ENOMEM | libc::E2BIG) => Error::NoMemory {
            operation: operation(),
        },
        Some(number @ libc::EROFS) => Error::Storage {
            operation: "pinning the BPF maps".to_owned(),
            source: io::Error::from_raw_os_error(number),
        },
        _ => Error::Load(error),
    }
}

fn load_programs(ebpf: &mut Ebpf, pins: &Pins) -> Result<()> {
    for name in Hook::ALL.map(Hook::program).into_iter().chain([CLOCK]) {
        let program = classifier(ebpf, name)?;
        program
            .load()
            .map_err(Error::program(format!("loading the program `{name}`")))?;
        repin(program, &pins.program(name), name)?;
    }
    Ok(())
}

/// Pins `program` in the place of an older one, which is never missing meanwhile.
fn repin(program: &mut SchedClassifier, path: &Path, name: &str) -> Result<()> {
    // bpffs allows no dots in names.
    let fresh = path.with_file_name(format!("{name}_new"));
    // Left by a killed predecessor.
    let _absent = fs::remove_file(&fresh);
    program
        .pin(&fresh)
        .map_err(Error::caused(format!("pinning the program `{name}`")))?;
    fs::rename(&fresh, path).map_err(Error::io(format!("pinning {}", path.display())))
}

/// A classifier of the object.
pub(crate) fn classifier<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut SchedClassifier> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(Error::Missing {
            kind: "program",
            name,
        })
}

/// The capacities of the pinned maps, each of which must have its shape.
fn check_pinned(pins: &Pins) -> Result<BTreeMap<&'static str, u32>> {
    let mut found = BTreeMap::new();
    for shape in SHAPES {
        let path = pins.map(shape.name);
        if !path.exists() {
            continue;
        }
        let info = MapInfo::from_pin(&path).map_err(Error::map(shape.name, "reading the pin", 0))?;
        check_shape(shape, &path, &info)?;
        found.insert(shape.name, info.max_entries());
    }
    Ok(found)
}

/// Whether a map has the type and sizes that the ABI says.
pub(crate) fn has_shape(shape: &Shape, info: &MapInfo) -> bool {
    info.map_type().ok() == Some(shape.kind)
        && info.key_size() as usize == shape.key
        && info.value_size() as usize == shape.value
        && shape.entries.is_none_or(|entries| info.max_entries() == entries)
}

fn check_shape(shape: &Shape, path: &Path, info: &MapInfo) -> Result<()> {
    if has_shape(shape, info) {
        return Ok(());
    }
    let (entries, kind) = (shape.entries, info.map_type().ok());
    let text = |kind: String, key: usize, value: usize, entries: Option<u32>| {
        let entries = entries.map_or_else(String::new, |entries| format!(", {entries} entries"));
        format!("type {kind}, {key}-byte keys, {value}-byte values{entries}")
    };
    let found = kind.map_or_else(|| "unknown".to_owned(), |kind| format!("{kind:?}"));
    Err(Error::Shape {
        path: path.to_path_buf(),
        found: text(
            found,
            info.key_size() as usize,
            info.value_size() as usize,
            entries.map(|_| info.max_entries()),
        ),
        expected: text(format!("{:?}", shape.kind), shape.key, shape.value, entries),
    })
}

/// A pinned map with its capacity, for readers beside the agent.
pub(crate) fn pinned(pins: &Pins, shape: &Shape) -> Result<(Map, u32)> {
    let failed = |error| Error::map(shape.name, "opening the pin", 0)(error);
    let path = pins.map(shape.name);
    let info = MapInfo::from_pin(&path).map_err(failed)?;
    check_shape(shape, &path, &info)?;
    let map = MapData::from_pin(&path)
        .and_then(Map::from_map_data)
        .map_err(failed)?;
    Ok((map, info.max_entries()))
}

/// The maps whose capacity the administrator can choose.
pub fn sizable() -> impl Iterator<Item = &'static str> {
    SHAPES
        .iter()
        .filter(|shape| shape.entries.is_none())
        .map(|shape| shape.name)
}
