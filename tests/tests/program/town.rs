//! A small node on which every reason can be reached.
//!
//! | pod | addresses | isolated | its rules |
//! |---|---|---|---|
//! | free | 10.0.0.1, fd00::1 | no | |
//! | client (`app=client`) | 10.0.0.2, fd00::2 | no | |
//! | guarded | 10.0.0.3, fd00::3 | ingress | from `app=client` to TCP 80 |
//! | held | 10.0.0.4, fd00::4 | egress | to `app=client` on UDP 53; to 192.0.2.0/24 and 2001:db8::/64 on TCP 443 |
//! | both | 10.0.0.5, fd00::5 | both | those of `guarded` and of `held` |

use netpol_policy::{
    build::{block, matching, name, namespace, node, pod, pods, policy, port, rule, snapshot, tcp},
    model::{Peers, PortSpec, Ports, Protocol, Rule, Snapshot},
};
use netpol_tests::program::Lab;

/// Outside the cluster, where `held` and `both` may go on TCP 443.
pub(crate) const SERVER: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
/// Outside the cluster, where they may not.
pub(crate) const STRANGER: [&str; 2] = ["198.51.100.1", "2001:db8:1::1"];

/// The pods' names in order of their addresses.
const NAMES: [&str; 5] = ["free", "client", "guarded", "held", "both"];

/// One pod's addresses.
pub(crate) fn addresses(pod: &str) -> [String; 2] {
    let last = NAMES
        .iter()
        .position(|name| *name == pod)
        .expect("a pod of the town")
        + 1;
    [format!("10.0.0.{last}"), format!("fd00::{last}")]
}

/// One pod's index.
pub(crate) fn index(lab: &Lab<'_>, pod: &str) -> u32 {
    lab.index(&name(&format!("default/{pod}")))
}

fn from_client() -> Rule {
    rule(
        Peers::Of(vec![pods(matching("app=client"))]),
        Ports::Of(vec![tcp(80)]),
    )
}

fn to_dns_and_server() -> Vec<Rule> {
    let dns = port(Protocol::Udp, PortSpec::Range(53, 53));
    vec![
        rule(
            Peers::Of(vec![pods(matching("app=client"))]),
            Ports::Of(vec![dns]),
        ),
        rule(
            Peers::Of(vec![block("192.0.2.0/24", &[]), block("2001:db8::/64", &[])]),
            Ports::Of(vec![tcp(443)]),
        ),
    ]
}

/// The town.
pub(crate) fn town() -> Snapshot {
    let people = NAMES.map(|name| {
        let [v4, v6] = addresses(name);
        let labels = format!("app={name},in={},out={}", isolated_in(name), isolated_out(name));
        pod(&format!("default/{name}"), &labels, &[&v4, &v6])
    });
    let policies = [
        policy("default/in", matching("in=true"), Some(vec![from_client()]), None),
        policy(
            "default/out",
            matching("out=true"),
            None,
            Some(to_dns_and_server()),
        ),
    ];
    snapshot(
        [namespace("default", "")],
        [node("node-1", &["10.1.0.1", "fd01::1"])],
        people,
        policies,
    )
}

/// The town after both policies lost their rules: nobody isolated may do anything.
pub(crate) fn strict_town() -> Snapshot {
    let mut town = town();
    for policy in town.policies.values_mut() {
        policy.ingress = policy.ingress.as_ref().map(|_| Vec::new());
        policy.egress = policy.egress.as_ref().map(|_| Vec::new());
    }
    town
}

fn isolated_in(pod: &str) -> bool {
    matches!(pod, "guarded" | "both")
}

fn isolated_out(pod: &str) -> bool {
    matches!(pod, "held" | "both")
}
