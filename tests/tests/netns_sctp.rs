//! SCTP with the kernel's own sockets at both ends, between pods of real nodes.

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use anyhow::{Context, Result, ensure};
use netpol_policy::{
    build::pod,
    model::{ObjectName, Pod},
};
use netpol_tests::{
    cluster::{Cluster, Options, Talk, pod_address},
    harness::{self, Test},
    net::{Outcome, Probe, Responder, Transport, kernel_has_sctp, patience, probe},
};

/// Answers come within a few milliseconds.
const TIMEOUT: Duration = Duration::from_millis(1500);

/// Who is there: name, node, last part of the addresses.
const PODS: [(&str, u8, u8); 4] = [
    ("client", 1, 2),
    ("server", 1, 3),
    ("far", 2, 2),
    ("stranger", 2, 3),
];

/// Two nodes with the pods, servers on SCTP 7000 and 7001 in each, and running agents.
struct Town {
    cluster: Cluster,
    _servers: Vec<Responder>,
}

fn model(name: &str, node: u8, host: u8) -> Pod {
    let addresses = [true, false].map(|v4| pod_address(node, host, v4).to_string());
    let mut pod = pod(
        &format!("default/{name}"),
        &format!("app={name}"),
        &[&addresses[0], &addresses[1]],
    );
    pod.node = Some(format!("node-{node}").into());
    pod
}

/// The manifests of the pods.
fn pods() -> String {
    let one = |(name, node, host): (&str, u8, u8)| {
        let (v4, v6) = (pod_address(node, host, true), pod_address(node, host, false));
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default, labels: {{app: {name}}}}}\n\
             spec: {{nodeName: node-{node}}}\nstatus: {{phase: Running, podIPs: [{{ip: {v4}}}, {{ip: '{v6}'}}]}}\n"
        )
    };
    let pods: String = PODS.into_iter().map(one).collect();
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: default}}\n{pods}")
}

/// A policy for `app: POD` with this `spec` beside the selector, in flow style.
fn policy(name: &str, pod: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: default}}\n\
         spec: {{podSelector: {{matchLabels: {{app: {pod}}}}}, {spec}}}\n"
    )
}

/// The peer `app: POD`.
fn peer(pod: &str) -> String {
    format!("podSelector: {{matchLabels: {{app: {pod}}}}}")
}

/// Takes SCTP on 7000, and TCP on 7001, from `clients`.
fn server_takes(clients: &[&str]) -> String {
    let peers: Vec<String> = clients.iter().map(|name| format!("{{{}}}", peer(name))).collect();
    let spec = format!(
        "policyTypes: [Ingress], ingress: [{{from: [{}], ports: [{{protocol: SCTP, port: 7000}}, {{protocol: TCP, port: 7001}}]}}]",
        peers.join(", ")
    );
    policy("server", "server", &spec)
}

impl Town {
    fn new() -> Result<Self> {
        let mut cluster = Cluster::new(2, Options::default())?;
        let mut servers = Vec::new();
        for (name, node, host) in PODS {
            let pod = model(name, node, host);
            cluster.add_pod(&pod)?;
            let addresses = pod.addresses.iter().flat_map(|address| {
                [7000, 7001].map(|port| (Transport::Sctp, SocketAddr::new(*address, port)))
            });
            let place = cluster.pod(&pod.name.to_string());
            servers.push(Responder::start(&place.namespace, name, addresses)?);
        }
        let mut town = Self {
            cluster,
            _servers: servers,
        };
        town.cluster.write(&pods())?;
        town.cluster.start()?;
        Ok(town)
    }

    fn apply(&mut self, policies: &[String]) -> Result<()> {
        self.cluster.apply(&(pods() + &policies.concat()))
    }

    /// An association from `from` with `to` comes to what is `expected`, over both families.
    fn expect(&self, from: &str, to: &str, port: u16, expected: &Outcome) {
        for v4 in [true, false] {
            self.expect_at(from, self.at(to, v4, port), expected);
        }
    }

    fn expect_at(&self, from: &str, to: SocketAddr, expected: &Outcome) {
        // Silence lasts as long as one waits for it; only an answer may be late.
        let limit = match expected {
            Outcome::Silent => TIMEOUT,
            _ => patience(TIMEOUT),
        };
        let place = self.cluster.pod(&full(from));
        let outcome = probe(&place.namespace, Probe::sctp(to), limit);
        assert_eq!(outcome, *expected, "{from} → {to}");
    }

    fn at(&self, to: &str, v4: bool, port: u16) -> SocketAddr {
        self.cluster.pod(&full(to)).at(v4, port)
    }

    fn talk(&self, from: &str, to: &str, v4: bool) -> Result<Talk> {
        let place = self.cluster.pod(&full(from));
        Talk::open_sctp(&place.namespace, self.at(to, v4, 7000))
    }
}

fn full(pod: &str) -> String {
    ObjectName::new("default", pod).to_string()
}

fn answered(by: &str) -> Outcome {
    Outcome::Answered(by.to_owned())
}

fn protocol_port_and_peer_decide(town: &mut Town) -> Result<()> {
    town.apply(&[])?;
    town.expect("stranger", "server", 7001, &answered("server"));
    town.apply(&[server_takes(&["client", "far"])])?;
    for (from, to, port, expected) in [
        ("client", "server", 7000, answered("server")),
        ("far", "server", 7000, answered("server")),
        ("stranger", "server", 7000, Outcome::Silent),
        // Only TCP is allowed there.
        ("client", "server", 7001, Outcome::Silent),
        ("far", "server", 7001, Outcome::Silent),
        // Nobody is isolated there; the answers come to an isolated pod.
        ("server", "stranger", 7001, answered("stranger")),
        ("server", "client", 7000, answered("client")),
    ] {
        town.expect(from, to, port, &expected);
    }
    Ok(())
}

/// Both ends are isolated in the direction of the answers, so they pass only as answers.
fn a_revoked_association_is_cut_and_another_goes_on(town: &mut Town) -> Result<()> {
    town.apply(&[])?;
    let silent = |pod: &str, direction: &str| {
        policy(
            &format!("{pod}-silent"),
            pod,
            &format!("policyTypes: [{direction}]"),
        )
    };
    let rest = [
        silent("server", "Egress"),
        silent("client", "Ingress"),
        silent("far", "Ingress"),
    ];
    let with = |clients: &[&str]| [&rest[..], &[server_takes(clients)]].concat();
    town.apply(&with(&["client", "far"]))?;
    let mut talks = Vec::new();
    for v4 in [true, false] {
        for from in ["client", "far"] {
            talks.push((from, town.talk(from, "server", v4)?));
        }
    }
    for (from, talk) in &mut talks {
        ensure!(talk.exchange(patience(TIMEOUT))?, "{from} is not answered");
    }
    // An INIT is never an answer: the server may not begin, whoever talks to it.
    town.expect("server", "client", 7000, &Outcome::Silent);
    town.apply(&with(&["far"]))?;
    for (from, talk) in &mut talks {
        let allowed = *from == "far";
        let limit = if allowed { patience(TIMEOUT) } else { TIMEOUT };
        let goes_on = talk
            .exchange(limit)
            .with_context(|| format!("{from}'s association"))?;
        assert_eq!(goes_on, allowed, "{from}'s association after the change");
    }
    Ok(())
}

/// Who opened what is known to the node's connection tracking alone.
fn isolation_that_begins_on_a_live_association(town: &mut Town) -> Result<()> {
    town.apply(&[])?;
    for number in 1..=2 {
        // Tracking runs where a rule asks for it, as kube-proxy's do.
        town.cluster.node(number).namespace.nft(
            "table inet t { chain c { type filter hook forward priority 0; ct state invalid counter; }; }",
        )?;
    }
    let mut to_server = town.talk("client", "server", true)?;
    let mut to_far = town.talk("client", "far", true)?;
    let mut from_stranger = town.talk("stranger", "client", true)?;
    for talk in [&mut to_server, &mut to_far, &mut from_stranger] {
        ensure!(
            talk.exchange(patience(TIMEOUT))?,
            "not answered before any policy"
        );
    }
    let spec = format!(
        "policyTypes: [Ingress, Egress], egress: [{{to: [{{{}}}], ports: [{{protocol: SCTP, port: 7000}}]}}]",
        peer("server")
    );
    town.apply(&[policy("client", "client", &spec)])?;
    ensure!(
        to_server.exchange(patience(TIMEOUT))?,
        "what the policy allows was cut"
    );
    ensure!(!to_far.exchange(TIMEOUT)?, "what the pod may not open goes on");
    ensure!(
        !from_stranger.exchange(TIMEOUT)?,
        "what nobody may open to the pod goes on"
    );
    Ok(())
}

/// Judged after the node's DNAT: the address that the client knows is in no policy.
fn a_service_leads_where_the_policy_allows(town: &mut Town) -> Result<()> {
    town.apply(&[])?;
    let (server, far) = (town.at("server", true, 7000), town.at("far", true, 7001));
    town.cluster.node(1).namespace.nft(&format!(
        "table ip nat {{ chain pre {{ type nat hook prerouting priority dstnat; \
         ip daddr 10.96.0.1 sctp dport 80 dnat to {server}; ip daddr 10.96.0.2 sctp dport 80 dnat to {far}; }}; }}"
    ))?;
    let spec = format!(
        "policyTypes: [Ingress, Egress], egress: [{{to: [{{{}}}], ports: [{{protocol: SCTP, port: 7000}}]}}]",
        peer("server")
    );
    town.expect_at("client", "10.96.0.1:80".parse()?, &answered("server"));
    town.expect_at("client", "10.96.0.2:80".parse()?, &answered("far"));
    town.apply(&[policy("client", "client", &spec), server_takes(&["client"])])?;
    town.expect_at("client", "10.96.0.1:80".parse()?, &answered("server"));
    town.expect_at("client", "10.96.0.2:80".parse()?, &Outcome::Silent);
    Ok(())
}

fn main() -> ExitCode {
    let lacks = (!kernel_has_sctp()).then_some("this kernel has no SCTP sockets");
    macro_rules! tests {
        ($($name:ident),* $(,)?) => { [$(Test { name: stringify!($name), run: $name }),*] };
    }
    harness::main(
        lacks,
        Town::new,
        &tests![
            protocol_port_and_peer_decide,
            a_revoked_association_is_cut_and_another_goes_on,
            isolation_that_begins_on_a_live_association,
            a_service_leads_where_the_policy_allows,
        ],
    )
}
