//! Random clusters on real packets: what real sockets meet is what the oracle says.

use std::{collections::BTreeSet, fs, net::IpAddr, path::Path};

use netpol_policy::{
    build,
    generate::{Shape, manifests, pods, policy},
    model::{Node, Pod, Snapshot},
};
use netpol_tests::{
    cluster,
    net::Rig,
    sandbox::{Options, Sandbox, Scene, build::Backend, report::differences},
};
use proptest::{
    collection::vec,
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

/// How many clusters without `NETPOL_CASES`: each takes some seconds.
const CASES: usize = 4;

fn nodes() -> Vec<Node> {
    let node = |last: u8| Node {
        name: format!("node-{last}").into(),
        addresses: vec![
            [10, 1, 0, last].into(),
            [0xfd01, 0, 0, 0, 0, 0, 0, u16::from(last)].into(),
        ],
    };
    vec![node(1), node(2)]
}

/// What one network can be: the generator's snapshots also have pods with one address, and nodes with a pod's.
fn possible(mut pods: Vec<Pod>) -> Vec<Pod> {
    let mut taken: BTreeSet<IpAddr> = BTreeSet::new();
    for pod in &mut pods {
        pod.node.get_or_insert_with(|| "node-2".into());
        pod.terminating = false;
        if pod.host_network {
            let own = nodes()
                .into_iter()
                .find(|node| pod.node.as_ref() == Some(&node.name));
            pod.addresses = own.expect("one of the two").addresses;
        } else if !pod.completed {
            pod.addresses.retain(|address| taken.insert(*address));
        }
    }
    pods
}

fn clusters() -> impl Strategy<Value = Snapshot> {
    let shape = Shape {
        left_out: false,
        ..Shape::default()
    };
    (pods(), vec(policy(shape), 1..=shape.policies))
        .prop_map(|(pods, policies)| build::snapshot(Vec::new(), nodes(), possible(pods), policies))
}

fn play(dir: &Path, text: &str) {
    let scene = Scene::read(dir, 2).unwrap();
    let options = Options {
        nodes: 2,
        backend: Backend::HostGw,
        agent: Some(cluster::binary().unwrap()),
        attach: None,
    };
    let sandbox = Sandbox::start(&scene, &options, &[]).unwrap();
    let run = sandbox.ask().unwrap();
    assert_eq!(
        run.differences().count(),
        0,
        "{}\nwith the manifests\n{text}",
        differences(&scene, sandbox.questions(), &run)
    );
}

#[test]
fn real_sockets_meet_what_the_oracle_says() {
    let asked = std::env::var("NETPOL_CASES")
        .ok()
        .map(|text| text.parse().unwrap());
    let seed = std::env::var("NETPOL_SEED").map_or(1, |text| text.parse::<u8>().unwrap());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let rig = Rig::new("nptest").unwrap();
    let mut played = 0;
    while played < asked.unwrap_or(CASES) {
        let snapshot = clusters().new_tree(&mut runner).unwrap().current();
        if !snapshot.pods.values().any(|pod| !pod.completed) {
            continue;
        }
        let dir = rig.directory().join(format!("cluster-{played}"));
        fs::create_dir_all(&dir).unwrap();
        let text = manifests(&snapshot);
        fs::write(dir.join("all.yaml"), &text).unwrap();
        play(&dir, &text);
        played += 1;
    }
}
