//! The requests of one watch: a list, then watches from where it ended, each told apart by how it ends.
//!
//! kube's `watcher` hides how a stream ends: it begins a streamed list that was cut off again as if it went on, and asks
//! again at once where a server closes. So the requests are kube's, and their order is ours.

use std::time::Duration;

use futures::{StreamExt as _, stream::BoxStream};
use kube::{
    Api, Error, ResourceExt as _,
    api::{ListParams, WatchEvent, WatchParams},
    runtime::watcher::Event,
};
use tokio::time::{Instant, timeout_at};

use super::{
    failure::Broken,
    object::{Kind, Raw},
};

/// Objects of a page.
const PAGE: u32 = 500;
/// A server that ends a watch at the time that was asked for does it within so long before or after.
const MARGIN: Duration = Duration::from_secs(5);
/// A watch that says nothing for so long is asked for again. Servers send a bookmark about once a minute, but none of a version that a watch
/// has begun at, and a kind that nobody changes may have no later one for ten minutes. So silence is no failure, but who cut the connection may have
/// told nobody. Less than what the client waits for an answer.
const QUIET: Duration = Duration::from_secs(90);
/// What marks the end of a streamed list.
const LIST_END: &str = "k8s.io/initial-events-end";
/// A server that streamed no list is asked again after so long: it may have been upgraded.
const PAGED: Duration = Duration::from_secs(3600);

/// What a request has brought.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are events, and none is kept"
)]
pub(super) enum Step<K> {
    /// An object, or where a list begins and ends.
    Event(Event<Raw<K>>),
    /// The server goes on with a watch that has nothing to tell.
    Bookmark,
    /// A page of a list was answered.
    Page,
    /// A watch was answered; nothing of it has come yet.
    Opened,
    /// A watch has ended at its time.
    Ended,
}

/// How a list came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// As the beginning of a watch.
    Streamed,
    /// In pages.
    Paged,
}

impl Way {
    /// For metrics.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Streamed => "streamed",
            Self::Paged => "paged",
        }
    }
}

/// How lists are asked for.
#[derive(Debug, Default)]
pub(super) struct Lists {
    refused: Option<Instant>,
}

impl Lists {
    /// How the next is asked for.
    pub(super) fn way(&self) -> Way {
        match self.refused.is_none_or(|then| then.elapsed() >= PAGED) {
            true => Way::Streamed,
            false => Way::Paged,
        }
    }

    /// The server streams none.
    pub(super) fn refused(&mut self) {
        self.refused = Some(Instant::now());
    }
}

enum State<K> {
    /// Nothing is known.
    Begin,
    /// Pages are asked for; the last one is being given out.
    Pages {
        token: Option<String>,
        version: Option<String>,
        items: std::vec::IntoIter<Raw<K>>,
    },
    /// A watch is asked for; without a version, one that streams the list first.
    Watch(Option<String>),
    /// The same, after a failure.
    Resume(String),
    /// A watch goes on.
    Open(Open<K>),
}

struct Open<K> {
    stream: BoxStream<'static, kube::Result<WatchEvent<Raw<K>>>>,
    /// Where to go on; `None` until the list is complete.
    version: Option<String>,
    since: Instant,
    /// When it said something.
    heard: Instant,
    /// How long the server was asked to go on.
    asked: Duration,
}

/// The requests for the objects of `K`.
pub(super) struct Course<K> {
    api: Api<Raw<K>>,
    state: State<K>,
    pub(super) lists: Lists,
    /// Of the list that was begun last.
    pub(super) way: Way,
}

impl<K: Kind> Course<K> {
    pub(super) fn new(api: Api<Raw<K>>) -> Self {
        Self {
            api,
            state: State::Begin,
            lists: Lists::default(),
            way: Way::Streamed,
        }
    }

    /// Forgets where it was: the next step begins a list.
    pub(super) fn begin_anew(&mut self) {
        self.state = State::Begin;
    }

    /// The next step. After a failure the one after it goes on where this was, or begins anew where a list was under way.
    /// A step after [`Step::Opened`] can be dropped and loses nothing.
    pub(super) async fn step(&mut self) -> Result<Step<K>, Broken> {
        let result = match &mut self.state {
            State::Begin => {
                self.way = self.lists.way();
                self.state = match self.way {
                    Way::Streamed => State::Watch(None),
                    Way::Paged => State::Pages {
                        token: None,
                        version: None,
                        items: Vec::new().into_iter(),
                    },
                };
                return Ok(Step::Event(Event::Init));
            }
            State::Pages { .. } => self.page().await,
            State::Watch(version) => {
                let version = version.clone();
                self.open(version).await
            }
            State::Resume(version) => {
                let version = version.clone();
                self.resume(version).await
            }
            State::Open(open) => open.next().await,
        };
        if !matches!(result, Ok(Step::Ended) | Err(_)) {
            return result;
        }
        self.state = match std::mem::replace(&mut self.state, State::Begin) {
            State::Watch(Some(version))
            | State::Resume(version)
            | State::Open(Open {
                version: Some(version),
                ..
            }) => match result {
                Ok(_) => State::Watch(Some(version)),
                Err(_) => State::Resume(version),
            },
            _ => State::Begin,
        };
        result
    }

    /// The next object of a page, or the next page.
    async fn page(&mut self) -> Result<Step<K>, Broken> {
        let State::Pages {
            token,
            version,
            items,
        } = &mut self.state
        else {
            return Err(Broken::NoVersion);
        };
        if let Some(item) = items.next() {
            return Ok(Step::Event(Event::InitApply(item)));
        }
        if token.is_none() && version.is_some() {
            self.state = State::Watch(version.take());
            return Ok(Step::Event(Event::InitDone));
        }
        let params = ListParams {
            limit: Some(PAGE),
            continue_token: token.take(),
            ..ListParams::default()
        };
        let list = match self.api.list(&params).await {
            Ok(list) => list,
            Err(error) => {
                // Perhaps its database is away, which sounds like one that can't stream: only pages that are served tell.
                self.lists = Lists::default();
                return Err(Broken::List(error));
            }
        };
        *version = list.metadata.resource_version.filter(|text| !text.is_empty());
        *token = list.metadata.continue_.filter(|text| !text.is_empty());
        if version.is_none() && token.is_none() {
            return Err(Broken::NoVersion);
        }
        *items = list.items.into_iter();
        Ok(Step::Page)
    }

    /// Goes on where this was, unless the server is not that far: since we have heard of it, a backup of its database was restored. To
    /// a watch it would say nothing until it is there, and what differs never.
    async fn resume(&mut self, version: String) -> Result<Step<K>, Broken> {
        let params = ListParams::default().limit(1);
        let list = self.api.list(&params).await.map_err(Broken::List)?;
        goes_on(
            &version,
            list.metadata.resource_version.as_deref().unwrap_or_default(),
        )?;
        self.open(Some(version)).await
    }

    async fn open(&mut self, version: Option<String>) -> Result<Step<K>, Broken> {
        let listing = version.is_none();
        // A server ends every watch after that time; nodes that began together must not all come back together.
        let seconds = fastrand::u32(180..290);
        let mut params = WatchParams::default().timeout(seconds);
        if listing {
            params = params.initial_events();
        }
        // Empty means the newest. A list of "0", of any version, can be older than what we have been told: a server's cache may lag
        // behind another server's, and a policy that such a list lacks would be taken out of force.
        let from = version.as_deref().unwrap_or_default();
        let stream = self.api.watch(&params, from).await;
        let stream = stream.map_err(|error| match error {
            Error::Api(status) => Broken::Refused { status, listing },
            error => Broken::Watch { error, listing },
        })?;
        self.state = State::Open(Open {
            stream: stream.boxed(),
            version,
            since: Instant::now(),
            heard: Instant::now(),
            asked: Duration::from_secs(seconds.into()),
        });
        Ok(Step::Opened)
    }
}

impl<K: Kind> Open<K> {
    async fn next(&mut self) -> Result<Step<K>, Broken> {
        let listing = self.version.is_none();
        // Where the server's end does not arrive, this is it.
        let mut end = self.since + self.asked + MARGIN;
        if !listing {
            end = end.min(self.heard + QUIET);
        }
        let next = match timeout_at(end, self.stream.next()).await {
            Ok(Some(next)) => next,
            Err(_) if !listing => return Ok(Step::Ended),
            _ => return ended(self.since.elapsed(), self.asked, listing),
        };
        self.heard = Instant::now();
        Ok(Step::Event(match next {
            Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) if listing => {
                Event::InitApply(object)
            }
            Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                self.goes_on_from(object.resource_version())?;
                Event::Apply(object)
            }
            Ok(WatchEvent::Deleted(object)) => {
                if !listing {
                    self.goes_on_from(object.resource_version())?;
                }
                Event::Delete(object)
            }
            Ok(WatchEvent::Bookmark(mark)) => {
                let done = mark.metadata.annotations.contains_key(LIST_END);
                if done || !listing {
                    self.goes_on_from(Some(mark.metadata.resource_version))?;
                }
                if !(done && listing) {
                    return Ok(Step::Bookmark);
                }
                Event::InitDone
            }
            Ok(WatchEvent::Error(status)) => {
                return Err(Broken::Told { status, listing });
            }
            // kube gives out what was answered instead of a stream as a part of it.
            Err(Error::Api(status)) => return Err(Broken::Refused { status, listing }),
            Err(error) => return Err(Broken::Watch { error, listing }),
        }))
    }

    fn goes_on_from(&mut self, version: Option<String>) -> Result<(), Broken> {
        let version = version.filter(|text| !text.is_empty()).ok_or(Broken::NoVersion)?;
        if let Some(ours) = &self.version {
            goes_on(ours, &version)?;
        }
        self.version = Some(version);
        Ok(())
    }
}

/// Versions are numbers that grow; what is no number is not compared.
fn goes_on(ours: &str, theirs: &str) -> Result<(), Broken> {
    match (ours.parse::<u64>(), theirs.parse::<u64>()) {
        (Ok(ours), Ok(theirs)) if theirs < ours => Err(Broken::Back { ours, theirs }),
        _ => Ok(()),
    }
}

/// What the end of a watch means that has `lived` so long.
fn ended<K>(lived: Duration, asked: Duration, listing: bool) -> Result<Step<K>, Broken> {
    match !listing && lived + MARGIN >= asked {
        true => Ok(Step::Ended),
        false => Err(Broken::Early { lived, listing }),
    }
}

#[cfg(test)]
#[path = "course_tests.rs"]
mod tests;
