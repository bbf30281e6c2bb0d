//! Who is isolated, and the union of policies.

use super::{ingress, said};
use crate::{build::*, model::*};

fn two(policies: impl IntoIterator<Item = Policy>) -> Snapshot {
    let pods = [
        pod("shop/client", "app=client", &["10.0.0.1"]),
        pod("shop/server", "app=server", &["10.0.0.2"]),
    ];
    snapshot([namespace("shop", "")], [], pods, policies)
}

fn flow() -> crate::oracle::Flow {
    tcp_flow(end("shop/client", "10.0.0.1"), end("shop/server", "10.0.0.2"), 80)
}

#[test]
fn without_policies_everything_is_open() {
    assert_eq!(said(&two([]), &flow()), ["open", "open"]);
}

#[test]
fn a_policy_isolates_only_the_directions_it_relates_to() {
    let deny_in = policy("shop/in", matching("app=server"), Some(vec![]), None);
    assert_eq!(said(&two([deny_in]), &flow()), ["open", "DROP by shop/in"]);
    let deny_out = policy("shop/out", matching("app=client"), None, Some(vec![]));
    assert_eq!(said(&two([deny_out]), &flow()), ["DROP by shop/out", "open"]);
    let neither = policy("shop/none", matching(""), None, None);
    assert_eq!(said(&two([neither]), &flow()), ["open", "open"]);
}

#[test]
fn an_empty_pod_selector_selects_every_pod_of_its_namespace_and_none_of_another() {
    let here = policy("shop/all", matching(""), Some(vec![]), Some(vec![]));
    assert_eq!(
        said(&two([here]), &flow()),
        ["DROP by shop/all", "DROP by shop/all"]
    );
    let elsewhere = policy("other/all", matching(""), Some(vec![]), Some(vec![]));
    assert_eq!(said(&two([elsewhere]), &flow()), ["open", "open"]);
}

#[test]
fn no_rules_is_not_a_rule_without_fields() {
    let nothing = policy("shop/p", matching(""), Some(vec![]), None);
    let everything = policy(
        "shop/p",
        matching(""),
        Some(vec![rule(Peers::Any, Ports::Any)]),
        None,
    );
    assert_eq!(said(&two([nothing]), &flow())[1], "DROP by shop/p");
    assert_eq!(
        said(&two([everything]), &flow())[1],
        "PASS by shop/p rules shop/p#0"
    );
}

#[test]
fn lists_whose_entries_were_all_left_out_match_nothing() {
    let nobody = policy("shop/p", matching(""), Some(vec![from_to([])]), None);
    assert_eq!(said(&two([nobody]), &flow())[1], "DROP by shop/p");
    let no_port = policy("shop/p", matching(""), Some(vec![on_ports([])]), None);
    assert_eq!(said(&two([no_port]), &flow())[1], "DROP by shop/p");
}

#[test]
fn policies_add_up_and_every_allowing_rule_is_named() {
    let deny = policy("shop/deny", matching(""), Some(vec![]), None);
    let clients = from_to([pods(matching("app=client"))]);
    let others = from_to([pods(matching("app=other"))]);
    let first = policy(
        "shop/first",
        matching("app=server"),
        Some(vec![others, clients.clone()]),
        None,
    );
    let second = policy(
        "shop/second",
        matching("app=server"),
        Some(vec![clients, on_ports([tcp(80)])]),
        None,
    );
    assert_eq!(
        ingress(
            &two([deny, first, second]),
            end("shop/client", "10.0.0.1"),
            end("shop/server", "10.0.0.2"),
            80
        ),
        "PASS by shop/deny shop/first shop/second rules shop/first#1 shop/second#0 shop/second#1"
    );
}

#[test]
fn a_rule_keeps_its_place_in_the_object_when_those_before_it_were_left_out() {
    let mut only_third = policy(
        "shop/p",
        matching(""),
        Some(vec![rule(Peers::Any, Ports::Any)]),
        None,
    );
    only_third.ingress.as_mut().unwrap()[0].index = 2;
    assert_eq!(
        said(&two([only_third]), &flow())[1],
        "PASS by shop/p rules shop/p#2"
    );
}

#[test]
fn both_ends_must_allow() {
    let allow = || Some(vec![rule(Peers::Any, Ports::Any)]);
    let out = |rules| policy("shop/out", matching("app=client"), None, rules);
    let into = |rules| policy("shop/in", matching("app=server"), rules, None);
    let verdict = |policies: [Policy; 2]| {
        let snapshot = two(policies);
        crate::oracle::Oracle::new(&snapshot).evaluate(&flow()).allowed()
    };
    assert!(verdict([out(allow()), into(allow())]));
    assert!(!verdict([out(Some(vec![])), into(allow())]));
    assert!(!verdict([out(allow()), into(Some(vec![]))]));
}

#[test]
fn an_egress_rule_is_no_ingress_rule() {
    let p = policy(
        "shop/p",
        matching(""),
        Some(vec![]),
        Some(vec![rule(Peers::Any, Ports::Any)]),
    );
    assert_eq!(
        said(&two([p]), &flow()),
        ["PASS by shop/p rules shop/p#0", "DROP by shop/p"]
    );
}

#[test]
fn a_pod_recreated_under_its_name_is_judged_by_its_new_labels() {
    let clients = policy(
        "shop/p",
        matching("app=server"),
        Some(vec![from_to([pods(matching("app=client"))])]),
        None,
    );
    let mut snapshot = two([clients]);
    assert_eq!(said(&snapshot, &flow())[1], "PASS by shop/p rules shop/p#0");
    snapshot.apply(Event::PodGone(name("shop/client")));
    snapshot.apply(Event::Pod(pod("shop/client", "app=stranger", &["10.0.0.1"])));
    assert_eq!(said(&snapshot, &flow())[1], "DROP by shop/p");
    snapshot.apply(Event::Pod(pod("shop/server", "app=client", &["10.0.0.2"])));
    assert_eq!(said(&snapshot, &flow())[1], "open");
}
