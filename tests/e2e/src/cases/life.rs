//! Pods come and go: who has an address, a name or labels now is who counts, at once.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{ANY, Case, LOCAL, TWO, case};
use crate::{
    asks::{Asks, tcp_to, udp_to},
    cluster::{Cluster, Placed, Space},
    kubectl::until,
    objects::{Pod, pods, policy, tcp, udp},
};

const PORT: u16 = 8080;
const DATAGRAMS: u16 = 5353;

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

/// A server on the other node that only pods with `role: friend` may reach.
struct Scene<'c> {
    cluster: &'c Cluster,
    space: Space<'c>,
    server: Placed,
}

impl<'c> Scene<'c> {
    fn start(cluster: &'c Cluster, name: &str) -> Result<Self> {
        let space = cluster.space(&format!("e2e-{name}"), &[])?;
        let ns = space.name.clone();
        let (_, there) = cluster.two();
        let from = json!([{"from": [pods(&[("role", "friend")])], "ports": [tcp(PORT), udp(DATAGRAMS)]}]);
        let rule = json!({"policyTypes": ["Ingress"], "ingress": from});
        cluster
            .kubectl
            .apply(&[policy(&ns, "server", &[("app", "server")], rule)])?;
        cluster.start(&[
            Pod::server(&ns, "server", &[("app", "server")], &[PORT], &[DATAGRAMS]).on(&there.name),
        ])?;
        let server = cluster.pod(&ns, "server")?;
        Ok(Self {
            cluster,
            space,
            server,
        })
    }

    fn ns(&self) -> &str {
        &self.space.name
    }

    /// A pod whose first process tries the server at once.
    fn first(&self, name: &str, role: &str, allowed: bool) -> Pod {
        let mut words = vec!["first".to_owned()];
        for address in &self.server.addresses {
            if allowed {
                words.extend(["--allow".into(), tcp_to(*address, PORT)]);
            } else {
                words.extend([
                    "--deny".into(),
                    tcp_to(*address, PORT),
                    "--deny".into(),
                    udp_to(*address, DATAGRAMS),
                ]);
            }
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let (here, _) = self.cluster.two();
        Pod::new(self.ns(), name, &[("role", role)], &words)
            .on(&here.name)
            .with("restartPolicy", json!("Never"))
    }

    /// Runs it to its end, and returns where it was.
    fn run(&self, pod: &Pod) -> Result<Placed> {
        self.cluster.kubectl.apply(&[pod.object(&self.cluster.image)])?;
        run_to_its_end(self.cluster, self.ns(), &pod.name)
    }

    fn delete(&self, name: &str) -> Result<()> {
        self.cluster
            .kubectl
            .run(&["delete", "pod", name, "-n", self.ns(), "--timeout=60s"])
            .map(drop)
    }
}

/// Waits until a pod's first process has ended well.
fn run_to_its_end(cluster: &Cluster, ns: &str, name: &str) -> Result<Placed> {
    let object = until(Duration::from_secs(90), || {
        let object = cluster.kubectl.get(&["pod", name, "-n", ns])?;
        let phase = object["status"]["phase"].as_str().unwrap_or_default();
        ensure!(matches!(phase, "Succeeded" | "Failed"), "pod {name} is {phase}");
        Ok(object)
    })?;
    let said = &object["status"]["containerStatuses"][0]["state"]["terminated"]["message"];
    let line: Value = serde_json::from_str(said.as_str().unwrap_or_default()).unwrap_or_default();
    ensure!(
        line["fine"] == true,
        "the first process of {name} ({}): {said}",
        object["metadata"]["labels"]
    );
    let tried = line["deny"]
        .as_array()
        .into_iter()
        .flatten()
        .all(|one| one["tried"].as_u64() > Some(0));
    ensure!(tried, "the first process of {name} did not try: {said}");
    cluster.pod(ns, name)
}

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
    let local = cluster
        .local
        .as_ref()
        .context("the cluster is not on this machine")?;
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
    let done = scene.run(&scene.first("done", "friend", true))?;
    let address = first_v4(&done)?;
    let local = cluster
        .local
        .as_ref()
        .context("the cluster is not on this machine")?;
    // kubelet gives the address back soon after; the object keeps it.
    until(Duration::from_secs(60), || {
        local.in_node(&here.name, &format!("! {{ {}; }}", is_leased(address)))
    })?;
    next(cluster, &here.name, address)?;
    let heir = scene.run(&scene.first("heir", "stranger", false))?;
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
    let local = cluster
        .local
        .as_ref()
        .context("the cluster is not on this machine")?;
    let friend = Pod::server(scene.ns(), "friend", &[("role", "friend")], &[], &[]).on(&here.name);
    let rounds = if cluster.whole { 5 } else { 2 };
    let mut longest = 0.0_f64;
    for round in 0..rounds {
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
        let heir_name = format!("heir-{round}");
        let heir = scene.first(&heir_name, "stranger", false);
        cluster.kubectl.apply(&[heir.object(&cluster.image)])?;
        local.in_node(
            &here.name,
            &format!("until {}; do sleep 0.02; done", is_leased(address)),
        )?;
        longest = longest.max(start.elapsed().as_secs_f64());
        let heir = run_to_its_end(cluster, scene.ns(), &heir_name)?;
        ensure!(
            first_v4(&heir)? == address,
            "the heir got {:?} and not {address}: nothing was tested",
            heir.addresses
        );
        scene.delete(&heir_name)?;
    }
    Ok(format!("{rounds} times, within {longest:.2} s"))
}

fn recreated(cluster: &Cluster, name: &str) -> Result<String> {
    let scene = Scene::start(cluster, name)?;
    let roles = [
        ("friend", true),
        ("stranger", false),
        ("friend", true),
        ("stranger", false),
    ];
    for (role, allowed) in roles {
        scene
            .run(&scene.first("pod", role, allowed))
            .with_context(|| format!("as {role}"))?;
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
        let mut asks = Asks::default();
        for server in &scene.server.addresses {
            match role {
                "friend" => asks.allow((ns, "pod"), tcp_to(*server, PORT), "server", role),
                _ => asks.deny((ns, "pod"), tcp_to(*server, PORT), role),
            }
        }
        asks.settle(cluster)?;
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
        asks.settle(cluster)
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
    let ask = |expect_open: bool| -> Result<()> {
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
        asks.settle(cluster)
    };
    ask(false)?;
    cluster.remove_namespace(&guests)?;
    drop(space);
    // Then one of the same name, without rights and without policies.
    let _space = cluster.space(&guests, &[])?;
    cluster.kubectl.apply(&[
        pod(false).object(&cluster.image),
        free("host").object(&cluster.image),
    ])?;
    run_to_its_end(cluster, &guests, "guest")?;
    cluster.kubectl.wait_for_pods(&guests)?;
    ask(true)?;
    Ok(String::new())
}
