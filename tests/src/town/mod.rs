//! Small worlds for tests in one line each: pods `app=NAME` in namespace `default`, policies between them, and who answers
//! whom. What can not be built panics: these are tests.

pub mod load;
pub mod uplink;

use std::{net::IpAddr, time::Duration};

use netpol_policy::model::Pod;

use crate::{
    cluster::{self, Cluster, Options, Uplink},
    net::{Namespace, Outcome, Probe, Responder, Transport, probe_all},
};

/// How long an answer may take that comes at all.
pub const ANSWER: Duration = Duration::from_secs(2);
/// How long to wait for what must not come: well above the time of a round trip, below the first retransmission of a SYN.
pub const SILENCE: Duration = Duration::from_millis(300);

/// The outside host's addresses.
pub const OUTSIDE: [&str; 2] = ["172.18.0.100", "fd00:18::100"];

/// A pod of namespace `default` that is labelled `app=NAME`.
pub fn app(name: &str, node: u8, host: u8) -> Pod {
    cluster::pod(&format!("default/{name}"), node, host, &format!("app={name}"))
}

/// A cluster whose pods have their networks; agents do not run yet.
pub fn town(nodes: u8, options: Options, pods: &[Pod]) -> Cluster {
    let mut cluster = Cluster::new(nodes, options).unwrap();
    cluster.add_pods(pods).unwrap();
    cluster
}

/// `pods` and `policies` as one text.
pub fn text(pods: &[Pod], policies: &[String]) -> String {
    format!("{}{}", cluster::manifests(pods), policies.concat())
}

/// A policy in namespace `default`; `spec` in YAML's flow style.
pub fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{namespace: default, name: {name}}}\nspec: {spec}\n"
    )
}

fn peers(apps: &[&str]) -> String {
    let peer = |app: &&str| match app.split_once('/') {
        Some(_) => format!("{{ipBlock: {{cidr: \"{app}\"}}}}"),
        None => format!("{{podSelector: {{matchLabels: {{app: {app}}}}}}}"),
    };
    apps.iter().map(peer).collect::<Vec<_>>().join(", ")
}

/// Isolates `app` for ingress: only `from` (apps, or CIDRs) may come in; nobody where it is empty.
pub fn ingress(app: &str, from: &[&str]) -> String {
    let rule = if from.is_empty() {
        String::new()
    } else {
        format!("{{from: [{}]}}", peers(from))
    };
    policy(
        &format!("{app}-in"),
        &format!(
            "{{podSelector: {{matchLabels: {{app: {app}}}}}, policyTypes: [Ingress], ingress: [{rule}]}}"
        ),
    )
}

/// Isolates `app` for egress: it may go to `to` only.
pub fn egress(app: &str, to: &[&str]) -> String {
    let rule = if to.is_empty() {
        String::new()
    } else {
        format!("{{to: [{}]}}", peers(to))
    };
    policy(
        &format!("{app}-out"),
        &format!("{{podSelector: {{matchLabels: {{app: {app}}}}}, policyTypes: [Egress], egress: [{rule}]}}"),
    )
}

/// The addresses of pod `default/NAME`; of the outside host for `outside`.
pub fn addresses(cluster: &Cluster, name: &str) -> Vec<IpAddr> {
    if name == "outside" {
        return OUTSIDE.map(|address| address.parse().unwrap()).to_vec();
    }
    cluster.pod(&format!("default/{name}")).addresses.clone()
}

/// The namespace of pod `default/NAME`, or of the outside host.
pub fn namespace<'a>(cluster: &'a Cluster, name: &str) -> &'a Namespace {
    if name == "outside" {
        return &cluster.outside;
    }
    &cluster.pod(&format!("default/{name}")).namespace
}

/// A server of each of `names`: its name for every connection to TCP port 80 and every datagram to UDP port 53.
pub fn serve(cluster: &Cluster, names: &[&str]) -> Vec<Responder> {
    let one =
        |name: &&str| Responder::start(namespace(cluster, name), name, endpoints(cluster, name)).unwrap();
    names.iter().map(one).collect()
}

/// Where those of [`serve`] listen.
pub fn endpoints(cluster: &Cluster, name: &str) -> Vec<(Transport, std::net::SocketAddr)> {
    let of = |address: IpAddr| {
        [
            (Transport::Tcp, (address, 80).into()),
            (Transport::Udp, (address, 53).into()),
        ]
    };
    addresses(cluster, name).into_iter().flat_map(of).collect()
}

/// What becomes of one question to each of `to`'s endpoints.
pub fn ask(cluster: &Cluster, from: &str, to: &str, timeout: Duration) -> Vec<Outcome> {
    let probes: Vec<_> = endpoints(cluster, to)
        .into_iter()
        .map(|(transport, address)| Probe::new(transport, address))
        .collect();
    probe_all(namespace(cluster, from), &probes, timeout)
}

/// `from` reaches `to` by TCP and UDP, IPv4 and IPv6.
#[track_caller]
pub fn assert_open(cluster: &Cluster, from: &str, to: &str) {
    let outcomes = ask(cluster, from, to, ANSWER);
    assert_eq!(
        outcomes,
        vec![Outcome::Answered(to.to_owned()); 4],
        "{from} → {to}"
    );
}

/// `from` reaches `to` by none of them; four packets are sent.
#[track_caller]
pub fn assert_closed(cluster: &Cluster, from: &str, to: &str) {
    let outcomes = ask(cluster, from, to, SILENCE);
    assert_eq!(outcomes, vec![Outcome::Silent; 4], "{from} → {to}");
}

/// A cluster whose nodes have this uplink.
pub fn over(uplink: Uplink) -> Options {
    Options {
        uplink,
        ..Options::default()
    }
}
