//! Pods that are sent to before they are there: at the addresses that they are about to get.

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{Case, LOCAL, case, metrics};
use crate::{
    cluster::{Cluster, Placed},
    kubectl::until,
    local::Local,
    objects::{Pod, pods, policy},
    witness::is_from,
};

/// What the new pods listen on and nobody else does.
const PORT: u16 = 8181;
/// Pods that a node starts at a time.
const WAVE: usize = 6;
/// Addresses after the last one given away: those of a wave and some more, as other pods come, too.
const AHEAD: u32 = 9;

/// The case.
pub(super) fn cases() -> Vec<Case> {
    vec![case(
        "ingress-at-birth",
        "new pods are sent to, from both nodes, before they have a network: no first process gets anything that is denied",
        LOCAL,
        birth,
    )]
}

fn birth(cluster: &Cluster, name: &str) -> Result<String> {
    let local = cluster.machine()?;
    let space = cluster.space(&format!("e2e-{name}"), &[])?;
    let ns = space.name.as_str();
    let ingress = |rules: Value| json!({"policyTypes": ["Ingress"], "ingress": rules});
    let (here, there) = cluster.two();
    cluster.kubectl.apply(&[
        policy(ns, "isolated", &[("kind", "isolated")], ingress(json!([]))),
        policy(
            ns,
            "picky",
            &[("kind", "picky")],
            ingress(json!([{"from": [pods(&[("side", &here.name)])]}])),
        ),
    ])?;
    let hammers: Vec<Pod> = [here, there].map(|node| hammer(ns, &node.name)).to_vec();
    cluster.start(&hammers)?;
    let hammers = cluster.placed(ns)?;
    let mut tally = Tally::default();
    let before = metrics::read(cluster)?;
    quick_neighbours(local, cluster, "50")?;
    let done = (0..if cluster.whole { 50 } else { 6 })
        .try_for_each(|round| tally.add(&wave(cluster, local, ns, round)?, &hammers, &here.name));
    quick_neighbours(local, cluster, "1000")?;
    done?;
    let guarded = metrics::read(cluster)?.since(&before, "netpol_pod_guarded_seconds");
    let times = match guarded {
        Ok(guarded) => format!("veth announced to guarded: {guarded}"),
        // What arrived is worse news.
        Err(error) => error.to_string(),
    };
    tally
        .judge()
        .map(|note| format!("{note}; {times}"))
        .context(times)
}

/// A pod that may change its network's settings, and sends when it is told to.
fn hammer(ns: &str, node: &str) -> Pod {
    Pod::server(ns, &format!("hammer-{node}"), &[("side", node)], &[], &[])
        .on(node)
        .container("securityContext", json!({"privileged": true}))
}

/// How long nodes wait, in milliseconds, until they ask again for the link-layer address of a pod that is not there yet.
fn quick_neighbours(local: &Local, cluster: &Cluster, milliseconds: &str) -> Result<()> {
    cluster.nodes.iter().try_for_each(|node| {
        let script = format!(
            "for file in /proc/sys/net/ipv[46]/neigh/*/retrans_time_ms; do echo {milliseconds} >$file; done"
        );
        local.in_node(&node.name, &script).map(drop)
    })
}

/// The kinds of pods, in turn.
const KINDS: [&str; 3] = ["isolated", "free", "picky"];

/// Starts some pods on each node while both hammers send to their addresses, and removes them; what they were and said.
fn wave(cluster: &Cluster, local: &Local, ns: &str, round: usize) -> Result<Vec<(Value, Vec<IpAddr>)>> {
    let mut targets = Vec::new();
    for node in &cluster.nodes {
        targets.extend(ahead(local, &node.name)?);
    }
    ensure!(!targets.is_empty(), "no node has given an address away");
    let each = cluster
        .nodes
        .iter()
        .flat_map(|node| (0..WAVE).map(move |at| (node, at)));
    let objects: Vec<Value> = each
        .map(|(node, at)| {
            let port = PORT.to_string();
            let words = ["born", "--tcp", &port, "--udp", &port, "--hold-ms", "1500"];
            let kind = KINDS[(round + at) % KINDS.len()];
            Pod::new(
                ns,
                &format!("born-{round}-{}-{at}", node.name),
                &[("kind", kind)],
                &words,
            )
            .on(&node.name)
            .with("restartPolicy", json!("Never"))
            .container("securityContext", json!({"capabilities": {"add": ["NET_RAW"]}}))
            .object(&cluster.image)
        })
        .collect();
    let over = AtomicBool::new(false);
    let born = thread::scope(|scope| {
        let senders: Vec<_> = cluster
            .nodes
            .iter()
            .map(|node| scope.spawn(|| send(cluster, ns, &node.name, &targets, &over)))
            .collect();
        // The senders have begun.
        thread::sleep(Duration::from_secs(1));
        let born = cluster.kubectl.apply(&objects).and_then(|()| {
            until(Duration::from_secs(90), || {
                cluster.ended(ns, "kind", objects.len())
            })
        });
        over.store(true, Relaxed);
        for sender in senders {
            sender
                .join()
                .map_err(|_| anyhow::anyhow!("a thread that sends died"))??;
        }
        born
    })?;
    cluster.remove_pods(ns, "kind")?;
    Ok(born.into_iter().map(|pod| (pod, targets.clone())).collect())
}

/// The addresses that a node gives away next.
fn ahead(local: &Local, node: &str) -> Result<Vec<IpAddr>> {
    // host-local's files, in its own place and in kindnet's, end without a newline.
    let script =
        "for file in /var/lib/cni/networks/*/last_reserved_ip.* /run/cni-ipam-state/*/last_reserved_ip.*; do
           [ ! -e $file ] || { cat $file; echo; }
         done";
    let said = local.in_node(node, script)?;
    let last = said
        .split_whitespace()
        .filter_map(|word| word.parse::<IpAddr>().ok());
    Ok(last
        .flat_map(|last| (1..=AHEAD).map(move |by| after(last, by)))
        .collect())
}

fn after(address: IpAddr, by: u32) -> IpAddr {
    match address {
        IpAddr::V4(v4) => IpAddr::from((v4.to_bits() + by).to_be_bytes()),
        IpAddr::V6(v6) => IpAddr::from((v6.to_bits() + u128::from(by)).to_be_bytes()),
    }
}

/// Sends from one node's hammer until it is over.
fn send(cluster: &Cluster, ns: &str, node: &str, targets: &[IpAddr], over: &AtomicBool) -> Result<()> {
    let each = targets.iter().flat_map(|address| {
        let to = SocketAddr::new(*address, PORT);
        [format!("udp:{to}"), format!("tcp:{to}")]
    });
    let each: Vec<String> = each.collect();
    let words: Vec<&str> = ["/netpol-probe", "hammer", "--seconds", "3"]
        .into_iter()
        .chain(each.iter().map(String::as_str))
        .collect();
    while !over.load(Relaxed) {
        cluster.kubectl.exec(ns, &format!("hammer-{node}"), &words)?;
    }
    Ok(())
}

/// What the new pods said.
#[derive(Debug, Default)]
struct Tally {
    /// Pods that something denied was sent to.
    denied: usize,
    /// Pods that were sent to, and of these those that everything reached that may: both protocols.
    open: usize,
    reached: usize,
    /// Pods that something had reached before their first process began.
    early: usize,
    /// Isolated pods whose kernel received something when nobody listened yet: between its address and its guard.
    unheard: usize,
    faults: Vec<String>,
}

impl Tally {
    fn add(&mut self, born: &[(Value, Vec<IpAddr>)], hammers: &[Placed], friend: &str) -> Result<()> {
        for (pod, targets) in born {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            let addresses = pod["status"]["podIPs"].as_array().into_iter().flatten();
            let mut addresses = addresses.filter_map(|one| one["ip"].as_str()?.parse::<IpAddr>().ok());
            // One that got another address was not sent to.
            if !addresses.all(|address| targets.contains(&address)) {
                continue;
            }
            let said = pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"]
                .as_str()
                .with_context(|| format!("{name} left no message: {}", pod["status"]))?;
            let said: Value = serde_json::from_str(said).with_context(|| format!("{name} said {said:?}"))?;
            let kind = pod["metadata"]["labels"]["kind"].as_str().unwrap_or_default();
            self.note(name, kind, &said, hammers, friend);
        }
        Ok(())
    }

    fn note(&mut self, name: &str, kind: &str, said: &Value, hammers: &[Placed], friend: &str) {
        let number = |when: &str, what: &str| said[when][what].as_u64().unwrap_or(u64::MAX);
        let from = |hammer: &Placed| {
            let arrived = said["arrived"].as_object().into_iter().flatten();
            arrived.filter(|(what, _)| is_from(what, hammer)).count()
        };
        let fault = match kind {
            "isolated" => hammers.iter().any(|hammer| from(hammer) > 0),
            "picky" => hammers
                .iter()
                .any(|hammer| hammer.node != friend && from(hammer) > 0),
            _ => false,
        };
        if fault {
            self.faults.push(format!("{name} ({kind}) received {said}"));
        }
        let mut wanted = hammers
            .iter()
            .filter(|hammer| kind == "free" || kind == "picky" && hammer.node == friend);
        match kind {
            "isolated" => {
                self.denied += 1;
                self.unheard += usize::from(number("all", "tcp") > 0 || number("all", "udp") > 0);
            }
            _ => {
                self.denied += usize::from(kind == "picky");
                self.open += 1;
                // SYNs and datagrams, of each of its addresses.
                self.reached += usize::from(wanted.all(|hammer| from(hammer) >= 2 * hammer.addresses.len()));
                self.early += usize::from(number("before", "tcp") > 0 || number("before", "udp") > 0);
            }
        }
    }

    /// # Errors
    /// Something got through, or too little was sent for that to mean anything.
    fn judge(&self) -> Result<String> {
        ensure!(
            self.faults.is_empty(),
            "{} of {} pods received what is denied:\n  {}",
            self.faults.len(),
            self.denied,
            // The rest says the same.
            self.faults[..self.faults.len().min(10)].join("\n  ")
        );
        ensure!(
            self.denied > 0 && self.reached * 2 > self.open,
            "only {} of {} pods were reached by those who may: nothing was tested",
            self.reached,
            self.open
        );
        Ok(format!(
            "no first process of {} got anything that is denied ({} pods got something before it, when nobody listened); of {} \
             others {} were reached, {} of them before their first process began",
            self.denied, self.unheard, self.open, self.reached, self.early
        ))
    }
}
