//! Devices whose pod, or which themselves, are not known.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use netpol_tests::{
    cluster::pod,
    net::{Responder, Transport},
};

use crate::{Shop, code, only_web, run_once};

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
fn without_the_runtimes_results_a_restart_leaves_in_force_what_is() -> Result<()> {
    let mut shop = Shop::enforcing(&[])?;
    let file = shop.cluster.rig.directory().join("no-directory");
    fs::write(&file, "")?;
    let file = file.to_str().context("a path")?.to_owned();
    // Nobody else may say whose a veth is: the far ends' addresses are for who has CAP_SYS_ADMIN.
    for cache in ["/nonexistent", &*file] {
        shop.cluster.node_mut(1).kill_agent()?;
        let pins = shop.cluster.node(1).pins.clone();
        let state = shop.cluster.rig.directory().join("node-1/state");
        let wrapper = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"];
        let cluster = &shop.cluster;
        let output = run_once(
            cluster,
            &wrapper,
            ("node-1", Path::new(cache)),
            (&pins, &state),
            &[],
        )?;
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
            let mut command = Command::new("ip");
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
