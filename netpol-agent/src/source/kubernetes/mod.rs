//! The API server as a source: NetworkPolicies, Namespaces, Pods and Nodes, listed and watched.
//!
//! A thread of its own follows four watches, each a [`course`] of requests; what they say goes through the [`store`] and
//! comes out as the same [`Change`]s that a directory of manifests gives. None of them is complete before all four kinds have been
//! listed once; what the server can not tell later changes nothing.

mod client;
mod connection;
mod course;
mod failure;
pub mod health;
mod object;
mod pause;
mod store;

use std::{sync::Arc, thread, time::Duration};

use futures::{
    Stream, StreamExt as _,
    stream::{BoxStream, SelectAll, select_all},
};
use kube::{Api, Client, runtime::watcher};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

pub use self::client::{Access, AccessError};
use self::{
    connection::Connection,
    course::{Course, Step},
    failure::Failure,
    health::Health,
    object::{Kind, Namespaces, Nodes, Pods, Policies, Raw},
    pause::Pauses,
    store::{Heard, Store, Which},
};
use super::{Change, parse::Node};

/// Changes are given out at most so often: a rush of them is one change.
const GATHER: Duration = Duration::from_millis(30);
/// For so long of it nothing is read: what comes waits in the socket and is read at one waking, where a waking for each event costs
/// more than the event. So long before the end that all of it is read by then.
const REST: Duration = Duration::from_millis(25);
/// What is heard within so long after a rest may have waited since its beginning; and where nothing was heard for so long, there is time for one.
const AT_ONCE: Duration = Duration::from_millis(2);
/// Strings that nobody uses any more are looked for so often.
const PURGE: Duration = Duration::from_secs(60);
/// A watch that has lived so long is answered, though nothing has come of it; failures before it are over.
const SOUND: Duration = Duration::from_secs(5);
/// A watch that has ended at its time is asked for again within so long: nodes that began together drift apart.
const RESUME: Duration = Duration::from_secs(1);

/// The changes of a cluster. The thread behind it ends when this is dropped.
pub struct Watcher {
    changes: mpsc::Receiver<(Change, Instant)>,
    health: Health,
    connection: Arc<Connection>,
    runtime: tokio::runtime::Handle,
}

impl Watcher {
    /// Begins to list and watch. The server may be away: then the first list waits for it.
    ///
    /// # Errors
    /// What is configured can not be used at all.
    pub fn start(access: &Access) -> anyhow::Result<Self> {
        let health = Health::new();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        let connection = runtime.block_on(Connection::new(access.clone(), health.clone()))?;
        let connection = Arc::new(connection);
        // One that waits, one that gathers.
        let (sender, changes) = mpsc::channel(1);
        let (watched, told) = (Arc::clone(&connection), health.clone());
        thread::Builder::new()
            .name("kubernetes".to_owned())
            .spawn(move || {
                let mut following = Following::new(&watched, told, sender);
                while runtime.block_on(following.until_idle()) {
                    thread::sleep(REST);
                }
            })?;
        Ok(Self {
            changes,
            health,
            connection,
            runtime: handle,
        })
    }

    /// The next change, and when the first of what is in it came; up to the first that is complete they are everything that was listed. `None` once the
    /// thread has ended.
    pub async fn next(&mut self) -> Option<(Change, Instant)> {
        self.changes.recv().await
    }

    /// How the watches fare.
    #[must_use]
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// The server's address.
    #[must_use]
    pub fn server(&self) -> &str {
        self.connection.server()
    }

    /// The connection, and the runtime on which it lives: for the few writes there are.
    #[must_use]
    pub fn client(&self) -> (Client, tokio::runtime::Handle) {
        (self.connection.client().clone(), self.runtime.clone())
    }
}

type Hearing = (Which, fn(&mut Store, Which, Heard), Heard);

/// All four watches, and what is known from them.
struct Following {
    store: Store,
    heard: SelectAll<BoxStream<'static, Hearing>>,
    health: Health,
    sender: mpsc::Sender<(Change, Instant)>,
    /// Whether all is listed.
    synced: bool,
    /// ... and whether that was said.
    told: bool,
    /// When the first of what is not given out yet came.
    since: Option<Instant>,
    /// When anything was given out last, which a rest follows, and when that was over.
    rest: (Instant, Instant),
    purge: Instant,
}

impl Following {
    fn new(connection: &Arc<Connection>, health: Health, sender: mpsc::Sender<(Change, Instant)>) -> Self {
        let heard = select_all([
            watch::<Namespaces>(connection, Which::Namespaces, &health).boxed(),
            watch::<Nodes>(connection, Which::Nodes, &health).boxed(),
            watch::<Policies>(connection, Which::Policies, &health).boxed(),
            watch::<Pods>(connection, Which::Pods, &health).boxed(),
        ]);
        Self {
            store: Store::default(),
            heard,
            health,
            sender,
            synced: false,
            told: false,
            since: None,
            rest: (Instant::now(), Instant::now()),
            purge: Instant::now() + PURGE,
        }
    }

    /// Follows until a change was given out and nothing more was to be read for a while; `false` once nobody listens.
    async fn until_idle(&mut self) -> bool {
        self.rest.1 = Instant::now();
        // When the last event came that was read since.
        let mut last = self.rest.1;
        loop {
            let next = match self.told {
                true => self.rest.0 + GATHER,
                false => self.rest.0,
            };
            tokio::select! {
                biased;
                permit = async { sleep_until(next).await; self.sender.reserve().await }, if self.is_due() => {
                    let Ok(permit) = permit else { return false };
                    permit.send((self.store.take(self.synced), self.since.take().unwrap_or_else(Instant::now)));
                    self.told = self.synced;
                    if self.synced {
                        self.rest.0 = Instant::now();
                        // A rush that goes on is read as fast as it comes, and a list as fast as it is answered.
                        if last.elapsed() >= AT_ONCE && !self.store.is_listing() {
                            return true;
                        }
                    }
                }
                Some((which, hear, what)) = self.heard.next() => {
                    last = Instant::now();
                    // Rather too long ago than too short.
                    let waited = last - self.rest.1 < AT_ONCE;
                    self.since.get_or_insert(if waited { self.rest.0 } else { last });
                    let done = matches!(what, Heard::InitDone);
                    hear(&mut self.store, which, what);
                    if done {
                        self.health.synced(which);
                        self.synced |= self.health.status().is_synced();
                    }
                }
                () = self.sender.closed() => return false,
                () = sleep_until(self.purge) => {
                    object::purge_strings();
                    self.purge = Instant::now() + PURGE;
                }
            }
        }
    }

    /// Whether there is something to give out.
    fn is_due(&self) -> bool {
        match self.synced {
            true => self.store.has_changed() || !self.told,
            false => self.store.is_much(),
        }
    }
}

/// What the watch of `K` says, for ever: after a failure it pauses and goes on where it was, if the server still knows.
fn watch<K: Kind>(
    connection: &Arc<Connection>,
    which: Which,
    health: &Health,
) -> impl Stream<Item = Hearing> + use<K> {
    let mut course = Course::<K>::new(Api::all(connection.client().clone()));
    let connection = Arc::clone(connection);
    let health = health.clone();
    async_stream::stream! {
        let hear: fn(&mut Store, Which, Heard) = Store::hear::<K>;
        let (mut pauses, mut recoveries) = (Pauses::new(), health.recoveries());
        // When the watch that is open will be sound.
        let mut sound = None::<Instant>;
        loop {
            let step = tokio::select! {
                biased;
                step = course.step() => step,
                () = async { sleep_until(sound.unwrap_or_else(Instant::now)).await }, if sound.is_some() => {
                    sound = None;
                    health.answered(which.plural());
                    pauses.reset();
                    continue;
                }
            };
            match step {
                Ok(Step::Opened) => sound = Some(Instant::now() + SOUND),
                Ok(Step::Bookmark | Step::Page) => health.answered(which.plural()),
                Ok(Step::Event(event)) => {
                    if !matches!(event, watcher::Event::Init) {
                        health.answered(which.plural());
                    }
                    if matches!(event, watcher::Event::InitDone) {
                        health.listed(which, course.way);
                    }
                    yield (which, hear, heard(event, which, &health));
                }
                Ok(Step::Ended) => {
                    sound = None;
                    sleep(RESUME.mul_f64(fastrand::f64())).await;
                }
                Err(broken) => {
                    sound = None;
                    yield (which, hear, Heard::Broken);
                    let refusal = health.take_refusal(which);
                    let broken = broken.or_refused(refusal);
                    let failure = Failure::of(&broken, which);
                    if failure.anew {
                        course.begin_anew();
                    }
                    if broken.refuses_streamed_lists() {
                        tracing::info!(why = failure.text, "the API server streams no lists: paged lists");
                        course.lists.refused();
                        continue;
                    }
                    health.failed(which, failure.kind, &failure.text);
                    if connection.renew().await || failure.kind == failure::EXPIRED {
                        // There is a reason why the next attempt may succeed.
                        pauses.reset();
                    }
                    match failure.wish.max(refusal.and_then(|refusal| refusal.wish)) {
                        Some(wish) => pauses.wait_for_wish(wish).await,
                        None => pauses.wait(&mut recoveries).await,
                    }
                }
            }
        }
    }
}

fn heard<K>(event: watcher::Event<Raw<K>>, which: Which, health: &Health) -> Heard {
    let node = |raw: Raw<K>, event| -> Node {
        health.count(which, event);
        raw.node
    };
    match event {
        watcher::Event::Init => Heard::Init,
        watcher::Event::InitApply(raw) => Heard::InitApply(node(raw, "list")),
        watcher::Event::InitDone => Heard::InitDone,
        watcher::Event::Apply(raw) => Heard::Apply(node(raw, "apply")),
        watcher::Event::Delete(raw) => Heard::Delete(node(raw, "delete")),
    }
}
