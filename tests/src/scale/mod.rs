//! A large cluster without kubelets, and one agent in it: how long, how much memory, how much processor.
//!
//! ```text
//! this process: loader, churn, probes ── link npc-NAME ── etcd, API server ── br0 ── eth0 node under test: agent, cni0, 100 veths
//! ```

mod agent;
mod api;
mod churn;
mod control;
mod flips;
mod load;
mod node;
mod objects;
mod report;

use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use self::{
    agent::{Agent, Started},
    api::Api,
    churn::Churn,
    control::ControlPlane,
    node::Node,
    objects::{namespace_name, namespace_of, node_name, pod_name},
};
pub use self::{
    control::Plane,
    objects::Size,
    report::{Report, Row},
};
use crate::{net::Rig, sandbox::stop};

/// Names of everything that is made begin so.
pub const KIND: &str = "npscale";
const MIB: f64 = 1024.0 * 1024.0;
/// After a start or a rush, until it is quiet.
const SETTLE: Duration = Duration::from_secs(5);

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// The agent's binary.
    pub agent: PathBuf,
    /// xtask's, which makes the control plane.
    pub xtask: PathBuf,
    /// The control plane.
    pub control: Plane,
    /// How large.
    pub size: Size,
    /// Pods that change a second.
    pub churn: u32,
    /// For how long processor time is taken.
    pub window: Duration,
    /// How often a policy is patched.
    pub flips: usize,
    /// Where a copy of the agent's log is left.
    pub log: Option<PathBuf>,
}

/// Builds everything, measures, and takes everything down.
///
/// # Errors
/// Something can not be built, or a signal has come.
pub fn run(options: &Options) -> Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let control = ControlPlane::start(&options.xtask, &options.control)?;
    let api = runtime.block_on(Api::new(&control.kubeconfig, options.size))?;
    let mut report = Report::default();
    if let Some(took) = runtime.block_on(load::everything(&api))? {
        report.put("objects created in", took.as_secs_f64(), "s", None);
    }
    let (bytes, listed) = runtime.block_on(look(&api))?;
    report.put("a pod in JSON", bytes as f64 / 1024.0, "KiB", None);
    let rig = Rig::new(KIND)?;
    let node = Node::build(&rig, &control, options.size, &listed)?;
    let scene = Scene {
        options,
        control: &control,
        node: &node,
        api: &api,
        runtime: &runtime,
    };
    let done = scene.measure(&mut report);
    if let Some(log) = &options.log {
        // Of what failed, too.
        let _ = std::fs::copy(node.log(), log);
    }
    done.with_context(|| format!("logs of the control plane: {}", control.logs.display()))?;
    Ok(report)
}

/// The size of a pod as it is listed, and the pods of the node under test.
async fn look(api: &Api) -> Result<(usize, serde_json::Value)> {
    let pod = api.size.pods - 1;
    let space = namespace_name(namespace_of(pod));
    let one = api
        .get(&format!("/api/v1/namespaces/{space}/pods/{}", pod_name(pod)))
        .await?;
    let local = api
        .get(&format!(
            "/api/v1/pods?fieldSelector=spec.nodeName={}",
            node_name(0)
        ))
        .await?;
    Ok((
        one.len(),
        serde_json::from_str(&local).context("reading the node's pods")?,
    ))
}

struct Scene<'a> {
    options: &'a Options,
    control: &'a ControlPlane,
    node: &'a Node,
    api: &'a Api,
    runtime: &'a tokio::runtime::Runtime,
}

impl Scene<'_> {
    fn start(&self) -> Result<(Agent<'_>, Started)> {
        let mut agent = Agent::start(self.node, &self.options.agent, &self.control.kubeconfig)?;
        let started = agent.wait()?;
        Ok((agent, started))
    }

    fn measure(&self, report: &mut Report) -> Result<()> {
        let (agent, started) = self.start()?;
        report.put(
            "cold start, everything listed",
            started.listed.as_secs_f64(),
            "s",
            None,
        );
        report.put("cold start, ready", started.ready.as_secs_f64(), "s", None);
        let (cpu, bytes) = agent.usage()?;
        report.put("cold start, processor time", cpu, "s", None);
        report.put("cold start, from the API server", bytes / MIB, "MiB", None);
        pause(SETTLE)?;
        memory(report, &agent, "quiet")?;
        self.processor(report, &agent, "quiet", None)?;
        self.flips(report, "patch to enforced, quiet")?;
        let churn = Churn::start(&self.control.kubeconfig, self.options.size, self.options.churn);
        pause(SETTLE)?;
        let changes = format!("{} pods a second", self.options.churn);
        self.processor(report, &agent, &changes, Some(&churn))?;
        self.flips(report, &format!("patch to enforced, {changes}"))?;
        churn.end()?;
        memory(report, &agent, "after")?;
        ensure!(
            !agent.log()?.contains("ERROR"),
            "the agent has logged errors: {}",
            agent.log()?
        );
        agent.end()?;
        let (agent, started) = self.start()?;
        report.put(
            "restart with pins, everything listed",
            started.listed.as_secs_f64(),
            "s",
            None,
        );
        report.put("restart with pins, ready", started.ready.as_secs_f64(), "s", None);
        agent.end()?;
        self.node.cleanup(&self.options.agent)
    }

    /// Processor time of the agent and bytes to it.
    fn processor(
        &self,
        report: &mut Report,
        agent: &Agent<'_>,
        when: &str,
        churn: Option<&Churn>,
    ) -> Result<()> {
        let changed = |churn: Option<&Churn>| churn.map_or(0, Churn::done);
        let (begun, before, already) = (Instant::now(), agent.usage()?, changed(churn));
        pause(self.options.window)?;
        let (after, lasted) = (agent.usage()?, begun.elapsed().as_secs_f64());
        if churn.is_some() {
            let rate = (changed(churn) - already) as f64 / lasted;
            report.put(format!("{when}, in fact"), rate, "a second", None);
        }
        let goal = churn.map(|_| 5.0);
        report.put(
            format!("{when}, processor"),
            (after.0 - before.0) / lasted * 100.0,
            "% of a core",
            goal,
        );
        report.put(
            format!("{when}, from the API server"),
            (after.1 - before.1) / lasted / 1024.0,
            "KiB/s",
            None,
        );
        Ok(())
    }

    fn flips(&self, report: &mut Report, what: &str) -> Result<()> {
        let took = flips::measure(self.runtime, self.api, self.node, self.options.flips)?;
        report.put_latencies(what, took);
        Ok(())
    }
}

fn memory(report: &mut Report, agent: &Agent<'_>, when: &str) -> Result<()> {
    let memory = agent.memory()?;
    let mib = |bytes: u64| bytes as f64 / MIB;
    report.put(format!("{when}, resident"), mib(memory.resident), "MiB", None);
    report.put(
        format!("{when}, resident without files"),
        mib(memory.anonymous),
        "MiB",
        None,
    );
    report.put(
        format!("{when}, maps in the kernel"),
        mib(memory.maps),
        "MiB",
        None,
    );
    let both = mib(memory.resident + memory.maps);
    report.put(format!("{when}, resident and maps"), both, "MiB", Some(150.0));
    report.put(
        format!("{when}, resident at its peak"),
        mib(memory.peak),
        "MiB",
        None,
    );
    Ok(())
}

/// Sleeps, unless a signal ends the run.
fn pause(lasting: Duration) -> Result<()> {
    let end = Instant::now() + lasting;
    while Instant::now() < end {
        stop::check()?;
        thread::sleep(Duration::from_millis(100).min(end.saturating_duration_since(Instant::now())));
    }
    Ok(())
}

/// The path of the agent under test.
///
/// # Errors
/// There is none.
pub fn agent(path: Option<&Path>) -> Result<PathBuf> {
    path.map_or_else(crate::cluster::binary, |path| Ok(path.to_owned()))
}
