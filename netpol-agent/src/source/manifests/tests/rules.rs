//! Rules: what is said where they are wrong, and that nothing of them is in force then.

use netpol_policy::{
    build::{block, from_to, on_ports, tcp},
    model::Rule,
};

use super::policies::with_spec;

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
