//! A map without room, and an agent killed before all was written.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, Map, MapData};
use netpol_common::{ABI, event::maps, pod::state};
use netpol_policy::model::Pod;
use netpol_tests::{
    cluster::{Node, Policy, Talk, manifests, pod},
    net::{Probe, Responder, Transport, probe, wait_until},
};

use crate::{SHORT, Shop, only_web, status};

/// The epoch, and how many cells there are.
fn epoch_and_cells(node: &Node) -> Result<(u64, u64)> {
    let kernel = status(node)?.0["kernel"].take();
    let maps = kernel["maps"].as_array().into_iter().flatten();
    let cells = maps.filter(|map| map["name"] == maps::CELLS);
    let cells = cells.filter_map(|map| map["entries"].as_u64()).next();
    let epoch = kernel["epoch"].as_u64();
    epoch.zip(cells).with_context(|| format!("{kernel:#}"))
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
