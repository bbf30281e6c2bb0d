//! Services whose endpoints are pods.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{Clients, DATAGRAMS, HOSTED, PORT};
use crate::{
    asks::{Asks, repeat, tcp_to, udp_to},
    cluster::Cluster,
    objects::{Pod, block, pods, policy, service, slice, tcp, udp},
};

pub(super) fn cluster_ip(cluster: &Cluster, name: &str) -> Result<String> {
    let clients = Clients::start(cluster, name)?;
    let (ns, kubectl) = (clients.ns(), &cluster.kubectl);
    let (here, there) = cluster.two();
    let hosted = |at: &str, node: &str| {
        Pod::server(
            ns,
            &format!("hosted-{at}"),
            &[("app", "hosted"), ("at", at)],
            &[HOSTED],
            &[],
        )
        .on(node)
        .of_the_node()
    };
    let mut servers = clients.servers("web");
    servers.extend([hosted("near", &here.name), hosted("far", &there.name)]);
    cluster.start(&servers)?;
    let select = |app: &str, at: &str| json!({"app": app, "at": at});
    let mut services = Vec::new();
    for at in ["near", "far"] {
        let number = json!([
            {"name": "t", "port": 80, "targetPort": PORT},
            {"name": "u", "port": 53, "targetPort": DATAGRAMS, "protocol": "UDP"},
        ]);
        let by_name = json!([
            {"name": "t", "port": 80, "targetPort": "web"},
            {"name": "u", "port": 53, "targetPort": "dns", "protocol": "UDP"},
        ]);
        services.push(service(
            ns,
            &format!("number-{at}"),
            json!({"selector": select("web", at), "ports": number}),
        ));
        services.push(service(
            ns,
            &format!("name-{at}"),
            json!({"selector": select("web", at), "ports": by_name}),
        ));
        let ports = json!([{"port": 80, "targetPort": HOSTED}]);
        services.push(service(
            ns,
            &format!("hosted-{at}"),
            json!({"selector": select("hosted", at), "ports": ports}),
        ));
    }
    services.push(service(
        ns,
        "by-hand",
        json!({"ports": [{"port": 80, "targetPort": PORT}]}),
    ));
    services.extend(slice(ns, "by-hand", &cluster.pod(ns, "web-far")?.addresses, PORT));
    kubectl.apply(&services)?;

    let mut faces = Vec::new();
    let (mut asks, mut own_node) = (Asks::default(), Asks::default());
    for object in kubectl.list(&["services", "-n", ns])? {
        let service = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        for address in cluster.cluster_ips(ns, &service)? {
            faces.extend([(address, 80), (address, 53)]);
            let to = tcp_to(address, 80);
            match service.split_once('-') {
                Some(("hosted", at)) => {
                    let by = format!("hosted-{at}");
                    for client in ["near", "far"].into_iter().filter(|client| *client != at) {
                        asks.allow((ns, &format!("right-{client}")), &to, &by, &service);
                        asks.deny((ns, &format!("wrong-{client}")), &to, &service);
                    }
                    // A pod's own node is always allowed, whatever leads there.
                    own_node.allow(
                        (ns, &format!("wrong-{at}")),
                        &to,
                        &by,
                        "a host network of the pod's own node",
                    );
                }
                Some((_, at @ ("near" | "far"))) => {
                    clients.ask(&mut asks, &to, &format!("web-{at}"), &service);
                    clients.ask(&mut asks, &udp_to(address, 53), &format!("web-{at}"), &service);
                }
                _ => clients.ask(&mut asks, &to, "web-far", &service),
            }
        }
    }
    let nodes: Vec<Value> = [here, there]
        .iter()
        .flat_map(|node| &node.addresses)
        .map(|ip| block(*ip))
        .collect();
    let right = json!([
        {"to": [pods(&[("app", "web")])], "ports": [tcp(PORT), udp(DATAGRAMS)]},
        {"to": nodes, "ports": [tcp(HOSTED)]},
    ]);
    clients.policies(&right, &faces)?;
    kubectl.wait_for_pods(ns)?;
    asks.0.extend(own_node.0);
    asks.settle(cluster)?;
    Ok(format!("{} questions", asks.0.len()))
}

pub(super) fn mixed(cluster: &Cluster, name: &str) -> Result<String> {
    let clients = Clients::start(cluster, name)?;
    let ns = clients.ns();
    cluster.start(&clients.servers("web"))?;
    let ports = json!([{"port": 80, "targetPort": PORT}]);
    cluster.kubectl.apply(&[
        service(ns, "any", json!({"selector": {"app": "web"}, "ports": ports})),
        service(
            ns,
            "sticky",
            json!({"selector": {"app": "web"}, "ports": ports, "sessionAffinity": "ClientIP"}),
        ),
    ])?;
    let right = json!([{"to": [pods(&[("app", "web"), ("at", "far")])], "ports": [tcp(PORT)]}]);
    clients.policies(&right, &[])?;
    cluster.kubectl.wait_for_pods(ns)?;
    // When this is in force, so is the rest.
    let mut both = Asks::default();
    for server in ["near", "far"] {
        for address in cluster.pod(ns, &format!("web-{server}"))?.addresses {
            match server {
                "far" => both.allow((ns, "right-near"), tcp_to(address, PORT), "web-far", "directly"),
                _ => both.deny((ns, "right-near"), tcp_to(address, PORT), "directly"),
            }
            both.allow(
                (ns, "free-near"),
                tcp_to(address, PORT),
                &format!("web-{server}"),
                "directly",
            );
        }
    }
    both.settle(cluster)?;
    let mut seen = BTreeSet::new();
    for address in cluster.cluster_ips(ns, "any")? {
        for outcome in repeat(cluster, (ns, "right-near"), &tcp_to(address, 80), 24)? {
            match (outcome.word.as_str(), outcome.by.as_str()) {
                ("answered", "web-far") => seen.insert("allowed"),
                ("silent", _) => seen.insert("denied"),
                _ => bail!(
                    "24 connections to Service any, of whose endpoints only web-far is allowed: {outcome}"
                ),
            };
        }
    }
    ensure!(
        seen.len() == 2,
        "of 24 connections to a Service of two endpoints all were {seen:?}"
    );
    for address in cluster.cluster_ips(ns, "sticky")? {
        for client in ["right-near", "right-far", "free-near"] {
            let outcomes = repeat(cluster, (ns, client), &tcp_to(address, 80), 8)?;
            let distinct: BTreeSet<_> = outcomes
                .iter()
                .map(|one| (one.word.clone(), one.by.clone()))
                .collect();
            ensure!(
                distinct.len() == 1,
                "{client} to Service sticky: {distinct:?}, where one endpoint has them all"
            );
            let fine = distinct.iter().all(|(word, by)| match client {
                "free-near" => word == "answered",
                _ => word == "silent" || by == "web-far",
            });
            ensure!(fine, "{client} to Service sticky: {distinct:?}");
        }
    }
    Ok(String::new())
}

pub(super) fn headless(cluster: &Cluster, name: &str) -> Result<String> {
    let clients = Clients::start(cluster, name)?;
    let (ns, kubectl) = (clients.ns(), &cluster.kubectl);
    cluster.start(&clients.servers("web"))?;
    // The port of a headless Service is nobody's: who asks has the pods' addresses and must know their port.
    let spec =
        json!({"clusterIP": "None", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": PORT}]});
    kubectl.apply(&[service(ns, "headless", spec)])?;
    let right = json!([{"to": [pods(&[("app", "web")])], "ports": [tcp(PORT)]}]);
    clients.policies(&right, &[])?;
    kubectl.wait_for_pods(ns)?;
    let slices = kubectl.list(&[
        "endpointslices",
        "-n",
        ns,
        "-l",
        "kubernetes.io/service-name=headless",
    ])?;
    let mut asks = Asks::default();
    for endpoint in slices
        .iter()
        .flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten())
    {
        let by = endpoint["targetRef"]["name"]
            .as_str()
            .context("an endpoint without a pod")?;
        for address in endpoint["addresses"].as_array().into_iter().flatten() {
            let address = address.as_str().unwrap_or_default().parse()?;
            clients.ask(&mut asks, &tcp_to(address, PORT), by, "headless");
        }
    }
    ensure!(!asks.0.is_empty(), "the headless Service has no endpoints");
    asks.settle(cluster)?;
    Ok(format!("{} questions", asks.0.len()))
}

pub(super) fn hairpin(cluster: &Cluster, name: &str) -> Result<String> {
    let clients = Clients::start(cluster, name)?;
    let ns = clients.ns();
    cluster.start(&clients.servers("self"))?;
    let mut objects = vec![policy(
        ns,
        "nothing",
        &[("app", "self")],
        json!({"policyTypes": ["Ingress", "Egress"]}),
    )];
    for at in ["near", "far"] {
        let ports = json!([{"port": 80, "targetPort": PORT}]);
        let spec = json!({"type": "NodePort", "selector": {"app": "self", "at": at}, "ports": ports});
        objects.push(service(ns, &format!("self-{at}"), spec));
    }
    cluster.kubectl.apply(&objects)?;
    cluster.kubectl.wait_for_pods(ns)?;
    let (here, there) = cluster.two();
    let mut asks = Asks::default();
    for (at, node) in [("near", here), ("far", there)] {
        let own = format!("self-{at}");
        for address in cluster.cluster_ips(ns, &own)? {
            asks.allow((ns, &own), tcp_to(address, 80), &own, "its own Service");
            for other in ["self-near", "self-far"]
                .into_iter()
                .filter(|other| *other != own)
            {
                asks.deny((ns, other), tcp_to(address, 80), "another's Service");
            }
            asks.deny(
                (ns, "free-near"),
                tcp_to(address, 80),
                "the Service of a pod that wants nobody",
            );
        }
        let port = cluster.node_port(ns, &own)?;
        for address in node.addresses.iter().filter(|ip| ip.is_ipv4()) {
            asks.allow(
                (ns, &own),
                tcp_to(*address, port),
                &own,
                "its own Service by a port of its own node",
            );
        }
    }
    asks.settle(cluster)?;
    Ok(format!("{} questions", asks.0.len()))
}
