//! The container runtime's own record of which veth is whose: the result cache of CNI.
//!
//! libcni writes `DIR/results/NETWORK-CONTAINER-IFNAME` when a pod's network is ready, before the pod's first
//! process starts, and removes it with the pod (containernetworking/cni, `libcni/api.go`).

use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use ipnet::IpNet;
use netpol_policy::model::ObjectName;
use serde::Deserialize;

use super::error::{Error, Result};

/// One cached result: a pod and the device names of its interfaces on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// `K8S_POD_NAMESPACE`, `K8S_POD_NAME`
    pub pod: ObjectName,
    /// `K8S_POD_UID`; runtimes before Kubernetes 1.23 give none.
    pub uid: Option<String>,
    /// Names of interfaces outside the pod's sandbox: its veth, mostly also the bridge.
    pub host: Vec<String>,
    /// What the pod was given, at most one address a family.
    pub addresses: Vec<IpAddr>,
}

impl Attachment {
    /// Whether this may be about the pod with `uid`; where either is not known, yes.
    #[must_use]
    pub fn is_of(&self, uid: &str) -> bool {
        uid.is_empty() || self.uid.as_deref().is_none_or(|ours| ours == uid)
    }
}

#[derive(Deserialize)]
struct Cached {
    #[serde(rename = "cniArgs", default)]
    args: Vec<(String, String)>,
    #[serde(default)]
    result: Option<CachedResult>,
}

#[derive(Deserialize)]
struct CachedResult {
    #[serde(default)]
    interfaces: Vec<Interface>,
    #[serde(default)]
    ips: Vec<Ip>,
}

#[derive(Deserialize)]
struct Ip {
    address: String,
    /// Which of the interfaces has it.
    #[serde(default)]
    interface: Option<usize>,
}

#[derive(Deserialize)]
struct Interface {
    name: String,
    #[serde(default)]
    sandbox: String,
}

/// Reads one file of the cache; `None` where it is another program's, or not a pod's.
#[must_use]
pub fn parse(bytes: &[u8]) -> Option<Attachment> {
    let cached: Cached = serde_json::from_slice(bytes).ok()?;
    let argument = |name: &str| {
        cached
            .args
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    };
    let pod = ObjectName::new(argument("K8S_POD_NAMESPACE")?, argument("K8S_POD_NAME")?);
    let uid = argument("K8S_POD_UID").map(str::to_owned);
    let result = cached.result?;
    let in_pod = |ip: &&Ip| {
        let interface = ip.interface.and_then(|index| result.interfaces.get(index));
        interface.is_none_or(|interface| !interface.sandbox.is_empty())
    };
    let mut addresses: Vec<IpAddr> = Vec::new();
    for ip in result.ips.iter().filter(in_pod) {
        // An address of a family that is there already is another network's; what is no address is no evidence.
        if let Ok(net) = ip.address.parse::<IpNet>()
            && !addresses
                .iter()
                .any(|known| known.is_ipv4() == net.addr().is_ipv4())
        {
            addresses.push(net.addr());
        }
    }
    let host = result
        .interfaces
        .into_iter()
        .filter(|interface| interface.sandbox.is_empty())
        .map(|interface| interface.name)
        .collect();
    Some(Attachment {
        pod,
        uid,
        host,
        addresses,
    })
}

/// The runtime writes its files in place, and a clock tick may see an empty one and the whole one: what is younger than
/// this is read again.
const YOUNG: Duration = Duration::from_secs(2);

/// When a file was changed, its length and its inode.
type Version = (SystemTime, u64, u64);

/// Where results may be, the first that is there: `directory` itself, which containerd and CRI-O make, and where cri-dockerd has its
/// own.
pub(crate) fn directories(directory: &Path) -> Vec<PathBuf> {
    let of_results = directory.ends_with("results").then(|| directory.parent());
    let other = of_results.flatten().map(|parent| parent.join("cache/results"));
    [Some(directory.to_owned()), other]
        .into_iter()
        .flatten()
        .collect()
}

/// The cache's files, read again only where they have changed.
#[derive(Debug)]
pub(crate) struct Cache {
    directories: Vec<PathBuf>,
    files: BTreeMap<PathBuf, (Version, Option<Attachment>)>,
}

impl Cache {
    pub(crate) fn new(directory: &Path) -> Self {
        Self {
            directories: directories(directory),
            files: BTreeMap::new(),
        }
    }

    /// The directory that is there; where there is none, the one that containerd and CRI-O make.
    pub(crate) fn directory(&self) -> &Path {
        let there = self.directories.iter().find(|directory| directory.is_dir());
        there.unwrap_or(&self.directories[0])
    }

    /// Looks again. Without a cache there is nothing.
    pub(crate) fn look(&mut self) -> Result<()> {
        let directory = self.directory().to_owned();
        let failed = || format!("reading the CNI cache {}", directory.display());
        // All or nothing: what was read before stays where this look ends half way.
        let entries = match fs::read_dir(&directory).and_then(Iterator::collect::<io::Result<Vec<_>>>) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.files.clear();
                return Ok(());
            }
            Err(error) => return Err(Error::io(failed())(error)),
        };
        let mut files = BTreeMap::new();
        for entry in entries {
            let path = entry.path();
            // A file that goes while we look goes with its pod.
            let Ok(version) = version(&path) else { continue };
            let young = version.0.elapsed().is_ok_and(|age| age < YOUNG);
            let known = self.files.remove(&path);
            // What could not be read may have been half written.
            let known = known.filter(|(then, found)| *then == version && found.is_some() && !young);
            let known =
                known.unwrap_or_else(|| (version, fs::read(&path).ok().and_then(|bytes| parse(&bytes))));
            files.insert(path, known);
        }
        self.files = files;
        Ok(())
    }

    /// What the last look has found, the newest word last: a name may come again before the old file is removed.
    pub(crate) fn attachments(&self) -> Vec<&Attachment> {
        let mut attachments: Vec<_> = self
            .files
            .values()
            .filter_map(|((changed, ..), attachment)| {
                attachment.as_ref().map(|attachment| (changed, attachment))
            })
            .collect();
        attachments.sort_by_key(|(changed, _)| **changed);
        attachments
            .into_iter()
            .map(|(_, attachment)| attachment)
            .collect()
    }
}

fn version(path: &Path) -> io::Result<Version> {
    let metadata = fs::metadata(path)?;
    Ok((metadata.modified()?, metadata.len(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    // As containerd 2.4 with Flannel's plugin leaves it (`config` shortened).
    const FLANNEL: &str = r#"{"kind":"cniCacheV1","containerId":"5f0c","config":"e30=","ifName":"eth0","networkName":"cbr0",
        "netns":"/var/run/netns/cni-77d8","cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","prod"],
        ["K8S_POD_NAME","db-0"],["K8S_POD_INFRA_CONTAINER_ID","5f0c"],["K8S_POD_UID","8a1e"]],
        "capabilityArgs":{"dns":{}},"result":{"cniVersion":"0.3.1","dns":{},
        "interfaces":[{"mac":"f2:56:9b:c4:d5:01","name":"cni0"},{"mac":"b6:9f:61:a8:50:99","name":"veth2c6e4f8a"},
        {"mac":"5a:f8:f1:0e:7f:55","name":"eth0","sandbox":"/var/run/netns/cni-77d8"}],
        "ips":[{"address":"10.244.0.5/24","gateway":"10.244.0.1","interface":2,"version":"4"}],
        "routes":[{"dst":"10.244.0.0/16"},{"dst":"0.0.0.0/0","gw":"10.244.0.1"}]}}"#;

    #[test]
    fn flannel_result() {
        assert_eq!(
            parse(FLANNEL.as_bytes()),
            Some(Attachment {
                pod: ObjectName::new("prod", "db-0"),
                uid: Some("8a1e".into()),
                host: vec!["cni0".into(), "veth2c6e4f8a".into()],
                addresses: vec!["10.244.0.5".parse().unwrap()],
            })
        );
    }

    #[test]
    fn files_of_others() {
        let no_pod = r#"{"kind":"cniCacheV1","cniArgs":[],"result":{"interfaces":[]}}"#;
        let old_style = r#"{"cniVersion":"0.3.1","interfaces":[{"name":"veth0"}]}"#;
        assert_eq!(
            [no_pod, old_style, "", "{", "[]"].map(|text| parse(text.as_bytes())),
            [const { None }; 5]
        );
    }

    #[test]
    fn a_result_that_is_being_written_is_read_again() {
        let directory = std::env::temp_dir().join(format!("netpol-cni-half-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("cbr0-5f0c-eth0");
        let mut cache = Cache::new(&directory);
        let (half, whole) = FLANNEL.split_at(FLANNEL.len() / 2);
        // All within one tick of the file system's clock, of now and of long ago.
        for tick in [SystemTime::now(), SystemTime::UNIX_EPOCH] {
            let mut look = |text: &str| {
                fs::write(&path, text).unwrap();
                let file = fs::File::options().write(true).open(&path).unwrap();
                file.set_modified(tick).unwrap();
                cache.look().unwrap();
                cache.attachments().len()
            };
            let other = FLANNEL.replace("db-0", "db-1");
            assert_eq!(
                [look(""), look(half), look(FLANNEL)],
                [0, 0, 1],
                "{tick:?} {whole}"
            );
            look(&other);
            // Of the same length: only what is young may have been overwritten within a tick.
            let name = &*cache.attachments()[0].pod.name;
            assert_eq!(name == "db-1", tick != SystemTime::UNIX_EPOCH);
        }
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn results_of_cri_dockerd_are_found() {
        let root = std::env::temp_dir().join(format!("netpol-cni-docker-{}", std::process::id()));
        let (own, other) = (root.join("results"), root.join("cache/results"));
        let mut cache = Cache::new(&own);
        assert_eq!(cache.directory(), own);
        fs::create_dir_all(&other).unwrap();
        fs::write(other.join("cbr0-5f0c-eth0"), FLANNEL).unwrap();
        cache.look().unwrap();
        assert_eq!((cache.directory(), cache.attachments().len()), (&*other, 1));
        // What containerd and CRI-O write is the one that counts.
        fs::create_dir_all(&own).unwrap();
        cache.look().unwrap();
        assert_eq!((cache.directory(), cache.attachments().len()), (&*own, 0));
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn changes_are_seen() {
        let directory = std::env::temp_dir().join(format!("netpol-cni-{}", std::process::id()));
        let mut cache = Cache::new(&directory);
        let mut look = || {
            cache.look().unwrap();
            let pods = cache.attachments().into_iter();
            pods.map(|found| found.pod.name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(look(), [""; 0]);

        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("cbr0-5f0c-eth0"), FLANNEL).unwrap();
        let first = look();
        let path = directory.join("cbr0-5f0d-eth0");
        fs::write(&path, FLANNEL.replace("db-0", "db-1")).unwrap();
        let later = SystemTime::now() + std::time::Duration::from_secs(10);
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(later)
            .unwrap();
        let second = look();
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(
            (first, second),
            (
                vec!["db-0".to_owned()],
                vec!["db-0".to_owned(), "db-1".to_owned()]
            )
        );
        assert_eq!(look(), [""; 0]);
    }
}
