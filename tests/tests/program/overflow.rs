//! Flow tables that overflow: what is established survives, nothing passes that should not, and who makes the noise
//! pays for it.
//!
//! `quiet` and `noisy` are isolated in both directions: they may go to [`SERVERS`] on TCP 443 and UDP 53, and
//! [`CLIENTS`] may come to them on TCP 80. So every answer needs an entry.

use anyhow::{Context, Result, ensure};
use netpol_common::{
    event::maps,
    flow::{Flow, Key4, Quota},
    mark::OUTSIDE,
    reason as r,
};
use netpol_policy::{
    build::{block, matching, name, namespace, node, pod, policy, port, rule, snapshot, tcp as tcp_port},
    model::{Peers, PortSpec, Ports, Protocol, Snapshot},
};
use netpol_tests::{
    packet::{Ether, Ip, tcp},
    program::{FLOWS, Lab, Run, within},
};

const SERVERS: &str = "192.0.2.0/24";
const GROUPS: &str = "224.0.0.0/4";
const CLIENTS: &str = "198.51.100.0/24";
const QUIET: &str = "10.0.0.1";
const NOISY: &str = "10.0.0.2";
/// Openings that a pod may have in a window.
const QUOTA: u32 = FLOWS / 2;
/// Twice what a table holds.
const FLOOD: u32 = 2 * FLOWS;
/// How many connections `quiet` has each way.
const ESTABLISHED: u16 = 40;

fn scene() -> Snapshot {
    let everybody = || matching("");
    let out = rule(
        Peers::Of(vec![block(SERVERS, &[]), block(GROUPS, &[])]),
        Ports::Of(vec![tcp_port(443), port(Protocol::Udp, PortSpec::Range(53, 53))]),
    );
    let inwards = rule(
        Peers::Of(vec![block(CLIENTS, &[])]),
        Ports::Of(vec![tcp_port(80)]),
    );
    snapshot(
        [namespace("default", "")],
        [node("node-1", &["10.1.0.1"])],
        [
            pod("default/quiet", "", &[QUIET]),
            pod("default/noisy", "", &[NOISY]),
        ],
        [policy(
            "default/all",
            everybody(),
            Some(vec![inwards]),
            Some(vec![out]),
        )],
    )
}

/// A TCP connection or a UDP exchange between a pod and somebody outside.
#[derive(Clone, Debug)]
struct Talk {
    pod: &'static str,
    peer: String,
    /// The pod's port, the peer's.
    ports: (u16, u16),
    /// Whether the pod begins.
    outwards: bool,
    udp: bool,
}

impl Talk {
    /// The `number`th that `pod` opens.
    fn out(pod: &'static str, number: u32) -> Self {
        Self {
            pod,
            peer: format!("192.0.2.{}", 1 + number / 1000),
            ports: (10_000 + (number % 1000) as u16, 443),
            outwards: true,
            udp: false,
        }
    }

    /// The `number`th that somebody opens to `pod`.
    fn inwards(pod: &'static str, number: u32) -> Self {
        Self {
            pod,
            peer: format!("198.51.100.{}", 1 + number / 1000),
            ports: (80, 10_000 + (number % 1000) as u16),
            outwards: false,
            udp: false,
        }
    }

    /// The `number`th question of `pod`.
    fn question(pod: &'static str, number: u32) -> Self {
        let mut talk = Self::out(pod, number);
        talk.ports.1 = 53;
        talk.udp = true;
        talk
    }

    /// A packet of the opener's (`forward`) or of the other end.
    fn send(&self, lab: &mut Lab<'_>, forward: bool, flags: u8) -> Result<Run> {
        let pod = match self.pod {
            QUIET => lab.index(&name("default/quiet")),
            _ => lab.index(&name("default/noisy")),
        };
        let from_pod = forward == self.outwards;
        let (ip, sport, dport) = if from_pod {
            (Ip::new(self.pod, self.peer.as_str()), self.ports.0, self.ports.1)
        } else {
            (Ip::new(self.peer.as_str(), self.pod), self.ports.1, self.ports.0)
        };
        let packet = if self.udp {
            ip.udp(sport, dport, b"?")
        } else {
            ip.tcp(sport, dport, flags, b"")
        };
        let (from, to) = if from_pod { (pod, OUTSIDE) } else { (OUTSIDE, pod) };
        let (way_in, way_out) = lab.cross(from, to, &Ether::default().frame(&packet))?;
        Ok(way_out.unwrap_or(way_in))
    }

    fn opens(&self, lab: &mut Lab<'_>) -> Result<()> {
        let run = self.send(lab, true, tcp::SYN)?;
        ensure!(!run.dropped, "{self:?} begins: {}", run.reason());
        Ok(())
    }

    /// Whether the first answer passes.
    fn is_answered(&self, lab: &mut Lab<'_>) -> Result<bool> {
        let run = self.send(lab, false, tcp::SYN | tcp::ACK)?;
        let reason = run.event.context("no event")?.reason;
        let expected = [r::REPLY, r::DENIED_INGRESS, r::DENIED_EGRESS];
        ensure!(
            expected.contains(&reason),
            "{self:?} is answered: {}",
            r::name(reason)
        );
        Ok(!run.dropped)
    }

    fn establish(&self, lab: &mut Lab<'_>) -> Result<()> {
        self.opens(lab)?;
        ensure!(self.is_answered(lab)?, "{self:?}: no answer");
        self.goes_on(lab)
    }

    /// Both ends still talk.
    fn goes_on(&self, lab: &mut Lab<'_>) -> Result<()> {
        for (forward, reason) in [(true, r::KNOWN_FLOW), (false, r::REPLY)] {
            let run = self.send(lab, forward, tcp::ACK)?;
            let event = run.event.context("no event")?;
            ensure!(
                event.reason == reason,
                "{self:?}, forward {forward}: {}, not {}",
                r::name(event.reason),
                r::name(reason)
            );
        }
        Ok(())
    }
}

/// What `quiet` is in the middle of.
fn quiet() -> Vec<Talk> {
    (0..u32::from(ESTABLISHED))
        .flat_map(|at| [Talk::out(QUIET, at), Talk::inwards(QUIET, at)])
        .collect()
}

/// `quiet` has its connections; then comes `flood`, and they go on. Afterwards `quiet` still gets new ones.
fn survives(flood: impl FnOnce(&mut Lab<'_>) -> Result<()> + Send) -> Result<()> {
    within(|lab| {
        lab.apply(&scene())?;
        lab.configure(|config| config.quota = QUOTA)?;
        for talk in quiet() {
            talk.establish(lab)?;
        }
        flood(lab)?;
        for talk in quiet() {
            talk.goes_on(lab).context("after the flood")?;
        }
        for number in 900..910 {
            Talk::out(QUIET, number).establish(lab).context("a new one")?;
            Talk::inwards(QUIET, number).establish(lab).context("a new one")?;
        }
        Ok(())
    })
}

/// Nobody's packet is an answer to what was never opened.
fn strangers_stay_out(lab: &mut Lab<'_>) -> Result<()> {
    for number in 30_000..30_200 {
        for talk in [Talk::out(NOISY, number), Talk::inwards(NOISY, number)] {
            ensure!(!talk.is_answered(lab)?, "{talk:?} was never opened");
        }
    }
    Ok(())
}

fn refused(lab: &mut Lab<'_>) -> Result<u32> {
    let noisy = lab.index(&name("default/noisy"));
    Ok(lab.machine.read::<Quota>(maps::QUOTAS, noisy)?.refused)
}

#[test]
fn a_flood_of_unanswered_openings_costs_who_sends_it() -> Result<()> {
    for make in [Talk::out, Talk::inwards] {
        survives(|lab| {
            for number in 0..FLOOD {
                make(NOISY, number).opens(lab)?;
            }
            assert_eq!(refused(lab)?, FLOOD - QUOTA, "each refusal is counted");
            let answered = count(0..FLOOD, |number| make(NOISY, number).is_answered(lab))?;
            ensure!(
                answered > 0 && answered <= QUOTA,
                "{answered} of {FLOOD} openings are remembered"
            );
            strangers_stay_out(lab)
        })?;
    }
    Ok(())
}

#[test]
fn a_flood_of_openings_that_are_answered_and_never_acknowledged_evicts_nobody() -> Result<()> {
    for make in [Talk::out, Talk::inwards] {
        survives(|lab| {
            let answered = count(0..FLOOD, |number| {
                let talk = make(NOISY, number);
                talk.opens(lab)?;
                talk.is_answered(lab)
            })?;
            assert_eq!(answered, QUOTA, "openings of one pod in a window");
            assert_eq!(refused(lab)?, FLOOD - QUOTA, "each refusal is counted");
            let established = lab.machine.entries::<Key4, Flow>(maps::FLOWS4)?;
            assert_eq!(established.len(), quiet().len(), "none of them is established");
            strangers_stay_out(lab)
        })?;
    }
    Ok(())
}

#[test]
fn openings_beyond_the_table_are_forgotten_and_never_allowed() -> Result<()> {
    survives(|lab| {
        lab.configure(|config| config.quota = u32::MAX)?;
        for number in 0..FLOOD {
            Talk::out(NOISY, number).opens(lab)?;
        }
        let answered = count(0..FLOOD, |number| Talk::out(NOISY, number).is_answered(lab))?;
        ensure!(
            answered <= FLOWS,
            "{answered} answers pass, the table holds {FLOWS}"
        );
        strangers_stay_out(lab)
    })
}

fn count(numbers: std::ops::Range<u32>, mut is: impl FnMut(u32) -> Result<bool>) -> Result<u32> {
    let mut count = 0;
    for number in numbers {
        count += u32::from(is(number)?);
    }
    Ok(count)
}

#[test]
fn what_is_established_gives_its_place_in_the_quota_back_once() -> Result<()> {
    within(|lab| {
        lab.apply(&scene())?;
        lab.configure(|config| config.quota = 8)?;
        let noisy = lab.index(&name("default/noisy"));
        for number in 0..50 {
            let talk = if number % 2 == 0 {
                Talk::out(NOISY, number)
            } else {
                Talk::inwards(NOISY, number)
            };
            talk.opens(lab)?;
            assert_eq!(lab.machine.read::<Quota>(maps::QUOTAS, noisy)?.open, 1);
            // Retransmissions cost nothing.
            talk.opens(lab)?;
            ensure!(talk.is_answered(lab)? && talk.is_answered(lab)?, "{talk:?}");
            assert_eq!(lab.machine.read::<Quota>(maps::QUOTAS, noisy)?.open, 1);
            talk.goes_on(lab)?;
            talk.goes_on(lab)?;
            assert_eq!(lab.machine.read::<Quota>(maps::QUOTAS, noisy)?.open, 0);
        }
        assert_eq!(refused(lab)?, 0);
        Ok(())
    })
}

#[test]
fn questions_that_are_answered_give_their_place_back_at_once() -> Result<()> {
    within(|lab| {
        lab.apply(&scene())?;
        lab.configure(|config| config.quota = 8)?;
        for number in 0..200 {
            let talk = Talk::question(NOISY, number);
            talk.opens(lab)?;
            ensure!(talk.is_answered(lab)?, "{talk:?}");
        }
        assert_eq!(refused(lab)?, 0);
        Ok(())
    })
}

#[test]
fn what_goes_to_a_group_takes_no_place_as_nobody_answers_from_there() -> Result<()> {
    within(|lab| {
        lab.apply(&scene())?;
        let noisy = lab.index(&name("default/noisy"));
        for number in 0..50 {
            let mut talk = Talk::question(NOISY, number);
            talk.peer = "224.0.0.251".to_owned();
            talk.opens(lab)?;
        }
        assert_eq!(lab.machine.read::<Quota>(maps::QUOTAS, noisy)?.open, 0);
        assert_eq!(lab.flows()?, []);
        Ok(())
    })
}
