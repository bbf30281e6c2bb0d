//! The requests of one watch: a list, then watches from where it ended, each told apart by how it ends.
//!
//! kube's `watcher` hides how a stream ends: it begins a streamed list that was cut off again as if it went on, and asks
//! again at once where a server closes. So the requests are kube's, and their order is ours.

use std::time::Duration;

use futures::{StreamExt as _, stream::BoxStream};
use kube::{
    Api, Error, ResourceExt as _,
    api::{ListParams, WatchEvent, WatchParams},
    core::Status,
    runtime::watcher::Event,
};
use tokio::time::{Instant, timeout_at};

use super::{
    health::Refusal,
    object::{Kind, Raw},
};

/// Objects of a page.
const PAGE: u32 = 500;
/// A server that ends a watch at the time that was asked for does it within so long before or after.
const MARGIN: Duration = Duration::from_secs(5);
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

/// Why a request brings nothing more.
#[derive(Debug)]
pub(super) enum Broken {
    /// Of a list.
    List(Error),
    /// Of a watch; `listing` where it streamed a list.
    Watch { error: Error, listing: bool },
    /// The server refused a watch.
    Refused { status: Box<Status>, listing: bool },
    /// The server said it within a watch.
    Told { status: Box<Status>, listing: bool },
    /// An object or a list has no version to go on from.
    NoVersion,
    /// The watch ended before its time, or before the list in it was complete.
    Early { lived: Duration, listing: bool },
}

impl Broken {
    /// Whether this server streams no lists: before Kubernetes 1.32, with etcd before 3.4.31 or 3.5.13, or switched off. It
    /// says so by 400 or 422, or by 500 within the stream. Anything else may pass.
    pub(super) fn refuses_streamed_lists(&self) -> bool {
        match self {
            Self::Refused {
                status,
                listing: true,
            } => matches!(status.code, 400 | 422),
            Self::Told {
                status,
                listing: true,
            } => matches!(status.code, 400 | 422 | 500),
            _ => false,
        }
    }

    /// The same, where the answer's head was that of a refusal: what is no `Status` was not meant as an event.
    pub(super) fn or_refused(self, refusal: Option<Refusal>) -> Self {
        let Some(Refusal { code, .. }) = refusal else {
            return self;
        };
        match self {
            Self::Watch {
                error: Error::SerdeError(_),
                listing,
            }
            | Self::Early { listing, .. } => Self::Refused {
                status: Status::failure("no reason given", "").with_code(code).boxed(),
                listing,
            },
            other => other,
        }
    }
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
    /// A watch goes on.
    Open(Open<K>),
}

struct Open<K> {
    stream: BoxStream<'static, kube::Result<WatchEvent<Raw<K>>>>,
    /// Where to go on; `None` until the list is complete.
    version: Option<String>,
    since: Instant,
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
            State::Open(open) => open.next().await,
        };
        if !matches!(result, Ok(Step::Ended) | Err(_)) {
            return result;
        }
        self.state = match std::mem::replace(&mut self.state, State::Begin) {
            State::Watch(Some(version))
            | State::Open(Open {
                version: Some(version),
                ..
            }) => State::Watch(Some(version)),
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
        let list = self.api.list(&params).await.map_err(Broken::List)?;
        *version = list.metadata.resource_version.filter(|text| !text.is_empty());
        *token = list.metadata.continue_.filter(|text| !text.is_empty());
        if version.is_none() && token.is_none() {
            return Err(Broken::NoVersion);
        }
        *items = list.items.into_iter();
        Ok(Step::Page)
    }

    async fn open(&mut self, version: Option<String>) -> Result<Step<K>, Broken> {
        let listing = version.is_none();
        // A server ends every watch after that time; nodes that began together must not all come back together.
        let seconds = fastrand::u32(180..290);
        let mut params = WatchParams::default().timeout(seconds);
        if listing {
            params = params.initial_events();
        }
        // Without a version a list is as new as etcd, as pages are; version 0 is whatever this server's cache has, which may be
        // older than what another server has told before.
        let stream = self
            .api
            .watch(&params, version.as_deref().unwrap_or_default())
            .await;
        let stream = stream.map_err(|error| match error {
            Error::Api(status) => Broken::Refused { status, listing },
            error => Broken::Watch { error, listing },
        })?;
        self.state = State::Open(Open {
            stream: stream.boxed(),
            version,
            since: Instant::now(),
            asked: Duration::from_secs(seconds.into()),
        });
        Ok(Step::Opened)
    }
}

impl<K: Kind> Open<K> {
    async fn next(&mut self) -> Result<Step<K>, Broken> {
        let listing = self.version.is_none();
        // Where the server's end does not arrive, this is it.
        let end = self.since + self.asked + MARGIN;
        let Ok(Some(next)) = timeout_at(end, self.stream.next()).await else {
            return ended(self.since.elapsed(), self.asked, listing);
        };
        Ok(Step::Event(match next {
            Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) if listing => {
                Event::InitApply(object)
            }
            Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                self.goes_on_from(&object)?;
                Event::Apply(object)
            }
            Ok(WatchEvent::Deleted(object)) => {
                if !listing {
                    self.goes_on_from(&object)?;
                }
                Event::Delete(object)
            }
            Ok(WatchEvent::Bookmark(mark)) => {
                let done = mark.metadata.annotations.contains_key(LIST_END);
                if done || !listing {
                    self.version = Some(mark.metadata.resource_version);
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

    fn goes_on_from(&mut self, object: &Raw<K>) -> Result<(), Broken> {
        let version = object.resource_version().filter(|text| !text.is_empty());
        self.version = Some(version.ok_or(Broken::NoVersion)?);
        Ok(())
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
mod tests {
    use super::*;
    use crate::source::kubernetes::object::Pods;

    #[test]
    fn a_watch_ends_at_its_time_or_early() {
        let is_early = |lived, listing| {
            let end = ended::<Pods>(Duration::from_secs(lived), Duration::from_secs(200), listing);
            end.is_err()
        };
        assert_eq!(
            [(0, false), (190, false), (196, false), (200, true)]
                .map(|(lived, listing)| is_early(lived, listing)),
            [true, true, false, true]
        );
    }

    #[test]
    fn only_what_says_so_means_that_no_lists_are_streamed() {
        let status = |code| Status::failure("m", "").with_code(code).boxed();
        let watch = |code, listing| {
            let status = status(code);
            Broken::Refused { status, listing }.refuses_streamed_lists()
        };
        let told = |code, listing| {
            let status = status(code);
            Broken::Told { status, listing }.refuses_streamed_lists()
        };
        assert_eq!(
            [400, 422, 500, 503, 404, 429].map(|code| watch(code, true)),
            [true, true, false, false, false, false]
        );
        assert_eq!([422, 500, 503].map(|code| told(code, true)), [true, true, false]);
        assert!(!watch(422, false) && !told(500, false));
    }

    #[tokio::test(start_paused = true)]
    async fn streamed_lists_are_asked_for_again() {
        let mut lists = Lists::default();
        assert_eq!(lists.way(), Way::Streamed);
        lists.refused();
        assert_eq!(lists.way(), Way::Paged);
        tokio::time::advance(PAGED).await;
        assert_eq!(lists.way(), Way::Streamed);
    }
}
