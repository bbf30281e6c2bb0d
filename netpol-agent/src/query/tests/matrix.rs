use netpol_policy::{
    build::{block, from_to, matching, on_ports, pod, policy, port, snapshot, tcp},
    compile,
    model::{PortSpec, Protocol, Rule, Snapshot},
};

use crate::query::{
    EndName, Family, Found, Judge,
    group::{Group, groups},
    matrix::{Asked, Extent, Matrix, Outcome},
};

fn ends<'a>(judge: &Judge<'a>, names: &[&str]) -> Vec<Found<'a>> {
    let find = |name: &&str| judge.ends().find(&name.parse::<EndName>().unwrap()).unwrap();
    names.iter().map(find).collect()
}

/// What of everything `from` may send to `to`: the extent, the ports, the allowing policies of each side.
fn reach(snapshot: &Snapshot, from: &str, to: &str) -> (Extent, Vec<String>, [Vec<String>; 2]) {
    let judge = Judge::new(snapshot, compile::full);
    let ends = ends(&judge, &[from, to]);
    let matrix = Matrix::new(snapshot, &judge, &ends, &Asked::Everything, None).unwrap();
    let Outcome::Answer {
        extent,
        ports,
        egress,
        ingress,
    } = matrix.outcome(0, 1)
    else {
        panic!("answered");
    };
    let names = |policies: Vec<_>| policies.iter().map(ToString::to_string).collect();
    let ports = ports.iter().map(ToString::to_string).collect();
    (
        *extent,
        ports,
        [names(egress.policies()), names(ingress.policies())],
    )
}

fn range(protocol: Protocol, first: u16, last: u16) -> netpol_policy::model::PortMatch {
    port(protocol, PortSpec::Range(first, last))
}

fn pair(egress: Option<Vec<Rule>>, ingress: &[(&str, Vec<Rule>)]) -> Snapshot {
    let out = egress.map(|rules| policy("a/out", matching("app=x"), None, Some(rules)));
    let into = ingress
        .iter()
        .map(|(name, rules)| policy(name, matching("app=y"), Some(rules.clone()), None));
    snapshot(
        [],
        [],
        [
            pod("a/x", "app=x", &["10.0.0.1"]),
            pod("a/y", "app=y", &["10.0.0.2"]),
        ],
        out.into_iter().chain(into),
    )
}

#[test]
fn all_ports_are_told_as_ranges() {
    let some = |ports: &[&str], egress: &[&str], ingress: &[&str]| {
        let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        (Extent::Some, owned(ports), [owned(egress), owned(ingress)])
    };
    // Neighbours and overlaps become one range; the last port is one, too.
    let one = on_ports([
        tcp(80),
        range(Protocol::Tcp, 81, 90),
        range(Protocol::Tcp, 65535, 65535),
    ]);
    let two = on_ports([range(Protocol::Tcp, 85, 95), port(Protocol::Udp, PortSpec::All)]);
    let open = pair(
        None,
        &[("a/one", vec![one.clone()]), ("a/two", vec![two.clone()])],
    );
    assert_eq!(
        reach(&open, "a/x", "a/y"),
        some(&["TCP 80-95", "TCP 65535", "UDP"], &[], &["a/one", "a/two"])
    );
    // What both sides allow, and only the policies that allow that.
    let out = on_ports([range(Protocol::Tcp, 91, 1000)]);
    let both = pair(Some(vec![out]), &[("a/one", vec![one]), ("a/two", vec![two])]);
    assert_eq!(
        reach(&both, "a/x", "a/y"),
        some(&["TCP 91-95"], &["a/out"], &["a/two"])
    );
    // A rule without ports is more than all ports of the three protocols.
    let all = pair(
        None,
        &[
            ("a/one", vec![from_to([block("10.0.0.0/24", &[])])]),
            ("a/two", vec![]),
        ],
    );
    assert_eq!(
        reach(&all, "a/x", "a/y"),
        (Extent::All, vec![], [vec![], vec!["a/one".into()]])
    );
    // Each side allows something, together nothing.
    let none = pair(
        Some(vec![on_ports([tcp(1)])]),
        &[("a/one", vec![on_ports([tcp(2)])])],
    );
    assert_eq!(
        reach(&none, "a/x", "a/y"),
        (Extent::None, vec![], [vec!["a/out".into()], vec!["a/one".into()]])
    );
}

#[test]
fn only_replicas_that_nothing_tells_apart_share_a_row() {
    let hash = "app=web,pod-template-hash=7c9d8b5f4";
    let set =
        |place: u8| format!("app=db,controller-revision-hash=db-1,apps.kubernetes.io/pod-index={place}");
    let daemon = "app=log,controller-revision-hash=log-1";
    let pods = [
        pod("a/db-0", &set(0), &["10.0.0.1"]),
        pod("a/db-1", &set(1), &["10.0.0.2"]),
        pod("a/log-x7k29", daemon, &["10.0.0.3"]),
        pod("a/log-zz9q4", daemon, &["10.0.0.4"]),
        pod("a/other", hash, &["10.0.0.5"]),
        pod("a/web-7c9d8b5f4-abcde", hash, &["10.0.0.6"]),
        pod("a/web-7c9d8b5f4-bcdef", hash, &["10.0.0.7"]),
        pod("a/web-7c9d8b5f4-cdefg", hash, &["10.0.0.8"]),
        pod("b/web-7c9d8b5f4-defgh", hash, &["10.0.0.9"]),
    ];
    // An ipBlock tells one web pod from its siblings.
    let only = from_to([block("10.0.0.0/24", &["10.0.0.8/32"])]);
    let snapshot = snapshot(
        [],
        [],
        pods,
        [policy("a/db", matching("app=db"), Some(vec![only]), None)],
    );
    let judge = Judge::new(&snapshot, compile::full);
    let names: Vec<String> = snapshot.pods.keys().map(ToString::to_string).collect();
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.push("8.8.8.8");
    let ends = ends(&judge, &names);
    let matrix = Matrix::new(&snapshot, &judge, &ends, &Asked::Everything, Some(Family::V4)).unwrap();
    let group = |heading: &str, name: &str, members: &[usize]| Group {
        heading: heading.into(),
        name: name.into(),
        members: members.into(),
    };
    assert_eq!(
        groups(&matrix, &ends),
        [
            group("a", "db", &[0, 1]),
            group("a", "log", &[2, 3]),
            group("a", "other", &[4]),
            group("a", "web-7c9d8b5f4-abcde", &[5, 6]),
            group("a", "web-7c9d8b5f4-cdefg", &[7]),
            group("b", "web-7c9d8b5f4-defgh", &[8]),
            group("outside", "8.8.8.8", &[9]),
        ]
    );
}
