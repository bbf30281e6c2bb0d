//! Egress is judged after kube-proxy's translation: what counts is the pod behind a Service and its own port.
//!
//! Of each Service three clients ask: `right`, whose policy names who is really behind it and the real port; `wrong`, whose policy
//! names the Service's own address and port, which no packet has when it is judged; and `free`, which is not isolated.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{Case, LOCAL, TWO, case};
use crate::{
    asks::{Asks, repeat, tcp_to, udp_to},
    cluster::{Cluster, Space},
    objects::{Pod, block, pods, policy, service, slice, tcp, udp},
};

/// What servers listen on.
const PORT: u16 = 8080;
/// UDP.
const DATAGRAMS: u16 = 5353;
/// What pods of the node's network listen on.
const HOSTED: u16 = 18081;

/// The cases.
pub(super) fn cases() -> Vec<Case> {
    let own = |name, says, run| case(name, says, TWO, run);
    vec![
        own(
            "service-cluster-ip",
            "endpoints here, on another node, in host networks, by hand; ports by number and by name; TCP and UDP; both families",
            cluster_ip,
        ),
        own(
            "service-mixed-endpoints",
            "of a Service's endpoints each is judged by itself, with session affinity, too",
            mixed,
        ),
        own(
            "service-headless",
            "the endpoints of a headless Service are judged as the pods that they are",
            headless,
        ),
        own(
            "service-hairpin",
            "a pod that is isolated both ways reaches itself through its own Service",
            hairpin,
        ),
        own(
            "service-kubernetes",
            "kubernetes.default is judged as its endpoint, the API server's own address",
            kubernetes,
        ),
        case(
            "service-external",
            "an endpoint outside of the cluster is judged by its own address",
            LOCAL,
            external,
        ),
        own(
            "service-load-balancer",
            "a load balancer's address is judged as the pods behind it",
            load_balancer,
        ),
    ]
}

/// A namespace with clients, one of each kind on each of two nodes: `right-near`, `wrong-far`, …
pub(super) struct Clients<'c> {
    pub(super) cluster: &'c Cluster,
    pub(super) space: Space<'c>,
}

impl<'c> Clients<'c> {
    pub(super) fn start(cluster: &'c Cluster, name: &str) -> Result<Self> {
        let space = cluster.space(&format!("e2e-{name}"), &[])?;
        let (here, there) = cluster.two();
        let client = |kind: &str, at: &str, node: &str| {
            Pod::server(&space.name, &format!("{kind}-{at}"), &[("kind", kind)], &[], &[]).on(node)
        };
        let of = |kind| [client(kind, "near", &here.name), client(kind, "far", &there.name)];
        let all: Vec<Pod> = ["right", "wrong", "free"].into_iter().flat_map(of).collect();
        let objects: Vec<Value> = all.iter().map(|pod| pod.object(&cluster.image)).collect();
        cluster.kubectl.apply(&objects)?;
        Ok(Self { cluster, space })
    }

    pub(super) fn ns(&self) -> &str {
        &self.space.name
    }

    /// A server for each node: `near` and `far`, labelled `app: NAME`.
    fn servers(&self, kind: &str) -> Vec<Pod> {
        let (here, there) = self.cluster.two();
        let server = |at: &str, node: &str| {
            Pod::server(
                self.ns(),
                &format!("{kind}-{at}"),
                &[("app", kind), ("at", at)],
                &[PORT],
                &[DATAGRAMS],
            )
            .port(json!({"name": "web", "containerPort": PORT}))
            .port(json!({"name": "dns", "containerPort": DATAGRAMS, "protocol": "UDP"}))
            .on(node)
        };
        vec![server("near", &here.name), server("far", &there.name)]
    }

    /// `right` may do `egress`; `wrong` may only reach these addresses, as nobody's packets have them.
    fn policies(&self, right: &Value, wrong: &[(IpAddr, u16)]) -> Result<()> {
        let faces: Vec<Value> = wrong
            .iter()
            .map(|(address, port)| json!({"to": [block(*address)], "ports": [tcp(*port), udp(*port)]}))
            .collect();
        self.cluster.kubectl.apply(&[
            policy(
                self.ns(),
                "right",
                &[("kind", "right")],
                json!({"policyTypes": ["Egress"], "egress": right}),
            ),
            policy(
                self.ns(),
                "wrong",
                &[("kind", "wrong")],
                json!({"policyTypes": ["Egress"], "egress": faces}),
            ),
        ])
    }

    /// All three kinds ask, from both nodes.
    fn ask(&self, asks: &mut Asks, to: &str, by: &str, what: &str) {
        for at in ["near", "far"] {
            asks.allow((self.ns(), &format!("right-{at}")), to, by, what);
            asks.allow((self.ns(), &format!("free-{at}")), to, by, what);
            asks.deny((self.ns(), &format!("wrong-{at}")), to, what);
        }
    }
}

fn cluster_ip(cluster: &Cluster, name: &str) -> Result<String> {
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

fn mixed(cluster: &Cluster, name: &str) -> Result<String> {
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

fn headless(cluster: &Cluster, name: &str) -> Result<String> {
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

fn hairpin(cluster: &Cluster, name: &str) -> Result<String> {
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

fn kubernetes(cluster: &Cluster, name: &str) -> Result<String> {
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

fn external(cluster: &Cluster, name: &str) -> Result<String> {
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

fn load_balancer(cluster: &Cluster, name: &str) -> Result<String> {
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
        let ingress: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
        let status = json!({"status": {"loadBalancer": {"ingress": ingress}}}).to_string();
        kubectl.run(&[
            "patch",
            "service",
            &service_name,
            "-n",
            ns,
            "--subresource=status",
            "--type=merge",
            "-p",
            &status,
        ])?;
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
