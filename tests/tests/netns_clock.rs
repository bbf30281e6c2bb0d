//! The wall clock jumps: flows, policies and reports live by another one.

use std::{
    net::SocketAddr,
    process::{Command, ExitCode},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use netpol_policy::model::Pod;
use netpol_tests::{
    cluster::{Cluster, Options, Policy, Talk, manifests, pod},
    harness::{self, Test},
    net::{Outcome, Probe, Responder, Transport, patience, probe},
};

/// Set where nobody minds.
const ALLOWED: &str = "NETPOL_MAY_SET_CLOCK";

const ANSWER: Duration = Duration::from_millis(1500);
const SILENCE: Duration = Duration::from_millis(500);
const DAY: i64 = 24 * 3600;

/// The clock as it was set when this began; dropping it sets it right.
struct Clock {
    epoch: Duration,
    begun: Instant,
}

impl Clock {
    fn new() -> Result<Self> {
        Ok(Self {
            epoch: SystemTime::now().duration_since(UNIX_EPOCH)?,
            begun: Instant::now(),
        })
    }

    /// From now on it is wrong by so many seconds.
    fn jump(&self, seconds: i64) -> Result<()> {
        let right = (self.epoch + self.begun.elapsed()).as_secs();
        let wrong = right.saturating_add_signed(seconds);
        let done = Command::new("date")
            .args(["-u", "-s", &format!("@{wrong}")])
            .output()?;
        ensure!(
            done.status.success(),
            "date: {}",
            String::from_utf8_lossy(&done.stderr)
        );
        Ok(())
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        if let Err(error) = self.jump(0) {
            eprintln!("the clock stays wrong: {error:#}");
        }
    }
}

/// `t/server` takes `t/good` only and opens nothing; `t/bad` is there, too.
struct Town {
    _responder: Responder,
    cluster: Cluster,
    pods: [Pod; 3],
    server: SocketAddr,
}

impl Town {
    fn new() -> Result<Self> {
        let pods = [("server", 11), ("good", 12), ("bad", 13)]
            .map(|(name, host)| pod(&format!("t/{name}"), 1, host, &format!("app={name}")));
        let mut cluster = Cluster::new(1, Options::default())?;
        cluster.add_pods(&pods)?;
        let place = cluster.pod("t/server");
        let server = place.at(true, 80);
        let mut town = Self {
            _responder: Responder::start(&place.namespace, "server", [(Transport::Tcp, server)])?,
            cluster,
            pods,
            server,
        };
        town.cluster.write(&town.yaml("good"))?;
        town.cluster.start()?;
        Ok(town)
    }

    fn yaml(&self, client: &str) -> String {
        let policy = Policy::new("t/server", "app=server").egress(&[]);
        manifests(&self.pods) + &policy.ingress(&[&format!("app={client}")]).to_string()
    }

    fn reaches(&self, client: &str, limit: Duration) -> bool {
        let from = &self.cluster.pod(&format!("t/{client}")).namespace;
        probe(from, Probe::tcp(self.server), limit) != Outcome::Silent
    }

    /// Only `open` may.
    fn check(&self, open: &str, when: &str) {
        let closed = if open == "good" { "bad" } else { "good" };
        assert!(
            self.reaches(open, patience(ANSWER)),
            "{when}: {open} does not reach the server"
        );
        assert!(
            !self.reaches(closed, SILENCE),
            "{when}: {closed} reaches the server"
        );
    }
}

fn nothing_lives_by_the_wall_clock(town: &mut Town) -> Result<()> {
    let clock = Clock::new()?;
    let good = &town.cluster.pod("t/good").namespace;
    let mut talk = Talk::open(good, town.server)?;
    for seconds in [400 * DAY, -900 * DAY, 3600, -10] {
        let when = format!("the clock is wrong by {seconds} s");
        clock.jump(seconds)?;
        ensure!(
            talk.exchange(patience(ANSWER))?,
            "{when}: the connection has ended"
        );
        town.check("good", &when);
        town.cluster
            .apply(&town.yaml("bad"))
            .with_context(|| when.clone())?;
        town.check("bad", &when);
        // It was revoked; a new one takes its place.
        town.cluster
            .apply(&town.yaml("good"))
            .with_context(|| when.clone())?;
        talk = Talk::open(&town.cluster.pod("t/good").namespace, town.server)?;
        let status = town.cluster.node(1).netpol("status", &[])?;
        ensure!(
            status.status.success(),
            "{when}: {}",
            String::from_utf8_lossy(&status.stdout)
        );
        // The report of its predecessor is from another time.
        town.cluster.node_mut(1).kill_agent()?;
        town.cluster.start().with_context(|| when.clone())?;
        ensure!(
            talk.exchange(patience(ANSWER))?,
            "{when}: the connection has not outlived the agent"
        );
        town.check("good", &when);
    }
    // Flows are swept every 30 s.
    clock.jump(400 * DAY)?;
    std::thread::sleep(Duration::from_secs(40));
    ensure!(talk.exchange(patience(ANSWER))?, "the idle connection was swept");
    Ok(())
}

fn main() -> ExitCode {
    let lacks = std::env::var_os(ALLOWED).is_none().then_some(
        "it sets the machine's clock, as only the emulated kernels' may be (NETPOL_MAY_SET_CLOCK)",
    );
    harness::main(
        lacks,
        Town::new,
        &[Test {
            name: "nothing_lives_by_the_wall_clock",
            run: nothing_lives_by_the_wall_clock,
        }],
    )
}
