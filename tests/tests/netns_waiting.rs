//! An agent that has nothing in force yet, as a process: what it waits for is said wherever one looks.

#[expect(dead_code, reason = "the agent's own tests have more to do with it")]
#[path = "../../netpol-agent/tests/kubernetes/server.rs"]
mod server;

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4},
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use netpol_tests::{
    cluster::{Cluster, Options, binary},
    net::{Child, wait_until},
};
use nix::sys::signal::Signal;
use serde_json::{Value as Json, json};
use server::{Mood, Server};

const PATIENCE: Duration = Duration::from_secs(60);
const LISTEN: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9478);

/// A node with an API server of its own.
struct Scene {
    cluster: Cluster,
    server: Server,
}

impl Scene {
    fn new() -> Result<Self> {
        let cluster = Cluster::new(1, Options::default())?;
        let server = cluster.node(1).namespace.run(|| Server::start(true));
        server.put("namespaces", "prod", json!({"metadata": {"name": "prod"}}));
        server.put("nodes", "node-1", json!({"metadata": {"name": "node-1"}}));
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "l", "cluster": {"server": format!("http://{}", server.address)}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "l", "user": "u"}}],
        });
        fs::write(cluster.rig.directory().join("kubeconfig"), config.to_string())?;
        Ok(Self { cluster, server })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.cluster.rig.directory().join(name)
    }

    /// An agent that keeps its files in the directory `state`, and logs to `state.log`.
    fn start(&self, state: &str, more: &[&str]) -> Result<Child> {
        let node = self.cluster.node(1);
        let log = File::create(self.file(&format!("{state}.log")))?;
        let mut command = Command::new(binary()?);
        command.args(["run", "--node", "node-1", "--cni-cache", "/nonexistent"]);
        command.arg("--kubeconfig").arg(self.file("kubeconfig"));
        command.arg("--pin").arg(&node.pins);
        command.arg("--state").arg(self.file(state)).args(more);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        node.namespace.spawn(&mut command)
    }

    /// What `status` says, and its exit code.
    fn status(&self, state: &str) -> Result<(Json, i32)> {
        let state = self.file(state).display().to_string();
        let output = self
            .cluster
            .node(1)
            .netpol("status", &["-o", "json", "--state", &state])?;
        let text = serde_json::from_slice(&output.stdout).unwrap_or_default();
        Ok((text, output.status.code().unwrap_or(-1)))
    }

    /// Waits until `status` ends with `code` and says `reason` of the agent that waits, or that none does.
    #[track_caller]
    fn until(&self, state: &str, code: i32, reason: Option<&str>) -> Result<Json> {
        let mut last = (Json::Null, -1);
        let done = wait_until(PATIENCE, || {
            last = self.status(state)?;
            let waiting = last.0["waiting"].as_array().cloned().unwrap_or_default();
            let said = match reason {
                None => waiting.is_empty(),
                Some(reason) => waiting
                    .iter()
                    .any(|agent| agent["reasons"].to_string().contains(reason)),
            };
            Ok(last.1 == code && said)
        })?;
        ensure!(done, "{code}, {reason:?}: {} {:#}", last.1, last.0);
        Ok(last.0)
    }

    fn get(&self, path: &str) -> Result<String> {
        let namespace = &self.cluster.node(1).namespace;
        let mut stream = namespace.connect(LISTEN.into(), Duration::from_secs(5))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: n\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

/// Where [`Server`] streams lists, the first request is a watch.
const REFUSAL: &str = "may not watch networkpolicies";

#[test]
fn a_right_that_is_missing_is_named_wherever_one_looks() -> Result<()> {
    let scene = Scene::new()?;
    scene.server.mood("networkpolicies", Mood::Refuses(403));
    let listen = LISTEN.to_string();
    let agent = scene.start("state", &["--listen", &listen])?;
    let status = scene.until("state", 2, Some(REFUSAL))?;
    assert_eq!((&status["agent"], &status["kernel"]), (&Json::Null, &Json::Null));
    assert_eq!(status["waiting"][0]["pid"], agent.id());
    let reasons = &status["waiting"][0]["reasons"];
    assert_eq!(reasons.as_array().map(Vec::len), Some(1), "{reasons:#}");

    let state = scene.file("state").display().to_string();
    let text = scene.cluster.node(1).netpol("status", &["--state", &state])?;
    let log = fs::read_to_string(scene.file("state.log"))?;
    let ready = scene.get("/readyz")?;
    for (place, text) in [
        ("status", &*String::from_utf8_lossy(&text.stdout)),
        ("the log", &log),
        ("/readyz", &ready),
    ] {
        assert!(text.contains(REFUSAL), "{place}: {text}");
    }
    assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
    let metrics = scene.get("/metrics")?;
    let counter = metrics.lines().find(|line| {
        line.starts_with("netpol_source_errors_total{")
            && line.contains("resource=\"networkpolicies\"")
            && line.contains("kind=\"forbidden\"")
    });
    let count = counter.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    assert!(count.is_some_and(|count| count >= 1.0), "{metrics}");

    scene.server.mood("networkpolicies", Mood::Well);
    let status = scene.until("state", 0, None)?;
    assert_eq!(status["agent"]["pid"], agent.id());
    assert!(scene.get("/readyz")?.starts_with("HTTP/1.1 200"));
    Ok(())
}

#[test]
fn who_waits_is_told_beside_what_is_in_force() -> Result<()> {
    let scene = Scene::new()?;
    let mut first = scene.start("state", &[])?;
    scene.until("state", 0, None)?;
    let in_force = |status: &Json| {
        (
            status["agent"]["pid"].as_u64(),
            status["agent"]["in_force"].as_bool(),
        )
    };
    let before = (Some(first.id().into()), Some(true));

    // Another waits for the one that runs.
    let mut second = scene.start("other", &[])?;
    let reason = format!(
        "another netpol-agent (process {}, node node-1) holds the pins",
        first.id()
    );
    let status = scene.until("other", 0, Some(&reason))?;
    assert_eq!(in_force(&status), before);
    second.signal(Signal::SIGTERM)?;
    second.wait(PATIENCE)?;
    assert_eq!(in_force(&scene.until("other", 0, None)?), before);
    let left: Vec<_> = fs::read_dir(scene.file("other"))?.collect();
    assert!(left.is_empty(), "{left:?}");

    // None runs, and the next has to wait; `--state` is where the one before had it.
    first.signal(Signal::SIGKILL)?;
    first.wait(PATIENCE)?;
    scene.server.mood("pods", Mood::Refuses(503));
    let mut third = scene.start("state", &[])?;
    let status = scene.until("nonexistent", 1, Some("answers 503 (watch pods)"))?;
    assert_eq!(in_force(&status), before);
    assert_eq!(status["kernel"]["running"], false);
    // One that is killed waits no more.
    third.signal(Signal::SIGKILL)?;
    third.wait(PATIENCE)?;
    scene.until("state", 1, None).context("after its end")?;

    scene.server.mood("pods", Mood::Well);
    let fourth = scene.start("state", &[])?;
    let well = wait_until(PATIENCE, || {
        let (status, code) = scene.status("state")?;
        Ok(code == 0 && status["agent"]["pid"] == fourth.id() && status["waiting"] == json!([]))
    })?;
    ensure!(well, "{:#}", scene.status("state")?.0);
    Ok(())
}
