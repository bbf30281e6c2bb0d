//! Who asks, and the servers that are asked.

use std::net::IpAddr;

use anyhow::Result;
use serde_json::{Value, json};

use super::{DATAGRAMS, PORT};
use crate::{
    asks::Asks,
    cluster::{Cluster, Space},
    objects::{Pod, block, policy, tcp, udp},
};

/// A namespace with clients, one of each kind on each of two nodes: `right-near`, `wrong-far`, …
pub(in crate::cases) struct Clients<'c> {
    pub(in crate::cases) cluster: &'c Cluster,
    pub(in crate::cases) space: Space<'c>,
}

impl<'c> Clients<'c> {
    pub(in crate::cases) fn start(cluster: &'c Cluster, name: &str) -> Result<Self> {
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

    pub(in crate::cases) fn ns(&self) -> &str {
        &self.space.name
    }

    /// A server for each node: `near` and `far`, labelled `app: NAME`.
    pub(super) fn servers(&self, kind: &str) -> Vec<Pod> {
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
    pub(super) fn policies(&self, right: &Value, wrong: &[(IpAddr, u16)]) -> Result<()> {
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
    pub(super) fn ask(&self, asks: &mut Asks, to: &str, by: &str, what: &str) {
        for at in ["near", "far"] {
            asks.allow((self.ns(), &format!("right-{at}")), to, by, what);
            asks.allow((self.ns(), &format!("free-{at}")), to, by, what);
            asks.deny((self.ns(), &format!("wrong-{at}")), to, what);
        }
    }
}
