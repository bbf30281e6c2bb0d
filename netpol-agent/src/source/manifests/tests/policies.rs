//! NetworkPolicies: what they mean, and what is said where they are wrong.

use netpol_policy::{
    build::{
        block, from_to, matching, on_ports, pods, pods_in, policy, port, requirement, rule, selector, tcp,
        tcp_named, values,
    },
    model::{Operator, Peers, Policy, PortSpec, Ports, Protocol, Rule, Selector},
};

use super::read;
use crate::source::parse::Object;

/// The policy `prod/p` with this `spec`, indented by two; its first line is line 4.
fn with_spec(spec: &str) -> (Policy, Vec<String>) {
    let head =
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: prod}\n";
    let (objects, problems) = read(&format!("{head}{spec}"));
    match objects.into_iter().next() {
        Some(Object::Policy(policy)) => (policy, problems),
        other => panic!("{other:?} {problems:?}"),
    }
}

/// The ingress rules of the policy whose `spec.ingress` is `rules` in flow style, on line 4.
fn with_ingress(rules: &str) -> (Vec<Rule>, Vec<String>) {
    let (policy, problems) = with_spec(&format!("spec: {{podSelector: {{}}, ingress: {rules}}}"));
    (policy.ingress.expect("isolates for ingress"), problems)
}

/// One bad rule before a good one: exactly this is said, and only the good one is in force.
#[track_caller]
fn bad_rule(bad: &str, said: &[&str]) {
    let (rules, problems) = with_ingress(&format!("[{bad}, {{ports: [{{port: 1}}]}}]"));
    let said: Vec<String> = said
        .iter()
        .map(|said| format!("error: f.yaml:4: NetworkPolicy prod/p: spec.ingress[0]{said}"))
        .collect();
    assert_eq!(problems, said);
    assert_eq!(
        rules,
        [Rule {
            index: 1,
            ..on_ports([tcp(1)])
        }]
    );
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
fn a_field_given_twice_is_not_used() {
    let (found, problems) = with_spec("spec:\n  policyTypes: [Ingress]\n  ingress: [{}]\n  ingress: []\n");
    assert_eq!(found, policy("prod/p", Selector::default(), Some(vec![]), None));
    assert_eq!(
        problems,
        [
            "error: f.yaml:6: NetworkPolicy prod/p: spec.ingress: a value given twice where a list belongs; help: \
             write a list: each item on a line of its own that begins with `- `",
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
        ["error: f.yaml:1: NetworkPolicy: has no metadata.name; help: add `name:` under `metadata:`"]
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

const DROPPED: &str = "the whole rule allows nothing";

#[test]
fn networks() {
    let cidr = |cidr: &str, said: &str| {
        let said = format!(".from[0].ipBlock.cidr: {said}");
        bad_rule(&format!("{{from: [{{ipBlock: {{cidr: {cidr}}}}}]}}"), &[&said]);
    };
    cidr(
        "10.0.0.0/33",
        &format!(
            "\"10.0.0.0/33\" is not a CIDR: the prefix length is out of range: {DROPPED}; help: use 0 to 32 after '/'"
        ),
    );
    cidr(
        "\"fd00::/129\"",
        &format!(
            "\"fd00::/129\" is not a CIDR: the prefix length is out of range: {DROPPED}; help: use 0 to 128 after '/'"
        ),
    );
    cidr(
        "10.0.0.0/+8",
        &format!(
            "\"10.0.0.0/+8\" is not a CIDR: the prefix length is out of range: {DROPPED}; help: use 0 to 32 after '/'"
        ),
    );
    cidr(
        "10.0.0.300/8",
        &format!(
            "\"10.0.0.300/8\" is not a CIDR: what stands before '/' is not an IP address: {DROPPED}; help: write \
             ADDRESS/BITS, as in 10.0.0.0/8 or fd00::/8"
        ),
    );
    cidr(
        "10.0.0.1",
        &format!("\"10.0.0.1\" is not a CIDR: it has no '/': {DROPPED}; help: write 10.0.0.1/32"),
    );
    cidr(
        "8",
        &format!("the number 8 where a string belongs: {DROPPED}; help: put it in quotes: \"8\""),
    );
}

#[test]
fn exceptions() {
    let except = |except: &str, said: &str| {
        let said = format!(".from[0].ipBlock.except[0]: {said}");
        bad_rule(
            &format!("{{from: [{{ipBlock: {{cidr: 10.0.0.0/16, except: [{except}]}}}}]}}"),
            &[&said],
        );
    };
    except(
        "\"fd00::/64\"",
        &format!(
            "fd00::/64 and the block's cidr 10.0.0.0/16 are of different IP families: {DROPPED}; help: use one \
             ipBlock for each family"
        ),
    );
    let outside = |net: &str| {
        format!(
            "{net} is not within the block's cidr 10.0.0.0/16: {DROPPED}; help: remove the exception, or correct \
             one of the two"
        )
    };
    except("10.1.0.0/24", &outside("10.1.0.0/24"));
    except("10.0.0.0/8", &outside("10.0.0.0/8"));
}

#[test]
fn networks_that_are_odd_but_clear() {
    let odd = |cidr: &str, means, said: &[&str]| {
        let (rules, problems) = with_ingress(&format!("[{{from: [{{ipBlock: {cidr}}}]}}]"));
        assert_eq!(rules, [from_to([means])]);
        let at = "warning: f.yaml:4: NetworkPolicy prod/p: spec.ingress[0].from[0].ipBlock.";
        assert_eq!(
            problems,
            said.iter().map(|said| format!("{at}{said}")).collect::<Vec<_>>()
        );
    };
    odd(
        "{cidr: 192.168.5.10/24}",
        block("192.168.5.0/24", &[]),
        &[
            "cidr: \"192.168.5.10/24\" has bits set behind its prefix: it means 192.168.5.0/24; help: write \
           192.168.5.0/24, or 192.168.5.10/32 for the one address",
        ],
    );
    odd(
        "{cidr: 010.0.0.0/8}",
        block("10.0.0.0/8", &[]),
        &[
            "cidr: \"010.0.0.0/8\" has leading zeros: it is read as decimal, 10.0.0.0/8; help: write 10.0.0.0/8",
        ],
    );
    odd(
        "{cidr: 10.0.0.0/8, except: [10.0.0.0/8]}",
        block("10.0.0.0/8", &["10.0.0.0/8"]),
        &[
            "except[0]: 10.0.0.0/8 is the whole of the block's cidr: the block matches nobody; help: remove the \
           ipBlock; the API server refuses it",
        ],
    );
    odd(
        "{cidr: \"::ffff:10.0.0.0/104\"}",
        block("::ffff:10.0.0.0/104", &[]),
        &[
            "cidr: \"::ffff:10.0.0.0/104\" is an IPv4-mapped IPv6 network: it matches no IPv4 address; help: write it \
           as an IPv4 network",
        ],
    );
    odd("{cidr: 0.0.0.0/0}", block("0.0.0.0/0", &[]), &[]);
    odd("{cidr: \"::/0\"}", block("::/0", &[]), &[]);
}

#[test]
fn peers() {
    bad_rule(
        "{from: [{podSelector: {}}, {ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}",
        &[&format!(
            ".from[1]: a peer is either an ipBlock or selectors, not both: {DROPPED}; help: make two peers of it: \
             begin the second with `- `"
        )],
    );
    let empty = format!(
        ".from[0]: the peer is empty: {DROPPED}; help: use `podSelector: {{}}` for the pods of this namespace, \
         `namespaceSelector: {{}}` for those of all"
    );
    bad_rule("{from: [{}]}", &[&empty]);
    bad_rule("{from: [{podSelector: null}]}", &[&empty]);
    bad_rule(
        "{from: [{podselector: {}}]}",
        &[&format!(
            ".from[0].podselector: the API has no such field: {DROPPED}; help: did you mean `podSelector`?"
        )],
    );
    bad_rule(
        "{to: [{podSelector: {}}]}",
        &[&format!(
            ".to: the API has no such field: {DROPPED}; help: the fields here are from, ports"
        )],
    );
    bad_rule(
        "{from: {podSelector: {}}}",
        &[&format!(
            ".from: a mapping where a list belongs: {DROPPED}; help: write a list: each item on a line of its own \
             that begins with `- `"
        )],
    );
    bad_rule(
        "null",
        &[&format!(
            ": null is not a rule: {DROPPED}; help: write {{}} to allow everyone, or remove the item"
        )],
    );
}

#[test]
fn ports() {
    let port = |port: &str, said: &str| {
        bad_rule(
            &format!("{{ports: [{{port: 7}}, {port}]}}"),
            &[&format!(".ports[1]{said}")],
        )
    };
    let range = format!("{DROPPED}; help: use a whole number from 1 to 65535");
    port(
        "{port: 0}",
        &format!(".port: the number 0 is not a port: {range}"),
    );
    port(
        "{port: 65536}",
        &format!(".port: the number 65536 is not a port: {range}"),
    );
    port(
        "{port: -1}",
        &format!(".port: the number -1 is not a port: {range}"),
    );
    port(
        "{port: 80.0}",
        &format!(".port: the number 80.0 is not a port: {range}"),
    );
    port(
        "{port: 80, endPort: 65536}",
        &format!(".endPort: the number 65536 is not a port: {range}"),
    );
    port(
        "{port: 80, endPort: \"90\"}",
        &format!(".endPort: the string \"90\" is not a port: {range}"),
    );
    port(
        "{port: 80, endPort: 79}",
        &format!(
            ".endPort: endPort 79 is below port 80: {DROPPED}; help: give the lower number as port and the higher \
             as endPort"
        ),
    );
    port(
        "{port: http, endPort: 90}",
        &format!(".endPort: endPort can not follow a named port: {DROPPED}; help: give the port's number"),
    );
    port(
        "{endPort: 90}",
        &format!(".endPort: endPort needs port: {DROPPED}; help: add `port: FIRST`"),
    );
    let name = format!("{DROPPED}; help: use the name of a container's port, or a number");
    port(
        "{port: abcdefghijklmnop}",
        &format!(".port: \"abcdefghijklmnop\" is not a port name: it must have 1 to 15 characters: {name}"),
    );
    port(
        "{port: HTTP}",
        &format!(
            ".port: \"HTTP\" is not a port name: only lower-case letters, digits and '-' are allowed: {name}"
        ),
    );
    port(
        "{port: a--b}",
        &format!(
            ".port: \"a--b\" is not a port name: '-' must stand between other characters, and not twice: {name}"
        ),
    );
    port(
        "{port: \"80\"}",
        &format!(
            ".port: \"80\" is not a port name: it must contain a letter: {DROPPED}; help: write the number without \
             quotes: 80"
        ),
    );
    port(
        "{protocol: tcp, port: 80}",
        &format!(
            ".protocol: \"tcp\" is not a protocol that NetworkPolicy knows: {DROPPED}; help: did you mean TCP?"
        ),
    );
    port(
        "{protocol: ICMP}",
        &format!(
            ".protocol: \"ICMP\" is not a protocol that NetworkPolicy knows: {DROPPED}; help: use TCP, UDP or SCTP; \
             other protocols match only rules without ports"
        ),
    );
}

#[test]
fn selectors() {
    let expression = |expression: &str, said: &str| {
        let said = format!(".from[0].podSelector.matchExpressions[0]{said}");
        bad_rule(
            &format!("{{from: [{{podSelector: {{matchExpressions: [{expression}]}}}}]}}"),
            &[&said],
        );
    };
    for operator in ["In", "NotIn"] {
        for values in ["", ", values: []", ", values: null"] {
            expression(
                &format!("{{key: a, operator: {operator}{values}}}"),
                &format!(
                    ": {operator} needs at least one value: {DROPPED}; help: add `values: [..]`, or use Exists or \
                     DoesNotExist"
                ),
            );
        }
    }
    for operator in ["Exists", "DoesNotExist"] {
        expression(
            &format!("{{key: a, operator: {operator}, values: [b]}}"),
            &format!(": {operator} takes no values: {DROPPED}; help: remove `values`, or use In or NotIn"),
        );
    }
    expression(
        "{key: a, operator: in, values: [b]}",
        &format!(".operator: \"in\" is not an operator: {DROPPED}; help: did you mean In?"),
    );
    expression(
        "{key: a, operator: Gt, values: [b]}",
        &format!(
            ".operator: \"Gt\" is not an operator: {DROPPED}; help: use In, NotIn, Exists or DoesNotExist"
        ),
    );
    expression(
        "{operator: Exists}",
        &format!(": has no key: {DROPPED}; help: add `key: LABEL`"),
    );
    expression(
        "{key: a}",
        &format!(": has no operator: {DROPPED}; help: add `operator:` In, NotIn, Exists or DoesNotExist"),
    );
    expression(
        "{key: -a, operator: Exists}",
        &format!(
            ".key: \"-a\" is not a label key (at most 63 letters, digits, '-', '_' and '.', a letter or digit at \
             both ends, optionally after a DNS name and '/'): {DROPPED}; help: correct the key; no label can have it"
        ),
    );
    expression(
        "{key: a, operator: In, values: [b/c]}",
        &format!(
            ".values[0]: \"b/c\" is not a label value (at most 63 letters, digits, '-', '_' and '.', a letter or \
             digit at both ends): {DROPPED}; help: correct the value; no label can have it"
        ),
    );
    bad_rule(
        "{from: [{namespaceSelector: {matchLabels: {app.k8s.io/x: 1}}}]}",
        &[&format!(
            ".from[0].namespaceSelector.matchLabels[\"app.k8s.io/x\"]: the number 1 where a string belongs: \
             {DROPPED}; help: put it in quotes: \"1\""
        )],
    );
    bad_rule(
        "{from: [{podSelector: {app: x}}]}",
        &[&format!(
            ".from[0].podSelector.app: the API has no such field: {DROPPED}; help: the fields here are matchLabels, \
             matchExpressions"
        )],
    );
}

#[test]
fn every_mistake_of_a_rule_is_said() {
    bad_rule(
        "{from: [{}, {ipBlock: {}}], ports: [{port: 0}], x: 1}",
        &[
            &format!(".x: the API has no such field: {DROPPED}; help: the fields here are from, ports"),
            &format!(
                ".from[0]: the peer is empty: {DROPPED}; help: use `podSelector: {{}}` for the pods of this \
                 namespace, `namespaceSelector: {{}}` for those of all"
            ),
            &format!(".from[1].ipBlock: has no cidr: {DROPPED}; help: add `cidr: ADDRESS/BITS`"),
            &format!(
                ".ports[0].port: the number 0 is not a port: {DROPPED}; help: use a whole number from 1 to 65535"
            ),
        ],
    );
}

#[test]
fn null_lists_are_no_restriction_but_said() {
    let (rules, problems) = with_ingress("[{from: null, ports: [{port: 1}]}]");
    assert_eq!(rules, [on_ports([tcp(1)])]);
    assert_eq!(
        problems,
        [
            "warning: f.yaml:4: NetworkPolicy prod/p: spec.ingress[0].from: from is null, which means the same as \
          absent: no restriction; help: add entries, or remove `from` if that is meant"
        ]
    );
}
