//! An agent whose container has too little memory: it is refused, or killed, and what was in force stays.

use std::{fs, net::SocketAddr, process::ExitCode, time::Duration};

use anyhow::{Context, Result, ensure};
use netpol_policy::model::Pod;
use netpol_tests::{
    cluster::{Cluster, Options, Policy, binary, manifests, next_binary, pod},
    harness::{self, Test},
    net::{MemoryGroup, Responder, Transport, wait_until},
};

const SHORT: Duration = Duration::from_millis(400);
/// Too little for large maps.
const LITTLE: u64 = 96 << 20;
const ENOUGH: u64 = 1 << 30;

/// `shop/web` and `shop/other` ask `shop/db` on one node.
struct Shop {
    _responder: Responder,
    cluster: Cluster,
    pods: [Pod; 3],
    db: SocketAddr,
    group: MemoryGroup,
}

impl Shop {
    /// Without an agent; the manifests let only `web` reach `db`.
    fn new() -> Result<Self> {
        let pods = [("web", 5), ("other", 6), ("db", 7)]
            .map(|(name, host)| pod(&format!("shop/{name}"), 1, host, &format!("app={name}")));
        let mut cluster = Cluster::new(1, Options::default())?;
        cluster.add_pods(&pods)?;
        let place = cluster.pod("shop/db");
        let db = place.at(true, 80);
        let mut shop = Self {
            _responder: Responder::start(&place.namespace, "db", [(Transport::Tcp, db)])?,
            cluster,
            pods,
            db,
            group: MemoryGroup::new()?,
        };
        shop.write(&[only("web")])?;
        Ok(shop)
    }

    fn write(&mut self, policies: &[String]) -> Result<()> {
        self.cluster.write(&(manifests(&self.pods) + &policies.concat()))
    }

    /// Whether `web` and `other` reach `db`.
    fn reach(&self) -> [bool; 2] {
        ["shop/web", "shop/other"].map(|name| self.cluster.reaches(name, self.db, SHORT))
    }

    /// What is pinned.
    fn trees(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.cluster.node(1).pins).into_iter().flatten();
        entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect()
    }

    /// The next agents are started in the group.
    fn confine(&mut self, binary: &std::path::Path, limit: u64) -> Result<()> {
        self.group.limit(limit)?;
        self.cluster.options.binary = Some(self.group.starter(self.cluster.rig.directory(), binary)?);
        Ok(())
    }

    /// Starts an agent that ends by itself; its exit code and the end of its log.
    fn refused(&mut self, arguments: &[&str]) -> Result<(Option<i32>, String)> {
        let (manifests, mut options) = (self.cluster.manifests().to_owned(), self.cluster.options.clone());
        options.arguments = arguments.iter().map(ToString::to_string).collect();
        let node = self.cluster.node_mut(1);
        node.start(&manifests, &options)?;
        let status = node.agent()?.child.wait(Duration::from_secs(60))?;
        let log = node.agent()?.log();
        node.kill_agent()?;
        Ok((status.code(), log))
    }
}

fn only(client: &str) -> String {
    Policy::new("shop/db", "app=db")
        .ingress(&[&format!("app={client}")])
        .to_string()
}

fn says(log: &str, parts: &[&str]) {
    for part in parts {
        assert!(log.contains(part), "{part} is not in {log}");
    }
}

fn maps_without_memory_are_refused_at_the_first_start(_: &mut ()) -> Result<()> {
    let mut shop = Shop::new()?;
    shop.confine(&binary()?, LITTLE)?;
    let (code, log) = shop.refused(&["--map-size", "flows4=4000000"])?;
    assert_eq!(code, Some(2), "{log}");
    says(
        &log,
        &[
            "creating map `flows4`",
            "the kernel refused the memory",
            "container more memory",
            "--map-size",
        ],
    );
    assert_eq!(shop.trees(), [""; 0], "something is pinned");
    assert_eq!(shop.reach(), [true, true]);
    shop.group.limit(ENOUGH)?;
    shop.cluster.start()?;
    assert_eq!(shop.reach(), [true, false], "with more memory");
    Ok(())
}

/// The next version must have some maps of its own beside those in force.
fn maps_without_memory_are_refused_on_an_upgrade_and_the_policy_stays(_: &mut ()) -> Result<()> {
    let mut shop = Shop::new()?;
    shop.cluster.start()?;
    assert_eq!(shop.reach(), [true, false]);
    let before = shop.trees();
    shop.cluster.node_mut(1).kill_agent()?;
    shop.confine(&next_binary()?, LITTLE)?;
    let (code, log) = shop.refused(&["--map-size", "cells=16000000"])?;
    assert_eq!(code, Some(2), "{log}");
    says(&log, &["creating map `cells`", "the kernel refused the memory"]);
    assert_eq!(shop.trees(), before, "something is left");
    assert_eq!(shop.reach(), [true, false]);
    shop.group.limit(ENOUGH)?;
    shop.cluster.start()?;
    assert_ne!(shop.trees(), before, "the next version has not taken over");
    assert_eq!(shop.reach(), [true, false]);
    Ok(())
}

/// The kernel kills who needs more than there is: the policy before stays whole, and the next agent goes on.
fn an_agent_that_is_killed_for_its_memory_leaves_the_policy(_: &mut ()) -> Result<()> {
    let mut shop = Shop::new()?;
    shop.confine(&binary()?, ENOUGH)?;
    shop.cluster.start()?;
    assert_eq!(shop.reach(), [true, false]);
    let little = shop.group.usage()? + (8 << 20);
    shop.group.limit(little)?;
    let many: Vec<String> = (0..20_000)
        .map(|number| {
            let net = format!("20.{}.{}.0/24", number / 256, number % 256);
            Policy::new(&format!("shop/many-{number}"), "app=db")
                .ingress(&[&net])
                .to_string()
        })
        .collect();
    let more = [&[only("other")][..], &many].concat();
    shop.write(&more)?;
    let agent = shop.cluster.node_mut(1).agent()?;
    agent
        .child
        .wait(Duration::from_secs(120))
        .context("the agent has enough memory")?;
    let killed = wait_until(Duration::from_secs(2), || Ok(shop.group.kills()? > 0))?;
    ensure!(
        killed,
        "the agent has ended otherwise: {}",
        shop.cluster.node_mut(1).agent()?.log()
    );
    shop.cluster.node_mut(1).kill_agent()?;
    assert_eq!(shop.reach(), [true, false], "the policy before");
    shop.group.limit(ENOUGH)?;
    shop.cluster.start()?;
    assert_eq!(shop.reach(), [false, true], "the policy after");
    Ok(())
}

fn main() -> ExitCode {
    macro_rules! tests {
        ($($name:ident),* $(,)?) => { [$(Test { name: stringify!($name), run: $name }),*] };
    }
    harness::main(
        MemoryGroup::lacks(),
        || Ok(()),
        &tests![
            maps_without_memory_are_refused_at_the_first_start,
            maps_without_memory_are_refused_on_an_upgrade_and_the_policy_stays,
            an_agent_that_is_killed_for_its_memory_leaves_the_policy,
        ],
    )
}
