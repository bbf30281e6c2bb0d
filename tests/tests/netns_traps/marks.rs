//! Something on the node eats the mark that says who sent a packet.

use anyhow::Result;
use netpol_tests::{cluster::Policy, packet::Ip};

use crate::{
    packets::crossing,
    town::{FAMILIES, Town, only},
};

/// Rules that overwrite all bits of the mark between the ways in and out.
const EATERS: [(&str, &str); 3] = [
    (
        "set in forward",
        "chain c { type filter hook forward priority 0; meta mark set 0; }",
    ),
    (
        "set in postrouting",
        "chain c { type filter hook postrouting priority 0; meta mark set 0x8000; }",
    ),
    (
        "restored from connection tracking",
        "chain save { type filter hook prerouting priority -150; ct state new ct mark set 1; }
         chain restore { type filter hook forward priority -150; meta mark set ct mark; }",
    ),
];

#[test]
fn an_eaten_mark_opens_nothing() -> Result<()> {
    let mut town = Town::usual(&[("a", 1), ("b", 1), ("c", 1), ("far", 2)])?;
    let outside = ["172.18.0.100/32", "fd00:18::100/128"];
    let friends = ["app=a", "app=far", outside[0], outside[1]];
    town.enforce(&[only("b", &friends, &friends)])?;
    let questions: [(&str, &[&str]); 5] = [
        ("a", &["b", "c", "far", "outside"]),
        ("b", &["a", "c", "far", "outside"]),
        ("c", &["a", "b"]),
        ("far", &["a", "b"]),
        ("outside", &["b"]),
    ];
    let no = "nobody";
    assert_eq!(
        town.table(&questions),
        [
            &["b", "c", "far", "outside"][..],
            &["a", no, "far", "outside"],
            &["a", no],
            &["a", "b"],
            &["b"]
        ]
    );
    for (what, rules) in EATERS {
        let node = &town.cluster.node(1).namespace;
        node.nft(&format!("table inet eater {{\n{rules}\n}}"))?;
        let before = town.drops(1);
        // A local pod is still known by its address. Nobody else is, and nothing gets out: it might be anybody's.
        assert_eq!(
            town.table(&questions),
            [
                &["b", "c", no, no][..],
                &["a", no, no, no],
                &["a", no],
                &[no, no],
                &[no]
            ],
            "{what}"
        );
        // One way neither, where nobody has to answer.
        let [to_node, inward] = [town.to_node("b", 1)?, town.inward(1)?];
        for (from, ether, to) in [("b", &to_node, "outside"), ("outside", &inward, "b")] {
            let packets =
                FAMILIES.map(|v4| Ip::new(town.ip(from, v4), town.ip(to, v4)).udp(5000, 53, what.as_bytes()));
            let seen = crossing(&town, from, ether, &packets, to)?;
            assert_eq!(seen, [false, false], "{what}: {from} to {to}");
        }
        let drops = town.drops(1).since(&before);
        assert!(drops.of("-", "lost-mark") > 0, "{what}: settle: {drops:?}");
        assert!(drops.of("t/b", "lost-mark") > 0, "{what}: to_pod: {drops:?}");
        assert!(drops.of("t/b", "denied-ingress") > 0, "{what}: c to b: {drops:?}");
        assert!(drops.of("t/b", "denied-egress") > 0, "{what}: b to c: {drops:?}");
        let node = &town.cluster.node(1).namespace;
        node.nft("delete table inet eater")?;
    }
    assert_eq!(town.talk("outside", "b"), "b", "afterwards");
    Ok(())
}

#[test]
fn marks_of_others_go_through_and_open_nothing() -> Result<()> {
    let mut town = Town::usual(&[("a", 1), ("b", 1), ("far", 2)])?;
    // kube-proxy's two, Tailscale's, Weave's and Calico's, each as its owner sets it: with its mask.
    let rules: String = ["0x4000", "0x8000"]
        .map(|mark| format!("meta mark set meta mark or {mark};"))
        .concat();
    for hook in ["prerouting", "forward", "postrouting"] {
        let node = &town.cluster.node(1).namespace;
        node.nft(&format!(
            "table inet others {{ chain {hook} {{ type filter hook {hook} priority 5; {rules} }}; }}"
        ))?;
    }
    town.enforce(&[only("b", &["app=a"], &["app=far"])])?;
    let questions: [(&str, &[&str]); 3] = [("a", &["b", "far"]), ("b", &["a", "far"]), ("far", &["b"])];
    let expected = [&["b", "far"][..], &["nobody", "far"], &["nobody"]];
    assert_eq!(town.table(&questions), expected);
    // Whole values that somebody sets without a mask open nothing, in one direction neither.
    let ether = town.to_node("b", 1)?;
    for value in [
        "0",
        "0x10000",
        "0x20000",
        "0x40000",
        "0x80000",
        "0xff0000",
        "0xffffffff",
    ] {
        let node = &town.cluster.node(1).namespace;
        node.nft(&format!(
            "table inet whole {{ chain c {{ type filter hook forward priority 9; meta mark set {value}; }}; }}"
        ))?;
        let packets = FAMILIES
            .map(|v4| Ip::new(town.ip("b", v4), town.ip("outside", v4)).udp(5000, 53, value.as_bytes()));
        let seen = crossing(&town, "b", &ether, &packets, "outside")?;
        assert_eq!(seen, [false, false], "{value}");
        node.nft("delete table inet whole")?;
    }
    town.enforce(&[Policy::new("t/b", "app=b").ingress(&["*"]).egress(&["*"])])?;
    assert_eq!(town.talk("b", "outside"), "outside");
    Ok(())
}
