//! The addresses at the far end of a veth, where no CNI result names its pod.
//!
//! A pod may change what this reads, so the first answer for a device is kept ([`super::pods`]) and an address
//! that is bound already is not bound again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    net::IpAddr,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    thread,
};

use netlink_packet_route::{
    RouteNetlinkMessage,
    nsid::{NsidAttribute, NsidMessage},
};
use nix::sched::{CloneFlags, setns};

use super::{
    devices::Device,
    error::{Error, Result},
    netlink::{self, Requests},
};

/// Where `ip netns` and container runtimes keep namespaces.
const NAMED: &str = "/run/netns";

/// The far end's addresses of each of `veths` whose namespace can be found: one named below `/run/netns`, or
/// one that a process lives in.
pub(crate) fn far_addresses<'a>(
    veths: impl IntoIterator<Item = &'a Device>,
) -> Result<BTreeMap<u32, Vec<IpAddr>>> {
    let mut wanted: BTreeMap<i32, Vec<&Device>> = BTreeMap::new();
    for veth in veths {
        if let Some(id) = veth.peer_namespace {
            wanted.entry(id).or_default().push(veth);
        }
    }
    let mut found = BTreeMap::new();
    if wanted.is_empty() {
        return Ok(found);
    }
    let mut requests = Requests::route()?;
    let mut seen = BTreeSet::new();
    for path in candidates() {
        if wanted.is_empty() {
            break;
        }
        // A process or a namespace that ends while we look takes its veth along.
        let Ok(namespace) = File::open(&path) else {
            continue;
        };
        let Ok(inode) = namespace.metadata().map(|metadata| metadata.ino()) else {
            continue;
        };
        if !seen.insert(inode) {
            continue;
        }
        let Some(veths) = id_of(&mut requests, &namespace)?.and_then(|id| wanted.remove(&id)) else {
            continue;
        };
        let addresses = addresses_in(namespace, &path)?;
        for veth in veths {
            let far = veth.lower.and_then(|index| addresses.get(&index));
            found.insert(veth.index, far.cloned().unwrap_or_default());
        }
    }
    Ok(found)
}

fn candidates() -> impl Iterator<Item = PathBuf> {
    let list = |directory: &str| -> Vec<PathBuf> {
        let mut paths: Vec<_> = fs::read_dir(directory)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        paths.sort_unstable();
        paths
    };
    let processes = list("/proc").into_iter().filter(|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
    });
    list(NAMED)
        .into_iter()
        .chain(processes.map(|path| path.join("ns/net")))
}

/// The number by which our namespace knows `namespace` (what `IFLA_LINK_NETNSID` tells).
fn id_of(requests: &mut Requests, namespace: &File) -> Result<Option<i32>> {
    let mut message = NsidMessage::default();
    message
        .attributes
        .push(NsidAttribute::Fd(namespace.as_raw_fd() as u32));
    let answer = match requests.ask("id of a network namespace", RouteNetlinkMessage::GetNsId(message)) {
        Ok(answer) => answer,
        // A file below /run/netns that is no namespace: left when its mount went.
        Err(Error::Io { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(match answer {
        Some(RouteNetlinkMessage::NewNsId(message)) => {
            message.attributes.iter().find_map(|attribute| match attribute {
                NsidAttribute::Id(id) if *id >= 0 => Some(*id),
                _ => None,
            })
        }
        _ => None,
    })
}

/// The addresses of each device in `namespace`, read by a thread that enters it and ends there.
fn addresses_in(namespace: File, path: &Path) -> Result<BTreeMap<u32, Vec<IpAddr>>> {
    let failed = format!("entering the network namespace {}", path.display());
    let reader = thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| Error::io(failed)(errno.into()))?;
        netlink::addresses(&mut Requests::route()?)
    });
    let nets = reader.join().expect("the reader does not panic")?;
    Ok(nets
        .into_iter()
        .map(|(index, nets)| (index, nets.into_iter().map(|net| net.addr()).collect()))
        .collect())
}
