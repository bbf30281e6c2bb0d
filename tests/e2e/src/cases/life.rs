//! Pods come and go: who has an address, a name or labels now is who counts, at once.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{
    ANY, Case, LOCAL, TWO, case,
    scene::{Scene, run_to_its_end},
};
use crate::{
    asks::{Asks, tcp_to, udp_to},
    cluster::{Cluster, Placed},
    kubectl::until,
    local::Local,
    objects::{Pod, pods, policy},
    witness::{DATAGRAMS, PORT},
};

/// The cases.
pub(super) fn cases() -> Vec<Case> {
    vec![
        case(
            "completed-pod",
            "a completed pod's address is nobody's: whoever gets it next has not its rights",
            LOCAL,
            completed,
        ),
        case(
            "address-reused",
            "another pod gets a deleted pod's address within a second: it has not its rights, from its first packet on",
            LOCAL,
            reused,
        ),
        case(
            "pod-recreated",
            "a pod of the same name with other labels has its own rights, from its first packet on, both ways",
            ANY,
            recreated,
        ),
        case(
            "labels-changed",
            "a pod's labels change while it runs: so do its rights",
            ANY,
            relabelled,
        ),
        case(
            "stateful-set-moves",
            "a StatefulSet's pod comes back on another node: it keeps its rights and its policies",
            TWO,
            moved,
        ),
        case(
            "namespace-deleted",
            "a namespace is deleted with everything in it; a new one of its name has none of its rights and policies",
            ANY,
            namespace_deleted,
        ),
    ]
}

/// So soon a deleted pod's address must have its next owner, or nothing is tested.
const REUSED: Duration = Duration::from_secs(1);

/// Where host-local keeps its leases: by itself, and as kindnet tells it to.
const LEASES: [&str; 2] = ["/var/lib/cni/networks", "/run/cni-ipam-state"];

/// A shell's condition: the CNI plugin keeps a file for an address of the node.
fn is_leased(address: IpAddr) -> String {
    let files = LEASES.map(|dir| format!("{dir}/*/{address}")).join(" ");
    format!("ls {files} 2>/dev/null | grep -q .")
}

/// Makes the address the next one that a node gives away.
fn next(cluster: &Cluster, node: &str, address: IpAddr) -> Result<()> {
    let IpAddr::V4(v4) = address else {
        anyhow::bail!("{address} is not IPv4")
    };
    let before = std::net::Ipv4Addr::from_bits(v4.to_bits() - 1);
    let local = cluster.machine()?;
    let script = format!(
        "for file in {}; do
           [ ! -e $file ] || ! grep -q '\\.' $file || printf %s {before} >$file
         done",
        LEASES.map(|dir| format!("{dir}/*/last_reserved_ip.0")).join(" ")
    );
    local.in_node(node, &script).map(drop)
}

fn first_v4(pod: &Placed) -> Result<IpAddr> {
    let found = pod.addresses.iter().copied().find(IpAddr::is_ipv4);
    found.with_context(|| format!("pod {} has no IPv4 address", pod.name))
}

fn completed(cluster: &Cluster, name: &str) -> Result<String> {
    let scene = Scene::start(cluster, name)?;
    let (here, _) = cluster.two();
    let done = scene.run(&scene.first("done", "friend"))?;
    let address = first_v4(&done)?;
    let local = cluster.machine()?;
    // kubelet gives the address back soon after; the object keeps it.
    until(Duration::from_secs(60), || {
        local.in_node(&here.name, &format!("! {{ {}; }}", is_leased(address)))
    })?;
    next(cluster, &here.name, address)?;
    let heir = scene.unseen(|| scene.run(&scene.first("heir", "stranger")))?;
    ensure!(
        first_v4(&heir)? == address,
        "the heir got {:?} and not {address}: nothing was tested",
        heir.addresses
    );
    let still = cluster.pod(scene.ns(), "done")?;
    ensure!(
        still.addresses.contains(&address),
        "the completed pod does not claim {address} any more"
    );
    Ok(format!("{address}, which the completed pod's object still has"))
}

fn reused(cluster: &Cluster, name: &str) -> Result<String> {
    let scene = Scene::start(cluster, name)?;
    let (here, _) = cluster.two();
    let local = cluster.machine()?;
    let friend = Pod::server(scene.ns(), "friend", &[("role", "friend")], &[], &[]).on(&here.name);
    let rounds = if cluster.whole { 5 } else { 2 };
    let (mut quick, mut longest) = (0, Duration::ZERO);
    // On a busy machine kubelet may take longer; such a round is checked as all are, but does not count.
    for round in 0..rounds * 4 {
        cluster.kubectl.apply(&[friend.object(&cluster.image)])?;
        cluster.kubectl.wait_for_pods(scene.ns())?;
        let old = cluster.pod(scene.ns(), "friend")?;
        let address = first_v4(&old)?;
        let mut asks = Asks::default();
        for server in &scene.server.addresses {
            asks.allow(
                (scene.ns(), "friend"),
                tcp_to(*server, PORT),
                "server",
                "who has the address before",
            );
        }
        asks.settle(cluster)?;
        let heir = format!("heir-{round}");
        let took = scene.unseen(|| inherit(&scene, local, address, &heir))?;
        scene.delete(&heir)?;
        if took <= REUSED {
            quick += 1;
            longest = longest.max(took);
        }
        if quick == rounds {
            break;
        }
    }
    ensure!(
        quick == rounds,
        "only {quick} times of {} an address had its next owner within {} s",
        rounds * 4,
        REUSED.as_secs()
    );
    Ok(format!("{rounds} times, within {:.2} s", longest.as_secs_f64()))
}

/// Deletes `friend` and gives its address to a stranger's first process; how long the address was nobody's.
fn inherit(scene: &Scene<'_>, local: &Local, address: IpAddr, name: &str) -> Result<Duration> {
    let (cluster, (here, _)) = (scene.cluster, scene.cluster.two());
    next(cluster, &here.name, address)?;
    cluster.kubectl.run(&[
        "delete",
        "pod",
        "friend",
        "-n",
        scene.ns(),
        "--grace-period=0",
        "--force",
    ])?;
    let gone = format!("while {}; do sleep 0.02; done", is_leased(address));
    local.in_node(&here.name, &gone)?;
    let start = Instant::now();
    let heir = scene.first(name, "stranger");
    cluster.kubectl.apply(&[heir.object(&cluster.image)])?;
    local.in_node(
        &here.name,
        &format!("until {}; do sleep 0.02; done", is_leased(address)),
    )?;
    let took = start.elapsed();
    let heir = run_to_its_end(cluster, scene.ns(), name)?;
    ensure!(
        first_v4(&heir)? == address,
        "the heir got {:?} and not {address}: nothing was tested",
        heir.addresses
    );
    Ok(took)
}

fn recreated(cluster: &Cluster, name: &str) -> Result<String> {
    let scene = Scene::start(cluster, name)?;
    let roles = ["friend", "stranger", "friend", "stranger"];
    for role in roles {
        let life = || scene.run(&scene.first("pod", role));
        let done = if role == "friend" {
            life()
        } else {
            scene.unseen(life)
        };
        done.with_context(|| format!("as {role}"))?;
        scene.delete("pod")?;
    }
    Ok(format!("{} lives of one name", roles.len()))
}

fn relabelled(cluster: &Cluster, name: &str) -> Result<String> {
    let scene = Scene::start(cluster, name)?;
    let (here, _) = cluster.two();
    let ns = scene.ns();
    cluster.start(&[Pod::server(ns, "pod", &[("role", "stranger")], &[], &[]).on(&here.name)])?;
    for role in ["stranger", "friend", "stranger"] {
        cluster.kubectl.run(&[
            "label",
            "pod",
            "pod",
            "-n",
            ns,
            "--overwrite",
            &format!("role={role}"),
        ])?;
        let since = Instant::now();
        let mut asks = Asks::default();
        for (server, name) in [(&scene.server, "server"), (&scene.plain, "plain")] {
            for address in &server.addresses {
                for to in [tcp_to(*address, PORT), udp_to(*address, DATAGRAMS)] {
                    match role {
                        "friend" => asks.allow((ns, "pod"), to, name, role),
                        _ => asks.deny((ns, "pod"), to, role),
                    }
                }
            }
        }
        asks.settle_from(cluster, since)?;
        if role == "stranger" {
            scene.unseen(|| asks.hold(cluster))?;
        }
    }
    Ok(String::new())
}

fn moved(cluster: &Cluster, name: &str) -> Result<String> {
    let scene = Scene::start(cluster, name)?;
    let ns = scene.ns();
    let set = Pod::server(ns, "set", &[("role", "friend"), ("app", "set")], &[PORT], &[]);
    let shut = json!({"policyTypes": ["Ingress"], "ingress": [{"from": [pods(&[("role", "guest")])]}]});
    let (here, there) = cluster.two();
    let asker = |name: &str, role: &str| Pod::server(ns, name, &[("role", role)], &[], &[]).on(&here.name);
    cluster.start(&[asker("guest", "guest"), asker("stranger", "stranger")])?;
    let mut objects = vec![policy(ns, "set", &[("app", "set")], shut)];
    let mut seen = Vec::new();
    for node in [here, there, here] {
        let mut object = set.workload("StatefulSet", 1, &cluster.image);
        object["spec"]["template"]["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": node.name});
        objects.push(object);
        cluster.kubectl.apply(&objects)?;
        objects.clear();
        cluster.kubectl.run(&[
            "delete",
            "pod",
            "set-0",
            "-n",
            ns,
            "--ignore-not-found",
            "--timeout=60s",
        ])?;
        let pod = until(Duration::from_secs(90), || {
            let pod = cluster.pod(ns, "set-0")?;
            ensure!(pod.node == node.name, "set-0 is on {}", pod.node);
            Ok(pod)
        })?;
        cluster.kubectl.wait_for_pods(ns)?;
        let since = Instant::now();
        let mut asks = Asks::default();
        for address in &pod.addresses {
            asks.allow(
                (ns, "guest"),
                tcp_to(*address, PORT),
                "set",
                "who may reach the StatefulSet",
            );
            asks.deny((ns, "stranger"), tcp_to(*address, PORT), "who may not");
        }
        for server in &scene.server.addresses {
            asks.allow(
                (ns, "set-0"),
                tcp_to(*server, PORT),
                "server",
                "where the StatefulSet may go",
            );
        }
        asks.settle_from(cluster, since)
            .with_context(|| format!("on {}", node.name))?;
        seen.push(node.name.as_str());
    }
    Ok(seen.join(", then "))
}

fn namespace_deleted(cluster: &Cluster, name: &str) -> Result<String> {
    let scene = Scene::start(cluster, name)?;
    let (here, _) = cluster.two();
    let guests = format!("e2e-{name}-guests");
    let rule = json!({"namespaceSelector": {"matchLabels": {"team": "guests"}}});
    let from = json!({"policyTypes": ["Ingress"], "ingress": [{"from": [rule]}]});
    cluster
        .kubectl
        .apply(&[policy(scene.ns(), "guests", &[("app", "server")], from)])?;
    let words = |allowed: bool| -> Vec<String> {
        let flag = if allowed { "--allow" } else { "--deny" };
        let each = scene.server.addresses.iter();
        ["first".to_owned()]
            .into_iter()
            .chain(each.flat_map(|ip| [flag.to_owned(), tcp_to(*ip, PORT)]))
            .collect()
    };
    let pod = |allowed: bool| {
        let words = words(allowed);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        Pod::new(&guests, "guest", &[], &words)
            .on(&here.name)
            .with("restartPolicy", json!("Never"))
    };
    let free = |name: &str| Pod::server(&guests, name, &[], &[PORT], &[]).on(&here.name);
    // First a namespace with rights, in which nothing may be reached.
    let space = cluster.space(&guests, &[("team", "guests")])?;
    cluster.kubectl.apply(&[policy(
        &guests,
        "nothing",
        &[],
        json!({"policyTypes": ["Ingress"]}),
    )])?;
    cluster.kubectl.apply(&[
        pod(true).object(&cluster.image),
        free("host").object(&cluster.image),
    ])?;
    run_to_its_end(cluster, &guests, "guest")?;
    cluster.kubectl.wait_for_pods(&guests)?;
    let stranger = Pod::server(scene.ns(), "stranger", &[], &[], &[]).on(&here.name);
    cluster.start(&[stranger])?;
    let ask = |expect_open: bool, since: Instant| -> Result<()> {
        let mut asks = Asks::default();
        for address in cluster.pod(&guests, "host")?.addresses {
            if expect_open {
                asks.allow(
                    (scene.ns(), "stranger"),
                    tcp_to(address, PORT),
                    "host",
                    "the namespace without policies",
                );
            } else {
                asks.deny(
                    (scene.ns(), "stranger"),
                    tcp_to(address, PORT),
                    "the namespace that wants nobody",
                );
            }
        }
        asks.settle_from(cluster, since)
    };
    ask(false, Instant::now())?;
    cluster.remove_namespace(&guests)?;
    drop(space);
    // Then one of the same name, without rights and without policies.
    let _space = cluster.space(&guests, &[])?;
    scene.unseen(|| {
        cluster.kubectl.apply(&[
            pod(false).object(&cluster.image),
            free("host").object(&cluster.image),
        ])?;
        run_to_its_end(cluster, &guests, "guest")
    })?;
    cluster.kubectl.wait_for_pods(&guests)?;
    ask(true, Instant::now())?;
    Ok(String::new())
}
