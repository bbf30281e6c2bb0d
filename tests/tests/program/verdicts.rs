//! Every packet is counted once where its fate is decided, whatever the program, the reason and the listener.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use netpol_common::{
    event::{Count, verdict},
    mark::OUTSIDE,
    pod::state::FLAG_EVENTS_ALL,
    reason::{ALLOWED, DENIED_INGRESS, KNOWN_FLOW, NODE, NOT_ISOLATED, NOT_OURS, SPOOFED, UNKNOWN_POD},
};
use netpol_tests::{
    packet::{Ether, Ip, tcp},
    program::{Hook, Input, Lab, within},
};

use crate::{
    reasons::CASES,
    town::{SERVER, addresses, index, town},
};

fn frame(from: &str, to: &str, port: u16, flags: u8, data: &[u8]) -> Vec<u8> {
    Ether::default().frame(&Ip::new(from, to).tcp(40_000, port, flags, data))
}

fn pod(name: &str) -> String {
    addresses(name)[0].clone()
}

/// The map as it must be: packets and bytes by hook and reason.
fn counts(of: &[(Hook, u8, u64, usize)]) -> BTreeMap<u32, Count> {
    of.iter()
        .map(|(hook, reason, packets, bytes)| {
            let bytes = *bytes as u64;
            (
                verdict::slot(hook.number(), *reason),
                Count {
                    packets: *packets,
                    bytes,
                },
            )
        })
        .collect()
}

/// `frame` comes from nobody's device.
fn from_unknown(lab: &mut Lab<'_>, frame: &[u8]) -> Result<()> {
    let device = lab.device(10);
    let input = Input {
        ifindex: device,
        ingress_ifindex: device,
        ..Input::default()
    };
    lab.machine.run(Hook::FromPod, frame, input).map(drop)
}

#[test]
fn packets_are_counted_by_hook_and_reason() -> Result<()> {
    within(|lab| {
        lab.apply(&town())?;
        let (client, guarded, both, free) = (
            index(lab, "client"),
            index(lab, "guarded"),
            index(lab, "both"),
            index(lab, "free"),
        );
        let syn = frame(&pod("client"), &pod("both"), 80, tcp::SYN, b"");
        let data = frame(&pod("client"), &pod("both"), 80, tcp::ACK, &[7; 100]);
        let allowed = frame(&pod("client"), &pod("guarded"), 80, tcp::SYN, b"");
        let denied = frame(&pod("free"), &pod("guarded"), 80, tcp::SYN, b"");
        let spoofed = frame(&pod("client"), &pod("guarded"), 80, tcp::SYN, b"");
        let out = frame(&pod("free"), SERVER[0], 80, tcp::ACK, &[7; 1000]);
        let through = frame(SERVER[0], "198.51.100.1", 80, tcp::ACK, b"");
        // With and without somebody who listens: the counters are the same.
        for flags in [(FLAG_EVENTS_ALL, 0), (0, FLAG_EVENTS_ALL)] {
            lab.flags(flags.0, flags.1)?;
            lab.forget_flows()?;
            lab.machine.clear_verdicts()?;
            lab.cross(client, both, &syn)?;
            lab.cross(client, both, &data)?;
            lab.cross(client, both, &data)?;
            lab.cross(client, guarded, &allowed)?;
            lab.cross(free, guarded, &denied)?;
            lab.cross(free, guarded, &denied)?;
            lab.cross(free, guarded, &spoofed)?;
            lab.cross(free, OUTSIDE, &out)?;
            lab.cross(OUTSIDE, OUTSIDE, &through)?;
            lab.leave(guarded, &allowed, 0, 0)?;
            from_unknown(lab, &denied)?;
            let expected = counts(&[
                (Hook::FromPod, SPOOFED, 1, spoofed.len()),
                (Hook::FromPod, UNKNOWN_POD, 1, denied.len()),
                (Hook::ToPod, ALLOWED, 2, syn.len() + allowed.len()),
                (Hook::ToPod, KNOWN_FLOW, 2, 2 * data.len()),
                (Hook::ToPod, DENIED_INGRESS, 2, 2 * denied.len()),
                (Hook::ToPod, NODE, 1, allowed.len()),
                (Hook::Settle, NOT_ISOLATED, 1, out.len()),
                (Hook::Settle, NOT_OURS, 1, through.len()),
            ]);
            assert_eq!(lab.machine.verdicts()?, expected, "flags {flags:?}");
        }
        Ok(())
    })
}

#[test]
fn what_a_program_says_of_a_packet_is_what_it_counts() -> Result<()> {
    within(|lab| {
        for case in CASES {
            lab.forget_flows()?;
            lab.configure(|_| {})?;
            lab.apply(&town())?;
            lab.machine.clear_verdicts()?;
            let run = (case.run)(lab).with_context(|| case.name)?;
            let event = run.event.with_context(|| format!("{}: no event", case.name))?;
            let counted = lab.machine.verdicts()?;
            let slot = verdict::slot(event.hook, event.reason);
            let count = counted.get(&slot).copied().unwrap_or_default();
            let last = Count {
                packets: 1,
                bytes: event.len.into(),
            };
            assert_eq!(count, last, "{}: {counted:?}", case.name);
        }
        Ok(())
    })
}
