//! A cluster of network namespaces around the real agent: what really happens, beside what the oracle says.

pub mod agents;
mod ask;
pub mod build;
mod by_service;
pub mod checks;
pub mod complete;
pub mod layout;
pub mod manifest;
mod matrix;
pub mod pod;
pub mod report;
pub mod services;
pub mod stop;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use netpol_agent::source::manifests;
use netpol_policy::model::Snapshot;

use self::{
    agents::Agents,
    build::{Backend, Network},
    checks::{Answer, Check, Questions},
    layout::Layout,
    manifest::Raw,
    services::Virtual,
};
use crate::net::{Responder, Rig};

/// The beginning of all names that a sandbox makes.
pub const KIND: &str = "npsandbox";

/// How a sandbox is to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// Nodes, at least.
    pub nodes: usize,
    /// How packets go from node to node.
    pub backend: Backend,
    /// The agent's binary; nothing is enforced without.
    pub agent: Option<PathBuf>,
    /// `--attach` of the agent.
    pub attach: Option<String>,
}

/// What the manifests say, completed.
#[derive(Debug)]
pub struct Scene {
    /// Who is where.
    pub layout: Layout,
    /// Services with their endpoints.
    pub services: Vec<Virtual>,
    /// With every policy, also those held back.
    pub full: Snapshot,
    /// What is wrong with the manifests, one line each.
    pub problems: Vec<String>,
    raw: Raw,
}

impl Scene {
    /// Reads `dir` and fills in what it leaves open.
    ///
    /// # Errors
    /// The manifests can not be read, or no sandbox can be made of them.
    pub fn read(dir: &Path, nodes: usize) -> Result<Self> {
        let loaded = manifests::load(dir)?;
        let raw = Raw::read(dir)?;
        let layout = Layout::new(&loaded.snapshot, &raw, nodes)?;
        let problems = loaded.problems.iter().map(ToString::to_string);
        let problems: Vec<String> = problems.filter(|problem| !is_about_services(problem)).collect();
        ensure!(
            !layout.pods.is_empty(),
            "{} has no running pod to make a sandbox of{}",
            dir.display(),
            problems
                .iter()
                .map(|problem| format!("\n{problem}"))
                .collect::<String>()
        );
        let services = services::services(&loaded.snapshot, &raw, &layout);
        Ok(Self {
            layout,
            services,
            full: loaded.snapshot,
            problems,
            raw,
        })
    }

    /// The files that hold nothing but NetworkPolicies, in order.
    #[must_use]
    pub fn policy_files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = Vec::new();
        for (path, _) in &self.raw.objects {
            let mut kinds = self
                .raw
                .objects
                .iter()
                .filter(|(other, _)| other == path)
                .map(|(_, object)| &object["kind"]);
            if files.last() != Some(path) && kinds.all(|kind| kind == "NetworkPolicy") {
                files.push(path.clone());
            }
        }
        files
    }
}

/// The agent ignores what the sandbox reads.
fn is_about_services(problem: &str) -> bool {
    ["Service ", "Endpoints ", "EndpointSlice "]
        .iter()
        .any(|kind| problem.contains(&format!("objects of kind {kind}")))
}

/// A running sandbox. Dropping it ends the agents and listeners and removes everything.
#[derive(Debug)]
pub struct Sandbox<'s> {
    scene: &'s Scene,
    questions: Questions<'s>,
    manifests: PathBuf,
    agents: Option<Agents>,
    _responders: Vec<Responder>,
    network: Network,
    _rig: Rig,
}

impl<'s> Sandbox<'s> {
    /// Builds the network, starts listeners and agents; the policies of the files `held_back` are left out.
    ///
    /// # Errors
    /// Something can not be built, an agent does not get ready, or a signal came.
    pub fn start(scene: &'s Scene, options: &Options, held_back: &[PathBuf]) -> Result<Self> {
        let rig = Rig::new(KIND)?;
        let manifests = rig.directory().join("manifests");
        complete::write(&scene.raw, &scene.layout, held_back, &manifests)?;
        let network = Network::build(&rig, &scene.layout, options.backend, &stop::check)?;
        let tunnel = options.backend == Backend::Vxlan;
        if tunnel {
            build::vxlan_peers(&network, &scene.layout)?;
        }
        for (at, node) in network.nodes.iter().enumerate() {
            node.nft(&services::nat_rules(&scene.layout, &scene.services, at))
                .context("the rules of Services")?;
        }
        let questions = Questions::new(&scene.layout, &scene.services, &scene.full, tunnel);
        let responders = ask::listen(&network, &questions)?;
        let start = |binary: &PathBuf| {
            Agents::start(
                binary,
                &rig,
                &scene.layout,
                &network,
                &manifests,
                options.attach.as_deref(),
            )
        };
        let agents = options.agent.as_ref().map(start).transpose()?;
        let mut sandbox = Self {
            scene,
            questions,
            manifests,
            agents,
            _responders: responders,
            network,
            _rig: rig,
        };
        sandbox.wait()?;
        Ok(sandbox)
    }

    /// Everything that can be asked.
    #[must_use]
    pub fn questions(&self) -> &Questions<'s> {
        &self.questions
    }

    /// The network, to look around in.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The agents.
    pub fn agents(&mut self) -> Option<&mut Agents> {
        self.agents.as_mut()
    }

    /// What is in force now, as the agents read it.
    ///
    /// # Errors
    /// The manifests can not be read.
    pub fn snapshot(&self) -> Result<Snapshot> {
        Ok(manifests::load(&self.manifests)?.snapshot)
    }

    /// Puts a file that was held back among the manifests and waits until it is in force.
    ///
    /// # Errors
    /// It can not be copied, or an agent does not take it up.
    pub fn apply(&mut self, file: &Path) -> Result<()> {
        let to = self.manifests.join(complete::file_name(file));
        std::fs::copy(file, &to).with_context(|| format!("copy {} to {}", file.display(), to.display()))?;
        self.wait()
    }

    fn wait(&mut self) -> Result<()> {
        let snapshot = self.snapshot()?;
        match &mut self.agents {
            Some(agents) => agents.wait(&self.scene.layout, &snapshot, &stop::check),
            None => Ok(()),
        }
    }

    /// Asks everything.
    ///
    /// # Errors
    /// The manifests can not be read, or a signal came.
    pub fn ask(&self) -> Result<Run> {
        let start = Instant::now();
        let snapshot = self.snapshot()?;
        let checks = self.questions.all();
        let answers = ask::ask(&self.network, &self.questions, &checks, &snapshot, &stop::check)?;
        Ok(Run {
            checks,
            answers,
            snapshot,
            time: start.elapsed(),
        })
    }
}

/// What came of all questions.
#[derive(Debug)]
pub struct Run {
    /// The questions.
    pub checks: Vec<Check>,
    /// Their answers, in the same order.
    pub answers: Vec<Answer>,
    /// What the oracle judged by.
    pub snapshot: Snapshot,
    /// How long it took.
    pub time: Duration,
}

impl Run {
    /// Where oracle and reality differ.
    pub fn differences(&self) -> impl Iterator<Item = (&Check, &Answer)> {
        self.checks
            .iter()
            .zip(&self.answers)
            .filter(|(_, answer)| !answer.same)
    }
}
