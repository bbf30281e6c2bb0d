//! Egress is judged after kube-proxy's translation: what counts is the pod behind a Service and its own port.
//!
//! Of each Service three clients ask: `right`, whose policy names who is really behind it and the real port; `wrong`, whose policy
//! names the Service's own address and port, which no packet has when it is judged; and `free`, which is not isolated.

mod clients;
mod inside;
mod outside;

pub(super) use self::clients::Clients;
use super::{Case, LOCAL, TWO, case};

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
            inside::cluster_ip,
        ),
        own(
            "service-mixed-endpoints",
            "of a Service's endpoints each is judged by itself, with session affinity, too",
            inside::mixed,
        ),
        own(
            "service-headless",
            "the endpoints of a headless Service are judged as the pods that they are",
            inside::headless,
        ),
        own(
            "service-hairpin",
            "a pod that is isolated both ways reaches itself through its own Service",
            inside::hairpin,
        ),
        own(
            "service-kubernetes",
            "kubernetes.default is judged as its endpoint, the API server's own address",
            outside::kubernetes,
        ),
        own(
            "service-like-kubernetes",
            "the same by hand on a node that has pods: always allowed to pods of that node, by rule to others",
            outside::like_kubernetes,
        ),
        case(
            "service-external",
            "an endpoint outside of the cluster is judged by its own address",
            LOCAL,
            outside::external,
        ),
        own(
            "service-load-balancer",
            "a load balancer's address is judged as the pods behind it",
            outside::load_balancer,
        ),
    ]
}
