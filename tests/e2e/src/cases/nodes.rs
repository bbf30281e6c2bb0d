//! By the nodes: NodePorts, hostPorts, kubelet's probes, and a node that is not the pod's own.

use std::net::IpAddr;

use anyhow::Result;
use serde_json::{Value, json};

use super::{Case, LOCAL, TWO, case};
use crate::{
    asks::{Asks, tcp_to},
    cluster::{Cluster, Node},
    local::Outside,
    objects::{Pod, block, pods, policy, service, tcp},
};

pub(super) const PORT: u16 = 8080;
const HOST_PORT: u16 = 18080;

/// The cases.
pub(super) fn cases() -> Vec<Case> {
    vec![
        case(
            "node-port",
            "from pods and from nodes: a port of the pod's node is judged as the pod behind it, another node's port as that node",
            TWO,
            node_port,
        ),
        case(
            "node-port-from-outside",
            "externalTrafficPolicy Local keeps the source, by which it is judged; Cluster hides it behind the node",
            LOCAL,
            from_outside,
        ),
        case(
            "host-port",
            "a hostPort is judged as the pod behind it",
            TWO,
            host_port,
        ),
        case(
            "own-node-and-others",
            "kubelet's probes and the own node always pass; another node does not, and no host network of it",
            TWO,
            own_node,
        ),
    ]
}

/// A pod of each node's own network, `node-NAME`, that asks.
pub(super) fn node_pods(cluster: &Cluster, ns: &str) -> Vec<Pod> {
    let pod = |node: &Node| {
        Pod::server(ns, &format!("node-{}", node.name), &[("app", "node")], &[], &[])
            .on(&node.name)
            .of_the_node()
    };
    let (here, there) = cluster.two();
    vec![pod(here), pod(there)]
}

/// Of IPv6 NodePorts and of masquerade behind them every mode of kube-proxy takes the same view as of IPv4.
pub(super) fn addresses(node: &Node) -> impl Iterator<Item = IpAddr> + '_ {
    node.addresses.iter().copied()
}

/// `open`, which wants everybody, and `picky`, which wants some: both on one node.
pub(super) fn servers(ns: &str, node: &Node) -> [Pod; 2] {
    ["open", "picky"].map(|name| Pod::server(ns, name, &[("app", name)], &[PORT], &[]).on(&node.name))
}

/// Whom `picky` lets in.
pub(super) fn picky(ns: &str, from: &Value) -> Value {
    let ingress = json!([{"from": from, "ports": [tcp(PORT)]}]);
    policy(
        ns,
        "picky",
        &[("app", "picky")],
        json!({"policyTypes": ["Ingress"], "ingress": ingress}),
    )
}

/// `right` may go to the pods behind `app`, `wrong` to the nodes and their port.
pub(super) fn ways_out(ns: &str, app: &str, nodes: impl Iterator<Item = IpAddr>, port: u16) -> [Value; 2] {
    let nodes: Vec<_> = nodes.map(block).collect();
    let egress = |kind: &str, to: Value, port: u16| {
        let rules = json!([{"to": to, "ports": [tcp(port)]}]);
        let spec = json!({"policyTypes": ["Egress"], "egress": rules});
        policy(ns, kind, &[("kind", kind)], spec)
    };
    [
        egress("right", json!([pods(&[("app", app)])]), PORT),
        egress("wrong", json!(nodes), port),
    ]
}

/// A NodePort of `app`'s pods.
pub(super) fn of_nodes(ns: &str, name: &str, app: &str, keeps: &str) -> Value {
    let ports = json!([{"port": 80, "targetPort": PORT}]);
    let spec =
        json!({"type": "NodePort", "externalTrafficPolicy": keeps, "selector": {"app": app}, "ports": ports});
    service(ns, name, spec)
}

fn node_port(cluster: &Cluster, name: &str) -> Result<String> {
    let space = cluster.space(&format!("e2e-{name}"), &[])?;
    let ns = space.name.as_str();
    let (here, there) = cluster.two();
    let client = |name: &str, kind: &str| Pod::server(ns, name, &[("kind", kind)], &[], &[]).on(&here.name);
    let mut all = node_pods(cluster, ns);
    all.extend(servers(ns, here));
    all.extend([
        client("friend", "friend"),
        client("stranger", "stranger"),
        client("right", "right"),
        client("wrong", "wrong"),
    ]);
    cluster.start(&all)?;
    let of = |app: &str| of_nodes(ns, app, app, "Cluster");
    cluster.kubectl.apply(&[of("open"), of("picky")])?;
    let (open, picky_port) = (cluster.node_port(ns, "open")?, cluster.node_port(ns, "picky")?);
    let [right, wrong] = ways_out(ns, "open", addresses(here).chain(addresses(there)), open);
    cluster
        .kubectl
        .apply(&[picky(ns, &json!([pods(&[("kind", "friend")])])), right, wrong])?;
    let mut asks = Asks::default();
    for address in addresses(here) {
        let (to_open, to_picky) = (tcp_to(address, open), tcp_to(address, picky_port));
        // kube-proxy hides the pod behind the node; it is still the pod that is judged.
        asks.allow((ns, "friend"), &to_picky, "picky", "own node's port, pod allowed");
        asks.deny((ns, "stranger"), &to_picky, "own node's port, pod not allowed");
        asks.allow(
            (ns, "right"),
            &to_open,
            "open",
            "own node's port, egress to the pod",
        );
        asks.deny((ns, "wrong"), &to_open, "own node's port, egress to the node");
        asks.allow(
            (ns, &format!("node-{}", here.name)),
            &to_picky,
            "picky",
            "the pod's own node asks its own port",
        );
        asks.deny(
            (ns, &format!("node-{}", there.name)),
            &to_picky,
            "another node asks",
        );
        asks.allow(
            (ns, &format!("node-{}", there.name)),
            &to_open,
            "open",
            "another node asks who wants everybody",
        );
    }
    for address in addresses(there) {
        let to_open = tcp_to(address, open);
        // It leaves this node as a packet to the other one.
        asks.allow(
            (ns, "wrong"),
            &to_open,
            "open",
            "another node's port, egress to the node",
        );
        asks.deny((ns, "right"), &to_open, "another node's port, egress to the pod");
        asks.deny(
            (ns, "stranger"),
            tcp_to(address, picky_port),
            "another node's port",
        );
    }
    asks.settle(cluster)?;
    Ok(format!("{} questions", asks.0.len()))
}

/// Addresses of the outside host for rules that name them, and for rules that do not.
pub(super) fn outsiders(outside: &Outside) -> Result<(Vec<IpAddr>, Vec<IpAddr>)> {
    let of = |last: u8| {
        let v6 = IpAddr::from([0x2001, 0xdb8, 9, 0, 0, 0, 0, last.into()]);
        let both = [Some(IpAddr::from([198, 51, 100, last])), outside.v6.map(|_| v6)];
        both.into_iter().flatten().collect::<Vec<_>>()
    };
    let (good, bad) = (of(21), of(22));
    good.iter()
        .chain(&bad)
        .try_for_each(|address| outside.add(*address))?;
    Ok((good, bad))
}

fn from_outside(cluster: &Cluster, name: &str) -> Result<String> {
    let space = cluster.space(&format!("e2e-{name}"), &[])?;
    let ns = space.name.as_str();
    let (here, there) = cluster.two();
    let outside = cluster.outside()?;
    let (good, bad) = outsiders(outside)?;
    cluster.start(&servers(ns, here))?;
    let of = |name: &str, app: &str, keeps: &str| of_nodes(ns, name, app, keeps);
    let blocks: Vec<_> = good.iter().map(|address| block(*address)).collect();
    cluster.kubectl.apply(&[
        of("open-cluster", "open", "Cluster"),
        of("open-local", "open", "Local"),
        of("picky-cluster", "picky", "Cluster"),
        of("picky-local", "picky", "Local"),
        picky(ns, &json!(blocks)),
    ])?;
    let port = |name: &str| cluster.node_port(ns, name);
    let (open_cluster, open_local) = (port("open-cluster")?, port("open-local")?);
    let (picky_cluster, picky_local) = (port("picky-cluster")?, port("picky-local")?);
    let mut asks = Asks::default();
    let mut ask = |from: IpAddr, node: &Node, port: u16, by: Option<&str>, what: &str| {
        for address in addresses(node).filter(|address| address.is_ipv4() == from.is_ipv4()) {
            asks.outside(from, tcp_to(address, port), by, what);
        }
    };
    for from in good.iter().chain(&bad).copied() {
        let by = good.contains(&from).then_some("picky");
        ask(
            from,
            here,
            picky_local,
            by,
            "Local, the node of the pod: the source is kept",
        );
        ask(from, there, picky_local, None, "Local, a node without the pod");
        ask(
            from,
            here,
            picky_cluster,
            None,
            "Cluster: the source is the node's address, which no rule names",
        );
        ask(from, here, open_local, Some("open"), "Local, everybody is wanted");
        ask(
            from,
            here,
            open_cluster,
            Some("open"),
            "Cluster, everybody is wanted",
        );
        ask(
            from,
            there,
            open_cluster,
            Some("open"),
            "Cluster, by another node",
        );
    }
    asks.settle(cluster)?;
    Ok(format!("{} questions", asks.0.len()))
}

fn host_port(cluster: &Cluster, name: &str) -> Result<String> {
    let space = cluster.space(&format!("e2e-{name}"), &[])?;
    let ns = space.name.as_str();
    let (here, there) = cluster.two();
    let client = |name: &str, node: &Node| Pod::server(ns, name, &[("kind", name)], &[], &[]).on(&node.name);
    let port = json!({"containerPort": PORT, "hostPort": HOST_PORT});
    let mut all = node_pods(cluster, ns);
    all.extend([
        Pod::server(ns, "hosted", &[("app", "hosted")], &[PORT], &[])
            .on(&here.name)
            .port(port),
        client("friend", here),
        client("stranger", here),
        client("right", here),
        client("wrong", here),
    ]);
    cluster.start(&all)?;
    let [right, wrong] = ways_out(ns, "hosted", addresses(here), HOST_PORT);
    let from = json!([
        pods(&[("kind", "friend")]),
        pods(&[("kind", "right")]),
        pods(&[("kind", "wrong")])
    ]);
    cluster.kubectl.apply(&[
        policy(
            ns,
            "hosted",
            &[("app", "hosted")],
            json!({"policyTypes": ["Ingress"], "ingress": [{"from": from, "ports": [tcp(PORT)]}]}),
        ),
        right,
        wrong,
    ])?;
    let mut asks = Asks::default();
    for address in addresses(here) {
        let to = tcp_to(address, HOST_PORT);
        asks.allow((ns, "friend"), &to, "hosted", "pod allowed");
        asks.deny((ns, "stranger"), &to, "pod not allowed");
        asks.allow((ns, "right"), &to, "hosted", "egress to the pod behind it");
        asks.deny((ns, "wrong"), &to, "egress to the node and its port");
        asks.deny((ns, &format!("node-{}", there.name)), &to, "another node asks");
    }
    asks.settle(cluster)?;
    Ok(format!("{} questions", asks.0.len()))
}

fn own_node(cluster: &Cluster, name: &str) -> Result<String> {
    let space = cluster.space(&format!("e2e-{name}"), &[])?;
    let ns = space.name.as_str();
    let (here, there) = cluster.two();
    // Before the pods: their first probe is judged by it.
    cluster.kubectl.apply(&[policy(
        ns,
        "nothing",
        &[("app", "shut")],
        json!({"policyTypes": ["Ingress", "Egress"]}),
    )])?;
    let probe = json!({"tcpSocket": {"port": PORT}, "periodSeconds": 1, "failureThreshold": 3});
    let shut = |name: &str, node: &Node| {
        Pod::server(ns, name, &[("app", "shut")], &[PORT], &[])
            .on(&node.name)
            .container("readinessProbe", probe.clone())
            .container("livenessProbe", probe.clone())
    };
    let mut all = node_pods(cluster, ns);
    all.extend([shut("shut-near", here), shut("shut-far", there)]);
    cluster.start(&all)?;
    let mut asks = Asks::default();
    for (name, own) in [("shut-near", here), ("shut-far", there)] {
        for address in cluster.pod(ns, name)?.addresses {
            for node in [here, there] {
                let from = (ns, &*format!("node-{}", node.name));
                if node.name == own.name {
                    asks.allow(from, tcp_to(address, PORT), name, "the own node");
                } else {
                    asks.deny(from, tcp_to(address, PORT), "another node's host network");
                }
            }
        }
    }
    asks.settle(cluster)?;
    let pods = cluster.kubectl.list(&["pods", "-n", ns, "-l", "app=shut"])?;
    let restarts: u64 = pods
        .iter()
        .filter_map(|pod| pod["status"]["containerStatuses"][0]["restartCount"].as_u64())
        .sum();
    anyhow::ensure!(
        restarts == 0,
        "{restarts} restarts: kubelet's liveness probes did not pass"
    );
    cluster.kubectl.wait_for_pods(ns)?;
    Ok(format!("{} questions", asks.0.len()))
}
