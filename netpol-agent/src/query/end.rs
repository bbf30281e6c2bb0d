//! The ends of a flow: as a person names them, and what they are in a snapshot.

use std::{fmt, net::IpAddr, str::FromStr};

use netpol_policy::{
    model::{NamedPort, ObjectName, Pod, Str},
    oracle,
};

use super::QueryError;

/// An end as it was written: `namespace/pod` (or `pod/NAMESPACE/POD`), `node/NAME`, or an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EndName {
    /// A pod by its name.
    Pod(ObjectName),
    /// A node by its name.
    Node(Str),
    /// An address: of a pod, of a node, or of somebody outside.
    Address(IpAddr),
}

impl FromStr for EndName {
    type Err = QueryError;

    /// `node/NAME` is always the node; `pod/node/NAME` names the pod in a namespace called `node`.
    fn from_str(text: &str) -> Result<Self, QueryError> {
        let parts: Vec<&str> = text.split('/').collect();
        match parts[..] {
            _ if parts.contains(&"") => Err(QueryError::EndSyntax(text.into())),
            ["node", name] => Ok(Self::Node(name.into())),
            [namespace, name] | ["pod", namespace, name] => Ok(Self::Pod(ObjectName::new(namespace, name))),
            [address] => address
                .parse()
                .map(Self::Address)
                .map_err(|_| QueryError::EndSyntax(text.into())),
            _ => Err(QueryError::EndSyntax(text.into())),
        }
    }
}

impl fmt::Display for EndName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(name) => name.fmt(f),
            Self::Node(name) => write!(f, "node/{name}"),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// An IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// The family of `address`; `::ffff:a.b.c.d` is IPv6.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// 4 or 6.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::V4 => 4,
            Self::V6 => 6,
        }
    }
}

impl FromStr for Family {
    type Err = QueryError;

    fn from_str(text: &str) -> Result<Self, QueryError> {
        match text {
            "4" => Ok(Self::V4),
            "6" => Ok(Self::V6),
            _ => Err(QueryError::Family(text.into())),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IPv{}", self.number())
    }
}

/// An end, found, with every address that it has.
#[derive(Clone, Debug)]
pub struct Found<'a> {
    /// What people are shown: `namespace/pod`, `node/NAME` or the address.
    pub label: String,
    /// One entry an address, in the order of the object.
    pub at: Vec<Located<'a>>,
    /// The pod whose named ports count where this is the destination.
    pub ports: Option<&'a [NamedPort]>,
}

impl<'a> Found<'a> {
    /// The first address of `family`.
    #[must_use]
    pub fn of(&self, family: Family) -> Option<&Located<'a>> {
        self.at.iter().find(|at| Family::of(at.address) == family)
    }
}

/// An end by one of its addresses.
#[derive(Clone, Debug)]
pub struct Located<'a> {
    /// The address by which it is meant.
    pub address: IpAddr,
    /// As the oracle takes it.
    pub end: oracle::End,
    /// What it is, as `-o json` says it.
    pub kind: Kind,
    /// The pods whose policies are asked.
    pub subjects: Vec<Subject<'a>>,
    /// The node whose packets these are.
    pub node: Option<&'a str>,
}

/// A pod whose policies are asked.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its place among the snapshot's pods.
    pub index: usize,
}

/// What an end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A pod with an address of its own.
    Pod,
    /// A node, or a `hostNetwork` pod.
    Node,
    /// Neither: an address outside the cluster, as far as the manifests know.
    Address,
}

/// By which of their addresses two ends talk: those of the family `asked`, else of the family of the
/// destination's first address that the source has an address of, too.
///
/// # Errors
/// They have no address of that family, or none in common; or a node's address counts and is not known.
pub(super) fn locate<'q, 'a>(
    from: &'q Found<'a>,
    to: &'q Found<'a>,
    asked: Option<Family>,
) -> Result<[&'q Located<'a>; 2], QueryError> {
    let pair = if let Some(family) = asked {
        let of = |end: &'q Found<'a>| {
            end.of(family).ok_or_else(|| QueryError::NoAddressOf {
                end: end.label.clone(),
                family,
                has: addresses(end),
            })
        };
        [of(from)?, of(to)?]
    } else {
        let fitting = |to: &'q Located<'a>| Some([from.of(Family::of(to.address))?, to]);
        to.at
            .iter()
            .find_map(fitting)
            .ok_or_else(|| QueryError::NoCommonFamily {
                from: from.label.clone(),
                from_has: addresses(from),
                to: to.label.clone(),
                to_has: addresses(to),
            })?
    };
    let [from, to] = pair;
    for (node, other) in [(from, to), (to, from)] {
        let own = !other.subjects.is_empty()
            && other
                .subjects
                .iter()
                .all(|other| other.pod.node.as_deref() == node.node);
        if node.kind == Kind::Node && node.address.is_unspecified() && !own {
            return Err(QueryError::NodeWithoutAddress(
                node.node.unwrap_or_default().into(),
            ));
        }
    }
    Ok(pair)
}

fn addresses(end: &Found<'_>) -> String {
    super::join(end.at.iter().map(|at| at.address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_ends() {
        let read = |text: &str| text.parse::<EndName>().ok();
        let pod = |namespace, name| Some(EndName::Pod(ObjectName::new(namespace, name)));
        assert_eq!(read("default/client"), pod("default", "client"));
        assert_eq!(read("pod/client"), pod("pod", "client"));
        assert_eq!(read("pod/node/client"), pod("node", "client"));
        assert_eq!(read("node/one"), Some(EndName::Node("one".into())));
        assert_eq!(read("10.0.0.1"), Some(EndName::Address([10, 0, 0, 1].into())));
        assert_eq!(
            read("fd00::1"),
            Some(EndName::Address("fd00::1".parse().unwrap()))
        );
        for bad in [
            "",
            "client",
            "/client",
            "default/",
            "node/",
            "pod//x",
            "a/b/c",
            "10.0.0.1/24/1",
            "fe80::1%eth0",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
