//! VXLAN between nodes, and pods that speak it themselves.

use std::{net::IpAddr, time::Duration};

use netpol_tests::{
    cluster::{Cluster, Options},
    packet::{Ether, Ip},
};

use netpol_tests::town::{SILENCE, addresses, app, ingress, namespace, text, town, uplink};

/// Flannel's port.
const PORT: u16 = 8472;

fn mac(node: u8) -> [u8; 6] {
    [2, 0, 0, 0, 1, node]
}

/// Pods of other nodes are reached through `flannel.1`, as Flannel's vxlan backend has it.
fn overlay(cluster: &Cluster, nodes: u8) {
    for node in 1..=nodes {
        let namespace = &cluster.node(node.into()).namespace;
        namespace
            .ip_batch([
                format!(
                    "link add flannel.1 address 02:00:00:00:01:{node:02x} mtu 1430 type vxlan id 1 dev eth0 \
                     local 172.18.0.{node} dstport {PORT} nolearning"
                ),
                format!("addr add 10.244.{node}.0/32 dev flannel.1"),
                format!("addr add fd00:244:{node}::/128 dev flannel.1 nodad"),
                "link set flannel.1 up".to_owned(),
            ])
            .unwrap();
        for other in (1..=nodes).filter(|other| *other != node) {
            let lladdr = format!("02:00:00:00:01:{other:02x}");
            namespace
                .ip_batch([
                    format!("neigh replace 10.244.{other}.0 lladdr {lladdr} dev flannel.1 nud permanent"),
                    format!("neigh replace fd00:244:{other}:: lladdr {lladdr} dev flannel.1 nud permanent"),
                    // A gateway that is reached otherwise is not on the link.
                    format!("route del 10.244.{other}.0/24"),
                    format!("route del fd00:244:{other}::/64"),
                    format!("route add 10.244.{other}.0/24 via 10.244.{other}.0 dev flannel.1 onlink"),
                    format!("route add fd00:244:{other}::/64 via fd00:244:{other}:: dev flannel.1 onlink"),
                ])
                .unwrap();
            let to = format!("172.18.0.{other}");
            let fdb = ["fdb", "append", &lladdr, "dev", "flannel.1", "dst", &to];
            namespace.command("bridge", &fdb).unwrap();
        }
    }
}

#[test]
fn pods_reach_each_other_through_the_tunnel_as_policies_say() {
    let pods = uplink::pods();
    let mut cluster = town(2, Options::default(), &pods);
    overlay(&cluster, 2);
    cluster.write(&text(&pods, &uplink::policies())).unwrap();
    cluster.start().unwrap();
    let sent = || -> u64 {
        let statistics = cluster
            .node(1)
            .namespace
            .command("cat", &["/proc/net/dev"])
            .unwrap();
        let line = statistics
            .lines()
            .find(|line| line.contains("flannel.1:"))
            .unwrap();
        line.split_whitespace().nth(10).unwrap().parse().unwrap()
    };
    let before = sent();
    uplink::check(&cluster);
    assert!(sent() > before + 8, "the traffic took another way");
}

/// A VXLAN packet's payload: `src` sends a datagram to UDP port 53 of `dst`, a pod of node `node`.
fn injection(src: IpAddr, dst: IpAddr, node: u8) -> Vec<u8> {
    let inner = Ether::new(mac(9), mac(node)).frame(&Ip::new(src, dst).udp(5353, 53, b"forged"));
    let mut payload = vec![8, 0, 0, 0, 0, 0, 1, 0];
    payload.extend(inner);
    payload
}

#[test]
fn a_pod_can_not_inject_packets_into_the_tunnel() {
    let pods = [
        app("near", 1, 10),
        app("far", 2, 20),
        app("friend", 2, 21),
        app("evil", 1, 12),
        app("vpn", 1, 13),
    ];
    let options = Options {
        arguments: vec!["--exempt".into(), "default/vpn".into()],
        ..Options::default()
    };
    let mut cluster = town(2, options, &pods);
    overlay(&cluster, 2);
    let policies = [ingress("near", &["friend"]), ingress("far", &["near"])];
    cluster.write(&text(&pods, &policies)).unwrap();
    cluster.start().unwrap();

    // Forged so that the receivers' policies would allow them.
    let attempts = [
        (["172.18.0.1", "10.244.1.1", "fd00:18::1"], "friend", "near", 1),
        (["172.18.0.2", "10.244.2.1", "fd00:18::2"], "near", "far", 2),
    ];
    for v4 in [true, false] {
        for (nodes, src, dst, node) in attempts {
            let pick = |name: &str| addresses(&cluster, name)[usize::from(!v4)];
            let inbox = namespace(&cluster, dst).udp((pick(dst), 53).into()).unwrap();
            inbox.set_read_timeout(Some(SILENCE)).unwrap();
            let send = |from: &str, to: &str| {
                let any = if to.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
                let socket = namespace(&cluster, from).udp(any.parse().unwrap()).unwrap();
                let to: IpAddr = to.parse().unwrap();
                socket
                    .send_to(&injection(pick(src), pick(dst), node), (to, PORT))
                    .unwrap();
            };
            let before = cluster.node(1).drops();
            nodes.iter().for_each(|to| send("evil", to));
            let mut buffer = [0; 100];
            assert!(inbox.recv(&mut buffer).is_err(), "{src} → {dst} was injected");
            let drops = cluster.node(1).drops().since(&before);
            assert_eq!(drops.of("default/evil", "tunnel-injection"), 3, "{drops:?}");

            // The same from a pod that may. Over its own node its mark betrays it still; on another node nobody can tell.
            send("vpn", nodes[0]);
            inbox.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            if node == 1 {
                inbox.set_read_timeout(Some(SILENCE)).unwrap();
            }
            assert_eq!(
                inbox.recv(&mut buffer).is_ok(),
                node == 2,
                "{src} → {dst}: no packet of the tunnel's"
            );
        }
    }
}

#[test]
fn a_service_leads_no_pod_to_another_nodes_tunnel() {
    let pods = [app("near", 1, 10), app("far", 2, 20), app("evil", 1, 12)];
    let mut cluster = town(2, Options::default(), &pods);
    overlay(&cluster, 2);
    cluster.write(&text(&pods, &[ingress("far", &["near"])])).unwrap();
    cluster.start().unwrap();
    cluster.node(1).masquerade().unwrap();
    for v4 in [true, false] {
        // As somebody may write who may write EndpointSlices.
        let (front, tunnel) = match v4 {
            true => ("10.96.0.10:53", "172.18.0.2:8472"),
            false => ("[fd00:10:96::10]:53", "[fd00:18::2]:8472"),
        };
        let [front, tunnel] = [front, tunnel].map(|text| text.parse().unwrap());
        cluster.node(1).service(front, tunnel).unwrap();
        let pick = |name: &str| addresses(&cluster, name)[usize::from(!v4)];
        let inbox = namespace(&cluster, "far").udp((pick("far"), 53).into()).unwrap();
        inbox.set_read_timeout(Some(SILENCE)).unwrap();
        let socket = namespace(&cluster, "evil").udp((pick("evil"), 0).into()).unwrap();
        let before = cluster.node(1).drops();
        socket
            .send_to(&injection(pick("near"), pick("far"), 2), front)
            .unwrap();
        assert!(inbox.recv(&mut [0; 100]).is_err(), "injected by a Service");
        let drops = cluster.node(1).drops().since(&before);
        assert_eq!(drops.of("default/evil", "tunnel-injection"), 1, "{drops:?}");
    }
}
