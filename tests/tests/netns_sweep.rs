//! Flow tables are kept free of what is over, on the real kernel with short timeouts.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use netpol_tests::{
    cluster::{Cluster, Options, Policy, Talk, manifests, pod},
    net::{Outcome, Probe, Responder, Transport, probe, probe_all},
};

const SHORT: Duration = Duration::from_millis(400);
const PATIENCE: Duration = Duration::from_secs(30);

/// Entries of the IPv4 flow tables, by `status`.
fn fill(cluster: &Cluster) -> BTreeMap<String, u64> {
    let status = cluster.node(1).status();
    let maps = status["kernel"]["maps"].as_array().into_iter().flatten();
    maps.filter_map(|map| Some((map["name"].as_str()?.to_owned(), map["entries"].as_u64()?)))
        .filter(|(name, _)| ["flows4", "opening4"].contains(&name.as_str()))
        .collect()
}

/// Waits until the tables hold exactly so many openings and answered flows.
fn wait_for(cluster: &Cluster, opening: u64, answered: u64) -> Result<()> {
    let expected = BTreeMap::from([("flows4".to_owned(), answered), ("opening4".to_owned(), opening)]);
    let end = Instant::now() + PATIENCE;
    loop {
        let found = fill(cluster);
        if found == expected {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{found:?}, not {expected:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn openings_beyond_the_quota_are_counted_and_said() -> Result<()> {
    let pods = [("web", 5), ("db", 7)]
        .map(|(name, host)| pod(&format!("shop/{name}"), 1, host, &format!("app={name}")));
    let options = Options {
        arguments: ["--quota", "4"].map(str::to_owned).to_vec(),
        ..Options::default()
    };
    let mut cluster = Cluster::new(1, options)?;
    cluster.add_pods(&pods)?;
    let policy = Policy::new("shop/web", "app=web").ingress(&[]);
    cluster.write(&format!("{}{policy}", manifests(&pods)))?;
    cluster.start()?;
    let (web, db) = (cluster.pod("shop/web"), cluster.pod("shop/db"));
    // Nobody listens there; an error is no answer, and what is not answered keeps its place for the window.
    let probes = vec![Probe::udp(db.at(true, 53)); 10];
    let answers = probe_all(&web.namespace, &probes, SHORT);
    ensure!(
        !answers
            .iter()
            .any(|answer| matches!(answer, Outcome::Answered(_))),
        "{answers:?}"
    );
    let status = cluster.node(1).status();
    let refused = status["kernel"]["refused"].as_array().into_iter().flatten();
    let refused: Vec<_> = refused.map(|pod| pod["openings"].as_u64()).collect();
    ensure!(
        refused == [Some(6)],
        "{refused:?} of ten openings with a quota of four"
    );
    let text = cluster.node(1).netpol("status", &[])?.stdout;
    let text = String::from_utf8_lossy(&text);
    let line = text
        .lines()
        .skip_while(|line| !line.contains("beyond a pod's quota"))
        .nth(2);
    ensure!(line.is_some_and(|line| line.contains("shop/web")), "{text}");
    Ok(())
}

#[test]
fn what_is_over_leaves_the_tables_and_what_is_idle_stays() -> Result<()> {
    let pods = [("web", 5), ("db", 7)]
        .map(|(name, host)| pod(&format!("shop/{name}"), 1, host, &format!("app={name}")));
    let timeouts = "unanswered=1,answered=2,opening=2,reset=1,closing=1";
    let options = Options {
        arguments: vec!["--timeout".to_owned(), timeouts.to_owned()],
        ..Options::default()
    };
    let mut cluster = Cluster::new(1, options)?;
    cluster.add_pods(&pods)?;
    // Isolated in both directions: every answer of `db` needs an entry.
    let policy = Policy::new("shop/db", "app=db").ingress(&["app=web"]).egress(&[]);
    cluster.write(&format!("{}{policy}", manifests(&pods)))?;
    cluster.start()?;
    let (web, db) = (cluster.pod("shop/web"), cluster.pod("shop/db"));
    let ends = [
        (Transport::Tcp, db.at(true, 80)),
        (Transport::Udp, db.at(true, 53)),
    ];
    let _responder = Responder::start(&db.namespace, "db", ends)?;

    let mut idle = Talk::open(&web.namespace, db.at(true, 80))?;
    ensure!(idle.exchange(SHORT)?, "no answer");
    for _ in 0..20 {
        let answer = probe(&web.namespace, Probe::udp(db.at(true, 53)), SHORT);
        ensure!(matches!(answer, Outcome::Answered(_)), "{answer:?}");
        let answer = probe(&web.namespace, Probe::tcp(db.at(true, 80)), SHORT);
        ensure!(matches!(answer, Outcome::Answered(_)), "{answer:?}");
    }
    let found = fill(&cluster);
    ensure!(found["flows4"] > 20, "{found:?}");
    // Nobody listens there.
    let answer = probe(&web.namespace, Probe::udp(db.at(true, 54)), SHORT);
    ensure!(!matches!(answer, Outcome::Answered(_)), "{answer:?}");
    wait_for(&cluster, 0, 1)?;
    ensure!(idle.exchange(SHORT)?, "the idle connection is cut");

    // Its entry names a pod that is no more.
    cluster.remove_pod("shop/web");
    cluster.apply(&format!("{}{policy}", manifests(&pods[1..])))?;
    wait_for(&cluster, 0, 0)
}
