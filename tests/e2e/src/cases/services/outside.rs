//! Endpoints and addresses that are not pods': the API server's, an outsider's, a load balancer's.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{Clients, HOSTED, PORT};
use crate::{
    asks::{Asks, tcp_to},
    cluster::Cluster,
    objects::{Pod, block, pods, service, slice, tcp},
};

pub(super) fn kubernetes(cluster: &Cluster, name: &str) -> Result<String> {
    let clients = Clients::start(cluster, name)?;
    let ns = clients.ns();
    let slices = cluster.kubectl.list(&[
        "endpointslices",
        "-n",
        "default",
        "-l",
        "kubernetes.io/service-name=kubernetes",
    ])?;
    let mut right = Vec::new();
    let mut real: Vec<IpAddr> = Vec::new();
    for slice in &slices {
        let port = slice["ports"][0]["port"]
            .as_u64()
            .and_then(|port| u16::try_from(port).ok())
            .context("no port")?;
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            let address = endpoint["addresses"][0].as_str().context("no address")?.parse()?;
            right.push(json!({"to": [block(address)], "ports": [tcp(port)]}));
            real.push(address);
        }
    }
    let faces: Vec<(IpAddr, u16)> = cluster
        .cluster_ips("default", "kubernetes")?
        .into_iter()
        .map(|address| (address, 443))
        .collect();
    clients.policies(&json!(right), &faces)?;
    cluster.kubectl.wait_for_pods(ns)?;
    let (here, there) = cluster.two();
    let mut asks = Asks::default();
    for (address, port) in &faces {
        for (at, node) in [("near", here), ("far", there)] {
            let to = format!("connect:{}", std::net::SocketAddr::new(*address, *port));
            asks.allow((ns, &format!("right-{at}")), &to, "", "kubernetes.default");
            asks.allow((ns, &format!("free-{at}")), &to, "", "kubernetes.default");
            // Where the pod's own node is the endpoint, it is always allowed; where it is one of several, either may happen.
            let own = node.addresses.iter().filter(|own| real.contains(own)).count();
            if own == 0 {
                asks.deny((ns, &format!("wrong-{at}")), &to, "kubernetes.default");
            } else if real.len() == 1 {
                asks.allow(
                    (ns, &format!("wrong-{at}")),
                    &to,
                    "",
                    "kubernetes.default is the pod's own node",
                );
            }
        }
    }
    asks.settle(cluster)?;
    Ok(format!("{} questions", asks.0.len()))
}

/// `kubernetes.default` where the API server is on a node that has pods: its endpoint is the pod's own node, or another.
pub(super) fn like_kubernetes(cluster: &Cluster, name: &str) -> Result<String> {
    let clients = Clients::start(cluster, name)?;
    let ns = clients.ns();
    let (here, there) = cluster.two();
    cluster.start(&[Pod::server(ns, "api", &[("app", "api")], &[HOSTED], &[])
        .on(&here.name)
        .of_the_node()])?;
    // By hand, as the API server does it for itself.
    let ports = json!([{"port": 443, "targetPort": HOSTED}]);
    let mut objects = vec![service(ns, "api", json!({"ports": ports}))];
    objects.extend(slice(ns, "api", &here.addresses, HOSTED));
    cluster.kubectl.apply(&objects)?;
    let faces: Vec<_> = cluster
        .cluster_ips(ns, "api")?
        .into_iter()
        .map(|address| (address, 443))
        .collect();
    let to: Vec<Value> = here.addresses.iter().map(|address| block(*address)).collect();
    clients.policies(&json!([{"to": to, "ports": [tcp(HOSTED)]}]), &faces)?;
    cluster.kubectl.wait_for_pods(ns)?;
    let mut asks = Asks::default();
    for (address, port) in &faces {
        let to = tcp_to(*address, *port);
        for client in ["right-near", "right-far", "free-near", "free-far"] {
            asks.allow((ns, client), &to, "api", "the API server's own address");
        }
        asks.allow((ns, "wrong-near"), &to, "api", "the pod's own node");
        let other = format!("the endpoint is {}, the pod on {}", here.name, there.name);
        asks.deny((ns, "wrong-far"), &to, other);
    }
    asks.settle(cluster)?;
    Ok(format!("{} questions", asks.0.len()))
}

pub(super) fn external(cluster: &Cluster, name: &str) -> Result<String> {
    let clients = Clients::start(cluster, name)?;
    let ns = clients.ns();
    let outside = cluster.outside()?;
    let mut addresses: Vec<IpAddr> = vec!["198.51.100.9".parse()?];
    addresses.extend(
        outside
            .v6
            .is_some()
            .then_some(IpAddr::from([0x2001, 0xdb8, 7, 0, 0, 0, 0, 9])),
    );
    addresses.iter().try_for_each(|address| outside.add(*address))?;
    let mut objects = vec![service(
        ns,
        "external",
        json!({"ports": [{"port": 8443, "targetPort": 443}]}),
    )];
    objects.extend(slice(ns, "external", &addresses, 443));
    cluster.kubectl.apply(&objects)?;
    let faces: Vec<_> = cluster
        .cluster_ips(ns, "external")?
        .into_iter()
        .map(|address| (address, 8443))
        .collect();
    let to: Vec<Value> = addresses.iter().map(|address| block(*address)).collect();
    clients.policies(&json!([{"to": to, "ports": [tcp(443)]}]), &faces)?;
    cluster.kubectl.wait_for_pods(ns)?;
    let mut asks = Asks::default();
    for (address, port) in &faces {
        clients.ask(
            &mut asks,
            &tcp_to(*address, *port),
            "outside",
            "endpoints outside",
        );
    }
    asks.settle(cluster)?;
    Ok(format!("{} questions", asks.0.len()))
}

pub(super) fn load_balancer(cluster: &Cluster, name: &str) -> Result<String> {
    let clients = Clients::start(cluster, name)?;
    let (ns, kubectl) = (clients.ns(), &cluster.kubectl);
    cluster.start(&clients.servers("web"))?;
    let mut asks = Asks::default();
    let mut faces = Vec::new();
    let families: &[&str] = if cluster.is_dual_stack()? {
        &["203.0.113.77", "2001:db8:77::77"]
    } else {
        &["203.0.113.77"]
    };
    let addresses: Vec<IpAddr> = families
        .iter()
        .map(|text| text.parse())
        .collect::<Result<_, _>>()?;
    for at in ["near", "far"] {
        let service_name = format!("balanced-{at}");
        let ports = json!([{"port": if at == "near" { 7001 } else { 7002 }, "targetPort": PORT}]);
        let spec = json!({"type": "LoadBalancer", "selector": {"app": "web", "at": at}, "ports": ports});
        kubectl.apply(&[service(ns, &service_name, spec)])?;
        kubectl.balance(ns, &service_name, &addresses)?;
        for address in &addresses {
            let port = if at == "near" { 7001 } else { 7002 };
            faces.push((*address, port));
            clients.ask(
                &mut asks,
                &tcp_to(*address, port),
                &format!("web-{at}"),
                "the load balancer's address",
            );
        }
    }
    let right = json!([{"to": [pods(&[("app", "web")])], "ports": [tcp(PORT)]}]);
    clients.policies(&right, &faces)?;
    kubectl.wait_for_pods(ns)?;
    asks.settle(cluster)?;
    Ok(format!("{} questions", asks.0.len()))
}
