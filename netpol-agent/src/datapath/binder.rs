//! Which veth is which pod's: evidence from the CNI cache, host routes, aliases, and the far end's addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
};

use netpol_policy::model::ObjectName;

use super::{
    cni::{Attachment, Cache},
    devices::{Device, Evidence, Role, Seen, classify},
    error::{Error, Result},
    namespaces,
};

/// A local pod, as the agent describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// Namespace and name.
    pub name: ObjectName,
    /// `metadata.uid`
    pub uid: netpol_policy::model::Str,
    /// Its addresses, at most one a family.
    pub addresses: Vec<IpAddr>,
    /// May send from other addresses and speak tunnel protocols.
    pub exempt: bool,
}

/// What was bound by the far end's addresses. It is kept while the device and the pod are there: a pod may
/// give itself more addresses, but not another identity.
#[derive(Debug)]
pub(crate) struct Binder {
    cache: Cache,
    /// A device of this node was in the cache: whose the next is will be, too. The far end's address is known earlier, but it
    /// may be that of another pod, of which nobody has heard yet that it is gone.
    cache_serves: bool,
    outside: Vec<String>,
    /// ifindex and the peer's ifindex (another device may get the number) → pod.
    far: BTreeMap<(u32, Option<u32>), ObjectName>,
}

impl Binder {
    /// `outside`: device names that the administrator calls outside.
    pub(crate) fn new(cni_cache: &Path, outside: Vec<String>) -> Self {
        Self {
            cache: Cache::new(cni_cache),
            cache_serves: false,
            outside,
            far: BTreeMap::new(),
        }
    }

    /// The role of every device in `seen`; and why the runtime's results or the far ends could not be asked, where that was
    /// needed: the roles are right all the same, with more pods unknown. `were_outside`: as in [`Evidence`]. `earlier`: whose the
    /// kernel says that devices are; it counts until the runtime's results name a device of this node, as these may be out of
    /// reach after a restart, and what is in force stays so.
    pub(crate) fn roles(
        &mut self,
        seen: &Seen,
        pods: &[LocalPod],
        were_outside: BTreeSet<u32>,
        mut earlier: BTreeMap<u32, ObjectName>,
    ) -> (BTreeMap<u32, Role>, Option<Error>) {
        // What was read of them before stays true meanwhile.
        let unreadable = self.cache.look().err();
        let (bound, named) = self.cached(seen, pods);
        let mut evidence = Evidence {
            bound,
            addresses: owners(pods),
            outside: self.outside.clone(),
            were_outside,
        };
        self.cache_serves |= named;
        self.forget(seen, &evidence);
        evidence
            .bound
            .extend(self.far.iter().map(|((index, _), pod)| (*index, pod.clone())));
        if self.cache_serves {
            earlier.clear();
        }
        let roles = recall(classify(seen, &evidence), &earlier);

        // Asking other namespaces is dear and needs CAP_SYS_ADMIN: only where a pod has no device and a device no pod.
        let bound: BTreeSet<&ObjectName> = roles.values().filter_map(pod_of).collect();
        let lost = |pod: &&LocalPod| !pod.addresses.is_empty() && !bound.contains(&pod.name);
        let homeless: BTreeMap<IpAddr, ObjectName> = evidence
            .addresses
            .iter()
            .filter(|(_, name)| pods.iter().filter(lost).any(|pod| pod.name == **name))
            .map(|(address, name)| (*address, name.clone()))
            .collect();
        let unknown = || {
            seen.devices
                .values()
                .filter(|device| device.kind == "veth" && roles.get(&device.index) == Some(&Role::Pod(None)))
        };
        if self.cache_serves || homeless.is_empty() || unknown().next().is_none() {
            return (roles, unreadable);
        }
        let far = match namespaces::far_addresses(unknown()) {
            Ok(far) => far,
            Err(Error::NotPermitted { .. }) => {
                let error = Error::FarEnds {
                    pods: homeless.values().collect::<BTreeSet<_>>().len(),
                    devices: unknown().count(),
                };
                return (roles, Some(unreadable.unwrap_or(error)));
            }
            Err(error) => return (roles, Some(unreadable.unwrap_or(error))),
        };
        // The youngest first: an address that is used again belongs to the pod that came last, while the sandbox of the one
        // before may linger.
        let found = self.bind_far(unknown().rev(), &far, &homeless);
        if found.is_empty() {
            return (roles, unreadable);
        }
        evidence.bound.extend(found);
        (recall(classify(seen, &evidence), &earlier), unreadable)
    }

    /// Whether a result of the runtime's has named a device of this node: what was bound earlier counts no more.
    pub(crate) fn cache_serves(&self) -> bool {
        self.cache_serves
    }

    /// Where the runtime keeps its results.
    pub(crate) fn directory(&self) -> &Path {
        self.cache.directory()
    }

    /// What the runtime said when it was looked at last.
    pub(crate) fn attachments(&self) -> Vec<&Attachment> {
        self.cache.attachments()
    }

    /// Looks at the runtime's results alone.
    pub(crate) fn look_at_cache(&mut self) -> Result<()> {
        self.cache.look()
    }

    /// Whose veths are, by the runtime's results, and whether these name any of our veths. A result of another life of a name is
    /// no evidence: the pod that the source tells of has other labels, and its device is yet to come or not yet gone.
    fn cached(&self, seen: &Seen, pods: &[LocalPod]) -> (BTreeMap<u32, ObjectName>, bool) {
        let lives: BTreeMap<&ObjectName, &str> = pods.iter().map(|pod| (&pod.name, &*pod.uid)).collect();
        let veths = seen.devices.values().filter(|device| device.kind == "veth");
        let devices: BTreeMap<&str, u32> = veths.map(|device| (&*device.name, device.index)).collect();
        let (mut bound, mut named) = (BTreeMap::new(), false);
        for result in self.cache.attachments() {
            for index in result.host.iter().filter_map(|name| devices.get(&**name)) {
                named = true;
                let ours = lives.get(&result.pod).is_none_or(|uid| result.is_of(uid));
                match ours {
                    true => bound.insert(*index, result.pod.clone()),
                    false => bound.remove(index),
                };
            }
        }
        (bound, named)
    }

    /// Drops bindings whose device or pod is gone, or whom a better source knows.
    fn forget(&mut self, seen: &Seen, evidence: &Evidence) {
        self.far.retain(|(index, lower), pod| {
            let same = seen
                .devices
                .get(index)
                .is_some_and(|device| device.lower == *lower);
            same && !evidence.bound.contains_key(index)
                && evidence.addresses.values().any(|owner| owner == pod)
        });
    }

    fn bind_far<'a>(
        &mut self,
        devices: impl Iterator<Item = &'a Device>,
        far: &BTreeMap<u32, Vec<IpAddr>>,
        homeless: &BTreeMap<IpAddr, ObjectName>,
    ) -> BTreeMap<u32, ObjectName> {
        let mut found = BTreeMap::new();
        let mut taken: BTreeSet<ObjectName> = BTreeSet::new();
        for device in devices {
            let addresses = far.get(&device.index).map_or(&[][..], Vec::as_slice);
            let Some(pod) = addresses.iter().find_map(|address| homeless.get(address)) else {
                continue;
            };
            if taken.insert(pod.clone()) {
                self.far.insert((device.index, device.lower), pod.clone());
                found.insert(device.index, pod.clone());
            } else {
                tracing::warn!(device = device.name, %pod, "another device claims this pod's address: not bound");
            }
        }
        found
    }
}

/// What was in force on a device stays so where nothing else says whose it, or its pod's, is.
fn recall(mut roles: BTreeMap<u32, Role>, earlier: &BTreeMap<u32, ObjectName>) -> BTreeMap<u32, Role> {
    let found: BTreeSet<ObjectName> = roles.values().filter_map(pod_of).cloned().collect();
    for (device, pod) in earlier {
        if let Some(role) = roles.get_mut(device)
            && *role == Role::Pod(None)
            && !found.contains(pod)
        {
            *role = Role::Pod(Some(pod.clone()));
        }
    }
    roles
}

fn pod_of(role: &Role) -> Option<&ObjectName> {
    match role {
        Role::Pod(pod) => pod.as_ref(),
        _ => None,
    }
}

/// Whose each address is. Of several, the first by name; sources report such pods.
pub(crate) fn owners(pods: &[LocalPod]) -> BTreeMap<IpAddr, ObjectName> {
    let mut owners = BTreeMap::new();
    for pod in pods {
        for address in &pod.addresses {
            owners.entry(*address).or_insert_with(|| pod.name.clone());
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, address: &str) -> LocalPod {
        LocalPod {
            name: ObjectName::new("default", name),
            uid: "".into(),
            addresses: vec![address.parse().unwrap()],
            exempt: false,
        }
    }

    fn veth(index: u32) -> Device {
        Device {
            index,
            name: format!("veth{index}"),
            kind: "veth".into(),
            lower: Some(2),
            peer_namespace: Some(index as i32),
            ..Device::default()
        }
    }

    fn binder() -> Binder {
        Binder::new(Path::new("/nonexistent"), Vec::new())
    }

    #[test]
    fn an_address_binds_one_device_and_stays() {
        let (a, b) = (veth(5), veth(6));
        let db = pod("db", "10.0.0.5");
        let homeless = owners(std::slice::from_ref(&db));
        let far = BTreeMap::from([
            (5, vec!["10.0.0.5".parse().unwrap()]),
            (6, vec!["10.0.0.5".parse().unwrap()]),
        ]);
        let mut binder = binder();
        let found = binder.bind_far([&a, &b].into_iter(), &far, &homeless);
        assert_eq!(found, BTreeMap::from([(5, db.name.clone())]));

        let seen = Seen {
            devices: [a, b].map(|device| (device.index, device)).into(),
            ..Seen::default()
        };
        // The other device is unknown; nobody is homeless, so nobody is asked again.
        let (roles, failure) =
            binder.roles(&seen, std::slice::from_ref(&db), BTreeSet::new(), BTreeMap::new());
        assert_eq!(
            roles,
            BTreeMap::from([(5, Role::Pod(Some(db.name.clone()))), (6, Role::Pod(None))])
        );
        assert!(failure.is_none());
    }

    #[test]
    fn what_was_in_force_is_the_last_evidence() {
        let (db, web) = (pod("db", "10.0.0.5"), pod("web", "10.0.0.6"));
        let alias = |name: &str| Device {
            alias: Some(format!("netpol:default/{name}")),
            ..veth(6)
        };
        let roles = |other: Device, earlier: &[(u32, &LocalPod)]| {
            let seen = Seen {
                devices: [veth(5), other].map(|device| (device.index, device)).into(),
                ..Seen::default()
            };
            let earlier = earlier
                .iter()
                .map(|(device, pod)| (*device, pod.name.clone()))
                .collect();
            let pods = [db.clone(), web.clone()];
            binder().roles(&seen, &pods, BTreeSet::new(), earlier).0
        };
        let bound = |device: u32, pod: &LocalPod| (device, Role::Pod(Some(pod.name.clone())));
        assert_eq!(
            roles(alias("web"), &[(5, &db), (6, &db), (7, &web)]),
            BTreeMap::from([bound(5, &db), bound(6, &web)])
        );
        // The pod has another device: what it had is not its any more.
        assert_eq!(
            roles(alias("db"), &[(5, &db)]),
            BTreeMap::from([(5, Role::Pod(None)), bound(6, &db)])
        );
    }

    #[test]
    fn a_binding_ends_with_its_device_or_pod() {
        let db = pod("db", "10.0.0.5");
        let bound = || Binder {
            far: BTreeMap::from([((5, Some(2)), db.name.clone())]),
            ..binder()
        };
        let look = |device: Device, pods: &[LocalPod]| {
            let mut binder = bound();
            let seen = Seen {
                devices: BTreeMap::from([(device.index, device)]),
                ..Seen::default()
            };
            let evidence = Evidence {
                addresses: owners(pods),
                ..Evidence::default()
            };
            binder.forget(&seen, &evidence);
            binder.far.len()
        };
        let replaced = Device {
            lower: Some(9),
            ..veth(5)
        };
        assert_eq!(look(veth(5), std::slice::from_ref(&db)), 1);
        assert_eq!(look(replaced, std::slice::from_ref(&db)), 0);
        assert_eq!(look(veth(6), std::slice::from_ref(&db)), 0);
        assert_eq!(look(veth(5), &[pod("web", "10.0.0.6")]), 0);
    }
}
