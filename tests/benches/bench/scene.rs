//! A node and its peers, as large as asked.
//!
//! | local pod | isolated | selected by |
//! |---|---|---|
//! | free | no | |
//! | server, client | both | every policy |
//! | door | ingress | one policy with as many rules |
//!
//! Each policy allows TCP 443, both ways, for its share of the peers.

use std::net::Ipv4Addr;

use netpol_policy::{
    build::{block, matching, name, namespace, pod, pods, policy, rule, snapshot, tcp},
    model::{Peer, Peers, Pod, Ports, Rule, Snapshot},
};
use netpol_tests::program::Lab;

/// What the policies allow.
pub(crate) const ALLOWED: u16 = 443;
/// What they do not.
pub(crate) const DENIED: u16 = 444;

/// How the policies name their peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// By labels: exact addresses.
    Pods,
    /// By ipBlocks: prefixes.
    Blocks,
}

/// How much there is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) policies: usize,
    pub(crate) peers: usize,
    pub(crate) kind: Kind,
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.kind {
            Kind::Pods => "peers",
            Kind::Blocks => "ipBlocks",
        };
        write!(f, "{} policies, {} {kind}", self.policies, self.peers)
    }
}

/// The local pods' places in `10.0.0.0/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Local {
    Free = 1,
    Server,
    Client,
    Door,
}

impl Local {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Free, "free"),
        (Self::Server, "server"),
        (Self::Client, "client"),
        (Self::Door, "door"),
    ];

    pub(crate) const fn address(self) -> u32 {
        (10 << 24) + self as u32
    }

    pub(crate) fn index(self, lab: &Lab<'_>) -> u32 {
        lab.index(&name(&format!("default/{}", Self::ALL[self as usize - 1].1)))
    }
}

impl Size {
    /// The address of a peer, or one within its block.
    pub(crate) fn peer(self, at: usize) -> u32 {
        let first = 11 << 24;
        match self.kind {
            Kind::Pods => first + at as u32,
            Kind::Blocks => first + at as u32 * 256 + 7,
        }
    }

    /// Policies and peers alike go around these.
    fn shares(self) -> usize {
        self.policies.min(self.peers)
    }

    fn share(self, share: usize) -> Vec<Peer> {
        match self.kind {
            Kind::Pods => vec![pods(matching(&format!("share={share}")))],
            Kind::Blocks => (share..self.peers)
                .step_by(self.shares())
                .map(|at| block(&format!("{}/24", Ipv4Addr::from(self.peer(at))), &[]))
                .collect(),
        }
    }

    fn rule(self, at: usize) -> Rule {
        // More policies than peers: those left over name nobody who is there.
        let peers = if at < self.shares() {
            self.share(at)
        } else {
            vec![pods(matching(&format!("share={at}")))]
        };
        rule(Peers::Of(peers), Ports::Of(vec![tcp(ALLOWED)]))
    }

    fn remote(self, at: usize) -> Pod {
        let labels = format!("share={}", at % self.shares());
        let address = Ipv4Addr::from(self.peer(at)).to_string();
        let mut remote = pod(&format!("default/peer-{at}"), &labels, &[&address]);
        remote.node = Some("elsewhere".into());
        remote
    }

    /// Everything that is there.
    pub(crate) fn snapshot(self) -> Snapshot {
        let local = Local::ALL.map(|(which, name)| {
            let app = match which {
                // Peers of each other by the first policy.
                Local::Client | Local::Server => "app=server,share=0",
                Local::Door => "app=door",
                Local::Free => "app=free",
            };
            let address = Ipv4Addr::from(which.address()).to_string();
            pod(&format!("default/{name}"), app, &[&address])
        });
        let remote = match self.kind {
            Kind::Pods => self.peers,
            Kind::Blocks => 0,
        };
        let door = policy(
            "default/door",
            matching("app=door"),
            Some((0..self.policies).map(|at| self.rule(at)).collect()),
            None,
        );
        let mut policies: Vec<_> = (0..self.policies)
            .map(|at| {
                let rules = vec![self.rule(at)];
                let name = format!("default/policy-{at}");
                policy(&name, matching("app=server"), Some(rules.clone()), Some(rules))
            })
            .collect();
        policies.push(door);
        let remote = (0..remote).map(|at| self.remote(at));
        snapshot(
            [namespace("default", "")],
            [],
            local.into_iter().chain(remote),
            policies,
        )
    }
}
