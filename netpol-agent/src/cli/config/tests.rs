//! Every flag, in all three ways.

use std::io::Write as _;

use clap::{Arg, ArgAction};

use super::*;

/// A value other than the default for each flag of `run`: as typed, and as in a file.
const SAMPLES: &[(&str, &[&str], &str)] = &[
    ("manifests", &["/m"], "/m"),
    ("kubeconfig", &["/k"], "/k"),
    ("context", &["c"], "c"),
    ("node", &["n9"], "n9"),
    ("listen", &["[::]:9478"], "\"[::]:9478\""),
    ("remove-taint", &[], "true"),
    ("pin", &["/p"], "/p"),
    ("state", &["/s"], "/s"),
    ("once", &[], "true"),
    ("attach", &["clsact"], "clsact"),
    ("unknown-pods", &["allow"], "allow"),
    ("police-node", &[], "true"),
    ("cni-cache", &["/c"], "/c"),
    ("outside", &["eth1", "wg*"], "[eth1, \"wg*\"]"),
    ("exempt", &["vpn", "a/b"], "[vpn, a/b]"),
    ("map-size", &["flows4=7", "cells=9"], "{flows4: 7, cells: 9}"),
    ("timeout", &["opening=5"], "{opening: 5}"),
    ("quota", &["77"], "77"),
    ("wait-for-lock", &["9"], "9"),
    ("log", &["debug"], "debug"),
    ("log-format", &["json"], "json"),
];

fn parsed(args: &[&str], variables: &[(&str, &str)], file: Option<&str>) -> Result<Vec<Effective>, String> {
    let mut args: Vec<OsString> = ["netpol-agent", "config"]
        .iter()
        .chain(args)
        .map(Into::into)
        .collect();
    let held = file.map(|text| {
        let mut held = tempfile::NamedTempFile::new().unwrap();
        held.write_all(text.as_bytes()).unwrap();
        held
    });
    if let Some(held) = &held {
        args.push("--config".into());
        args.push(held.path().into());
    }
    let variables: Vec<(OsString, OsString)> = variables
        .iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect();
    match parse(&args, &variables) {
        Ok(parsed) => Ok(parsed.effective),
        Err(Refused::Clap(error)) => Err(error.to_string()),
        Err(Refused::Input(error)) => Err(match &held {
            Some(held) => error.0.replace(&held.path().display().to_string(), "FILE"),
            None => error.0,
        }),
    }
}

fn value(effective: &[Effective], key: &str) -> (Vec<String>, String) {
    let found = effective
        .iter()
        .find(|entry| entry.key == key)
        .unwrap_or_else(|| panic!("no {key}"));
    let origin = found
        .origin
        .split('/')
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned();
    (found.values.clone(), origin)
}

fn flags() -> Vec<Arg> {
    let root = Cli::command();
    let run = root.find_subcommand("run").unwrap().clone();
    file::settable(&root, &run).cloned().collect()
}

#[test]
fn every_flag_can_be_set_by_flag_and_file_and_has_a_variable() {
    for arg in flags() {
        let key = arg.get_long().unwrap();
        let (_, typed, written) = SAMPLES
            .iter()
            .find(|(name, ..)| *name == key)
            .unwrap_or_else(|| panic!("give --{key} a sample in SAMPLES"));
        let is_switch = matches!(arg.get_action(), ArgAction::SetTrue);
        let expected: Vec<String> = if is_switch {
            vec!["true".into()]
        } else {
            typed.iter().map(|value| (*value).into()).collect()
        };
        let mut line: Vec<String> = typed.iter().map(|value| format!("--{key}={value}")).collect();
        if is_switch {
            line.push(format!("--{key}"));
        }
        // What else has to be there.
        if key != "node" {
            line.push("--node=n1".into());
        }
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        assert_eq!(
            value(&parsed(&line, &[], None).unwrap(), key),
            (expected.clone(), "flag".to_owned())
        );
        let rest: &[&str] = if key == "node" { &[] } else { &["--node=n1"] };
        let file = format!("{key}: {written}\n");
        assert_eq!(
            value(&parsed(rest, &[], Some(&file)).unwrap(), key),
            (expected, "file".to_owned())
        );
        let variable = format!("NETPOL_{}", key.to_uppercase().replace('-', "_"));
        assert_eq!(arg.get_env().and_then(|name| name.to_str()), Some(&*variable));
    }
}

#[test]
fn what_is_printed_is_a_file_that_says_the_same() {
    let file: String = SAMPLES
        .iter()
        .filter(|(key, ..)| *key != "manifests")
        .map(|(key, _, written)| format!("{key}: {written}\n"))
        .collect();
    let first = parsed(&[], &[], Some(&file)).unwrap();
    let again = parsed(&[], &[], Some(&show::text(&first))).unwrap();
    let plain = |effective: &[Effective]| {
        effective
            .iter()
            .map(|entry| (entry.key.clone(), entry.values.clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(plain(&first), plain(&again));
}

#[test]
fn flags_outrank_the_file() {
    let file = "node: n1\nquota: 5\nmanifests: /m\noutside: [a, b]\n";
    let effective = parsed(&["--quota=6", "--kubeconfig=/k", "--outside=c"], &[], Some(file)).unwrap();
    assert_eq!(
        value(&effective, "quota"),
        (vec!["6".to_owned()], "flag".to_owned())
    );
    assert_eq!(
        value(&effective, "node"),
        (vec!["n1".to_owned()], "file".to_owned())
    );
    assert_eq!(
        value(&effective, "outside"),
        (vec!["c".to_owned()], "flag".to_owned())
    );
    assert_eq!(value(&effective, "manifests"), (vec![], "default".to_owned()));
    assert_eq!(
        value(&effective, "attach"),
        (vec!["auto".to_owned()], "default".to_owned())
    );
}

#[test]
fn a_directory_outranks_all_that_a_file_says_of_the_api_server() {
    let file = "node: n1\nkubeconfig: /k\ncontext: c\n";
    let effective = parsed(&["--manifests=/m"], &[], Some(file)).unwrap();
    for key in ["kubeconfig", "context"] {
        assert_eq!(value(&effective, key), (vec![], "default".to_owned()));
    }
    let effective = parsed(&["--kubeconfig=/other"], &[], Some(file)).unwrap();
    assert_eq!(
        value(&effective, "context"),
        (vec!["c".to_owned()], "file".to_owned())
    );
}

#[test]
fn only_a_verb_is_a_verb() {
    let verb = |line: &str| {
        verb(
            &Cli::command(),
            &line.split(' ').map(Into::into).collect::<Vec<_>>(),
        )
    };
    assert_eq!(verb("x --log config run"), Some("run"));
    assert_eq!(verb("x config -o json"), Some("config"));
    assert_eq!(verb("x matrix --manifests m -n config"), None);
    assert_eq!(verb("x --log run status"), None);
}

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
    let attach = refused("quota: 1\nattach: tcxx\n");
    assert!(
        attach.starts_with("configuration FILE:2: invalid value 'tcxx' for '--attach <HOW>'"),
        "{attach}"
    );
    let twice = refused("quota: 1\nquota: 2\n");
    assert!(
        twice.starts_with("configuration FILE:2") && twice.contains("quota"),
        "{twice}"
    );
    assert!(refused("node: {\n").starts_with("configuration FILE:"), "no YAML");
}
