//! With and without `br_netfilter`: a bridged packet meets netfilter, conntrack and defragmentation, or does not.

use anyhow::Result;
use netpol_tests::cluster::Options;

use crate::town::{Town, only};

#[test]
fn allow_deny_and_reply_with_and_without_bridge_nf_call_iptables() -> Result<()> {
    for bridge_nf in [false, true] {
        let options = Options {
            bridge_nf,
            ..Options::default()
        };
        let mut town = Town::new(2, &[("a", 1), ("b", 1), ("c", 1), ("far", 2)], options)?;
        for number in [1, 2] {
            town.cluster.node(number).masquerade()?;
        }
        town.enforce(&[
            only("b", &["app=a"], &["app=c"]),
            only("far", &["app=a", "app=b"], &["app=b", "app=c"]),
        ])?;
        let no = "nobody";
        let before = [town.drops(1), town.drops(2)];
        let table = town.table(&[
            ("a", &["b", "c", "far", "outside"]),
            ("b", &["a", "c", "far", "outside"]),
            ("c", &["a", "b", "far", "outside"]),
            ("far", &["a", "b", "c", "outside"]),
            ("outside", &["a", "b", "far"]),
        ]);
        assert_eq!(
            table,
            [
                &["b", "c", "far", "outside"][..],
                &[no, "c", no, no],
                &["a", no, no, "outside"],
                &[no, no, "c", no],
                &["a", no, no],
            ],
            "bridge-nf-call-iptables: {bridge_nf}"
        );
        let drops = [1, 2].map(|number| town.drops(number).since(&before[number - 1]));
        for (number, pod) in [(0, "t/b"), (1, "t/far")] {
            for reason in ["denied-ingress", "denied-egress"] {
                assert!(drops[number].of(pod, reason) > 0, "{pod} {reason}: {drops:?}");
            }
        }
        // Nothing was dropped that the matrix does not explain.
        for reason in [
            "lost-mark",
            "misdirected-reply",
            "revoked",
            "malformed",
            "spoofed-address",
        ] {
            assert_eq!(
                drops.each_ref().map(|drops| drops.all(reason)),
                [0, 0],
                "{reason}"
            );
        }
    }
    Ok(())
}
