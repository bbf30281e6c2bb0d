//! What an agent does where something is wrong: a map without room, a broken edit, a second agent, no agent.

mod devices;
mod room;
mod said;
mod start;

use std::{
    net::SocketAddr,
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use netpol_policy::model::Pod;
use netpol_tests::{
    cluster::{Cluster, Node, Options, Policy, binary, manifests, pod},
    net::{Responder, Transport},
};
use serde_json::Value as Json;

const SHORT: Duration = Duration::from_millis(400);

/// `shop/web`, `shop/other` and `shop/db`, which answers on TCP 80, on one node.
struct Shop {
    _responder: Responder,
    cluster: Cluster,
    pods: [Pod; 3],
    db: SocketAddr,
}

impl Shop {
    fn new(arguments: &[&str]) -> Result<Self> {
        let pods = [("web", 5), ("other", 6), ("db", 7)]
            .map(|(name, host)| pod(&format!("shop/{name}"), 1, host, &format!("app={name}")));
        let options = Options {
            arguments: arguments.iter().map(ToString::to_string).collect(),
            ..Options::default()
        };
        let mut cluster = Cluster::new(1, options)?;
        cluster.add_pods(&pods)?;
        let place = cluster.pod("shop/db");
        let db = place.at(true, 80);
        let responder = Responder::start(&place.namespace, "db", [(Transport::Tcp, db)])?;
        Ok(Self {
            _responder: responder,
            cluster,
            pods,
            db,
        })
    }

    /// With an agent, which lets only `web` reach `db`.
    fn enforcing(arguments: &[&str]) -> Result<Self> {
        let mut shop = Self::new(arguments)?;
        shop.cluster.write(&shop.yaml(&[only_web()]))?;
        shop.cluster.start()?;
        assert_eq!(shop.reach(), [true, false]);
        Ok(shop)
    }

    /// Starts the agent where none runs, and does not wait until all is in force.
    fn start(&mut self, arguments: &[&str]) -> Result<()> {
        let options = Options {
            arguments: arguments.iter().map(ToString::to_string).collect(),
            ..Options::default()
        };
        let manifests = self.cluster.manifests().to_owned();
        self.cluster.node_mut(1).start(&manifests, &options)
    }

    fn yaml(&self, policies: &[String]) -> String {
        format!("{}{}", manifests(&self.pods), policies.concat())
    }

    /// Whether `web` and `other` reach `db`.
    fn reach(&self) -> [bool; 2] {
        ["shop/web", "shop/other"].map(|name| self.cluster.reaches(name, self.db, SHORT))
    }

    /// Waits until `status` says that something is wrong, and gives it with its exit code.
    fn trouble(&self) -> Result<(String, i32)> {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let (status, code) = status(self.cluster.node(1))?;
            let agent = &status["agent"];
            let errors = agent["errors"].as_array().into_iter().flatten();
            let problems = agent["problems"].as_array().into_iter().flatten();
            let problems = problems.filter(|problem| problem["severity"] == "error");
            let found: Vec<String> = errors.chain(problems).map(ToString::to_string).collect();
            if !found.is_empty() {
                return Ok((found.join("\n"), code));
            }
            ensure!(Instant::now() < end, "nothing is said to be wrong: {status:#}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn status(node: &Node) -> Result<(Json, i32)> {
    let output = node.netpol("status", &["-o", "json"])?;
    Ok((serde_json::from_slice(&output.stdout)?, code(&output)))
}

/// `run --once` on the first node, called by `wrapper` where that says something.
fn run_once(
    cluster: &Cluster,
    wrapper: &[&str],
    (node, cache): (&str, &Path),
    (pin, state): (&Path, &Path),
    more: &[&str],
) -> Result<Output> {
    let mut command = match wrapper {
        [] => Command::new(binary()?),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(binary()?);
            command
        }
    };
    command.args(["run", "--once", "--node", node]);
    command.arg("--cni-cache").arg(cache);
    command.arg("--manifests").arg(cluster.manifests());
    command.arg("--pin").arg(pin).arg("--state").arg(state).args(more);
    Ok(cluster.node(1).namespace.run(|| command.output())?)
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

fn only_web() -> String {
    Policy::new("shop/db", "app=db").ingress(&["app=web"]).to_string()
}
