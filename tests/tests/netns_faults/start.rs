//! What is refused at the start: files, pins, a second agent, a name that is no node's.

use std::{fs, path::Path, process::Output};

use anyhow::Result;
use netpol_tests::cluster::{Cluster, Policy};

use crate::{Shop, code, only_web, run_once, status};

/// [`once`] in a mount namespace of its own that `mount` has changed.
fn once_where(cluster: &Cluster, mount: &str, pin: &Path, state: &Path) -> Result<Output> {
    let script = format!("{mount}\nexec \"$@\"");
    let wrapper = ["unshare", "--mount", "sh", "-ec", &script, "sh"];
    let cache = cluster.rig.directory().join("node-1/cni");
    run_once(cluster, &wrapper, ("node-1", &cache), (pin, state), &[])
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

/// `run --once` on the first node; `pin` and `state` as there.
fn once(cluster: &Cluster, node: &str, pin: &Path, state: &Path, more: &[&str]) -> Result<Output> {
    let more = [&["--wait-for-lock", "1"], more].concat();
    run_once(
        cluster,
        &[],
        (node, Path::new("/nonexistent")),
        (pin, state),
        &more,
    )
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
