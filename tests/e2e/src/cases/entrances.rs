//! Further ways to a pod than its own address, asked from everywhere: NodePorts that keep the source, hostPorts, a load
//! balancer's address.

use std::net::IpAddr;

use anyhow::Result;
use serde_json::json;

use super::{
    Case, LOCAL, TWO, case,
    nodes::{PORT, addresses, node_pods, of_nodes, outsiders, picky, servers, ways_out},
};
use crate::{
    asks::{Asks, tcp_to},
    cluster::Cluster,
    objects::{Pod, block, pods, service},
};

const HOST_PORT: u16 = 18082;

/// The cases.
pub(super) fn cases() -> Vec<Case> {
    vec![
        case(
            "node-port-local",
            "externalTrafficPolicy Local, from pods and from nodes: judged as the pod behind it where that is, as the node elsewhere",
            TWO,
            node_port_local,
        ),
        case(
            "host-port-from-outside",
            "a hostPort keeps the source, by which it is judged; the own node passes, another one does not",
            LOCAL,
            host_port,
        ),
        case(
            "load-balancer-from-outside",
            "a load balancer's address from outside and from nodes: Local keeps the source, Cluster hides it behind the node",
            LOCAL,
            load_balancer,
        ),
    ]
}

fn node_port_local(cluster: &Cluster, name: &str) -> Result<String> {
    let space = cluster.space(&format!("e2e-{name}"), &[])?;
    let ns = space.name.as_str();
    let (here, there) = cluster.two();
    let mut all = node_pods(cluster, ns);
    all.extend(servers(ns, here));
    for kind in ["friend", "stranger", "right", "wrong"] {
        for (at, node) in [("near", here), ("far", there)] {
            all.push(Pod::server(ns, &format!("{kind}-{at}"), &[("kind", kind)], &[], &[]).on(&node.name));
        }
    }
    cluster.start(&all)?;
    let of = |app: &str| of_nodes(ns, app, app, "Local");
    cluster.kubectl.apply(&[of("open"), of("picky")])?;
    let (open, picky_port) = (cluster.node_port(ns, "open")?, cluster.node_port(ns, "picky")?);
    let [right, wrong] = ways_out(ns, "open", addresses(here).chain(addresses(there)), open);
    cluster
        .kubectl
        .apply(&[picky(ns, &json!([pods(&[("kind", "friend")])])), right, wrong])?;
    let mut asks = Asks::default();
    let (node_here, node_there) = (format!("node-{}", here.name), format!("node-{}", there.name));
    for address in addresses(here) {
        let (to_open, to_picky) = (tcp_to(address, open), tcp_to(address, picky_port));
        asks.allow((ns, "friend-near"), &to_picky, "picky", "own node, pod allowed");
        asks.deny((ns, "stranger-near"), &to_picky, "own node, pod not allowed");
        asks.allow(
            (ns, "right-near"),
            &to_open,
            "open",
            "own node, egress to the pod",
        );
        asks.deny((ns, "wrong-near"), &to_open, "own node, egress to the node");
        // Judged where it leaves, as a packet to the other node; whether that sees the pod is the CNI's choice.
        asks.deny(
            (ns, "right-far"),
            &to_open,
            "another node's port, egress to the pod",
        );
        asks.allow(
            (ns, "wrong-far"),
            &to_open,
            "open",
            "another node's port, egress to the node",
        );
        asks.deny(
            (ns, "stranger-far"),
            &to_picky,
            "another node's port, pod not allowed",
        );
        asks.allow((ns, &node_here), &to_picky, "picky", "the pod's own node");
        asks.deny((ns, &node_there), &to_picky, "another node");
        asks.allow(
            (ns, &node_there),
            &to_open,
            "open",
            "another node, everybody is wanted",
        );
    }
    for address in addresses(there) {
        let (to_open, to_picky) = (tcp_to(address, open), tcp_to(address, picky_port));
        asks.deny(
            (ns, "friend-near"),
            &to_picky,
            "a node without the pod has nobody behind its port",
        );
        // A node's own packets, and those of its pods, are led to pods of other nodes all the same.
        asks.deny(
            (ns, "stranger-far"),
            &to_picky,
            "a port of its own node, pod not allowed",
        );
        asks.allow(
            (ns, "right-far"),
            &to_open,
            "open",
            "a port of its own node, egress to the pod",
        );
        asks.deny(
            (ns, "wrong-far"),
            &to_open,
            "a port of its own node, egress to the node",
        );
        asks.deny((ns, &node_there), &to_picky, "another node, by its own port");
        asks.allow(
            (ns, &node_there),
            &to_open,
            "open",
            "another node, by its own port, everybody is wanted",
        );
    }
    asks.settle(cluster)?;
    Ok(format!("{} questions", asks.0.len()))
}

fn host_port(cluster: &Cluster, name: &str) -> Result<String> {
    let space = cluster.space(&format!("e2e-{name}"), &[])?;
    let ns = space.name.as_str();
    let (here, there) = cluster.two();
    let (good, bad) = outsiders(cluster.outside()?)?;
    let [open, shut] = servers(ns, here);
    let hosted = |pod: Pod, port: u16| pod.port(json!({"containerPort": PORT, "hostPort": port}));
    let mut all = node_pods(cluster, ns);
    all.extend([hosted(open, HOST_PORT), hosted(shut, HOST_PORT + 1)]);
    cluster.start(&all)?;
    let blocks: Vec<_> = good.iter().map(|address| block(*address)).collect();
    cluster.kubectl.apply(&[picky(ns, &json!(blocks))])?;
    let mut asks = Asks::default();
    for address in addresses(here) {
        let (to_open, to_picky) = (tcp_to(address, HOST_PORT), tcp_to(address, HOST_PORT + 1));
        let (node_here, node_there) = (format!("node-{}", here.name), format!("node-{}", there.name));
        asks.allow((ns, &node_here), &to_picky, "picky", "the pod's own node");
        asks.deny((ns, &node_there), &to_picky, "another node");
        asks.allow(
            (ns, &node_there),
            &to_open,
            "open",
            "another node, everybody is wanted",
        );
        let of_family = |from: &&IpAddr| from.is_ipv4() == address.is_ipv4();
        for from in good.iter().chain(&bad).filter(of_family) {
            let wanted = good.contains(from).then_some("picky");
            asks.outside(*from, &to_picky, wanted, "the source is kept");
            asks.outside(*from, &to_open, Some("open"), "everybody is wanted");
        }
    }
    asks.settle(cluster)?;
    Ok(format!("{} questions", asks.0.len()))
}

fn load_balancer(cluster: &Cluster, name: &str) -> Result<String> {
    let space = cluster.space(&format!("e2e-{name}"), &[])?;
    let ns = space.name.as_str();
    let (here, there) = cluster.two();
    let outside = cluster.outside()?;
    let (good, bad) = outsiders(outside)?;
    let mut faces = vec![IpAddr::from([203, 0, 113, 88])];
    if outside.v6.is_some() && cluster.is_dual_stack()? {
        faces.push(IpAddr::from([0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 0x88]));
    }
    for face in &faces {
        outside.route(*face, &here.name)?;
    }
    let mut all = node_pods(cluster, ns);
    all.extend(servers(ns, here));
    cluster.start(&all)?;
    let blocks: Vec<_> = good.iter().map(|address| block(*address)).collect();
    cluster.kubectl.apply(&[picky(ns, &json!(blocks))])?;
    let mut asks = Asks::default();
    let (node_here, node_there) = (format!("node-{}", here.name), format!("node-{}", there.name));
    let kinds = [
        ("open", "Cluster"),
        ("open", "Local"),
        ("picky", "Cluster"),
        ("picky", "Local"),
    ];
    for (port, (app, keeps)) in (7101..).zip(kinds) {
        balanced(cluster, ns, app, keeps, port, &faces)?;
        for face in &faces {
            let to = tcp_to(*face, port);
            asks.allow((ns, &node_here), &to, app, format!("{keeps}, the pod's own node"));
            if app == "open" {
                asks.allow((ns, &node_there), &to, app, format!("{keeps}, another node"));
            } else {
                asks.deny((ns, &node_there), &to, format!("{keeps}, another node"));
            }
            let of_family = |from: &&IpAddr| from.is_ipv4() == face.is_ipv4();
            for from in good.iter().chain(&bad).filter(of_family) {
                // Behind Cluster everybody has the node's address, which no rule names.
                let wanted = app == "open" || keeps == "Local" && good.contains(from);
                asks.outside(*from, &to, wanted.then_some(app), format!("{keeps}, {app}"));
            }
        }
    }
    asks.settle(cluster)?;
    Ok(format!("{} questions", asks.0.len()))
}

/// A Service with a load balancer's addresses, as a controller of a cloud would give it.
fn balanced(cluster: &Cluster, ns: &str, app: &str, keeps: &str, port: u16, faces: &[IpAddr]) -> Result<()> {
    let name = format!("{app}-{}", keeps.to_lowercase());
    let ports = json!([{"port": port, "targetPort": PORT}]);
    let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": keeps, "selector": {"app": app}, "ports": ports});
    cluster.kubectl.apply(&[service(ns, &name, spec)])?;
    cluster.kubectl.balance(ns, &name, faces)
}
