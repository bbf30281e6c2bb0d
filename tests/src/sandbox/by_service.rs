//! Questions by the address of a Service, and by a node's port.

use std::net::{IpAddr, SocketAddr};

use netpol_policy::oracle::{End, Flow};

use super::{
    checks::{Check, Questions, Site, Via},
    services::{Backend, CHOICES, Virtual},
};

impl Questions<'_> {
    pub(super) fn by_service(&self, number: usize, from: Site, v4: bool, checks: &mut Vec<Check>) {
        let service = &self.services[number];
        let Some(source) = self.address(from, v4) else {
            return;
        };
        let cluster = service
            .addresses
            .iter()
            .filter(|address| address.is_ipv4() == v4 && !matches!(from, Site::Outside(_)));
        for address in cluster {
            let choices = service
                .choices(self.layout, v4, None)
                .enumerate()
                .take(CHOICES.into());
            for (slot, backend) in choices {
                let to = self.behind(backend);
                let flow = self.flow(
                    self.end(from, source),
                    self.end(to, backend.address),
                    service.protocol,
                    backend.port,
                );
                let probe = self.probe(
                    source,
                    SocketAddr::new(*address, service.port),
                    service.protocol,
                    slot_port(checks.len(), slot),
                );
                let via = Some(Via {
                    service: number,
                    node: None,
                });
                checks.push(Check {
                    from,
                    to,
                    via,
                    declared: true,
                    probe,
                    flows: vec![flow],
                });
            }
        }
        let Some(port) = service.node_port.filter(|_| !matches!(from, Site::Node(_))) else {
            return;
        };
        for (node, place) in self.layout.nodes.iter().enumerate() {
            let Some(address) = place.address(v4) else {
                continue;
            };
            let only = service.local_only.then_some(node);
            for (slot, backend) in service
                .choices(self.layout, v4, only)
                .enumerate()
                .take(CHOICES.into())
            {
                let to = self.behind(backend);
                let flows = self.node_port_flows(service, port, from, source, (node, address), (to, backend));
                let probe = self.probe(
                    source,
                    SocketAddr::new(address, port),
                    service.protocol,
                    slot_port(checks.len(), slot),
                );
                let via = Some(Via {
                    service: number,
                    node: Some(node),
                });
                checks.push(Check {
                    from,
                    to,
                    via,
                    declared: true,
                    probe,
                    flows,
                });
            }
        }
    }

    /// A pod's packet to its own node's port meets the DNAT there and is known as the pod's to the end. To another
    /// node it leaves as a packet to that node's port and, masqueraded, comes there as its own node's.
    fn node_port_flows(
        &self,
        service: &Virtual,
        port: u16,
        from: Site,
        source: IpAddr,
        (node, address): (usize, IpAddr),
        (to, backend): (Site, &Backend),
    ) -> Vec<Flow> {
        let target = self.end(to, backend.address);
        let second = |sender: End| self.flow(sender, target.clone(), service.protocol, backend.port);
        let own = match from {
            Site::Pod(at) => Some(self.layout.pods[at].node),
            Site::Node(at) => Some(at),
            Site::Outside(_) => None,
        };
        if own == Some(node) {
            return vec![second(self.end(from, source))];
        }
        let masqueraded = if service.local_only {
            // Only what the sender's own node did to it.
            own.and_then(|own| self.layout.nodes[own].address(source.is_ipv4()))
                .unwrap_or(source)
        } else {
            self.masquerade(node, backend, to)
        };
        let first = own.map(|_| {
            self.flow(
                self.end(from, source),
                self.end(Site::Node(node), address),
                service.protocol,
                port,
            )
        });
        first.into_iter().chain([second(End::Ip(masqueraded))]).collect()
    }

    /// The address with which `node` masquerades what it sends to `backend`: that of the device it leaves by.
    fn masquerade(&self, node: usize, backend: &Backend, to: Site) -> IpAddr {
        let (place, v4) = (&self.layout.nodes[node], backend.address.is_ipv4());
        match to {
            Site::Pod(at) if self.layout.pods[at].node == node && !self.layout.pods[at].host_network => {
                place.bridge(v4)
            }
            Site::Pod(at) if self.tunnel && !self.layout.pods[at].host_network => {
                place.pods[usize::from(!v4)].network()
            }
            _ => place.address(v4).unwrap_or(backend.address),
        }
    }

    pub(super) fn behind(&self, backend: &Backend) -> Site {
        let node = || {
            self.layout
                .nodes
                .iter()
                .position(|node| node.addresses.contains(&backend.address))
        };
        let outside = || {
            self.layout
                .outside
                .iter()
                .position(|address| *address == backend.address)
        };
        match backend.pod {
            Some(pod) => Site::Pod(pod),
            None => node()
                .map(Site::Node)
                .or_else(|| outside().map(Site::Outside))
                .unwrap_or(Site::Outside(0)),
        }
    }
}

/// Source ports of probes: below those that the kernel chooses.
const FIRST_PORT: u16 = 12_288;
/// How many times [`CHOICES`] of them there are.
const TURNS: u16 = 319;

/// A source port that makes the DNAT rules choose endpoint number `slot`; checks that are near to each other get
/// different ones.
fn slot_port(check: usize, slot: usize) -> u16 {
    let turn = u16::try_from(check % usize::from(TURNS)).unwrap_or_default();
    FIRST_PORT + turn * CHOICES + u16::try_from(slot).unwrap_or_default()
}

/// Another source port that leads to the same endpoint, for another try: the first may still be taken by what is left
/// of the first connection. The kernel's choice (0) stays.
pub(super) fn another_port(port: u16, tries: u16) -> u16 {
    let Some(above) = port.checked_sub(FIRST_PORT) else {
        return port;
    };
    let turn = (above / CHOICES + tries * (TURNS / 3)) % TURNS;
    FIRST_PORT + turn * CHOICES + above % CHOICES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_try_has_another_port_and_the_same_endpoint() {
        for (check, slot) in [(0, 0), (318, 63), (1000, 7)] {
            let ports = [0, 1, 2].map(|tries| another_port(slot_port(check, slot), tries));
            assert!(ports[0] != ports[1] && ports[1] != ports[2] && ports[0] != ports[2]);
            assert!(ports.iter().all(|port| usize::from(port % CHOICES) == slot));
            assert!(ports.iter().all(|port| (FIRST_PORT..32_768).contains(port)));
        }
        assert_eq!(another_port(0, 2), 0);
    }
}
