//! The container runtime's own record of which veth is whose: the result cache of CNI.
//!
//! libcni writes `DIR/results/NETWORK-CONTAINER-IFNAME` when a pod's network is ready, before the pod's first
//! process starts, and removes it with the pod (containernetworking/cni, `libcni/api.go`).

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use netpol_policy::model::ObjectName;
use serde::Deserialize;

use super::error::{Error, Result};

/// One cached result: a pod and the device names of its interfaces on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// `K8S_POD_NAMESPACE`, `K8S_POD_NAME`
    pub pod: ObjectName,
    /// Names of interfaces outside the pod's sandbox: its veth, mostly also the bridge.
    pub host: Vec<String>,
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
    let host = cached
        .result?
        .interfaces
        .into_iter()
        .filter(|interface| interface.sandbox.is_empty())
        .map(|interface| interface.name)
        .collect();
    Some(Attachment { pod, host })
}

/// The cache's files, read again only where they have changed.
#[derive(Debug)]
pub(crate) struct Cache {
    directory: PathBuf,
    files: BTreeMap<PathBuf, (SystemTime, Option<Attachment>)>,
}

impl Cache {
    pub(crate) fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            files: BTreeMap::new(),
        }
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Looks again: host device name → pod. Without a cache there is none.
    pub(crate) fn look(&mut self) -> Result<BTreeMap<String, ObjectName>> {
        let failed = || format!("reading the CNI cache {}", self.directory.display());
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.files.clear();
                return Ok(BTreeMap::new());
            }
            Err(error) => return Err(Error::io(failed())(error)),
        };
        let mut files = BTreeMap::new();
        for entry in entries {
            let path = entry.map_err(Error::io(failed()))?.path();
            // A file that goes while we look goes with its pod.
            let Ok(changed) = fs::metadata(&path).and_then(|metadata| metadata.modified()) else {
                continue;
            };
            let known = self.files.remove(&path).filter(|(then, _)| *then == changed);
            let known =
                known.unwrap_or_else(|| (changed, fs::read(&path).ok().and_then(|bytes| parse(&bytes))));
            files.insert(path, known);
        }
        self.files = files;
        Ok(self.names())
    }

    fn names(&self) -> BTreeMap<String, ObjectName> {
        // The newest word about a name is the last: a name may come again before the old file is removed.
        let mut attachments: Vec<_> = self
            .files
            .values()
            .filter_map(|(changed, attachment)| attachment.as_ref().map(|attachment| (changed, attachment)))
            .collect();
        attachments.sort_by_key(|(changed, _)| **changed);
        attachments
            .into_iter()
            .flat_map(|(_, attachment)| {
                attachment
                    .host
                    .iter()
                    .map(|name| (name.clone(), attachment.pod.clone()))
            })
            .collect()
    }
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
                host: vec!["cni0".into(), "veth2c6e4f8a".into()],
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
    fn changes_are_seen() {
        let directory = std::env::temp_dir().join(format!("netpol-cni-{}", std::process::id()));
        let mut cache = Cache::new(&directory);
        assert_eq!(cache.look().unwrap(), BTreeMap::new());

        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("cbr0-5f0c-eth0"), FLANNEL).unwrap();
        let expected = |pod: &str| {
            let pod = ObjectName::new("prod", pod);
            BTreeMap::from([("cni0".to_owned(), pod.clone()), ("veth2c6e4f8a".to_owned(), pod)])
        };
        let first = cache.look().unwrap();
        let path = directory.join("cbr0-5f0d-eth0");
        fs::write(&path, FLANNEL.replace("db-0", "db-1")).unwrap();
        let later = SystemTime::now() + std::time::Duration::from_secs(10);
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(later)
            .unwrap();
        let second = cache.look().unwrap();
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!((first, second), (expected("db-0"), expected("db-1")));
        assert_eq!(cache.look().unwrap(), BTreeMap::new());
    }
}
