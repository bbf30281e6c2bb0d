//! `/metrics`, `/healthz` and `/readyz`, on a thread of their own: they answer also while the agent is busy.
//!
//! What is shown is what the agent reported last, how its source fares, and what the pinned maps say at this moment.

mod metrics;
mod process;
mod server;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

pub(crate) use self::server::start;
use crate::{
    agent::latency::Latency,
    datapath::{Error, object::Pins, report::Report},
    source::kubernetes::health::{Health, Status},
};

/// The agent looks at everything at least each half minute; a loop that was not seen for so long hangs.
const HUNG: Duration = Duration::from_secs(180);

/// What the agent's loop and the server share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) latency: Latency,
    health: Option<Health>,
    pins: Pins,
    node: String,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    report: Option<Arc<Report>>,
    alive: Instant,
    errors: BTreeMap<&'static str, u64>,
}

impl Shared {
    pub(crate) fn new(pins: Pins, node: String, health: Option<Health>) -> Self {
        Self {
            latency: Latency::default(),
            health,
            pins,
            node,
            seen: Mutex::new(Seen {
                report: None,
                alive: Instant::now(),
                // From nothing on, so that the first is an increase.
                errors: Error::KINDS.map(|kind| (kind, 0)).into(),
            }),
        }
    }

    fn with<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The agent's loop goes round.
    pub(crate) fn alive(&self) {
        self.with(|seen| seen.alive = Instant::now());
    }

    /// A step of the agent's has failed.
    pub(crate) fn failed(&self, kind: &'static str) {
        self.with(|seen| *seen.errors.entry(kind).or_default() += 1);
    }

    fn errors(&self) -> Vec<(&'static str, u64)> {
        self.with(|seen| seen.errors.iter().map(|(kind, count)| (*kind, *count)).collect())
    }

    /// The agent's newest report.
    pub(crate) fn report(&self, report: Report) {
        self.with(|seen| seen.report = Some(Arc::new(report)));
    }

    fn last_report(&self) -> Option<Arc<Report>> {
        self.with(|seen| seen.report.clone())
    }

    fn source(&self) -> Option<Status> {
        self.health.as_ref().map(Health::status)
    }

    /// Whether the agent's loop goes round, and a sentence about it.
    fn is_healthy(&self) -> (bool, String) {
        let silent = self.with(|seen| seen.alive.elapsed());
        match silent < HUNG {
            true => (true, "ok\n".to_owned()),
            false => (
                false,
                format!("the agent's loop was not seen for {} s\n", silent.as_secs()),
            ),
        }
    }

    /// Whether policy is in force, and a sentence about it. An API server that is away later does not count: what is in force
    /// stays, and restarting the agent would not bring it back.
    fn is_ready(&self) -> (bool, String) {
        let Some(report) = self.last_report() else {
            let waiting = self.source().filter(|source| !source.is_synced());
            let what = match waiting {
                Some(source) => {
                    let awaited = || source.watches.iter().filter(|(_, watch)| !watch.synced);
                    let kinds: Vec<&str> = awaited().map(|(plural, _)| *plural).collect();
                    let whys = awaited().filter_map(|(_, watch)| watch.why.as_ref());
                    let whys: String = whys.map(|why| format!("{why}\n")).collect();
                    format!("waiting for the API server to list {}\n{whys}", kinds.join(", "))
                }
                None => "starting\n".to_owned(),
            };
            return (false, what);
        };
        if !report.in_force {
            let errors = report.errors.iter().map(|failure| format!("{}\n", failure.error));
            return (
                false,
                format!("not everything is in force:\n{}", errors.collect::<String>()),
            );
        }
        match report.stale_since {
            None => (true, "ok\n".to_owned()),
            Some(since) => (
                true,
                format!(
                    "policy is in force as of {since} (seconds since 1970): the API server does not answer\n"
                ),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared() -> Shared {
        Shared::new(Pins::new("/nonexistent"), "n1".to_owned(), None)
    }

    #[test]
    fn ready_is_who_has_policy_in_force() {
        let shared = shared();
        assert_eq!(shared.is_ready(), (false, "starting\n".to_owned()));
        let report = |in_force, stale_since| Report {
            in_force,
            stale_since,
            errors: vec![],
            ..Report::example()
        };
        shared.report(report(true, None));
        assert_eq!(shared.is_ready(), (true, "ok\n".to_owned()));
        shared.report(report(true, Some(7)));
        assert!(shared.is_ready().0);
        shared.report(report(false, None));
        assert_eq!(
            shared.is_ready(),
            (false, "not everything is in force:\n".to_owned())
        );
    }

    #[test]
    fn healthy_is_whose_loop_goes_round() {
        let shared = shared();
        assert!(shared.is_healthy().0);
        shared.with(|seen| seen.alive = Instant::now().checked_sub(HUNG * 2).unwrap());
        assert!(!shared.is_healthy().0);
        shared.alive();
        assert!(shared.is_healthy().0);
    }
}
