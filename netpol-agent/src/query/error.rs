//! What can be wrong with a question.

use netpol_policy::model::ObjectName;

use super::end::Family;

/// A question that can not be answered as it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// Neither of the forms of an end.
    #[error("`{0}` is no end; write namespace/pod, node/NAME, or an IP address")]
    EndSyntax(String),
    /// No such pod.
    #[error("there is no pod {name}; {hint}")]
    UnknownPod {
        /// What was asked.
        name: ObjectName,
        /// What there is instead.
        hint: String,
    },
    /// No such node.
    #[error("there is no node {name}; {}", if .known.is_empty() { "no manifest names any node".to_owned() } else { format!("there is {}", .known) })]
    UnknownNode {
        /// What was asked.
        name: String,
        /// The nodes that there are.
        known: String,
    },
    /// A pod that has ended.
    #[error("pod {0} has completed: it has no address any more, so nothing can reach it or come from it")]
    Completed(ObjectName),
    /// A pod without address.
    #[error("pod {0} has no address yet; give it one in status.podIPs")]
    PodWithoutAddress(ObjectName),
    /// A `hostNetwork` pod of which no address is known.
    #[error(
        "pod {0} uses the host network and its node's address is not known; add a Node with status.addresses, or \
         status.podIPs to the pod"
    )]
    HostPodWithoutAddress(ObjectName),
    /// A node of which no address is known, and a peer for which the address counts.
    #[error("node {0} has no address; add a Node object with status.addresses")]
    NodeWithoutAddress(String),
    /// `--family` is neither 4 nor 6.
    #[error("`{0}` is no address family; write 4 or 6")]
    Family(String),
    /// The end has no address of the family that was asked for.
    #[error("{end} has no {family} address (it has {has})")]
    NoAddressOf {
        /// The end.
        end: String,
        /// What was asked.
        family: Family,
        /// The addresses that it has.
        has: String,
    },
    /// One end is IPv4 only, the other IPv6 only.
    #[error("{from} ({from_has}) and {to} ({to_has}) have no address family in common")]
    NoCommonFamily {
        /// The source.
        from: String,
        /// Its addresses.
        from_has: String,
        /// The destination.
        to: String,
        /// Its addresses.
        to_has: String,
    },
    /// Not a protocol.
    #[error("`{0}` is no protocol; write TCP, UDP, SCTP, ICMP, ICMPv6 or a number from 0 to 255")]
    Protocol(String),
    /// Not a port number, and not a port's name.
    #[error("`{0}` is no port; write a number from 1 to 65535 or the name of one of the destination's ports")]
    PortSyntax(String),
    /// TCP, UDP or SCTP without port.
    #[error("{0} needs a port: a number from 1 to 65535 or the name of one of the destination's ports")]
    PortMissing(String),
    /// A port with a protocol that has none.
    #[error("{0} has no ports; leave the port out")]
    PortNotWanted(String),
    /// The destination has no port of this name.
    #[error("{end} has no {protocol} port named `{name}`; {}", if .has.is_empty() { "it has no named ports".to_owned() } else { format!("it has {}", .has) })]
    UnknownPort {
        /// The destination.
        end: String,
        /// The protocol.
        protocol: String,
        /// What was asked.
        name: String,
        /// The named ports that it has.
        has: String,
    },
    /// The destination is not one pod, so it has no named ports.
    #[error("{end} is not a pod, so it has no port named `{name}`; give the port's number")]
    PortNeedsPod {
        /// The destination.
        end: String,
        /// What was asked.
        name: String,
    },
    /// Two numbers behind one name.
    #[error("{end} has several {protocol} ports named `{name}`: {numbers}; give the number")]
    AmbiguousPort {
        /// The destination.
        end: String,
        /// The protocol.
        protocol: String,
        /// What was asked.
        name: String,
        /// The numbers.
        numbers: String,
    },
}
