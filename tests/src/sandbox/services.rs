//! Services: their addresses, what is behind them, and the NAT rules of a node, as kube-proxy would write them.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netpol_policy::model::{ObjectName, Protocol, Snapshot};

use super::{
    layout::Layout,
    manifest::{Raw, Service, ServicePort, Target},
};

/// A probe's source port modulo this chooses the endpoint, so that every endpoint can be asked for; any other
/// packet's endpoint is chosen at random, as kube-proxy does.
pub const CHOICES: u16 = 64;

/// kube-proxy's mark for packets to be masqueraded.
const MASQUERADE: &str = "0x4000";

/// One port of a Service with its addresses and endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Virtual {
    /// The Service.
    pub service: ObjectName,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its port.
    pub port: u16,
    /// Its cluster addresses.
    pub addresses: Vec<IpAddr>,
    /// The port of every node that leads to it.
    pub node_port: Option<u16>,
    /// `externalTrafficPolicy: Local`
    pub local_only: bool,
    /// Of both families.
    pub backends: Vec<Backend>,
}

/// Where a Service leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// The index of the pod, where it is one.
    pub pod: Option<usize>,
}

impl Virtual {
    /// The endpoints of one family that a packet may be sent to, in order; on a node that only sends to its own, those.
    pub fn choices<'a>(
        &'a self,
        layout: &'a Layout,
        v4: bool,
        only: Option<usize>,
    ) -> impl Iterator<Item = &'a Backend> {
        self.backends.iter().filter(move |backend| {
            let node = backend.pod.map(|pod| layout.pods[pod].node);
            backend.address.is_ipv4() == v4 && only.is_none_or(|only| node == Some(only))
        })
    }
}

/// Every port of every Service that has an address.
#[must_use]
pub fn services(snapshot: &Snapshot, raw: &Raw, layout: &Layout) -> Vec<Virtual> {
    let mut used: BTreeSet<IpAddr> = raw
        .services
        .iter()
        .flat_map(|service| service.cluster_ips.iter().copied())
        .collect();
    let mut used_ports: BTreeSet<u16> = raw
        .services
        .iter()
        .flat_map(|service| service.ports.iter().filter_map(|port| port.node_port))
        .collect();
    let mut all = Vec::new();
    for service in &raw.services {
        let addresses = if service.cluster_ips.is_empty() {
            free_addresses(&mut used)
        } else {
            service.cluster_ips.clone()
        };
        for port in &service.ports {
            let node_port = service
                .on_nodes
                .then(|| port.node_port.unwrap_or_else(|| free_port(&mut used_ports)));
            all.push(Virtual {
                service: service.name.clone(),
                protocol: port.protocol,
                port: port.number,
                addresses: addresses.clone(),
                node_port,
                local_only: service.local_only,
                backends: backends(snapshot, raw, layout, service, port),
            });
        }
    }
    all
}

fn free_addresses(used: &mut BTreeSet<IpAddr>) -> Vec<IpAddr> {
    let v4 =
        (10..).map(|n: u32| IpAddr::from(Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 0, 0).to_bits() + n)));
    let v6 = (10..).map(|n: u16| IpAddr::from(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, n)));
    let mut first =
        |mut addresses: Box<dyn Iterator<Item = IpAddr>>| addresses.find(|address| used.insert(*address));
    [first(Box::new(v4)), first(Box::new(v6))]
        .into_iter()
        .flatten()
        .collect()
}

fn free_port(used: &mut BTreeSet<u16>) -> u16 {
    (30_000..=32_767)
        .find(|port| used.insert(*port))
        .unwrap_or(30_000)
}

fn backends(
    snapshot: &Snapshot,
    raw: &Raw,
    layout: &Layout,
    service: &Service,
    port: &ServicePort,
) -> Vec<Backend> {
    let mut found = Vec::new();
    if let Some(selector) = &service.selector {
        let selects = |name: &ObjectName| {
            let labels = snapshot.pods.get(name).map(|pod| &pod.labels);
            *name.namespace == *service.name.namespace
                && labels
                    .is_some_and(|labels| selector.iter().all(|(key, value)| labels.get(key) == Some(value)))
        };
        for (at, pod) in layout
            .pods
            .iter()
            .enumerate()
            .filter(|(_, pod)| selects(&pod.name))
        {
            let number = match &port.target {
                Target::Number(number) => Some(*number),
                Target::Name(name) => {
                    let same = |own: &&super::manifest::ContainerPort| {
                        own.name.as_ref() == Some(name) && own.protocol == port.protocol
                    };
                    pod.ports.iter().find(same).map(|own| own.number)
                }
            };
            let number = number.into_iter();
            found.extend(number.flat_map(|number| {
                pod.addresses.iter().map(move |address| Backend {
                    address: *address,
                    port: number,
                    pod: Some(at),
                })
            }));
        }
    }
    let by_hand = raw
        .endpoints
        .iter()
        .filter(|end| service.selector.is_none() && end.service == service.name && end.port == port.name);
    found.extend(by_hand.map(|end| {
        let pod = layout
            .pods
            .iter()
            .position(|pod| !pod.host_network && pod.addresses.contains(&end.address));
        Backend {
            address: end.address,
            port: end.number,
            pod,
        }
    }));
    found.sort();
    found.dedup();
    found
}

/// The nftables script of node number `at`.
#[must_use]
pub fn nat_rules(layout: &Layout, services: &[Virtual], at: usize) -> String {
    [true, false]
        .map(|v4| family_rules(layout, services, at, v4))
        .concat()
}

fn family_rules(layout: &Layout, services: &[Virtual], at: usize, v4: bool) -> String {
    let ip = if v4 { "ip" } else { "ip6" };
    let (mut chains, mut dispatch, mut nodes) = (String::new(), String::new(), String::new());
    for (number, service) in services.iter().enumerate() {
        let protocol = service.protocol.name().to_lowercase();
        let choices: Vec<_> = service.choices(layout, v4, None).collect();
        for (index, backend) in choices.iter().enumerate() {
            chains += &endpoint_chain(&format!("ep-{number}-{index}"), &protocol, ip, backend);
        }
        let indices: Vec<usize> = (0..choices.len()).collect();
        chains += &choice_chain(&format!("svc-{number}"), number, &protocol, &indices);
        for address in service.addresses.iter().filter(|address| address.is_ipv4() == v4) {
            let _ = writeln!(
                dispatch,
                "  {ip} daddr {address} {protocol} dport {} goto svc-{number}",
                service.port
            );
        }
        let Some(port) = service.node_port else { continue };
        let own: Vec<usize> = indices
            .iter()
            .copied()
            .filter(|i| choices[*i].pod.is_some_and(|pod| layout.pods[pod].node == at))
            .collect();
        chains += &choice_chain(&format!("own-{number}"), number, &protocol, &own);
        let to = if service.local_only {
            format!("goto own-{number}")
        } else {
            format!("meta mark set meta mark or {MASQUERADE} goto svc-{number}")
        };
        let _ = writeln!(nodes, "  fib daddr type local {protocol} dport {port} {to}");
    }
    let pods: Vec<String> = pod_networks(layout, v4);
    let pods = pods.join(", ");
    format!(
        "table {ip} sandbox {{\n set pods {{ type {v}_addr; flags interval; auto-merge; elements = {{ {pods} }}; }}\n{chains} chain services {{\n{dispatch}{nodes} }}\n \
         chain prerouting {{ type nat hook prerouting priority dstnat; policy accept; jump services; }}\n \
         chain output {{ type nat hook output priority -100; policy accept; jump services; }}\n \
         chain postrouting {{ type nat hook postrouting priority srcnat; policy accept;\n  meta mark and {MASQUERADE} == {MASQUERADE} meta mark set meta mark xor {MASQUERADE} masquerade\n  \
         {ip} saddr @pods {ip} daddr != @pods masquerade\n }}\n}}\n",
        v = if v4 { "ipv4" } else { "ipv6" },
    )
}

/// The pod networks of all nodes, and pods with addresses of their own choice.
fn pod_networks(layout: &Layout, v4: bool) -> Vec<String> {
    let nets = layout.nodes.iter().map(|node| node.pods[usize::from(!v4)]);
    let nets: Vec<_> = nets.collect();
    let apart = layout
        .pods
        .iter()
        .filter(|pod| !pod.host_network)
        .filter_map(|pod| pod.address(v4));
    let apart = apart.filter(|address| !nets.iter().any(|net| net.contains(address)));
    let apart: Vec<String> = apart.map(|address| address.to_string()).collect();
    nets.iter().map(ToString::to_string).chain(apart).collect()
}

fn choice_chain(name: &str, service: usize, protocol: &str, choices: &[usize]) -> String {
    let mut chain = format!(" chain {name} {{\n");
    for (slot, index) in choices.iter().enumerate().take(CHOICES.into()) {
        let _ = writeln!(
            chain,
            "  {protocol} sport and {} == {slot} goto ep-{service}-{index}",
            CHOICES - 1
        );
    }
    if choices.is_empty() {
        chain += "  drop\n";
    } else {
        let map: Vec<String> = choices
            .iter()
            .enumerate()
            .map(|(slot, index)| format!("{slot} : goto ep-{service}-{index}"))
            .collect();
        let _ = writeln!(
            chain,
            "  numgen random mod {} vmap {{ {} }}",
            choices.len(),
            map.join(", ")
        );
    }
    chain + " }\n"
}

fn endpoint_chain(name: &str, protocol: &str, ip: &str, backend: &Backend) -> String {
    let (address, port) = (backend.address, backend.port);
    let target = if address.is_ipv4() {
        format!("{address}:{port}")
    } else {
        format!("[{address}]:{port}")
    };
    format!(
        " chain {name} {{\n  {ip} saddr {address} meta mark set meta mark or {MASQUERADE}\n  meta l4proto {protocol} dnat to {target}\n }}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_of_the_source_port_has_its_endpoint() {
        let chain = choice_chain("svc-3", 3, "udp", &[0, 2]);
        assert_eq!(
            chain,
            " chain svc-3 {\n  udp sport and 63 == 0 goto ep-3-0\n  udp sport and 63 == 1 goto ep-3-2\n  \
             numgen random mod 2 vmap { 0 : goto ep-3-0, 1 : goto ep-3-2 }\n }\n"
        );
    }
}
