//! Who sent a packet: the device that it came in by says so, before a mark that others may have changed and before a source
//! address that anybody may write.

use anyhow::{Context, Result, ensure};
use netpol_common::{
    mark::{self, JUDGED, NONE, OUTSIDE},
    pod::BRIDGE_INDEX,
    reason as r,
};
use netpol_policy::build::{block, matching, policy, rule};
use netpol_policy::model::{Peers, Ports};
use netpol_tests::{
    packet::tcp,
    program::{Lab, within},
};

use crate::{
    packets::{FAMILIES, expect, ip, plain},
    town::{addresses, index, town},
};

/// The reason at the way out of `to` for what came in by `device` with `mark`.
fn reason(lab: &mut Lab<'_>, to: &str, device: u32, mark: u32, frame: &[u8]) -> Result<u8> {
    let to = if to == "server" { OUTSIDE } else { index(lab, to) };
    let run = lab.leave(to, frame, mark, device)?;
    let event = run.event.context("no event")?;
    ensure!(run.dropped == r::is_drop(event.reason), "{run:?}");
    Ok(event.reason)
}

#[test]
fn without_a_mark_only_the_device_counts() -> Result<()> {
    within(|lab| {
        lab.apply(&town())?;
        let bridge = lab.other_outside();
        lab.door(bridge, BRIDGE_INDEX)?;
        let [free, client, guarded] = ["free", "client", "guarded"].map(|pod| lab.device(index(lab, pod)));
        let outside = lab.device(OUTSIDE);
        for family in FAMILIES {
            // `guarded` takes it from `client`, whose address it says that it has.
            let frame = plain(&ip("client", "guarded", family).tcp(40_000, 80, tcp::SYN, b""));
            let own = plain(&ip("guarded", "guarded", family).tcp(40_000, 80, tcp::SYN, b""));
            for mark in [NONE, JUDGED] {
                let mut at = |device, frame: &[u8]| reason(lab, "guarded", device, mark, frame);
                let found = [
                    at(client, &frame)?,
                    at(free, &frame)?,
                    at(guarded, &frame)?,
                    at(bridge, &frame)?,
                    at(outside, &frame)?,
                    at(bridge, &own)?,
                    at(free, &own)?,
                ];
                let expected = [
                    r::ALLOWED,
                    r::DENIED_INGRESS,
                    r::ITSELF,
                    r::LOST_MARK,
                    r::LOST_MARK,
                    r::LOST_MARK,
                    r::DENIED_INGRESS,
                ];
                assert_eq!(found.map(r::name), expected.map(r::name), "mark {mark:#x}");
            }
        }
        Ok(())
    })
}

#[test]
fn a_mark_that_somebody_has_changed_makes_nobody_somebody_else() -> Result<()> {
    within(|lab| {
        lab.apply(&town())?;
        let bridge = lab.other_outside();
        lab.door(bridge, BRIDGE_INDEX)?;
        let [client, free, guarded, held] = ["client", "free", "guarded", "held"].map(|pod| index(lab, pod));
        let outside = lab.device(OUTSIDE);
        for family in FAMILIES {
            let frame = plain(&ip("stranger", "guarded", family).tcp(40_000, 80, tcp::SYN, b""));
            // What came from outside, or from `free`, with the index of who may, or of the receiver.
            for said in [client, guarded, free, 4000] {
                for device in [outside, lab.device(free)] {
                    let found = reason(lab, "guarded", device, mark::sender(said), &frame)?;
                    assert_eq!(r::name(found), r::name(r::DENIED_INGRESS), "{said} by {device}");
                }
            }
            // Behind a bridge are several: there the mark is what there is.
            let found = reason(lab, "guarded", bridge, mark::sender(client), &frame)?;
            assert_eq!(r::name(found), r::name(r::ALLOWED));
            // On the way out, too: `held` is held whatever the mark says, and what is only passed on is not.
            let out = plain(&ip("held", "stranger", family).tcp(40_000, 80, tcp::SYN, b""));
            for said in [OUTSIDE, free, held, 4000] {
                let found = reason(lab, "server", lab.device(held), mark::sender(said), &out)?;
                assert_eq!(r::name(found), r::name(r::DENIED_EGRESS), "{said}");
                let found = reason(lab, "server", outside, mark::sender(said), &out)?;
                assert_eq!(r::name(found), r::name(r::NOT_OURS), "{said}");
            }
        }
        Ok(())
    })
}

#[test]
fn a_local_receiver_is_the_pod_that_it_is_whatever_the_destination_says() -> Result<()> {
    within(|lab| {
        // Everything but the pods: no group and no address of nobody makes another pod a part of the rest of the world.
        let mut town = town();
        let world = Peers::Of(vec![
            block("0.0.0.0/0", &["10.0.0.0/8"]),
            block("::/0", &["fd00::/8"]),
        ]);
        let world = policy(
            "default/out",
            matching("out=true"),
            None,
            Some(vec![rule(world, Ports::Any)]),
        );
        town.policies.insert(world.name.clone(), world);
        lab.apply(&town)?;
        for (family, targets) in [
            (0, ["255.255.255.255", "224.0.0.1", "8.8.8.8"]),
            (1, ["ff02::1", "ff05::1", "2001:db8:9::1"]),
        ] {
            for to in targets {
                let frame = plain(
                    &netpol_tests::packet::Ip::new(addresses("held")[family].clone(), to)
                        .udp(5000, 5001, b"?"),
                );
                expect(lab, to, ("held", "free"), &frame, r::DENIED_EGRESS)?;
                expect(lab, to, ("held", "server"), &frame, r::ALLOWED)?;
                expect(
                    lab,
                    to,
                    ("free", "client"),
                    &plain(&ip("free", "client", family).udp(1, 2, b"")),
                    r::NOT_ISOLATED,
                )?;
            }
        }
        Ok(())
    })
}
