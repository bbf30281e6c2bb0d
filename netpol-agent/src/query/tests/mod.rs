use netpol_policy::{
    build::{
        block, container_port, from_to, matching, node, on_ports, pod, pods, policy, snapshot, tcp, tcp_named,
    },
    compile,
    generate::{Shape, flows, snapshots},
    model::{ObjectName, Pod, Protocol, Snapshot},
    oracle::End,
};
use proptest::prelude::*;

mod bulk;
mod matrix;

use super::{Answer, EndName, Family, Judge, PortName, QueryError, Question, Story, Transport};

/// client, api and a db that only api may reach on its port `pg`; db allows everybody 9090.
fn three_tiers() -> Snapshot {
    let db = Pod {
        ports: vec![container_port("pg", Protocol::Tcp, 5432)],
        node: None,
        ..pod("shop/db", "app=db", &["10.0.0.4", "fd00::4"])
    };
    let mut to_db = from_to([pods(matching("app=api"))]);
    to_db.ports = on_ports([tcp_named("pg"), tcp_named("web")]).ports;
    snapshot(
        [],
        [node("node-1", &["192.168.0.1", "192.168.0.2"])],
        [
            pod("shop/client", "app=client", &["10.0.0.2", "fd00::2"]),
            pod("shop/api", "app=api", &["10.0.0.3"]),
            db,
            Pod {
                host_network: true,
                ..pod("shop/proxy", "app=api", &["192.168.0.1"])
            },
            Pod {
                completed: true,
                ..pod("shop/job", "", &["10.0.0.9"])
            },
            pod("shop/new", "", &[]),
        ],
        [
            policy(
                "shop/db",
                matching("app=db"),
                Some(vec![to_db, on_ports([tcp(9090)])]),
                None,
            ),
            policy(
                "shop/out",
                matching("app=api"),
                None,
                Some(vec![from_to([block("10.0.0.0/8", &["10.0.0.2/32"])])]),
            ),
        ],
    )
}

/// The answer as a line of `--flows` gets it, and as people read it.
fn ask(
    from: &str,
    to: &str,
    port: &str,
    family: Option<Family>,
) -> Result<(String, Vec<String>), QueryError> {
    let snapshot = three_tiers();
    let judge = Judge::new(&snapshot, compile::full);
    let find = |text: &str| judge.ends().find(&text.parse()?);
    let (from, to) = (find(from)?, find(to)?);
    let (transport, port) = match port {
        "icmp" => (Transport::Icmp, None),
        port => (Transport::TCP, Some(port.parse::<PortName>()?)),
    };
    let question = Question::new(&from, &to, transport, port.as_ref(), family)?;
    let verdict = judge.ask(&question).expect("policies and tables agree");
    let story = Story::new(&snapshot, [&from, &to], &question, &verdict);
    let mut told = vec![story.sentence];
    told.extend(story.egress);
    told.extend(story.ingress);
    Ok((serde_json::to_string(&Answer(&verdict)).unwrap(), told))
}

fn told(from: &str, to: &str, port: &str) -> Vec<String> {
    ask(from, to, port, None).unwrap().1
}

fn refused(from: &str, to: &str, port: &str) -> String {
    ask(from, to, port, None).unwrap_err().to_string()
}

#[test]
fn an_answer_names_the_policies_that_allow_or_that_isolate() {
    let (allowed, _) = ask("shop/api", "shop/db", "pg", None).unwrap();
    assert_eq!(
        allowed,
        concat!(
            r#"{"verdict":"allow","egress":{"verdict":"allow","isolated":true,"policies":["shop/out"],"#,
            r#""rules":[{"policy":"shop/out","rule":0}]},"ingress":{"verdict":"allow","isolated":true,"#,
            r#""policies":["shop/db"],"rules":[{"policy":"shop/db","rule":0}]}}"#
        )
    );
    let (denied, _) = ask("shop/client", "shop/db", "pg", None).unwrap();
    assert_eq!(
        denied,
        concat!(
            r#"{"verdict":"deny","egress":{"verdict":"allow","isolated":false,"policies":[],"rules":[]},"#,
            r#""ingress":{"verdict":"deny","isolated":true,"policies":["shop/db"],"rules":[]}}"#
        )
    );
    let (own, _) = ask("node/node-1", "shop/api", "1", None).unwrap();
    assert!(own.contains(r#""verdict":"allow","#));
    let (own, _) = ask("shop/api", "node/node-1", "1", None).unwrap();
    assert_eq!(
        own,
        concat!(
            r#"{"verdict":"allow","egress":{"verdict":"allow","isolated":true,"policies":[],"rules":[],"#,
            r#""exempt":"own-node"},"ingress":{"verdict":"allow","isolated":false,"policies":[],"rules":[]}}"#
        )
    );
}

#[test]
fn a_denial_says_which_rules_came_close() {
    assert_eq!(
        told("shop/client", "shop/db", "5432"),
        [
            "shop/client may not reach shop/db on TCP 5432: shop/db is isolated for ingress by shop/db, and no rule \
             allows it.",
            "shop/client is not isolated: no policy selects it for egress",
            "shop/db is isolated by shop/db; no rule allows TCP 5432 from shop/client",
            "shop/db (rule 0) allows TCP 5432, but not from shop/client",
            "shop/db (rule 1) matches shop/client, but allows only TCP 9090",
        ]
    );
    assert_eq!(
        told("shop/api", "shop/db", "80"),
        [
            "shop/api may not reach shop/db on TCP 80: shop/db is isolated for ingress by shop/db, and no rule \
             allows it.",
            "shop/api is isolated by shop/out; allowed by shop/out (rule 0)",
            "shop/db is isolated by shop/db; no rule allows TCP 80 from shop/api",
            "shop/db (rule 0) matches shop/api, but allows only TCP pg (5432), TCP web (no such port there)",
            "shop/db (rule 1) matches shop/api, but allows only TCP 9090",
        ]
    );
    assert_eq!(
        told("shop/api", "10.0.0.2", "80")[1..3],
        [
            "shop/api is isolated by shop/out; no rule allows TCP 80 to shop/client",
            "shop/out (rule 0) allows TCP 80, but not to shop/client",
        ]
    );
}

#[test]
fn ends_that_no_policy_applies_to() {
    assert_eq!(
        told("8.8.8.8", "shop/db", "9090"),
        [
            "8.8.8.8 may reach shop/db on TCP 9090: shop/db allows it for ingress.",
            "8.8.8.8 is outside the cluster: no policy applies to it",
            "shop/db is isolated by shop/db; allowed by shop/db (rule 1)",
        ]
    );
    assert_eq!(
        told("shop/proxy", "shop/client", "icmp"),
        [
            "shop/proxy may reach shop/client on ICMP: neither is isolated.",
            "shop/proxy uses its node's network: no policy applies to it",
            "shop/client is not isolated: no policy selects it for ingress",
        ]
    );
    assert_eq!(
        told("192.168.0.2", "shop/client", "1")[1],
        "node/node-1 is a node: no policy applies to it"
    );
    assert_eq!(
        told("shop/db", "fd00::4", "1"),
        [
            "shop/db may reach shop/db on TCP 1: a pod may always reach itself.",
            "shop/db is not isolated: no policy selects it for egress",
            "shop/db is isolated by shop/db, but a pod may always reach itself",
        ]
    );
}

#[test]
fn the_family_is_the_destinations_first_that_the_source_has() {
    let family = |from, to, asked| {
        let snapshot = three_tiers();
        let judge = Judge::new(&snapshot, compile::full);
        let find = |text: &str| judge.ends().find(&text.parse().unwrap()).unwrap();
        let (from, to) = (find(from), find(to));
        let port = PortName::Number(1);
        Question::new(&from, &to, Transport::TCP, Some(&port), asked)
            .map(|question| (question.from.address.to_string(), question.to.address.to_string()))
            .map_err(|error| error.to_string())
    };
    let pair = |from: &str, to: &str| Ok((from.to_owned(), to.to_owned()));
    assert_eq!(
        family("shop/client", "shop/db", None),
        pair("10.0.0.2", "10.0.0.4")
    );
    assert_eq!(
        family("shop/client", "shop/db", Some(Family::V6)),
        pair("fd00::2", "fd00::4")
    );
    assert_eq!(family("fd00::99", "shop/db", None), pair("fd00::99", "fd00::4"));
    assert_eq!(
        family("shop/api", "shop/db", Some(Family::V6)),
        Err("shop/api has no IPv6 address (it has 10.0.0.3)".into())
    );
    assert_eq!(
        family("shop/api", "fd00::4", None),
        Err("shop/api (10.0.0.3) and shop/db (fd00::4) have no address family in common".into())
    );
}

#[test]
fn what_can_not_be_asked_says_why() {
    let text = [
        refused("shop/job", "shop/db", "1"),
        refused("shop/new", "shop/db", "1"),
        refused("shop/clint", "shop/db", "1"),
        refused("other/client", "shop/db", "1"),
        refused("10.0.0.2/32", "shop/db", "1"),
        refused("other/x", "shop/db", "1"),
        refused("node/node-9", "shop/db", "1"),
        refused("shop/client", "shop/db", "metrics"),
        refused("shop/client", "node/node-1", "pg"),
        refused("client", "shop/db", "1"),
    ];
    assert_eq!(
        text,
        [
            "pod shop/job has completed: it has no address any more, so nothing can reach it or come from it",
            "pod shop/new has no address yet; give it one in status.podIPs",
            "there is no pod shop/clint; namespace shop has shop/api, shop/client, shop/db, shop/job, shop/new and \
             shop/proxy",
            "there is no pod other/client; did you mean shop/client?",
            "there is no pod 10.0.0.2/32; an end is one address, not a prefix",
            "there is no pod other/x; there are no pods in namespace other",
            "there is no node node-9; there is node-1",
            "shop/db has no TCP port named `metrics`; it has pg (TCP 5432)",
            "node/node-1 is not a pod, so it has no port named `pg`; give the port's number",
            "`client` is no end; write namespace/pod, node/NAME, or an IP address",
        ]
    );
}

/// Its name alone tells a node from all others, which is enough for its own pods.
#[test]
fn a_node_without_address_is_known_to_its_own_pods() {
    let mut snapshot = three_tiers();
    snapshot.nodes.clear();
    snapshot.pods.remove(&ObjectName::new("shop", "proxy"));
    let judge = Judge::new(&snapshot, compile::full);
    let find = |text: &str| judge.ends().find(&text.parse().unwrap()).unwrap();
    let (node, own, other) = (find("node/node-1"), find("shop/api"), find("shop/db"));
    let port = PortName::Number(80);
    let ask = |from, to| Question::new(from, to, Transport::TCP, Some(&port), None);
    assert!(judge.ask(&ask(&own, &node).unwrap()).unwrap().allowed());
    assert_eq!(
        ask(&node, &other).unwrap_err().to_string(),
        "node node-1 has no address; add a Node object with status.addresses"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever the manifests say, and whoever is named however: both readings agree.
    #[test]
    fn policies_and_tables_agree(snapshot in snapshots(Shape::default()), seed in any::<u64>()) {
        let judge = Judge::new(&snapshot, compile::full);
        for flow in flows(&snapshot, 200, seed) {
            let [from, to] = [&flow.from, &flow.to].map(|end| match end {
                End::Pod(name, _) => EndName::Pod(name.clone()),
                End::Ip(address) => EndName::Address(*address),
                End::Node(name, _) => EndName::Node(name.clone()),
            });
            let (Ok(from), Ok(to)) = (judge.ends().find(&from), judge.ends().find(&to)) else { continue };
            let port = PortName::number(flow.port.into()).ok();
            let transport = Transport::Number(flow.protocol);
            let port = port.as_ref().filter(|_| transport.has_ports());
            let Ok(question) = Question::new(&from, &to, transport, port, None) else { continue };
            prop_assert_eq!(judge.ask(&question).err(), None, "{:?}", question);
        }
    }
}
