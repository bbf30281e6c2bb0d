//! The eBPF object: loaded with its maps under the pin path, and the pinned maps without it.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, symlink},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData, MapInfo},
    programs::SchedClassifier,
};
use nix::fcntl::{Flock, FlockArg};

use super::{
    abi::{SHAPES, Shape},
    attach::Hook,
    error::{Error, Result},
    kernel,
};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/netpol.o"));

/// The program that reads the kernel's clock.
pub(crate) const CLOCK: &str = "clock";

/// Where everything of one node is pinned: `maps/`, `progs/`, `links/` and the marker `netns`.
#[derive(Clone, Debug)]
pub struct Pins(PathBuf);

impl Pins {
    /// Below `root`, which names the ABI's version.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }

    /// The directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.0
    }

    pub(crate) fn map(&self, name: &str) -> PathBuf {
        self.0.join("maps").join(name)
    }

    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.0.join("progs").join(name)
    }

    pub(crate) fn links(&self) -> PathBuf {
        self.0.join("links")
    }

    /// Made of a symbolic link, as bpffs has no other files: the namespace that the devices are in.
    fn namespace(&self) -> PathBuf {
        self.0.join("netns")
    }

    /// Makes the directories.
    fn create(&self) -> Result<()> {
        let directories = [
            self.0.clone(),
            self.0.join("maps"),
            self.0.join("progs"),
            self.links(),
        ];
        for directory in directories {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&directory)
                .map_err(Error::io(format!("creating {}", directory.display())))?;
        }
        Ok(())
    }

    /// Takes the pins for this process; the lock ends with the process, however that ends.
    pub(crate) fn lock(&self) -> Result<Flock<File>> {
        let directory = File::open(&self.0).map_err(Error::io(format!("opening {}", self.0.display())))?;
        Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            nix::errno::Errno::EWOULDBLOCK => Error::Locked(self.0.clone()),
            errno => Error::io(format!("locking {}", self.0.display()))(errno.into()),
        })
    }

    /// Notes in whose network namespace the links are; refuses another's.
    fn claim_namespace(&self) -> Result<()> {
        let ours = own_namespace()?;
        let marker = self.namespace();
        match fs::read_link(&marker) {
            Ok(theirs) if theirs == Path::new(&ours) => Ok(()),
            Ok(theirs) => Err(Error::OtherNamespace {
                path: self.0.clone(),
                theirs: theirs.display().to_string(),
                ours,
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                symlink(&ours, &marker).map_err(Error::io(format!("creating {}", marker.display())))
            }
            Err(error) => Err(Error::io(format!("reading {}", marker.display()))(error)),
        }
    }
}

impl Pins {
    /// Notes where the agent keeps its files: `STEM.json`, `STEM.pods.json`.
    pub(crate) fn note_files(&self, stem: &Path) -> Result<()> {
        let marker = self.0.join("state");
        if fs::read_link(&marker).is_ok_and(|known| known == stem) {
            return Ok(());
        }
        let failed = || Error::io(format!("creating {}", marker.display()));
        match fs::remove_file(&marker) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed()(error)),
            _ => {}
        }
        symlink(stem, &marker).map_err(failed())
    }

    /// The report and the slots of the agent that used these pins last; empty where none did.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>> {
        let marker = self.0.join("state");
        match fs::read_link(&marker) {
            Ok(stem) => Ok(vec![report_file(&stem), slots_file(&stem)]),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(Error::io(format!("reading {}", marker.display()))(error)),
        }
    }

    /// The agent's report, if an agent has noted where it writes one.
    pub fn report(&self) -> Result<Option<PathBuf>> {
        Ok(self.files()?.into_iter().next())
    }

    /// Whether the devices are those of the calling thread's network namespace.
    pub(crate) fn is_here(&self) -> Result<bool> {
        let ours = own_namespace()?;
        Ok(fs::read_link(self.namespace()).is_ok_and(|theirs| theirs == Path::new(&ours)))
    }

    /// Says in whose namespace the devices are.
    pub(crate) fn other_namespace(&self) -> Result<Error> {
        let theirs = fs::read_link(self.namespace()).unwrap_or_default();
        Ok(Error::OtherNamespace {
            path: self.0.clone(),
            theirs: theirs.display().to_string(),
            ours: own_namespace()?,
        })
    }
}

/// `STEM.json`
pub(crate) fn report_file(stem: &Path) -> PathBuf {
    with_ending(stem, ".json")
}

/// `STEM.pods.json`
pub(crate) fn slots_file(stem: &Path) -> PathBuf {
    with_ending(stem, ".pods.json")
}

/// A node's name may hold dots: nothing is replaced.
fn with_ending(stem: &Path, ending: &str) -> PathBuf {
    let mut path = stem.as_os_str().to_owned();
    path.push(ending);
    path.into()
}

/// `net:[4026531840]`
fn own_namespace() -> Result<String> {
    let path = "/proc/thread-self/ns/net";
    let inode = fs::metadata(path)
        .map_err(Error::io(format!("stat {path}")))?
        .ino();
    Ok(format!("net:[{inode}]"))
}

/// Capacities that the administrator chose, by map name.
pub type Capacities = BTreeMap<String, u32>;

/// What was loaded.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) pins: Pins,
    pub(crate) ebpf: Ebpf,
    pub(crate) maps: BTreeMap<&'static str, Map>,
    pub(crate) capacity: BTreeMap<&'static str, u32>,
    pub(crate) lock: Flock<File>,
}

/// Loads the object: reuses the maps that are pinned, pins the others, loads and pins the programs. Nothing is attached.
pub(crate) fn load(pins: Pins, capacities: &Capacities) -> Result<Loaded> {
    if OBJECT.is_empty() {
        return Err(Error::NoObject);
    }
    kernel::lift_memlock();
    let fresh = !pins.root().exists();
    pins.create()?;
    let lock = pins.lock()?;
    let loaded = load_below(&pins, capacities);
    if loaded.is_err() && fresh {
        // What was refused leaves nothing behind: the lock says that nobody else uses it yet.
        let _tidied = fs::remove_dir_all(pins.root());
        let _not_empty = pins.root().parent().map(fs::remove_dir);
    }
    let (ebpf, maps, capacity) = loaded?;
    Ok(Loaded {
        pins,
        ebpf,
        maps,
        capacity,
        lock,
    })
}

type Objects = (Ebpf, BTreeMap<&'static str, Map>, BTreeMap<&'static str, u32>);

/// The object, its maps and their capacities.
fn load_below(pins: &Pins, capacities: &Capacities) -> Result<Objects> {
    pins.claim_namespace()?;
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
    let operation = || "creating the BPF maps".to_owned();
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
        .map_err(|error| Error::io(format!("pinning the program `{name}`"))(io::Error::other(error)))?;
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

fn check_shape(shape: &Shape, path: &Path, info: &MapInfo) -> Result<()> {
    let entries = shape.entries;
    let kind = info.map_type().ok();
    let same = kind == Some(shape.kind)
        && info.key_size() as usize == shape.key
        && info.value_size() as usize == shape.value
        && entries.is_none_or(|entries| info.max_entries() == entries);
    if same {
        return Ok(());
    }
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

/// Checks capacities that the administrator chose.
///
/// # Errors
/// A sentence about the first that names no map whose capacity can be chosen, or is zero.
pub fn check_capacities(capacities: &Capacities) -> Result<(), String> {
    for (name, entries) in capacities {
        if !SHAPES
            .iter()
            .any(|shape| shape.entries.is_none() && shape.name == name)
        {
            let known: Vec<_> = SHAPES
                .iter()
                .filter(|shape| shape.entries.is_none())
                .map(|shape| shape.name)
                .collect();
            return Err(format!(
                "no map `{name}` whose size can be chosen; there are {}",
                known.join(", ")
            ));
        }
        if *entries == 0 {
            return Err(format!("map `{name}` needs at least one entry"));
        }
    }
    Ok(())
}
