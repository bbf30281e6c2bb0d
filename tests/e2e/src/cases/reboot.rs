//! A node loses everything but its disk.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::{Case, LOCAL, case};
use crate::{
    asks::{Asks, tcp_to, udp_to},
    cluster::Cluster,
    kubectl::until,
    local::Local,
    objects::{Pod, pods, policy, tcp, udp},
    witness::{self, CONTROL, DATAGRAMS, PORT},
};

/// The case.
pub(super) fn cases() -> Vec<Case> {
    vec![case(
        "node-reboots",
        "a node reboots, its pins are gone: its pods' first processes get nothing denied through, and all is as before",
        LOCAL,
        reboot,
    )]
}

fn reboot(cluster: &Cluster, name: &str) -> Result<String> {
    let local = cluster.machine()?;
    let space = cluster.space(&format!("e2e-{name}"), &[])?;
    let ns = space.name.as_str();
    let (here, there) = cluster.two();
    let from = json!([{"from": [pods(&[("role", "friend")])], "ports": [tcp(PORT), udp(DATAGRAMS)]}]);
    let rule = json!({"policyTypes": ["Ingress"], "ingress": from});
    let control = json!([{"from": [pods(&[("app", CONTROL)])]}]);
    cluster.kubectl.apply(&[
        policy(ns, "server", &[("app", "server")], rule),
        policy(
            ns,
            "shut",
            &[("app", "shut")],
            json!({"policyTypes": ["Ingress"], "ingress": control}),
        ),
        // `plain` would let it in: that its packets do not get there is up to the node that reboots.
        policy(
            ns,
            "first",
            &[("role", "first")],
            json!({"policyTypes": ["Egress"], "egress": [{"to": [pods(&[("app", "shut")])]}]}),
        ),
    ])?;
    let server =
        |name: &str, node: &str| Pod::server(ns, name, &[("app", "server")], &[PORT], &[DATAGRAMS]).on(node);
    let asker =
        |name: &str, role: &str, node: &str| Pod::server(ns, name, &[("role", role)], &[], &[]).on(node);
    cluster.start(&[
        server("server-here", &here.name),
        server("server-there", &there.name),
        asker("friend", "friend", &here.name),
        asker("friend-there", "friend", &there.name),
        asker("stranger", "stranger", &there.name),
        witness::pod(ns, "shut", &here.name),
        witness::pod(ns, "plain", &here.name),
        witness::control(ns, &here.name),
    ])?;
    // It is there before and after: each of its lives tries at once, and ends badly where anything gets through.
    let mut words = vec!["first".to_owned()];
    for name in ["shut", "plain"] {
        words.extend(witness::denied(&cluster.pod(ns, name)?));
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let first = Pod::new(ns, "first", &[("role", "first")], &words)
        .on(&there.name)
        .with("restartPolicy", json!("OnFailure"));
    cluster.kubectl.apply(&[first
        .with("terminationGracePeriodSeconds", json!(0))
        .object(&cluster.image)])?;
    ask(cluster, ns)?;
    restart(local, &there.name)?;
    until(Duration::from_secs(180), || {
        let pods = cluster.kubectl.list(&["pods", "-n", ns])?;
        let again = pods
            .iter()
            .filter(|pod| pod["spec"]["nodeName"] == there.name.as_str())
            .all(|pod| {
                let status = &pod["status"]["containerStatuses"][0];
                pod["status"]["phase"] == "Succeeded"
                    || (status["restartCount"].as_u64() > Some(0) && status["ready"] == true)
            });
        ensure!(again, "the pods of {} did not all start again", there.name);
        Ok(())
    })?;
    cluster.wait_for_agents()?;
    ask(cluster, ns)?;
    // One more first process, after the reboot.
    let after = Pod::new(ns, "first-after", &[("role", "first")], &words)
        .on(&there.name)
        .with("restartPolicy", json!("Never"));
    cluster.kubectl.apply(&[after.object(&cluster.image)])?;
    for name in ["first", "first-after"] {
        until(Duration::from_secs(60), || {
            let pod = cluster.kubectl.get(&["pod", name, "-n", ns])?;
            let status = &pod["status"];
            ensure!(
                status["phase"] == "Succeeded",
                "pod {name}: {}",
                status["containerStatuses"]
            );
            Ok(())
        })?;
    }
    for name in ["shut", "plain"] {
        witness::nothing_arrived(cluster, ns, name)?;
    }
    Ok(there.name.clone())
}

fn ask(cluster: &Cluster, ns: &str) -> Result<()> {
    let mut asks = Asks::default();
    for name in ["server-here", "server-there"] {
        for address in cluster.pod(ns, name)?.addresses {
            asks.allow(
                (ns, "friend"),
                tcp_to(address, PORT),
                name,
                "a friend on the node that stays",
            );
            asks.allow(
                (ns, "friend-there"),
                tcp_to(address, PORT),
                name,
                "a friend on the node that reboots",
            );
            asks.deny(
                (ns, "stranger"),
                tcp_to(address, PORT),
                "a stranger on the node that reboots",
            );
            asks.deny(
                (ns, "stranger"),
                udp_to(address, DATAGRAMS),
                "a stranger on the node that reboots",
            );
        }
    }
    asks.settle(cluster)
}

/// Ends everything that runs on the node, forgets what a reboot forgets, and starts the node's components again.
fn restart(local: &Local, node: &str) -> Result<()> {
    let mut daemons = local.node_daemons(node)?;
    for daemon in &daemons {
        local.signal(daemon, "KILL")?;
    }
    // Containers and shims: everything whose cgroup, or whose mounts, are the node's, but for the process that is the node.
    local.end_processes(node)?;
    local.in_node(
        node,
        "for mount in $(cut -d' ' -f2 /proc/self/mounts | grep -E '^/(run|var/lib/kubelet|var/run)/.*' | sort -r); do
           umount -l $mount 2>/dev/null || true
         done
         umount /sys/fs/bpf; mount -t bpf bpf /sys/fs/bpf
         rm -rf /run/containerd /run/netpol /run/flannel /run/netns/*
         for link in $(ip -o link show | cut -d: -f2 | cut -d@ -f1 | grep -vE '^ (lo|eth0)$'); do ip link del $link 2>/dev/null || true; done
         conntrack -F >/dev/null 2>&1 || true
         for tool in iptables ip6tables; do for table in nat filter mangle; do
           $tool -t $table -F 2>/dev/null || true; $tool -t $table -X 2>/dev/null || true
         done; done
         nft flush ruleset 2>/dev/null || true",
    )?;
    for daemon in &mut daemons {
        local.start(daemon)?;
    }
    // As an init does: kubelet ends where containerd does not answer yet, and is started again.
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(500));
        for daemon in &mut daemons {
            if local.signal(daemon, "0").is_err() {
                local.start(daemon)?;
            }
        }
    }
    Ok(())
}
