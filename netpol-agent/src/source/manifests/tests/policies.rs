//! NetworkPolicies: what they mean, and what is said where they are wrong.

use netpol_policy::{
    build::{
        block, matching, pods, pods_in, policy, port, requirement, rule, selector, tcp, tcp_named, values,
    },
    model::{Operator, Peers, Policy, PortSpec, Ports, Protocol, Selector},
};

use super::read;
use crate::source::parse::Object;

/// The policy `prod/p` with this `spec`, indented by two; its first line is line 4.
pub(super) fn with_spec(spec: &str) -> (Policy, Vec<String>) {
    let head =
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: prod}\n";
    let (objects, problems) = read(&format!("{head}{spec}"));
    match objects.into_iter().next() {
        Some(Object::Policy(policy)) => (policy, problems),
        other => panic!("{other:?} {problems:?}"),
    }
}

#[test]
fn everything_at_once() {
    let (found, problems) = with_spec(
        "spec:
  podSelector:
    matchLabels: {app: db}
    matchExpressions:
    - {key: tier, operator: In, values: [b, a, b]}
    - {key: old, operator: DoesNotExist}
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - podSelector: {matchLabels: {app: api}}
      namespaceSelector: {matchLabels: {env: prod}}
    - namespaceSelector: {}
    - podSelector: {}
    - ipBlock: {cidr: 10.0.0.0/8, except: [10.2.0.0/16, 10.1.0.0/16]}
    ports:
    - port: 5432
    - {protocol: UDP, port: 100, endPort: 65535}
    - {protocol: SCTP}
    - {port: http}
  - {}
  egress:
  - to: []
    ports: []
",
    );
    let app = requirement("app", Operator::In(values(&["db"])));
    let tier = requirement("tier", Operator::In(values(&["a", "b"])));
    let old = requirement("old", Operator::DoesNotExist);
    let everyone = || rule(Peers::Any, Ports::Any);
    let first = rule(
        Peers::Of(vec![
            pods_in(matching("env=prod"), matching("app=api")),
            pods_in(matching(""), matching("")),
            pods(matching("")),
            block("10.0.0.0/8", &["10.1.0.0/16", "10.2.0.0/16"]),
        ]),
        Ports::Of(vec![
            tcp(5432),
            port(Protocol::Udp, PortSpec::Range(100, 65535)),
            port(Protocol::Sctp, PortSpec::All),
            tcp_named("http"),
        ]),
    );
    let ingress = Some(vec![first, everyone()]);
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!(
        found,
        policy(
            "prod/p",
            selector([app, tier, old]),
            ingress,
            Some(vec![everyone()])
        )
    );
}

#[test]
fn policy_types_default_as_in_the_api_server() {
    let isolates = |spec: &str| {
        let (policy, problems) = with_spec(&format!("spec: {spec}"));
        (policy.ingress.is_some(), policy.egress.is_some(), problems)
    };
    let clean = Vec::<String>::new();
    assert_eq!(isolates("{podSelector: {}}"), (true, false, clean.clone()));
    assert_eq!(isolates("{egress: [{}]}"), (true, true, clean.clone()));
    assert_eq!(isolates("{ingress: [{}]}"), (true, false, clean.clone()));
    assert_eq!(
        isolates("{policyTypes: [], egress: [{}]}"),
        (true, true, clean.clone())
    );
    assert_eq!(isolates("{policyTypes: [Egress]}"), (false, true, clean.clone()));
    assert_eq!(
        isolates("{policyTypes: [Ingress, Egress], egress: []}"),
        (true, true, clean)
    );
    let said = "warning: f.yaml:4: NetworkPolicy prod/p: spec.egress: without policyTypes an empty egress list does \
                not isolate for egress; help: add `policyTypes: [Ingress, Egress]` to deny all egress, or remove `egress`";
    assert_eq!(isolates("{egress: []}"), (true, false, vec![said.to_owned()]));
}

#[test]
fn rules_of_a_direction_that_is_not_isolated_are_said() {
    let (found, problems) = with_spec("spec: {policyTypes: [Egress], ingress: [{}]}");
    assert_eq!(found, policy("prod/p", Selector::default(), None, Some(vec![])));
    assert_eq!(
        problems,
        [
            "warning: f.yaml:4: NetworkPolicy prod/p: spec.ingress: policyTypes does not name Ingress: these rules have \
          no effect; help: add Ingress to policyTypes, or remove the rules"
        ]
    );
}

#[test]
fn unknown_policy_types() {
    let (found, problems) = with_spec("spec: {policyTypes: [egress]}");
    assert_eq!(
        found,
        policy("prod/p", Selector::default(), Some(vec![]), Some(vec![]))
    );
    let said = |help: &str, index, name: &str| {
        format!(
            "error: f.yaml:4: NetworkPolicy prod/p: spec.policyTypes[{index}]: {name:?} is not a policy type: if no \
             other type is named, the policy isolates both directions; help: {help}"
        )
    };
    assert_eq!(problems, [said("did you mean Egress?", 0, "egress")]);
    let (found, problems) = with_spec("spec: {policyTypes: [Egress, Both]}");
    assert_eq!(found, policy("prod/p", Selector::default(), None, Some(vec![])));
    assert_eq!(problems, [said("use Ingress, Egress or both", 1, "Both")]);
}

#[test]
fn a_pod_selector_that_is_not_understood_selects_every_pod() {
    let (found, problems) = with_spec("spec: {podSelector: {matchLabels: {app: yes, b: c}}, ingress: [{}]}");
    let everyone = rule(Peers::Any, Ports::Any);
    assert_eq!(
        found,
        policy("prod/p", Selector::default(), Some(vec![everyone]), None)
    );
    assert_eq!(
        problems,
        [
            "error: f.yaml:4: NetworkPolicy prod/p: spec.podSelector.matchLabels.app: the boolean yes where a string \
          belongs: the policy isolates every pod of its namespace; help: put it in quotes: \"yes\""
        ]
    );
}

#[test]
fn a_spec_that_is_not_understood_isolates_everything() {
    let (found, problems) = with_spec("spec: [1]");
    assert_eq!(
        found,
        policy("prod/p", Selector::default(), Some(vec![]), Some(vec![]))
    );
    assert_eq!(
        problems,
        [
            "error: f.yaml:4: NetworkPolicy prod/p: spec: a list where a mapping belongs: every pod of the namespace is \
          isolated in both directions; help: write fields here, or {} for none"
        ]
    );
}

#[test]
fn a_misspelt_spec_isolates_everything() {
    let (found, problems) = with_spec("Spec: {podSelector: {}, ingress: [{}]}");
    assert_eq!(
        found,
        policy("prod/p", Selector::default(), Some(vec![]), Some(vec![]))
    );
    assert_eq!(
        problems,
        [
            "error: f.yaml:4: NetworkPolicy prod/p: Spec: the API has no such field: every pod of the namespace is isolated \
             in both directions; help: did you mean `spec`?"
        ]
    );
}

#[test]
fn a_direction_that_is_no_list_allows_nothing() {
    let (found, problems) = with_spec("spec: {podSelector: {}, ingress: allow, egress: {to: []}}");
    assert_eq!(
        found,
        policy("prod/p", Selector::default(), Some(vec![]), Some(vec![]))
    );
    let said = |field: &str, what: &str| {
        format!(
            "error: f.yaml:4: NetworkPolicy prod/p: spec.{field}: {what} where a list belongs: nothing is allowed in this \
             direction; help: write a list: each item on a line of its own that begins with `- `"
        )
    };
    assert_eq!(
        problems,
        [
            said("ingress", "the string \"allow\""),
            said("egress", "a mapping")
        ]
    );
}

#[test]
fn a_field_given_twice_is_not_used() {
    let (found, problems) = with_spec("spec:\n  policyTypes: [Ingress]\n  ingress: [{}]\n  ingress: []\n");
    assert_eq!(found, policy("prod/p", Selector::default(), Some(vec![]), None));
    assert_eq!(
        problems,
        [
            "error: f.yaml:6: NetworkPolicy prod/p: spec.ingress: a value given twice where a list belongs: nothing \
             is allowed in this direction; help: write a list: each item on a line of its own that begins with `- `",
            "error: f.yaml:7: the field \"ingress\" is given twice, first on line 6: neither is used; help: remove \
             one of them",
        ]
    );
}

#[test]
fn unknown_fields_of_the_spec() {
    let (found, problems) =
        with_spec("spec: {podSelector: {}, egres: [{}], policytypes: [Egress], tiers: 1}");
    assert_eq!(
        found,
        policy("prod/p", Selector::default(), Some(vec![]), Some(vec![]))
    );
    let misspelt = |field: &str, meant: &str| {
        format!(
            "error: f.yaml:4: NetworkPolicy prod/p: spec.{field}: the API has no such field: the policy isolates \
             both directions; help: did you mean `{meant}`?"
        )
    };
    let new = "warning: f.yaml:4: NetworkPolicy prod/p: spec.tiers: the API has no such field; help: the fields here \
               are podSelector, policyTypes, ingress, egress";
    assert_eq!(
        problems,
        [
            misspelt("egres", "egress"),
            misspelt("policytypes", "policyTypes"),
            new.to_owned()
        ]
    );
    let (found, problems) = with_spec("spec: {podSelector: {}, tiers: 1}");
    assert_eq!(found, policy("prod/p", Selector::default(), Some(vec![]), None));
    assert_eq!(problems, [new]);
}

#[test]
fn a_policy_without_name_isolates_all_the_same() {
    let (objects, problems) =
        read("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nspec: {podSelector: {}}\n");
    let unnamed = policy(
        "default/(unnamed f.yaml:1)",
        Selector::default(),
        Some(vec![]),
        None,
    );
    assert_eq!(objects, [Object::Policy(unnamed)]);
    assert_eq!(
        problems,
        [
            "error: f.yaml:1: NetworkPolicy default/(unnamed f.yaml:1): metadata.name: is missing: it isolates all the \
             same; help: add `name:` under `metadata:`"
        ]
    );
}

#[test]
fn policies_of_an_api_version_that_is_gone() {
    let (objects, problems) =
        read("{apiVersion: extensions/v1beta1, kind: NetworkPolicy, metadata: {name: a}}");
    assert_eq!(objects, []);
    assert_eq!(
        problems,
        [
            "error: f.yaml:1: NetworkPolicy of apiVersion extensions/v1beta1 is not served by any cluster: it isolates \
          nothing; help: write `apiVersion: networking.k8s.io/v1`"
        ]
    );
}
