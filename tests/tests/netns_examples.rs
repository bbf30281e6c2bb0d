//! Every directory of `deploy/examples`, on real packets: each step of its tutorial says in `expect.txt` who reaches
//! whom, and everything else goes as the oracle says.

use std::{collections::BTreeSet, fs, path::PathBuf};

use netpol_tests::{
    cluster,
    net::Transport,
    sandbox::{Options, Run, Sandbox, Scene, build::Backend, report::differences},
};

/// `NETPOL_EXAMPLES`, else the repository's.
fn examples() -> PathBuf {
    std::env::var_os("NETPOL_EXAMPLES").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples")),
        PathBuf::from,
    )
}

/// A line of `expect.txt`: `allow FROM TO PROTOCOL/PORT`.
#[derive(Debug)]
struct Expected {
    line: String,
    allow: bool,
    from: String,
    to: String,
    transport: Transport,
    port: u16,
}

fn parse(line: &str) -> Expected {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [verdict, from, to, port] = words[..] else {
        panic!("not a line of expect.txt: {line}")
    };
    let (protocol, port) = port.split_once('/').unwrap();
    Expected {
        line: line.to_owned(),
        allow: match verdict {
            "allow" => true,
            "deny" => false,
            _ => panic!("neither allow nor deny: {line}"),
        },
        from: from.to_owned(),
        to: to.to_owned(),
        transport: match protocol {
            "TCP" => Transport::Tcp,
            "UDP" => Transport::Udp,
            "SCTP" => Transport::Sctp,
            _ => panic!("no protocol: {line}"),
        },
        port: port.parse().unwrap(),
    }
}

/// `[FILE]` or `[none]`, and the lines below.
fn sections(text: &str) -> Vec<(String, Vec<Expected>)> {
    let mut sections: Vec<(String, Vec<Expected>)> = Vec::new();
    for line in text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        match line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(name) => sections.push((name.to_owned(), Vec::new())),
            None => sections.last_mut().unwrap().1.push(parse(line)),
        }
    }
    sections
}

fn assert_expected(scene: &Scene, sandbox: &Sandbox<'_>, run: &Run, expected: &Expected) {
    let questions = sandbox.questions();
    let service = |via: netpol_tests::sandbox::checks::Via| {
        let service = &scene.services[via.service];
        format!("service/{}:{}", service.service, service.port)
    };
    let asked = run.checks.iter().zip(&run.answers).filter(|(check, _)| {
        let to = check.via.map_or_else(|| questions.name(check.to), service);
        questions.name(check.from) == expected.from
            && to == expected.to
            && check.probe.transport == expected.transport
            && check.flows.last().is_some_and(|flow| flow.port == expected.port)
    });
    let got: Vec<_> = asked
        .map(|(check, answer)| (check.probe.to, answer.outcome.reached()))
        .collect();
    assert!(!got.is_empty(), "nobody asked: {}", expected.line);
    assert!(
        got.iter().all(|(_, open)| *open == expected.allow),
        "{}: {got:?}",
        expected.line
    );
}

fn play(example: &str, backend: Backend) {
    let dir = examples().join(example);
    let scene = Scene::read(&dir, 2).unwrap();
    assert_eq!(scene.problems, Vec::<String>::new());
    let sections = sections(&fs::read_to_string(dir.join("expect.txt")).unwrap());
    let files = scene.policy_files();
    let options = Options {
        nodes: 2,
        backend,
        agent: Some(cluster::binary().unwrap()),
        attach: None,
    };
    let mut sandbox = Sandbox::start(&scene, &options, &files).unwrap();
    let mut steps: Vec<Option<&PathBuf>> = vec![None];
    steps.extend(files.iter().map(Some));
    let mut seen = BTreeSet::new();
    for step in steps {
        let name = step.map_or("none".to_owned(), |file| {
            file.file_name().unwrap().to_string_lossy().into_owned()
        });
        if let Some(file) = step {
            sandbox.apply(file).unwrap();
        }
        let run = sandbox.ask().unwrap();
        assert_eq!(
            run.differences().count(),
            0,
            "after {name}:\n{}",
            differences(&scene, sandbox.questions(), &run)
        );
        for (_, lines) in sections.iter().filter(|(section, _)| *section == name) {
            lines
                .iter()
                .for_each(|expected| assert_expected(&scene, &sandbox, &run, expected));
            seen.insert(name.clone());
        }
    }
    let named: BTreeSet<String> = sections.into_iter().map(|(name, _)| name).collect();
    assert_eq!(seen, named, "expect.txt names files that are not there");
}

macro_rules! examples {
    ($($test:ident $name:literal,)*) => {
        const NAMES: &[&str] = &[$($name),*];
        $(#[test] fn $test() { play($name, Backend::HostGw); })*
    };
}

examples! {
    allow_all "allow-all",
    cidr_except "cidr-except",
    db_backup "db-backup",
    db_policy "db-policy",
    default_deny_all "default-deny-all",
    deny_other_namespaces "deny-other-namespaces",
    egress_cidr "egress-cidr",
    end_port "end-port",
    internal_policy "internal-policy",
    named_ports "named-ports",
    three_tier "three-tier",
}

#[test]
fn three_tier_over_vxlan() {
    play("three-tier", Backend::Vxlan);
}

#[test]
fn every_directory_is_played() {
    let entries = fs::read_dir(examples()).unwrap().map(|entry| entry.unwrap());
    let directories = entries.filter(|entry| entry.file_type().unwrap().is_dir());
    let found: BTreeSet<String> = directories
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    assert_eq!(found, NAMES.iter().map(|name| (*name).to_owned()).collect());
}
