//! One rule against one flow.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    Asked, Place,
    index::Index,
    prepared::{PreparedPeer, PreparedRule},
};
use crate::model::{PortMatch, PortSpec, Ports};

impl Index<'_> {
    /// types, NetworkPolicyIngressRule: "The traffic must match both ports and from."
    /// types, NetworkPolicyEgressRule: "The traffic must match both ports and to."
    ///
    /// `target` is the flow's destination as pods: the pod that is asked (ingress), or the owners of the
    /// destination address (egress).
    pub(super) fn rule_matches(
        &self,
        rule: &PreparedRule<'_>,
        remote: Place<'_>,
        target: &[usize],
        asked: Asked,
    ) -> bool {
        // Ports first: a comparison of numbers settles most rules.
        self.ports_match(rule.ports, target, asked) && self.peers_match(rule.peers.as_deref(), remote)
    }

    /// types, from: "Items in this list are combined using a logical OR operation. If this field is empty or
    /// missing, this rule matches all sources (traffic not restricted by source)." The same for `to`.
    fn peers_match(&self, peers: Option<&[PreparedPeer<'_>]>, remote: Place<'_>) -> bool {
        peers.is_none_or(|peers| peers.iter().any(|peer| self.peer_matches(peer, remote)))
    }

    /// An address without owner is no pod: no selector, not even the empty one, matches it. Of several owners
    /// all must match.
    fn peer_matches(&self, peer: &PreparedPeer<'_>, remote: Place<'_>) -> bool {
        match *peer {
            PreparedPeer::IpBlock { cidr, except } => in_block(cidr, except, remote.address),
            PreparedPeer::Pods(number) => {
                !remote.owners.is_empty() && remote.owners.iter().all(|&owner| self.meant_by(owner)[number])
            }
        }
    }

    /// types, ports: "Each item in this list is combined using a logical OR. If this field is empty or missing,
    /// this rule matches all ports (traffic not restricted by port). If this field is present and contains at
    /// least one item, then this rule allows traffic only if the traffic matches at least one port in the
    /// list."
    ///
    /// types, protocol: "protocol represents the protocol (TCP, UDP, or SCTP) which traffic must match." So a
    /// protocol that is none of these matches only rules without ports.
    fn ports_match(&self, ports: &Ports, target: &[usize], asked: Asked) -> bool {
        match ports {
            Ports::Any => true,
            Ports::Of(ports) => ports.iter().any(|port| self.port_matches(port, target, asked)),
        }
    }

    /// types, port: "This can either be a numerical or named port on a pod. If this field is not provided, this
    /// matches all port names and numbers. If present, only traffic on the specified protocol AND port will be
    /// matched."
    ///
    /// types, endPort: "endPort indicates that the range of ports from port to endPort if set, inclusive, should
    /// be allowed by the policy."
    fn port_matches(&self, port: &PortMatch, target: &[usize], asked: Asked) -> bool {
        port.protocol.number() == asked.protocol
            && match &port.port {
                PortSpec::All => true,
                PortSpec::Range(first, last) => (*first..=*last).contains(&asked.port),
                // "named port on a pod": the destination's, whichever of its containers declares it, as often
                // as they declare it. What is no pod has no named ports.
                PortSpec::Named(name) => {
                    !target.is_empty()
                        && target.iter().all(|&pod| {
                            self.endpoint(pod).ports.iter().any(|declared| {
                                declared.number == asked.port
                                    && declared.protocol == port.protocol
                                    && declared.name == *name
                            })
                        })
                }
            }
    }
}

/// types, IPBlock: "IPBlock describes a particular CIDR [...] that is allowed to the pods matched by a
/// NetworkPolicySpec's podSelector. The except entry describes CIDRs that should not be included within this
/// rule." Within *this* rule: another rule or peer may allow what is excepted here.
fn in_block(cidr: &IpNet, except: &[IpNet], address: IpAddr) -> bool {
    cidr.contains(&address) && !except.iter().any(|hole| hole.contains(&address))
}
