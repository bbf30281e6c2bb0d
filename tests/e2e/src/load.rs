//! Pods that talk all the time and count: to see what a disturbance breaks, or lets through.
//!
//! Two servers that only `good` pods may reach, one on each of two nodes; a good pod, which may lose nothing; a bad one
//! on each node, which may not get anything through; and one whose own egress is closed but for one server. Servers count
//! what arrives, as does who sends: a datagram that is not answered got through, too.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    asks::{tcp_to, udp_to},
    cluster::{Cluster, Placed, Space},
    kubectl::until,
    objects::{Pod, pods, policy, tcp, udp},
    stop,
    witness::{self, DATAGRAMS, PORT},
};

/// The pods, talking.
#[derive(Debug)]
pub(crate) struct Load<'c> {
    cluster: &'c Cluster,
    space: Space<'c>,
    counters: Vec<&'static str>,
    servers: Vec<Placed>,
    /// Who may not reach all servers.
    strangers: Vec<Placed>,
}

/// What happened meanwhile.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) echoes: u64,
    pub(crate) opened: u64,
    pub(crate) tried: u64,
    pub(crate) longest_gap: u64,
}

impl Load<'_> {
    /// Makes them, policies before those who may not.
    ///
    /// # Errors
    /// They do not start, or what should hold does not before anything was disturbed.
    pub(crate) fn start<'c>(cluster: &'c Cluster, namespace: &str) -> Result<Load<'c>> {
        let space = cluster.space(namespace, &[])?;
        let ns = space.name.as_str();
        let (here, there) = cluster.two();
        let server = |name: &str, node: &str| {
            let labels = [("app", "server"), ("side", name)];
            witness::labelled(ns, name, &labels, node)
        };
        cluster.kubectl.apply(&policies(ns))?;
        cluster.start(&[server("near", &here.name), server("far", &there.name)])?;
        let servers = cluster.placed(ns)?;
        let targets = |only: &[&str]| -> Vec<String> {
            let chosen = servers
                .iter()
                .filter(|server| only.contains(&server.name.as_str()));
            let each = chosen.flat_map(|server| &server.addresses);
            each.flat_map(|address| [tcp_to(*address, PORT), udp_to(*address, DATAGRAMS)])
                .collect()
        };
        let counter = |name: &str, app: &str, node: &str, allow: &[String], deny: &[String]| {
            let mut words = vec!["count"];
            allow.iter().for_each(|target| words.extend(["--allow", target]));
            deny.iter().for_each(|target| words.extend(["--deny", target]));
            Pod::new(ns, name, &[("app", app)], &words).on(node)
        };
        let (all, near, far) = (targets(&["near", "far"]), targets(&["near"]), targets(&["far"]));
        cluster.start(&[
            counter("good", "good", &here.name, &all, &[]),
            counter("bad-near", "bad", &here.name, &[], &all),
            counter("bad-far", "bad", &there.name, &[], &all),
            counter("half", "half", &there.name, &near, &far),
        ])?;
        let strangers = cluster.placed(ns)?;
        let strangers = strangers
            .into_iter()
            .filter(|pod| pod.name == "half" || pod.name.starts_with("bad"))
            .collect();
        let load = Load {
            cluster,
            space,
            counters: vec!["good", "bad-near", "bad-far", "half"],
            servers,
            strangers,
        };
        // Every counter counts.
        until(Duration::from_secs(60), || load.check(&BTreeMap::new()))?;
        Ok(load)
    }

    /// The last line of each counter.
    fn read(&self) -> Result<BTreeMap<String, Value>> {
        let mut counts = BTreeMap::new();
        for name in &self.counters {
            let text = self.cluster.kubectl.log(&self.space.name, name, 1)?;
            let line = serde_json::from_str(text.trim())
                .with_context(|| format!("{name} does not count: {text:?}"))?;
            counts.insert((*name).to_owned(), line);
        }
        Ok(counts)
    }

    /// Does something meanwhile, and says what happened to those who talk.
    ///
    /// # Errors
    /// That of `work`; a connection that broke; a packet that got through; or nobody talked.
    pub(crate) fn during<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(T, Tally)> {
        let before = self.read()?;
        let done = work()?;
        // What is still under way is counted, too.
        pause(Duration::from_secs(4))?;
        Ok((done, self.check(&before)?))
    }

    /// Nothing was lost and nothing got through since the beginning; everything went on since `before`.
    fn check(&self, before: &BTreeMap<String, Value>) -> Result<Tally> {
        let now = self.read()?;
        let (mut faults, mut tally) = (Vec::new(), Tally::default());
        for (name, counts) in &now {
            let earlier = before.get(name).unwrap_or(&Value::Null);
            for (at, one) in items(&counts["allow"]).enumerate() {
                let was = &earlier["allow"][at];
                let grown = |field: &str| number(&one[field]).saturating_sub(number(&was[field]));
                if number(&one["lost"]) + number(&one["refused"]) > 0 {
                    faults.push(format!("{name} lost something that is allowed: {one}"));
                }
                if grown("echoes") == 0 || grown("opened") == 0 {
                    faults.push(format!("{name} did not go on: {one}, before: {was}"));
                }
                tally.echoes += grown("echoes");
                tally.opened += grown("opened");
                tally.longest_gap = tally.longest_gap.max(number(&one["gap_ms"]));
            }
            for (at, one) in items(&counts["deny"]).enumerate() {
                let tried = number(&one["tried"]).saturating_sub(number(&earlier["deny"][at]["tried"]));
                if number(&one["through"]) > 0 {
                    faults.push(format!("{name} got something through that is denied: {one}"));
                }
                if tried == 0 {
                    faults.push(format!("{name} did not try: {one}"));
                }
                tally.tried += tried;
            }
        }
        faults.extend(self.arrivals()?);
        ensure!(faults.is_empty(), "{}", faults.join("\n  "));
        Ok(tally)
    }

    /// What servers received from those who may not: also what was not answered counts.
    fn arrivals(&self) -> Result<Vec<String>> {
        let mut faults = Vec::new();
        for server in &self.servers {
            let text = self.cluster.kubectl.log(&self.space.name, &server.name, 1)?;
            let line: Value = serde_json::from_str(text.trim()).unwrap_or_default();
            for (what, count) in line["arrived"].as_object().into_iter().flatten() {
                let of_stranger = self.strangers.iter().any(|pod| {
                    let may = pod.name == "half" && server.name == "near";
                    !may && witness::is_from(what, pod)
                });
                if of_stranger {
                    faults.push(format!(
                        "{} received what is denied: {what}: {count}",
                        server.name
                    ));
                }
            }
        }
        Ok(faults)
    }

    /// The namespace.
    pub(crate) fn namespace(&self) -> &str {
        &self.space.name
    }
}

fn policies(ns: &str) -> Vec<Value> {
    let ports = json!([tcp(PORT), udp(DATAGRAMS)]);
    let both = json!({
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [pods(&[("app", "good")]), pods(&[("app", "half")])], "ports": ports}],
    });
    let half = json!({
        "policyTypes": ["Egress"],
        "egress": [{"to": [pods(&[("side", "near")])], "ports": ports}],
    });
    vec![
        policy(ns, "servers", &[("app", "server")], both),
        policy(ns, "half", &[("app", "half")], half),
    ]
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// Sleeps; a signal ends it.
///
/// # Errors
/// A signal came.
pub(crate) fn pause(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        stop::check()?;
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} messages and {} new connections, 0 broken, longest gap {} ms; {} attempts at what is denied, 0 through",
            self.echoes, self.opened, self.longest_gap, self.tried
        )
    }
}
