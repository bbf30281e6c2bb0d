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

pub(super) fn parsed(
    args: &[&str],
    variables: &[(&str, &str)],
    file: Option<&str>,
) -> Result<Vec<Effective>, String> {
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
fn every_flag_can_be_set_in_all_three_ways() {
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
            (expected.clone(), "file".to_owned())
        );
        let variable = format!("NETPOL_{}", key.to_uppercase().replace('-', "_"));
        let text = if is_switch {
            "true".to_owned()
        } else {
            typed.join(",")
        };
        assert_eq!(
            value(&parsed(rest, &[(&variable, &text)], None).unwrap(), key),
            (expected, format!("environment {variable}"))
        );
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
        let args: Vec<OsString> = line.split(' ').map(Into::into).collect();
        verb(&Cli::command(), &args).map(|(verb, _)| verb.get_name().to_owned())
    };
    assert_eq!(verb("x --log config run").as_deref(), Some("run"));
    assert_eq!(verb("x config -o json").as_deref(), Some("config"));
    assert_eq!(
        verb("x matrix --manifests m -n config").as_deref(),
        Some("matrix")
    );
    assert_eq!(verb("x --log run status").as_deref(), Some("status"));
}

#[test]
fn an_empty_variable_is_an_empty_list_or_nothing() {
    let file = "node: n1\noutside: [a, b]\nquota: 5\n";
    let variables = [
        ("NETPOL_OUTSIDE", ""),
        ("NETPOL_QUOTA", ""),
        ("NETPOL_CONTEXT", ""),
        ("NETPOL_ONCE", ""),
    ];
    let effective = parsed(&[], &variables, Some(file)).unwrap();
    assert_eq!(
        value(&effective, "outside"),
        (vec![], "environment NETPOL_OUTSIDE".to_owned())
    );
    assert_eq!(
        value(&effective, "quota"),
        (vec!["5".to_owned()], "file".to_owned())
    );
    assert_eq!(value(&effective, "context"), (vec![], "default".to_owned()));
    assert_eq!(
        value(&effective, "once"),
        (vec!["false".to_owned()], "default".to_owned())
    );
}

#[test]
fn a_variable_outranks_the_file_and_gives_way_to_a_flag() {
    let file = "node: n1\nquota: 5\noutside: [a]\n";
    let variables = [("NETPOL_QUOTA", "6"), ("NETPOL_OUTSIDE", "b,c")];
    let effective = parsed(&["--quota=7"], &variables, Some(file)).unwrap();
    assert_eq!(
        value(&effective, "quota"),
        (vec!["7".to_owned()], "flag".to_owned())
    );
    assert_eq!(
        value(&effective, "outside"),
        (
            vec!["b".to_owned(), "c".to_owned()],
            "environment NETPOL_OUTSIDE".to_owned()
        )
    );
}

#[test]
fn the_source_of_the_highest_rank_counts() {
    let source = |args: &[&str], variables: &[(&str, &str)], file: &str| {
        let args: Vec<&str> = ["--node=n1"].iter().chain(args).copied().collect();
        let effective = parsed(&args, variables, Some(file))?;
        let set = |key: &&str| !value(&effective, key).0.is_empty();
        Ok::<_, String>(
            ["manifests", "kubeconfig", "context"]
                .into_iter()
                .filter(set)
                .collect::<Vec<_>>()
                .join(" "),
        )
    };
    let (directory, server) = (("NETPOL_MANIFESTS", "/m"), ("NETPOL_KUBECONFIG", "/k"));
    let context = ("NETPOL_CONTEXT", "c");
    /// Flags, variables, file: what is set.
    type Case<'c> = (&'c [&'c str], &'c [(&'c str, &'c str)], &'c str, &'c str);
    let cases: &[Case<'_>] = &[
        (
            &["--kubeconfig=/k"],
            &[directory],
            "manifests: /m\n",
            "kubeconfig",
        ),
        (
            &["--kubeconfig=/k"],
            &[directory, context],
            "",
            "kubeconfig context",
        ),
        (
            &["--manifests=/m"],
            &[server, context],
            "context: c\n",
            "manifests",
        ),
        (&["--manifests=/m"], &[server, directory], "", "manifests"),
        (&[], &[directory], "kubeconfig: /k\ncontext: c\n", "manifests"),
        (
            &[],
            &[server],
            "manifests: /m\ncontext: c\n",
            "kubeconfig context",
        ),
        (&[], &[directory], "manifests: /n\nkubeconfig: /k\n", "manifests"),
    ];
    for (args, variables, file, expected) in cases {
        assert_eq!(
            source(args, variables, file).as_deref(),
            Ok(*expected),
            "{args:?} {variables:?} {file:?}"
        );
    }
    assert_eq!(
        source(&[], &[directory, server], "").unwrap_err(),
        "the environment: has both manifests and kubeconfig; help: keep the one that is meant"
    );
}

/// The chart's `config` and `extraEnv` take every flag but those that its other values set or that `cleanup` must know.
#[test]
fn the_chart_knows_every_flag() {
    const THE_CHARTS: [&str; 12] = [
        "context",
        "kubeconfig",
        "listen",
        "log",
        "log-format",
        "manifests",
        "node",
        "once",
        "pin",
        "remove-taint",
        "state",
        "unknown-pods",
    ];
    let schema = include_str!("../../../../deploy/helm/netpol/values.schema.json");
    let schema: serde_json::Value = serde_json::from_str(schema).unwrap();
    let config = schema["properties"]["config"]["properties"].as_object().unwrap();
    let root = Cli::command();
    let run = root.find_subcommand("run").unwrap();
    let mut free: Vec<&Arg> = file::settable(&root, run)
        .filter(|arg| !THE_CHARTS.contains(&arg.get_long().unwrap()))
        .collect();
    free.sort_by_key(|arg| arg.get_long());
    let keys: Vec<&str> = free.iter().filter_map(|arg| arg.get_long()).collect();
    assert_eq!(config.keys().map(String::as_str).collect::<Vec<_>>(), keys);
    let variables: Vec<&str> = free.iter().filter_map(|arg| arg.get_env()?.to_str()).collect();
    let name = &schema["properties"]["extraEnv"]["items"]["properties"]["name"];
    assert_eq!(name["anyOf"][0]["enum"], serde_json::json!(variables));
}
