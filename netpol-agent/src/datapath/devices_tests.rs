use super::*;

fn device(index: u32, name: &str, kind: &str) -> Device {
    Device {
        index,
        name: name.into(),
        kind: kind.into(),
        up: true,
        ..Device::default()
    }
}

fn veth(index: u32, master: Option<u32>) -> Device {
    Device {
        lower: Some(2),
        peer_namespace: Some(0),
        master,
        ..device(index, &format!("veth{index}"), "veth")
    }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn route(device: u32, to: &str, gateway: bool) -> Route {
    Route {
        device,
        to: net(to),
        gateway,
    }
}

fn seen(devices: impl IntoIterator<Item = Device>, addresses: &[(u32, &str)], routes: &[Route]) -> Seen {
    let mut seen = Seen {
        devices: devices.into_iter().map(|device| (device.index, device)).collect(),
        routes: routes.to_vec(),
        ..Seen::default()
    };
    for (index, text) in addresses {
        seen.addresses.entry(*index).or_default().push(net(text));
    }
    seen
}

fn pod(name: &str) -> ObjectName {
    ObjectName::new("default", name)
}

fn evidence(bound: &[(u32, &str)], addresses: &[(&str, &str)]) -> Evidence {
    Evidence {
        bound: bound.iter().map(|(index, name)| (*index, pod(name))).collect(),
        addresses: addresses
            .iter()
            .map(|(address, name)| (address.parse().unwrap(), pod(name)))
            .collect(),
        ..Evidence::default()
    }
}

fn lo() -> Device {
    Device {
        loopback: true,
        ..device(1, "lo", "")
    }
}

const BRIDGE: Role = Role::None("a bridge: its ports are watched");

#[test]
fn flannel_node_with_vxlan() {
    let seen = seen(
        [
            lo(),
            device(2, "eth0", ""),
            device(3, "flannel.1", "vxlan"),
            device(4, "cni0", "bridge"),
            veth(5, Some(4)),
            veth(6, Some(4)),
        ],
        &[
            (2, "192.168.0.2/24"),
            (3, "10.244.0.0/32"),
            (4, "10.244.0.1/24"),
            (5, "fe80::5/64"),
        ],
        &[
            route(2, "0.0.0.0/0", true),
            route(4, "10.244.0.0/24", false),
            route(3, "10.244.1.0/24", true),
        ],
    );
    let roles = classify(&seen, &evidence(&[(5, "db")], &[("10.244.0.5", "db")]));
    assert_eq!(
        roles,
        BTreeMap::from([
            (1, Role::None("the loopback device")),
            (2, Role::Outside),
            (3, Role::Outside),
            (4, BRIDGE),
            (5, Role::Pod(Some(pod("db")))),
            (6, Role::Pod(None)),
        ])
    );
}

#[test]
fn uplink_that_is_a_veth() {
    // kind, and netpol's own sandbox: the node is a network namespace.
    let by_address = seen([veth(2, None)], &[(2, "172.18.0.2/16")], &[]);
    let by_route = seen([veth(2, None)], &[], &[route(2, "::/0", true)]);
    let enslaved = seen(
        [
            veth(2, Some(3)),
            device(3, "br-node", "bridge"),
            veth(5, Some(4)),
            device(4, "cni0", "bridge"),
        ],
        &[(3, "172.18.0.2/16"), (4, "10.244.0.1/24")],
        &[route(3, "0.0.0.0/0", true)],
    );
    assert_eq!(classify(&by_address, &Evidence::default())[&2], Role::Outside);
    assert_eq!(classify(&by_route, &Evidence::default())[&2], Role::Outside);
    let roles = classify(&enslaved, &Evidence::default());
    assert_eq!((&roles[&2], &roles[&5]), (&Role::Outside, &Role::Pod(None)));
}

#[test]
fn veths_below_the_uplink() {
    let vlan = |lower| Device {
        lower: Some(lower),
        ..device(8, "up0", "vlan")
    };
    let bond = seen(
        [veth(5, Some(9)), veth(6, Some(9)), device(9, "bond0", "bond")],
        &[(9, "172.18.0.2/16")],
        &[],
    );
    let roles = classify(&bond, &Evidence::default());
    assert_eq!([&roles[&5], &roles[&6], &roles[&9]], [&Role::Outside; 3]);
    let tagged = seen(
        [veth(5, None), veth(6, None), vlan(5)],
        &[(8, "172.18.0.2/16")],
        &[],
    );
    let roles = classify(&tagged, &Evidence::default());
    assert_eq!(
        [&roles[&5], &roles[&6], &roles[&8]],
        [&Role::Outside, &Role::Pod(None), &Role::Outside]
    );
    // Without the node's addresses it says nothing.
    let idle = seen([veth(5, None), vlan(5)], &[], &[]);
    assert_eq!(classify(&idle, &Evidence::default())[&5], Role::Pod(None));
}

#[test]
fn veth_announced_before_anything_is_known() {
    let bare = seen([veth(7, None)], &[], &[]);
    let link_local_only = seen(
        [veth(7, None)],
        &[(7, "fe80::1/64"), (7, "169.254.1.1/32")],
        &[route(7, "fe80::/64", false)],
    );
    assert_eq!(classify(&bare, &Evidence::default())[&7], Role::Pod(None));
    assert_eq!(
        classify(&link_local_only, &Evidence::default())[&7],
        Role::Pod(None)
    );
}

#[test]
fn routed_pod_without_bridge() {
    // ptp gives the host side the gateway's address; Calico's style gives it none.
    let ptp = seen(
        [veth(7, None)],
        &[(7, "10.244.0.1/32")],
        &[route(7, "10.244.0.9/32", false)],
    );
    let v6 = seen([veth(7, None)], &[], &[route(7, "fd00::9/128", false)]);
    let known = evidence(&[], &[("10.244.0.9", "web"), ("fd00::9", "web")]);
    assert_eq!(classify(&ptp, &known)[&7], Role::Pod(Some(pod("web"))));
    assert_eq!(classify(&v6, &known)[&7], Role::Pod(Some(pod("web"))));
    // Before anybody says whose address it is, with the route or before it: nobody's pod, never outside.
    let nobody = Evidence::default();
    let bare = seen([veth(7, None)], &[(7, "10.244.0.1/32"), (7, "fd00::1/128")], &[]);
    assert_eq!(
        [&ptp, &v6, &bare].map(|seen| classify(seen, &nobody)[&7].clone()),
        [const { Role::Pod(None) }; 3]
    );
    // A route to a remote pod over a router says nothing about this device.
    let remote = seen([veth(7, None)], &[], &[route(7, "10.244.0.9/32", true)]);
    assert_eq!(classify(&remote, &known)[&7], Role::Outside);
}

#[test]
fn an_uplink_without_its_address_stays_one() {
    let nobody = seen([veth(5, None), veth(6, None), veth(7, Some(3))], &[], &[]);
    let told = Evidence {
        were_outside: [5, 7].into(),
        ..evidence(&[], &[("10.244.0.9", "web")])
    };
    let roles = |seen: &Seen| classify(seen, &told).into_values().collect::<Vec<_>>();
    assert_eq!(roles(&nobody), [Role::Outside, Role::Pod(None), Role::Pod(None)]);
    // What names its pod counts for more.
    let named = seen([veth(5, None)], &[], &[route(5, "10.244.0.9/32", false)]);
    assert_eq!(roles(&named), [Role::Pod(Some(pod("web")))]);
}

#[test]
fn containers_of_others() {
    let devices = || {
        [
            device(3, "docker0", "bridge"),
            device(4, "cni0", "bridge"),
            veth(5, Some(3)),
            veth(6, Some(4)),
            veth(7, Some(4)),
        ]
    };
    let addresses = [(3, "172.17.0.1/16"), (4, "10.244.0.1/24")];
    let seen = seen(devices(), &addresses, &[]);
    let roles = classify(&seen, &evidence(&[(6, "db")], &[("10.244.0.6", "db")]));
    assert_eq!(
        (&roles[&5], &roles[&6], &roles[&7]),
        (&Role::Outside, &Role::Pod(Some(pod("db"))), &Role::Pod(None))
    );
    // As long as no pod is known anywhere, either bridge may be the pods': closed.
    assert_eq!(classify(&seen, &Evidence::default())[&5], Role::Pod(None));
    // The administrator's word comes first.
    let told = Evidence {
        outside: vec!["veth5*".into()],
        ..Evidence::default()
    };
    assert_eq!(classify(&seen, &told)[&5], Role::Outside);
}

#[test]
fn bridge_with_uplink_and_pods() {
    // A flat network: pods beside the uplink on one bridge.
    let seen = seen(
        [
            device(2, "eth0", ""),
            device(4, "br0", "bridge"),
            veth(5, Some(4)),
            veth(6, Some(4)),
        ]
        .map(|device| Device {
            master: device.master.or((device.index == 2).then_some(4)),
            ..device
        }),
        &[(4, "10.0.0.2/24")],
        &[route(4, "0.0.0.0/0", true)],
    );
    let roles = classify(&seen, &evidence(&[], &[("10.0.0.40", "web")]));
    assert_eq!(
        roles,
        BTreeMap::from([
            (2, Role::Outside),
            (4, BRIDGE),
            (5, Role::Pod(None)),
            (6, Role::Pod(None))
        ])
    );
    // Without pods on it, its veths are uplinks of a nested node.
    assert_eq!(classify(&seen, &Evidence::default())[&5], Role::Outside);
}

#[test]
fn names_and_kinds() {
    let alias = Device {
        alias: Some("netpol:prod/api".into()),
        ..veth(9, None)
    };
    let same_namespace = Device {
        peer_namespace: None,
        ..veth(8, None)
    };
    let seen = seen(
        [
            alias,
            same_namespace,
            device(10, "bond0", "bond"),
            device(11, "eth0.5", "vlan"),
            device(12, "wg0", "wireguard"),
        ],
        &[],
        &[],
    );
    assert_eq!(
        classify(&seen, &Evidence::default()),
        BTreeMap::from([
            (8, Role::Outside),
            (9, Role::Pod(Some(ObjectName::new("prod", "api")))),
            (10, Role::Outside),
            (11, Role::Outside),
            (12, Role::Outside),
        ])
    );
}

#[test]
fn tunnels_of_devices_that_are_up() {
    let tunnel = |index, kind: &str, tunnel, up| Device {
        tunnel: Some(tunnel),
        up,
        ..device(index, kind, kind)
    };
    let seen = seen(
        [
            tunnel(3, "vxlan", (17, 8472), true),
            tunnel(4, "geneve", (17, 6081), true),
            tunnel(5, "ipip", (4, 0), true),
            // The fallback device that loading a module leaves behind.
            tunnel(6, "gre", (47, 0), false),
        ],
        &[],
        &[],
    );
    assert_eq!(tunnels(&seen), BTreeSet::from([(4, 0), (17, 6081), (17, 8472)]));
}
