//! The real agent: from the edit of a manifest to the last map write, and what it keeps in memory.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use netpol_policy::{
    model::{Labels, Pod, Policy, PortSpec, Ports},
    workload::{Cluster, NODE, Names},
};
use netpol_tests::{
    cluster,
    net::{Child, Rig},
};

use crate::{
    manifest,
    row::{Row, spread},
};

/// What the agent logs after the last write of a change.
const IN_FORCE: &str = "policy in force";
/// The manifests of a large cluster take seconds to read.
const PATIENCE: Duration = Duration::from_secs(120);
const MEMORY: f64 = 200.0;

/// Edits in a small and in a large cluster.
pub(crate) fn measure(quick: bool) -> Result<Vec<Row>> {
    let small = Cluster {
        pods: 1_000,
        policies: 500,
        ..Cluster::LARGE
    };
    let mut rows = at_size(&small, if quick { 10 } else { 100 })?;
    if !quick {
        rows.extend(at_size(&Cluster::LARGE, 30)?);
    }
    Ok(rows)
}

fn at_size(size: &Cluster, edits: usize) -> Result<Vec<Row>> {
    let at = format!("{} pods, {} policies", size.pods, size.policies);
    eprintln!("{at}");
    let mut bench = Bench::start(size)?;
    let row = |what: &str, unit, (min, median), goal| Row {
        part: "edits",
        what: what.to_owned(),
        at: at.clone(),
        unit,
        min,
        median,
        goal,
    };
    let started = bench.started.as_secs_f64() * 1e3;
    let mut rows = vec![row("start, cold", "ms", (started, started), None)];
    let mut names = Names::default();
    let (policy, pod) = (size.policy(0, &mut names), size.pod(0, &mut names));
    let [policies, pods] = [
        ("policy", Kind::Policy(policy)),
        ("label of a local pod", Kind::Label(pod)),
    ]
    .map(|(what, kind)| (what, bench.edit(&kind, edits)));
    for (what, times) in [policies, pods] {
        let mut times = times?;
        times.sort_by(f64::total_cmp);
        let last = times[(times.len() * 99).div_ceil(100) - 1];
        rows.push(row(&format!("{what} edited, median"), "ms", spread(times), None));
        rows.push(row(
            &format!("{what} edited, 99 of 100"),
            "ms",
            (last, last),
            None,
        ));
    }
    let memory = peak(bench.agent.id())?;
    let goal = (size.pods >= 100_000).then_some(MEMORY);
    rows.push(row(
        "the agent's memory at its peak",
        "MB",
        (memory, memory),
        goal,
    ));
    Ok(rows)
}

/// What is edited, there and back.
enum Kind {
    Policy(Policy),
    Label(Pod),
}

impl Kind {
    /// The object in one of its two forms.
    fn form(&self, changed: bool) -> serde_json::Value {
        match self {
            Self::Policy(policy) => {
                let mut policy = policy.clone();
                policy.name.name = "edited".into();
                let ports = policy.ingress.iter_mut().flatten().map(|rule| &mut rule.ports);
                for port in ports.filter_map(|ports| match ports {
                    Ports::Of(ports) => Some(ports),
                    Ports::Any => None,
                }) {
                    for port in port {
                        let number = 7000 + u16::from(changed);
                        port.port = PortSpec::Range(number, number);
                    }
                }
                manifest::policy(&policy)
            }
            Self::Label(pod) => {
                let labels = pod.labels.iter().map(|(key, value)| {
                    let other = key == "app" && changed;
                    (key, if other { "app-4" } else { value })
                });
                manifest::pod(&Pod {
                    labels: Labels::from_iter(labels),
                    name: netpol_policy::model::ObjectName::new(pod.name.namespace.clone(), "edited"),
                    addresses: vec!["10.255.255.1".parse().expect("an address")],
                    ..pod.clone()
                })
            }
        }
    }
}

struct Bench {
    agent: Child,
    log: Receiver<(Instant, String)>,
    manifests: PathBuf,
    started: Duration,
    _namespace: netpol_tests::net::Namespace,
    _rig: Rig,
}

impl Bench {
    fn start(size: &Cluster) -> Result<Self> {
        let rig = Rig::new("npbench")?;
        let namespace = rig.namespace("node")?;
        let manifests = rig.directory().join("manifests");
        fs::create_dir_all(&manifests)?;
        manifest::write_all(&manifests, size.events())?;
        let mut command = Command::new(cluster::binary()?);
        command
            .args(["--log", "info", "run", "--node", NODE, "--manifests"])
            .arg(&manifests)
            .arg("--pin")
            .arg(rig.pins())
            .arg("--state")
            .arg(rig.directory().join("state"))
            .arg("--cni-cache")
            .arg(rig.directory().join("cni"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let begun = Instant::now();
        let mut agent = namespace.spawn(&mut command)?;
        let stderr = agent.inner().stderr.take().context("the agent's log")?;
        let (send, log) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if send.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        let mut bench = Self {
            agent,
            log,
            manifests,
            started: Duration::ZERO,
            _namespace: namespace,
            _rig: rig,
        };
        bench.started = bench.in_force()? - begun;
        Ok(bench)
    }

    /// When the agent has next written its last map.
    fn in_force(&mut self) -> Result<Instant> {
        let mut seen = Vec::new();
        loop {
            match self.log.recv_timeout(PATIENCE) {
                Ok((when, line)) if line.contains(IN_FORCE) => return Ok(when),
                Ok((_, line)) => seen.push(line),
                Err(_) => anyhow::bail!("the agent did not say \"{IN_FORCE}\":\n{}", seen.join("\n")),
            }
        }
    }

    /// Milliseconds from the moment a file has another content to the last map write.
    fn edit(&mut self, kind: &Kind, edits: usize) -> Result<Vec<f64>> {
        let path = self.manifests.join("edited.json");
        replace(&path, &kind.form(false))?;
        self.in_force()?;
        let mut times = Vec::new();
        for at in 0..edits {
            let begun = replace(&path, &kind.form(at % 2 == 0))?;
            times.push((self.in_force()? - begun).as_secs_f64() * 1e3);
        }
        Ok(times)
    }
}

/// Replaces a file as editors do; the moment at which it is there.
fn replace(path: &Path, object: &serde_json::Value) -> Result<Instant> {
    let half = path.with_extension("new");
    fs::write(&half, object.to_string())?;
    let begun = Instant::now();
    fs::rename(&half, path)?;
    Ok(begun)
}

/// The most that a process has had resident, in megabytes.
fn peak(process: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = text.lines().find(|line| line.starts_with("VmHWM:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1));
    let kilobytes: f64 = kilobytes.context("the process has ended")?.parse()?;
    Ok(kilobytes * 1024.0 / 1e6)
}
