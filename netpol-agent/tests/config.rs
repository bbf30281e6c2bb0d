//! `config` and `run` as a user calls them: flags, environment and file, what counts first, and what is refused.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};

use serde_json::Value;

struct Case {
    dir: tempfile::TempDir,
}

impl Case {
    fn new(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("c.yaml"), text).unwrap();
        Self { dir }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("c.yaml")
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_netpol-agent"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("NETPOL_") {
                command.env_remove(name);
            }
        }
        command.arg(verb).arg("--config").arg(self.file());
        command
    }

    /// The exit code, standard output and standard error, with `FILE` for the file's path.
    fn answer(&self, command: &mut Command) -> (i32, String, String) {
        let Output {
            status,
            stdout,
            stderr,
        } = command.output().unwrap();
        let file = self.file().display().to_string();
        let text = |bytes| String::from_utf8(bytes).unwrap().replace(&file, "FILE");
        (status.code().unwrap(), text(stdout), text(stderr))
    }

    fn config(&self, args: &[&str]) -> (i32, String, String) {
        self.answer(self.command("config").args(args))
    }
}

/// Values and origin of a key, as JSON says them.
fn setting(json: &str, key: &str) -> (Vec<String>, String) {
    let all: Vec<Value> = serde_json::from_str(json).unwrap();
    let one = all.into_iter().find(|one| one["key"] == key).unwrap();
    let values = one["values"].as_array().unwrap().iter();
    let values = values.map(|value| value.as_str().unwrap().to_owned()).collect();
    (values, one["origin"].as_str().unwrap().to_owned())
}

#[test]
fn a_flag_before_a_variable_before_the_file_before_the_default() {
    let case = Case::new("node: from-file\nquota: 1\noutside: [a, b]\npolice-node: true\n");
    let mut command = case.command("config");
    command.args(["-o", "json", "--quota=3"]);
    command
        .env("NETPOL_QUOTA", "2")
        .env("NETPOL_OUTSIDE", "c,d")
        .env("NETPOL_POLICE_NODE", "false");
    let (code, json, errors) = case.answer(&mut command);
    assert_eq!((code, errors.as_str()), (0, ""));
    let expect = |key: &str, values: &[&str], origin: &str| {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        assert_eq!(setting(&json, key), (values, origin.to_owned()), "{key}");
    };
    expect("node", &["from-file"], "file FILE:1");
    expect("quota", &["3"], "flag");
    // Replaced, not joined.
    expect("outside", &["c", "d"], "environment NETPOL_OUTSIDE");
    expect("police-node", &["false"], "environment NETPOL_POLICE_NODE");
    expect("unknown-pods", &["deny"], "default");
    expect("kubeconfig", &[], "default");
}

#[test]
fn what_is_refused_ends_with_2_and_names_the_key() {
    let case = Case::new("node: n1\nunknown-pod: allow\n");
    let (code, out, errors) = case.config(&[]);
    let help = "help: did you mean `unknown-pods`?";
    assert_eq!((code, out.as_str()), (2, ""));
    assert_eq!(
        errors,
        format!("error: configuration FILE:2: there is no `unknown-pod`; {help}\n")
    );

    let case = Case::new("node: n1\n");
    let (code, _, errors) = case.answer(case.command("run").env("NETPOL_UNKNOWN_POD", "allow"));
    assert_eq!(code, 2);
    assert!(errors.contains("did you mean NETPOL_UNKNOWN_PODS?"), "{errors}");
    // What `run` refuses `config` refuses, too.
    for verb in ["run", "config"] {
        let (code, _, errors) = case.answer(case.command(verb).args(["--map-size", "nosuch=1"]));
        assert_eq!(code, 2, "{verb}");
        assert!(
            errors.contains("--map-size <MAP=ENTRIES>': there is no map `nosuch`"),
            "{errors}"
        );
    }
    let (code, _, errors) = case.config(&["--manifests=/m", "--kubeconfig=/k"]);
    assert_eq!(code, 2);
    assert!(errors.contains("two sources"), "{errors}");
}

#[test]
fn text_is_a_file_that_says_the_same() {
    let case = Case::new("node: n1\nlisten: \"[::]:9478\"\nmap-size: {cells: 7}\noutside: [\"wg*\"]\n");
    let (code, first, _) = case.config(&[]);
    assert_eq!(code, 0);
    let again = Case::new(&first);
    let (code, second, errors) = again.config(&[]);
    let plain = |text: &str| {
        text.lines()
            .map(|line| line.split("  #").next().unwrap().trim_end().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!((code, plain(&first), errors.as_str()), (0, plain(&second), ""));
}

/// Not the default, as a variable.
const SAMPLES: &[(&str, &str)] = &[
    ("manifests", "/m"),
    ("kubeconfig", "/k"),
    ("context", "c"),
    ("node", "n9"),
    ("listen", "[::]:9478"),
    ("remove-taint", "true"),
    ("pin", "/p"),
    ("state", "/s"),
    ("once", "true"),
    ("wait-for-lock", "9"),
    ("attach", "clsact"),
    ("unknown-pods", "allow"),
    ("police-node", "true"),
    ("cni-cache", "/c"),
    ("outside", "eth1,wg*"),
    ("exempt", "vpn,a/b"),
    ("map-size", "flows4=7,cells=9"),
    ("timeout", "opening=5"),
    ("quota", "77"),
    ("log", "debug"),
    ("log-format", "json"),
];

#[test]
fn every_setting_can_be_a_variable() {
    let case = Case::new("node: n1\n");
    let all: Vec<Value> = serde_json::from_str(&case.config(&["-o", "json"]).1).unwrap();
    assert!(!all.is_empty());
    for key in all.iter().map(|one| one["key"].as_str().unwrap()) {
        let sample = SAMPLES.iter().find(|(name, _)| *name == key);
        let (_, sample) = sample.unwrap_or_else(|| panic!("give {key} a sample in SAMPLES"));
        let name = format!("NETPOL_{}", key.to_uppercase().replace('-', "_"));
        let mut command = case.command("config");
        command.args(["-o", "json"]).env(&name, sample);
        if key == "context" {
            command.arg("--kubeconfig=/k");
        }
        let (code, json, errors) = case.answer(&mut command);
        assert_eq!(code, 0, "{key}: {errors}");
        let (values, origin) = setting(&json, key);
        assert_eq!(
            (values.join(",").as_str(), origin),
            (*sample, format!("environment {name}")),
            "{key}"
        );
    }
}
