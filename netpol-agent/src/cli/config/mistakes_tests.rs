//! What is refused, and in which words.

use super::{tests::parsed, *};

#[test]
fn bad_files_are_refused_by_line_and_key() {
    let refused = |file: &str| parsed(&["--node=n1"], &[], Some(file)).unwrap_err();
    assert_eq!(
        refused("unknown-pod: allow\n"),
        "configuration FILE:1: there is no `unknown-pod`; help: did you mean `unknown-pods`?"
    );
    assert_eq!(
        refused("\nmap_size: {cells: 1}\n"),
        "configuration FILE:2: there is no `map_size`; help: did you mean `map-size`?"
    );
    assert_eq!(
        refused("from: a\n"),
        "configuration FILE:1: `from` is a flag of `explain`, not of `run`; help: remove it"
    );
    assert_eq!(
        refused("police-node: maybe\n"),
        "configuration FILE:1: `police-node` is the string \"maybe\"; help: write true or false"
    );
    assert_eq!(
        refused("force: true\n"),
        "configuration FILE:1: `force` is a flag of `cleanup`, not of `run`; help: remove it"
    );
    assert_eq!(
        refused("outside: {eth1: 1}\n"),
        "configuration FILE:1: `outside` is a mapping; help: write a value or a list of values"
    );
    assert_eq!(
        refused("node: [a]\n"),
        "configuration FILE:1: `node` is a list; help: write one value"
    );
    assert_eq!(
        refused("- a\n"),
        "configuration FILE: is a list, not a mapping of flags to values; help: write `node: NAME`, a line a flag"
    );
    assert_eq!(
        refused("manifests: /m\nkubeconfig: /k\n"),
        "configuration FILE: has both manifests and kubeconfig; help: keep the one that is meant"
    );
    assert_eq!(
        refused("map-size:\n  cells: 5\n  flow4: 1\n"),
        "configuration FILE:3: `map-size`: invalid value 'flow4=1': there is no map `flow4`; \
         help: did you mean `flows4`?"
    );
    let attach = refused("quota: 1\nattach: tcxx\n");
    assert!(
        attach.starts_with("configuration FILE:2: `attach`: invalid value 'tcxx'; [possible values: auto"),
        "{attach}"
    );
    let twice = refused("quota: 1\nquota: 2\n");
    assert!(
        twice.starts_with("configuration FILE:2") && twice.contains("quota"),
        "{twice}"
    );
    assert!(refused("node: {\n").starts_with("configuration FILE:"), "no YAML");
}

#[test]
fn every_mistake_is_told() {
    let file = "node: n1\nunknown-pod: allow\nattach: tcxx\noutside:\n- a\n- [b]\ntimeout: {openin: 5, closing: x}\nquota:\n";
    let variables = [
        ("NETPOL_LISTEN", "here"),
        ("NETPOL_ONCE", "maybe"),
        ("NETPOL_QUOTAS", "1"),
    ];
    let told = parsed(&[], &variables, Some(file)).unwrap_err();
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines.len(), 10, "{told}");
    for (line, begins) in lines.iter().zip([
        "9 mistakes:",
        "  NETPOL_LISTEN: invalid value 'here': invalid socket address",
        "  NETPOL_ONCE: invalid value 'maybe'; help: write true or false",
        "  the environment has NETPOL_QUOTAS, which is not read; help: did you mean NETPOL_QUOTA?",
        "  configuration FILE:2: there is no `unknown-pod`; help: did you mean `unknown-pods`?",
        "  configuration FILE:3: `attach`: invalid value 'tcxx'",
        "  configuration FILE:6: `outside` has a list in its list",
        "  configuration FILE:7: `timeout`: invalid value 'openin=5': there is no state `openin`; help: did you mean `opening`?",
        "  configuration FILE:7: `timeout`: invalid value 'closing=x'",
        "  configuration FILE:8: `quota` has no value; help: remove the line, or give it one",
    ]) {
        assert!(line.starts_with(begins), "{line}\nis not\n{begins}");
    }
}

/// Of the verbs that read no file, too.
#[test]
fn a_variable_with_a_bad_value_is_named() {
    let refused = |line: &str, name: &str, value: &str| {
        let args: Vec<OsString> = line.split(' ').map(Into::into).collect();
        match parse(&args, &[(name.into(), value.into())]) {
            Err(Refused::Input(error)) => error.0,
            other => panic!("{other:?}"),
        }
    };
    let told = refused("x run --node=n", "NETPOL_MAP_SIZE", "cells=1,cell=2,flows4=0");
    assert_eq!(
        told,
        "2 mistakes:\n  NETPOL_MAP_SIZE: invalid value 'cell=2': there is no map `cell`; \
         help: did you mean `cells`?\n  NETPOL_MAP_SIZE: invalid value 'flows4=0': map `flows4` needs at least one entry"
    );
    let told = refused("x status", "NETPOL_LOG_FORMAT", "xml");
    assert!(
        told.starts_with("NETPOL_LOG_FORMAT: invalid value 'xml'; [possible values: text, json]"),
        "{told}"
    );
    let slip = "the environment has NETPOL_PINS, which is not read; help: did you mean NETPOL_PIN?";
    for line in ["x cleanup", "x status", "x run --node=n"] {
        assert_eq!(refused(line, "NETPOL_PINS", "/p"), slip);
    }
    let told = refused("x run", "NETPOL_LOG", "a=b=c");
    assert!(told.starts_with("NETPOL_LOG: invalid value 'a=b=c': "), "{told}");
    let told = refused("x config", "NETPOL_NODE", "a/b");
    assert_eq!(
        told,
        "NETPOL_NODE: invalid value 'a/b': not the name of a node; help: it is the `spec.nodeName` of its pods"
    );
}
