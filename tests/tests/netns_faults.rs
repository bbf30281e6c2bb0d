//! What an agent does where something is wrong: a map without room, a broken edit, a second agent, no agent.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::Output,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, Map, MapData};
use netpol_common::{ABI, event::maps, pod::state};
use netpol_policy::model::Pod;
use netpol_tests::{
    cluster::{Cluster, Node, Options, Policy, Talk, manifests, pod},
    net::{Probe, Responder, Transport, probe, wait_until},
};
use serde_json::Value as Json;

const SHORT: Duration = Duration::from_millis(400);

/// `shop/web`, `shop/other` and `shop/db`, which answers on TCP 80, on one node.
struct Shop {
    _responder: Responder,
    cluster: Cluster,
    pods: [Pod; 3],
    db: SocketAddr,
}

impl Shop {
    fn new(arguments: &[&str]) -> Result<Self> {
        let pods = [("web", 5), ("other", 6), ("db", 7)]
            .map(|(name, host)| pod(&format!("shop/{name}"), 1, host, &format!("app={name}")));
        let options = Options {
            arguments: arguments.iter().map(ToString::to_string).collect(),
            ..Options::default()
        };
        let mut cluster = Cluster::new(1, options)?;
        cluster.add_pods(&pods)?;
        let place = cluster.pod("shop/db");
        let db = place.at(true, 80);
        let responder = Responder::start(&place.namespace, "db", [(Transport::Tcp, db)])?;
        Ok(Self {
            _responder: responder,
            cluster,
            pods,
            db,
        })
    }

    /// With an agent, which lets only `web` reach `db`.
    fn enforcing(arguments: &[&str]) -> Result<Self> {
        let mut shop = Self::new(arguments)?;
        shop.cluster.write(&shop.yaml(&[only_web()]))?;
        shop.cluster.start()?;
        assert_eq!(shop.reach(), [true, false]);
        Ok(shop)
    }

    /// Starts the agent where none runs, and does not wait until all is in force.
    fn start(&mut self, arguments: &[&str]) -> Result<()> {
        let options = Options {
            arguments: arguments.iter().map(ToString::to_string).collect(),
            ..Options::default()
        };
        let manifests = self.cluster.manifests().to_owned();
        self.cluster.node_mut(1).start(&manifests, &options)
    }

    fn yaml(&self, policies: &[String]) -> String {
        format!("{}{}", manifests(&self.pods), policies.concat())
    }

    /// Whether `web` and `other` reach `db`.
    fn reach(&self) -> [bool; 2] {
        ["shop/web", "shop/other"].map(|name| self.cluster.reaches(name, self.db, SHORT))
    }

    /// Waits until `status` says that something is wrong, and gives it with its exit code.
    fn trouble(&self) -> Result<(String, i32)> {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let (status, code) = status(self.cluster.node(1))?;
            let agent = &status["agent"];
            let errors = agent["errors"].as_array().into_iter().flatten();
            let problems = agent["problems"].as_array().into_iter().flatten();
            let problems = problems.filter(|problem| problem["severity"] == "error");
            let found: Vec<String> = errors.chain(problems).map(ToString::to_string).collect();
            if !found.is_empty() {
                return Ok((found.join("\n"), code));
            }
            ensure!(Instant::now() < end, "nothing is said to be wrong: {status:#}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn status(node: &Node) -> Result<(Json, i32)> {
    let output = node.netpol("status", &["-o", "json"])?;
    Ok((serde_json::from_slice(&output.stdout)?, code(&output)))
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

/// The epoch, and how many cells there are.
fn epoch_and_cells(node: &Node) -> Result<(u64, u64)> {
    let kernel = status(node)?.0["kernel"].take();
    let maps = kernel["maps"].as_array().into_iter().flatten();
    let cells = maps.filter(|map| map["name"] == maps::CELLS);
    let cells = cells.filter_map(|map| map["entries"].as_u64()).next();
    let epoch = kernel["epoch"].as_u64();
    epoch.zip(cells).with_context(|| format!("{kernel:#}"))
}

fn only_web() -> String {
    Policy::new("shop/db", "app=db").ingress(&["app=web"]).to_string()
}

#[test]
fn a_full_map_keeps_the_policy_in_force_and_says_whose_policies_need_the_room() -> Result<()> {
    let mut shop = Shop::enforcing(&["--map-size", "nets4=4"])?;

    // Nobody may have what would open `db` for `other` alone: the change is taken as a whole or not at all.
    let blocks: Vec<String> = (1..=8).map(|net| format!("{net}.0.0.0/8")).collect();
    let mut peers: Vec<&str> = blocks.iter().map(String::as_str).collect();
    peers.push("app=other");
    let wide = Policy::new("shop/wide", "app=db").ingress(&peers).to_string();
    shop.cluster.write(&shop.yaml(&[wide]))?;
    let (said, code) = shop.trouble()?;
    assert_eq!(code, 1);
    for part in ["map nets4 is too small", "shop/wide (8)", "--map-size nets4=16`"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    assert_eq!(shop.reach(), [true, false]);

    let narrow = Policy::new("shop/wide", "app=db")
        .ingress(&["app=other"])
        .to_string();
    shop.cluster.apply(&shop.yaml(&[narrow]))?;
    assert_eq!(shop.reach(), [false, true]);
    assert_eq!(status(shop.cluster.node(1))?.1, 0);
    Ok(())
}

/// Beside what is there the half of the map has no room for it a second time.
#[test]
fn a_restart_needs_no_room_for_what_is_there() -> Result<()> {
    let mut shop = Shop::new(&["--map-size", "cells=80"])?;
    let many = |client: &str| {
        let rules = (1..=33).fold(Policy::new("shop/db", "app=db"), |policy, net| {
            policy.ingress_on(&format!("TCP/{net}"), &[&format!("20.{net}.0.0/16")])
        });
        rules.ingress(&[client]).to_string()
    };
    shop.cluster.write(&shop.yaml(&[many("app=web")]))?;
    shop.cluster.start()?;
    let before = epoch_and_cells(shop.cluster.node(1))?;
    assert_eq!(before.1, 34);

    for _ in 0..2 {
        shop.cluster.node_mut(1).kill_agent()?;
        shop.cluster.start()?;
        assert_eq!(
            epoch_and_cells(shop.cluster.node(1))?,
            before,
            "nothing is written again"
        );
        assert_eq!(shop.reach(), [true, false]);
    }
    shop.cluster.apply(&shop.yaml(&[many("app=other")]))?;
    assert_eq!(shop.reach(), [false, true]);
    assert_eq!(status(shop.cluster.node(1))?.1, 0);
    Ok(())
}

/// What is revoked is in the tables, but flows were not told yet.
#[test]
fn an_agent_killed_before_the_epoch_moved_is_made_up_for() -> Result<()> {
    let mut shop = Shop::new(&[])?;
    // Isolated in both directions: every answer needs a known flow.
    let only = |client| {
        Policy::new("shop/db", "app=db")
            .ingress(&[client])
            .egress(&[])
            .to_string()
    };
    shop.cluster.write(&shop.yaml(&[only("app=web")]))?;
    shop.cluster.start()?;
    let mut talk = Talk::open(&shop.cluster.pod("shop/web").namespace, shop.db)?;
    ensure!(talk.exchange(SHORT)?, "no answer");
    let (epoch, _) = epoch_and_cells(shop.cluster.node(1))?;
    shop.cluster.apply(&shop.yaml(&[only("app=other")]))?;
    shop.cluster.node_mut(1).kill_agent()?;
    let path = shop
        .cluster
        .node(1)
        .pins
        .join(format!("v{ABI}/maps"))
        .join(maps::STATE);
    let map = Map::from_map_data(MapData::from_pin(path)?)?;
    let mut words = Array::<_, u64>::try_from(map)?;
    words.set(state::EPOCH, epoch, 0)?;
    words.set(state::SETTLED, 0, 0)?;
    ensure!(talk.exchange(SHORT)?, "judged again without a new epoch");

    shop.cluster.start()?;
    ensure!(!talk.exchange(SHORT)?, "a revoked connection goes on");
    assert_eq!(shop.reach(), [false, true]);
    Ok(())
}

#[test]
fn a_pod_whose_rules_find_no_room_stays_cut_off_also_after_a_restart() -> Result<()> {
    let small = ["--map-size", "nets4=4"];
    let mut shop = Shop::enforcing(&small)?;
    let late = pod("shop/late", 1, 8, "app=late");
    shop.cluster.add_pod(&late)?;
    let place = shop.cluster.pod("shop/late");
    let at = place.at(true, 80);
    let _responder = Responder::start(&place.namespace, "late", [(Transport::Tcp, at)])?;
    let blocks: Vec<String> = (1..=8).map(|net| format!("{net}.0.0.0/8")).collect();
    let blocks: Vec<&str> = blocks.iter().map(String::as_str).collect();
    let wide = Policy::new("shop/wide", "app=late").ingress(&blocks);
    let all: Vec<Pod> = shop.pods.iter().cloned().chain([late]).collect();
    shop.cluster
        .write(&format!("{}{}{wide}", manifests(&all), only_web()))?;
    let closed = |shop: &Shop, when: &str| {
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end {
            for from in ["shop/web", "shop/other"] {
                // Not even its link-layer address is told.
                let outcome = probe(&shop.cluster.pod(from).namespace, Probe::tcp(at), SHORT);
                assert!(!outcome.reached(), "{from} to late, {when}: {outcome:?}");
            }
        }
        assert_eq!(shop.reach(), [true, false], "{when}");
    };
    assert!(shop.trouble()?.0.contains("map nets4 is too small"));
    closed(&shop, "before");
    for when in ["once restarted", "twice restarted"] {
        let pid = |shop: &Shop| shop.cluster.node(1).status()["agent"]["pid"].clone();
        let before = pid(&shop);
        shop.cluster.node_mut(1).kill_agent()?;
        shop.start(&small)?;
        // Until the new agent has done what it can, and has said so.
        assert!(wait_until(Duration::from_secs(30), || Ok(pid(&shop) != before))?);
        closed(&shop, when);
        assert!(shop.trouble()?.0.contains("map nets4 is too small"), "{when}");
    }
    // With less to say it gets what its policy says.
    let narrow = Policy::new("shop/wide", "app=late").ingress(&["app=other"]);
    shop.cluster
        .apply(&format!("{}{}{narrow}", manifests(&all), only_web()))?;
    for name in ["shop/web", "shop/other", "shop/late"] {
        let pod = &shop.cluster.pod(name).namespace;
        pod.ip("neigh flush dev eth0 nud all")?;
    }
    assert!(shop.cluster.reaches("shop/other", at, SHORT));
    assert!(!shop.cluster.reaches("shop/web", at, SHORT));
    Ok(())
}

#[test]
fn a_veth_whose_pod_nobody_knows_gets_what_the_flag_says() -> Result<()> {
    for (flag, passes) in [("deny", false), ("allow", true)] {
        let mut shop = Shop::enforcing(&["--unknown-pods", flag])?;
        // Its network is there, its manifest is not.
        shop.cluster.add_pod(&pod("shop/early", 1, 8, "app=early"))?;
        let place = shop.cluster.pod("shop/web");
        let open = place.at(true, 81);
        let _responder = Responder::start(&place.namespace, "web", [(Transport::Tcp, open)])?;
        let reaches = |to| shop.cluster.reaches("shop/early", to, Duration::from_secs(2));
        assert_eq!(reaches(open), passes, "{flag}: to a pod that takes everything");
        // What is isolated takes nothing from a stranger, whatever the flag says.
        assert!(!reaches(shop.db), "{flag}: to an isolated pod");
    }
    Ok(())
}

#[test]
fn a_policy_without_effect_is_warned_of_when_it_came_with_its_pods() -> Result<()> {
    let mut shop = Shop::enforcing(&[])?;
    let slip = Policy::new("shop/slip", "app=dbb").ingress(&["app=web"]);
    let nobody = Policy::new("shop/nobody", "app=db").ingress(&["app=wbe"]);
    shop.cluster
        .apply(&shop.yaml(&[only_web(), slip.to_string(), nobody.to_string()]))?;
    let warnings = |shop: &Shop| {
        let (status, code) = status(shop.cluster.node(1)).expect("a status");
        let problems = status["agent"]["problems"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let said = |name: &str| problems.iter().any(|problem| problem.to_string().contains(name));
        (["shop/slip", "shop/nobody"].map(said), code)
    };
    let until = |shop: &Shop, wanted: [bool; 2]| {
        let end = Instant::now() + Duration::from_secs(30);
        while warnings(shop) != (wanted, 0) {
            assert!(Instant::now() < end, "{:?}", warnings(shop));
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    // Nothing else happens; a warning is no error.
    until(&shop, [true, true]);
    let right = Policy::new("shop/slip", "app=db").ingress(&["app=web"]);
    shop.cluster
        .apply(&shop.yaml(&[only_web(), right.to_string(), nobody.to_string()]))?;
    until(&shop, [false, true]);
    Ok(())
}

/// [`once`] in a mount namespace of its own that `mount` has changed.
fn once_where(cluster: &Cluster, mount: &str, pin: &Path, state: &Path) -> Result<Output> {
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "sh", "-ec", &format!("{mount}\nexec \"$@\""), "sh"]);
    command.arg(netpol_tests::cluster::binary()?);
    command.args(["run", "--once", "--node", "node-1", "--cni-cache"]);
    command.arg(cluster.rig.directory().join("node-1/cni"));
    command.arg("--manifests").arg(cluster.manifests());
    command.arg("--pin").arg(pin).arg("--state").arg(state);
    Ok(cluster.node(1).namespace.run(|| command.output())?)
}

#[test]
fn file_systems_that_take_nothing_are_named_and_what_is_in_force_stays() -> Result<()> {
    let mut shop = Shop::enforcing(&[])?;
    shop.cluster.node_mut(1).kill_agent()?;
    let pins = shop.cluster.node(1).pins.clone();
    let state = shop.cluster.rig.directory().join("full");
    fs::create_dir(&state)?;
    let read_only = format!(
        "mount --bind {0} {0}; mount -o remount,bind,ro {0}",
        pins.display()
    );
    let full = format!(
        "mount -t tmpfs -o size=4k none {0}; head -c 4096 /dev/zero >{0}/fill",
        state.display()
    );
    for (mount, said) in [
        (read_only, "Read-only file system"),
        (full, "No space left on device"),
    ] {
        let output = once_where(&shop.cluster, &mount, &pins, &state)?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(code(&output), 2, "{mount}: {stderr}");
        for part in [said, "make the file system writable"] {
            assert!(stderr.contains(part), "{part} is not in {stderr}");
        }
        assert_eq!(shop.reach(), [true, false], "{mount}");
    }
    shop.cluster.start()?;
    assert_eq!(shop.reach(), [true, false]);
    Ok(())
}

#[test]
fn without_the_runtimes_results_a_restart_leaves_in_force_what_is() -> Result<()> {
    let mut shop = Shop::enforcing(&[])?;
    let file = shop.cluster.rig.directory().join("no-directory");
    fs::write(&file, "")?;
    let file = file.to_str().context("a path")?.to_owned();
    // Nobody else may say whose a veth is: the far ends' addresses are for who has CAP_SYS_ADMIN.
    for cache in ["/nonexistent", &*file] {
        shop.cluster.node_mut(1).kill_agent()?;
        let node = shop.cluster.node(1);
        let mut command = std::process::Command::new("setpriv");
        command.args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]);
        command.arg(netpol_tests::cluster::binary()?);
        command.args(["run", "--once", "--node", "node-1", "--cni-cache", cache]);
        command.arg("--manifests").arg(shop.cluster.manifests());
        command.arg("--pin").arg(&node.pins);
        command
            .arg("--state")
            .arg(shop.cluster.rig.directory().join("node-1/state"));
        let output = node.namespace.run(|| command.output())?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let said = ["reading the CNI cache", "Not a directory"];
        assert_eq!(
            (code(&output) != 0, said.map(|part| stderr.contains(part))),
            (cache == file, [cache == file; 2]),
            "{cache}: {stderr}"
        );
        assert_eq!(shop.reach(), [true, false], "{cache}");
        shop.start(&[])?;
        shop.cluster.apply(&shop.yaml(&[only_web()]))?;
    }
    Ok(())
}

#[test]
fn a_device_that_is_not_understood_keeps_what_it_has_and_is_named() -> Result<()> {
    use std::os::unix::ffi::OsStrExt as _;

    let mut shop = Shop::enforcing(&[])?;
    let host = shop.cluster.pod("shop/db").host.clone();
    let rename = |shop: &Shop, lines: &[&[&[u8]]]| -> Result<()> {
        for words in lines {
            let mut command = std::process::Command::new("ip");
            command.args(words.iter().map(|word| std::ffi::OsStr::from_bytes(word)));
            let done = shop.cluster.node(1).namespace.run(|| command.output())?;
            ensure!(done.status.success(), "{command:?}: {done:?}");
        }
        Ok(())
    };
    // An alias is anybody's text: the device is known all the same.
    rename(
        &shop,
        &[&[b"link", b"set", host.as_bytes(), b"alias", b"caf\xe9"]],
    )?;
    shop.cluster.apply(&shop.yaml(&[only_web()]))?;
    assert_eq!(shop.reach(), [true, false]);

    let broken: &[u8] = b"veth\xe9";
    let (up, down): (&[u8], &[u8]) = (b"up", b"down");
    let change = |from: &[u8], to: &[u8]| -> Result<()> {
        rename(
            &shop,
            &[
                &[b"link", b"set", from, down],
                &[b"link", b"set", from, b"name", to],
                &[b"link", b"set", to, up],
            ],
        )
    };
    change(host.as_bytes(), broken)?;
    let (said, code) = shop.trouble()?;
    assert_eq!(code, 1);
    assert!(said.contains("(ifindex) are described by the kernel"), "{said}");
    assert_eq!(shop.reach(), [true, false], "a running agent");
    shop.cluster.node_mut(1).kill_agent()?;
    shop.start(&[])?;
    let (said, _) = shop.trouble()?;
    assert!(said.contains("(ifindex) are described by the kernel"), "{said}");
    assert_eq!(shop.reach(), [true, false], "after a restart");
    Ok(())
}

#[test]
fn a_broken_edit_keeps_the_policy_in_force_and_is_said() -> Result<()> {
    let mut shop = Shop::enforcing(&[])?;
    let broken = Policy::new("shop/db", "app=db")
        .ingress(&["app=other"])
        .ingress_on("TCP/0", &["*"]);
    shop.cluster.write(&shop.yaml(&[broken.to_string()]))?;
    let (said, code) = shop.trouble()?;
    assert_eq!(code, 1);
    for part in [
        "spec.ingress[1].ports[0].port",
        "the version read before stays in force",
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    assert_eq!(shop.reach(), [true, false]);
    let text = shop.cluster.node(1).netpol("status", &[])?;
    assert!(String::from_utf8_lossy(&text.stdout).contains("not everything is in force"));

    let right = Policy::new("shop/db", "app=db")
        .ingress(&["app=other"])
        .to_string();
    shop.cluster.apply(&shop.yaml(&[right]))?;
    assert_eq!(shop.reach(), [false, true]);
    assert_eq!(status(shop.cluster.node(1))?.1, 0);
    Ok(())
}

#[test]
fn status_tells_whether_an_agent_runs() -> Result<()> {
    let mut shop = Shop::new(&[])?;
    let nothing = shop.cluster.node(1).netpol("status", &[])?;
    assert_eq!(code(&nothing), 2);
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("nothing is pinned"));
    shop.cluster.write(&shop.yaml(&[only_web()]))?;
    shop.cluster.start()?;
    let (running, code_running) = status(shop.cluster.node(1))?;
    assert_eq!(
        (&running["kernel"]["running"], code_running),
        (&Json::Bool(true), 0)
    );
    let rulesets = running["agent"]["rulesets"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    assert!(
        rulesets
            .iter()
            .any(|rules| rules["direction"] == "ingress"
                && rules["policies"] == serde_json::json!(["shop/db"])),
        "{rulesets:?}"
    );

    shop.cluster.node_mut(1).kill_agent()?;
    let (dead, code_dead) = status(shop.cluster.node(1))?;
    assert_eq!((&dead["kernel"]["running"], code_dead), (&Json::Bool(false), 1));
    let text = shop.cluster.node(1).netpol("status", &[])?;
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(
        text.contains("not running; what is attached stays in force"),
        "{text}"
    );
    assert_eq!(shop.reach(), [true, false]);
    Ok(())
}

/// `run --once` on the first node; `pin` and `state` as there.
fn once(cluster: &Cluster, node: &str, pin: &Path, state: &Path, more: &[&str]) -> Result<Output> {
    let mut command = std::process::Command::new(netpol_tests::cluster::binary()?);
    command.args(["run", "--once", "--node", node, "--cni-cache", "/nonexistent"]);
    command.args(["--wait-for-lock", "1"]);
    command.arg("--manifests").arg(cluster.manifests());
    command.arg("--pin").arg(pin).arg("--state").arg(state).args(more);
    Ok(cluster.node(1).namespace.run(|| command.output())?)
}

/// [`once`] ends with 2 and says `said`.
#[track_caller]
fn refused(cluster: &Cluster, pin: &Path, state: &Path, more: &[&str], said: &str) -> Result<()> {
    let output = once(cluster, "node-1", pin, state, more)?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(code(&output), 2, "{stderr}");
    assert!(stderr.contains(said), "{said} is not in {stderr}");
    Ok(())
}

#[test]
fn what_is_refused_changes_nothing() -> Result<()> {
    let mut shop = Shop::new(&[])?;
    shop.cluster.write(&shop.yaml(&[only_web()]))?;
    let pins = shop.cluster.node(1).pins.clone();
    let directory = shop.cluster.rig.directory().to_owned();
    let file = directory.join("file");
    fs::write(&file, "")?;
    refused(&shop.cluster, &pins, &file, &[], "choose another --state")?;
    assert!(!pins.exists(), "something was pinned");
    let elsewhere = directory.join("pins");
    refused(
        &shop.cluster,
        &elsewhere,
        &directory.join("state"),
        &[],
        "is not on a BPF file system",
    )?;
    assert!(!elsewhere.exists(), "something was made");
    // Found out only after the directories for the pins were made.
    let huge = ["--map-size", "cells=4294967295"];
    refused(
        &shop.cluster,
        &pins,
        &directory.join("state"),
        &huge,
        "choose smaller maps with --map-size",
    )?;
    assert!(!pins.exists(), "something is left");
    assert_eq!(shop.reach(), [true, true]);

    shop.cluster.start()?;
    let before = status(shop.cluster.node(1))?.0["agent"].clone();
    let said = format!(
        "another netpol-agent (process {}, node node-1) holds",
        before["pid"]
    );
    refused(&shop.cluster, &pins, &directory.join("state"), &[], &said)?;
    assert_eq!(status(shop.cluster.node(1))?.0["agent"], before);
    assert_eq!(shop.reach(), [true, false]);
    Ok(())
}

#[test]
fn once_ends_with_what_is_wrong() -> Result<()> {
    let mut shop = Shop::new(&[])?;
    let broken = Policy::new("shop/db", "app=db")
        .ingress(&["app=web"])
        .ingress_on("TCP/0", &["*"]);
    shop.cluster.write(&shop.yaml(&[broken.to_string()]))?;
    let (pins, state) = (
        shop.cluster.node(1).pins.clone(),
        shop.cluster.rig.directory().join("state"),
    );
    let output = once(&shop.cluster, "node-1", &pins, &state, &[])?;
    assert_eq!(code(&output), 2);
    assert_eq!(shop.reach(), [true, false]);
    let output = once(&shop.cluster, "node-9", &pins, &state, &[])?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("Node node-9: no pod is on this node"), "{stderr}");
    Ok(())
}
