//! Label selectors and selector peers.

use super::ingress;
use crate::{build::*, model::*, oracle::selector::selects};

#[test]
fn the_four_operators_with_the_value_another_value_and_no_such_key() {
    let subjects = ["app=web", "app=db", "tier=front"].map(labels);
    let truth = |operator| {
        let selector = selector([requirement("app", operator)]);
        subjects.each_ref().map(|labels| selects(&selector, labels))
    };
    assert_eq!(truth(Operator::In(values(&["web", "api"]))), [true, false, false]);
    assert_eq!(
        truth(Operator::NotIn(values(&["web", "api"]))),
        [false, true, true]
    );
    assert_eq!(truth(Operator::Exists), [true, true, false]);
    assert_eq!(truth(Operator::DoesNotExist), [false, false, true]);
    assert_eq!(truth(Operator::In(vec![])), [false, false, false]);
}

#[test]
fn requirements_are_anded_and_none_matches_all() {
    let both = selector([
        requirement("app", Operator::In(values(&["web"]))),
        requirement("tier", Operator::Exists),
    ]);
    assert!(selects(&both, &labels("app=web,tier=front")));
    assert!(!selects(&both, &labels("app=web")));
    assert!(!selects(&both, &labels("app=db,tier=front")));
    assert!(selects(&matching(""), &labels("")));
    let never = selector([
        requirement("app", Operator::Exists),
        requirement("app", Operator::DoesNotExist),
    ]);
    assert!(!selects(&never, &labels("app=web")) && !selects(&never, &labels("")));
}

#[test]
fn an_empty_value_is_a_value() {
    let blank = selector([requirement("app", Operator::In(values(&[""])))]);
    assert!(selects(&blank, &labels("app=")));
    assert!(!selects(&blank, &labels("")));
}

/// `prod/db`, reachable as `peers` say; a client with each pair of app and namespace.
fn reached_by(peers: impl IntoIterator<Item = Peer>) -> Vec<&'static str> {
    let clients = [
        ("prod/api", "app=api", "10.0.0.1"),
        ("prod/web", "app=web", "10.0.0.2"),
        ("test/api", "app=api", "10.0.0.3"),
        ("test/web", "app=web", "10.0.0.4"),
        ("lost/api", "app=api", "10.0.0.5"),
    ];
    let pods = clients.map(|(name, labels, address)| pod(name, labels, &[address]));
    let db = pod("prod/db", "app=db", &["10.0.0.9"]);
    let snapshot = snapshot(
        [namespace("prod", "name=prod"), namespace("test", "name=test")],
        [],
        pods.into_iter().chain([db]),
        [policy(
            "prod/p",
            matching("app=db"),
            Some(vec![from_to(peers)]),
            None,
        )],
    );
    let passes = |name: &str, address: &str| {
        let by_pod = ingress(&snapshot, end(name, address), end("prod/db", "10.0.0.9"), 5432);
        let by_address = ingress(&snapshot, at(address), at("10.0.0.9"), 5432);
        assert_eq!(by_pod, by_address);
        by_pod.starts_with("PASS")
    };
    let reached = clients
        .into_iter()
        .filter(|(name, _, address)| passes(name, address));
    reached.map(|(name, ..)| name).collect()
}

#[test]
fn a_pod_selector_alone_means_the_policys_namespace() {
    assert_eq!(reached_by([pods(matching("app=api"))]), ["prod/api"]);
    assert_eq!(reached_by([pods(matching(""))]), ["prod/api", "prod/web"]);
}

#[test]
fn a_namespace_selector_alone_means_all_its_pods() {
    assert_eq!(
        reached_by([pods_in(matching("name=test"), matching(""))]),
        ["test/api", "test/web"]
    );
}

#[test]
fn an_empty_namespace_selector_means_all_namespaces_also_those_without_object() {
    let all = ["prod/api", "prod/web", "test/api", "test/web", "lost/api"];
    assert_eq!(reached_by([pods_in(matching(""), matching(""))]), all);
}

#[test]
fn both_selectors_in_one_peer_and_in_two() {
    let (namespaces, apps) = (matching("name=prod"), matching("app=api"));
    assert_eq!(
        reached_by([pods_in(namespaces.clone(), apps.clone())]),
        ["prod/api"]
    );
    assert_eq!(
        reached_by([pods_in(namespaces, matching("")), pods(apps)]),
        ["prod/api", "prod/web"]
    );
}

#[test]
fn a_namespace_without_object_has_its_name_as_only_label() {
    let by_name = matching("kubernetes.io/metadata.name=lost");
    assert_eq!(reached_by([pods_in(by_name, matching(""))]), ["lost/api"]);
    let unnamed = selector([requirement("name", Operator::DoesNotExist)]);
    assert_eq!(reached_by([pods_in(unnamed, matching(""))]), ["lost/api"]);
    let not_prod = selector([requirement(
        NAMESPACE_NAME_LABEL,
        Operator::NotIn(values(&["prod"])),
    )]);
    assert_eq!(
        reached_by([pods_in(not_prod, matching(""))]),
        ["test/api", "test/web", "lost/api"]
    );
}

#[test]
fn no_selector_matches_an_address_outside() {
    let everyone = policy(
        "prod/p",
        matching(""),
        Some(vec![from_to([pods_in(matching(""), matching(""))])]),
        None,
    );
    let snapshot = snapshot([], [], [pod("prod/db", "", &["10.0.0.9"])], [everyone]);
    assert_eq!(
        ingress(&snapshot, at("10.0.0.1"), at("10.0.0.9"), 80),
        "DROP by prod/p"
    );
}
