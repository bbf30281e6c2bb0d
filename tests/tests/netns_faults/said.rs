//! What `status` says of mistakes, and of the agent itself.

use std::time::{Duration, Instant};

use anyhow::Result;
use netpol_tests::cluster::Policy;
use serde_json::Value as Json;

use crate::{Shop, code, only_web, status};

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
