//! How the watches fare: what `/readyz`, the metrics, `status` and the log say of the API server.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::sync::watch;

use super::{course::Way, store::Which};

/// While the API server is away it is said so often.
const REMIND: Duration = Duration::from_secs(300);

/// How often each of a few words applied.
pub type Counts = BTreeMap<&'static str, u64>;

/// One watch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// It has been listed at least once.
    pub synced: bool,
    /// Since when it fails; `None` while it works.
    pub failing_since: Option<SystemTime>,
    /// Why, as it failed last.
    pub why: Option<String>,
    /// When the server was last heard of.
    pub heard: Option<SystemTime>,
    /// How often it had to be begun anew because of a failure.
    pub restarts: u64,
    /// Objects that came, by `list`, `apply` and `delete`.
    pub events: Counts,
    /// Lists that came to their end, by `streamed` and `paged`.
    pub lists: Counts,
    /// Failures by what they were: `forbidden`, `unauthorized`, `expired`, `throttled`, `server`, `decode`, `connection`.
    pub errors: Counts,
    /// Bytes of answers.
    pub bytes: u64,
}

/// The state of all watches, by the plural of their kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// By plural.
    pub watches: BTreeMap<&'static str, Watch>,
}

impl Status {
    /// Whether everything was listed at least once.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.watches.values().all(|watch| watch.synced)
    }

    /// What the first list waits for, and since when it fails, if it does.
    #[must_use]
    pub fn awaited(&self) -> Vec<(Option<SystemTime>, String)> {
        let awaited = self.watches.iter().filter(|(_, watch)| !watch.synced);
        let reason = |(plural, watch): (&&str, &Watch)| {
            let under_way = || format!("the first list of {plural} is under way");
            (watch.failing_since, watch.why.clone().unwrap_or_else(under_way))
        };
        awaited.map(reason).collect()
    }

    /// Since when what is in force may be out of date.
    #[must_use]
    pub fn stale_since(&self) -> Option<SystemTime> {
        self.watches
            .values()
            .filter_map(|watch| watch.failing_since)
            .min()
    }

    /// The last moment at which everything was in touch with the server.
    #[must_use]
    pub fn last_success(&self) -> Option<SystemTime> {
        let last = |watch: &Watch| watch.failing_since.or(watch.heard);
        self.watches.values().map(last).min().flatten()
    }
}

/// What the head of an answer says that is no success: kube gives a watch's answer out as lines, without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: u16,
    /// For how long a busy server wishes to be left alone.
    pub(super) wish: Option<Duration>,
}

#[derive(Debug)]
struct Inner {
    status: Status,
    /// When the log last said that a watch fails, and for what kind of reason.
    said: BTreeMap<&'static str, (SystemTime, &'static str)>,
    /// The last answer for each plural, where it was a refusal and until it is taken.
    refusals: BTreeMap<String, Refusal>,
}

/// Shared between the watches, the HTTP client and whoever asks.
#[derive(Clone, Debug)]
pub struct Health {
    inner: Arc<Mutex<Inner>>,
    /// Changes when the server answers a watch that had failed.
    recovered: Arc<watch::Sender<()>>,
}

impl Health {
    pub(super) fn new() -> Self {
        let watches = Which::ALL.map(|which| (which.plural(), Watch::default())).into();
        Self {
            inner: Arc::new(Mutex::new(Inner {
                status: Status { watches },
                said: BTreeMap::new(),
                refusals: BTreeMap::new(),
            })),
            recovered: Arc::new(watch::Sender::new(())),
        }
    }

    /// Tells from now on when the server answers again: who waits for another watch need not wait on.
    pub(super) fn recoveries(&self) -> watch::Receiver<()> {
        self.recovered.subscribe()
    }

    /// A copy of the state.
    #[must_use]
    pub fn status(&self) -> Status {
        self.lock().status.clone()
    }

    /// Nothing here panics while it holds the lock; and numbers are better than none.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn on(&self, plural: &str, change: impl FnOnce(&mut Watch)) {
        if let Some(watch) = self.lock().status.watches.get_mut(plural) {
            change(watch);
        }
    }

    /// The server has answered a request for `plural` with more than headers: what closes at once is no answer.
    pub(super) fn answered(&self, plural: &str) {
        let mut ended = None;
        self.on(plural, |watch| {
            watch.heard = Some(SystemTime::now());
            ended = watch.failing_since.take();
            watch.why = None;
        });
        if let Some(since) = ended {
            let lasted = since.elapsed().unwrap_or_default();
            self.lock().said.remove(plural);
            self.recovered.send_replace(());
            tracing::info!(resource = plural, ?lasted, "the API server answers again");
        }
    }

    /// Bytes of an answer have come.
    pub(super) fn received(&self, plural: &str, bytes: usize) {
        self.on(plural, |watch| {
            watch.bytes += bytes as u64;
            watch.heard = Some(SystemTime::now());
        });
    }

    /// The server has answered a request for `plural`, perhaps with a refusal.
    pub(super) fn replied(&self, plural: &str, refusal: Option<Refusal>) {
        let mut inner = self.lock();
        // What nobody watches is never taken.
        match refusal.filter(|_| inner.status.watches.contains_key(plural)) {
            Some(refusal) => drop(inner.refusals.insert(plural.to_owned(), refusal)),
            None => drop(inner.refusals.remove(plural)),
        }
    }

    /// How the server refused the last request, once.
    pub(super) fn take_refusal(&self, which: Which) -> Option<Refusal> {
        self.lock().refusals.remove(which.plural())
    }

    pub(super) fn count(&self, which: Which, event: &'static str) {
        self.on(which.plural(), |watch| {
            *watch.events.entry(event).or_default() += 1
        });
    }

    /// A list has come to its end.
    pub(super) fn listed(&self, which: Which, way: Way) {
        self.on(which.plural(), |watch| {
            *watch.lists.entry(way.word()).or_default() += 1
        });
    }

    pub(super) fn synced(&self, which: Which) {
        self.on(which.plural(), |watch| watch.synced = true);
    }

    /// A watch has failed for `what`; the log says so when that is new, and then now and again.
    pub(super) fn failed(&self, which: Which, kind: &'static str, what: &str) {
        let plural = which.plural();
        let now = SystemTime::now();
        let mut inner = self.lock();
        let Some(watch) = inner.status.watches.get_mut(plural) else {
            return;
        };
        *watch.errors.entry(kind).or_default() += 1;
        watch.restarts += 1;
        watch.why = Some(what.to_owned());
        let since = *watch.failing_since.get_or_insert(watch.heard.unwrap_or(now));
        let in_force = match watch.synced {
            true => "what is in force stays; changes are not seen until it answers",
            false => "nothing is changed in the kernel before everything was listed once",
        };
        let due = inner.said.get(plural).is_none_or(|(then, said)| {
            *said != kind || now.duration_since(*then).is_ok_and(|past| past >= REMIND)
        });
        if due {
            inner.said.insert(plural, (now, kind));
            let ago = now.duration_since(since).unwrap_or_default().as_secs();
            drop(inner);
            tracing::warn!(since_seconds = ago, "{what}; {in_force}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staleness_begins_at_the_last_word_and_ends_with_an_answer() {
        let health = Health::new();
        assert!(!health.status().is_synced());
        for which in Which::ALL {
            health.answered(which.plural());
            health.synced(which);
        }
        let heard = health.status().watches["pods"].heard;
        health.failed(Which::Pods, "connection", "no answer");
        health.failed(Which::Pods, "connection", "no answer");
        let status = health.status();
        assert_eq!((status.is_synced(), status.stale_since()), (true, heard));
        assert!(status.last_success() <= heard && status.last_success().is_some());
        assert_eq!(status.watches["pods"].errors, BTreeMap::from([("connection", 2)]));

        assert_eq!(status.watches["pods"].why.as_deref(), Some("no answer"));

        health.received("pods", 7);
        assert_eq!(health.status().stale_since(), heard);
        health.answered("pods");
        let status = health.status();
        assert_eq!((status.stale_since(), status.watches["pods"].bytes), (None, 7));
        assert_eq!(status.watches["pods"].why, None);
    }

    #[test]
    fn what_is_not_listed_is_awaited_and_why_is_said() {
        let health = Health::new();
        health.synced(Which::Nodes);
        health.synced(Which::Namespaces);
        health.failed(Which::Pods, "forbidden", "may not list pods");
        let since = health.status().watches["pods"].failing_since;
        assert!(since.is_some());
        assert_eq!(
            health.status().awaited(),
            [
                (None, "the first list of networkpolicies is under way".to_owned()),
                (since, "may not list pods".to_owned()),
            ]
        );
    }
}
