//! A small API server of our own on loopback: lists, pages, streamed lists and watches over versions, as the API's concepts
//! page has them, and every way to fail that a real one shows once a year.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Bytes, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tokio_rustls::TlsAcceptor;

/// How it behaves for one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Well.
    #[default]
    Well,
    /// Answers this code to everything, and ends watches.
    Refuses(u16),
    /// Answers 429, asks by a header for so many seconds of rest, and ends watches.
    Rests(u16),
    /// Answers 503, asks by the body for so many seconds of rest, and ends watches.
    RestsByBody(u16),
    /// Ends every watch after a few events.
    Closes,
    /// Answers every watch, and ends it at once.
    ClosesAtOnce,
    /// Ends every streamed list after its second object.
    CutsLists,
    /// Sends a line that is no JSON in every watch, once.
    Babbles,
    /// Its database is away: it answers 500, to streamed lists within the stream.
    HasNoData,
}

/// plural → name → object
pub(crate) type Objects = BTreeMap<String, BTreeMap<String, Value>>;

#[derive(Default)]
struct Store {
    version: u64,
    /// Events older than this are forgotten.
    compacted: u64,
    objects: Objects,
    /// What streamed lists of any version are answered with, and its version.
    cache: Option<(u64, Objects)>,
    /// version, plural, event
    log: Vec<(u64, String, Value)>,
    moods: BTreeMap<String, Mood>,
    streams: bool,
    /// Whom it lets in; anybody where this is `None`.
    tls: Option<TlsAcceptor>,
    /// Cuts all connections.
    cut: watch::Sender<()>,
    /// What was asked, without the values of parameters that vary.
    asked: Vec<String>,
}

/// The server; ends with the test's process.
#[derive(Clone)]
pub(crate) struct Server {
    store: Arc<Mutex<Store>>,
    pub(crate) address: SocketAddr,
}

type Body = BoxBody<Bytes, Infallible>;

impl Server {
    /// `streams`: whether it serves streamed lists.
    pub(crate) fn start(streams: bool) -> Self {
        let store = Arc::new(Mutex::new(Store {
            version: 1,
            streams,
            ..Store::default()
        }));
        let (sender, receiver) = std::sync::mpsc::channel();
        let shared = Arc::clone(&store);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                sender.send(listener.local_addr().unwrap()).unwrap();
                serve(listener, shared).await;
            });
        });
        Self {
            store,
            address: receiver.recv().unwrap(),
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Store) -> T) -> T {
        act(&mut self.store.lock().unwrap())
    }

    /// Puts an object; `name` is its key, with its namespace where it has one.
    pub(crate) fn put(&self, plural: &str, name: &str, mut object: Value) {
        self.with(|store| {
            store.version += 1;
            object["metadata"]["resourceVersion"] = json!(store.version.to_string());
            let objects = store.objects.entry(plural.to_owned()).or_default();
            let kind = if objects.insert(name.to_owned(), object.clone()).is_some() {
                "MODIFIED"
            } else {
                "ADDED"
            };
            let event = json!({"type": kind, "object": object});
            store.log.push((store.version, plural.to_owned(), event));
        });
    }

    /// Removes an object.
    pub(crate) fn delete(&self, plural: &str, name: &str) {
        self.with(|store| {
            store.version += 1;
            let mut object = store.objects.get_mut(plural).unwrap().remove(name).unwrap();
            object["metadata"]["resourceVersion"] = json!(store.version.to_string());
            let event = json!({"type": "DELETED", "object": object});
            store.log.push((store.version, plural.to_owned(), event));
        });
    }

    /// Forgets what has happened so far, as etcd's compaction does: watches from before can not go on.
    pub(crate) fn compact(&self) {
        self.with(|store| {
            store.compacted = store.version;
            store.log.clear();
        });
    }

    /// From now on the cache from which lists of any version come gets nothing new, as that of one of several servers may.
    pub(crate) fn lag(&self) {
        let now = self.backup();
        self.with(|store| store.cache = Some(now));
    }

    /// What is there, to come back to.
    pub(crate) fn backup(&self) -> (u64, Objects) {
        self.with(|store| (store.version, store.objects.clone()))
    }

    /// What has happened since the backup has not; the process is a new one.
    pub(crate) fn restore(&self, (version, objects): (u64, Objects)) {
        self.with(|store| {
            store.log.retain(|(at, ..)| *at <= version);
            (store.version, store.objects) = (version, objects);
            store.cut.send_replace(());
        });
    }

    /// From now on lets in only whom `tls` does; who is in must come again.
    pub(crate) fn let_in(&self, tls: TlsAcceptor) {
        self.with(|store| {
            store.tls = Some(tls);
            store.cut.send_replace(());
        });
    }

    pub(crate) fn mood(&self, plural: &str, mood: Mood) {
        self.with(|store| {
            store.moods.insert(plural.to_owned(), mood);
        });
    }

    /// How often something was asked for whose path and query hold all of `words`.
    pub(crate) fn asked(&self, words: &[&str]) -> usize {
        self.with(|store| {
            let holds = |asked: &&String| words.iter().all(|word| asked.contains(word));
            store.asked.iter().filter(holds).count()
        })
    }
}

async fn serve(listener: TcpListener, store: Arc<Mutex<Store>>) {
    let (mut connections, mut cut) = (JoinSet::new(), store.lock().unwrap().cut.subscribe());
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted.unwrap().0,
            changed = cut.changed() => {
                changed.unwrap();
                connections.abort_all();
                continue;
            }
        };
        let tls = store.lock().unwrap().tls.clone();
        let store = Arc::clone(&store);
        let service = service_fn(move |request| answer(Arc::clone(&store), request));
        connections.spawn(async move {
            let http = http1::Builder::new();
            // Who is not let in, or goes, is no failure of a test.
            match tls {
                None => drop(http.serve_connection(TokioIo::new(stream), service).await),
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        drop(http.serve_connection(TokioIo::new(stream), service).await);
                    }
                }
            }
        });
    }
}

fn whole(status: u16, value: &Value) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())).boxed());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

fn failure(code: u16, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message, "reason": "Test"})
}

async fn answer(store: Arc<Mutex<Store>>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let plural = request.uri().path().rsplit('/').next().unwrap().to_owned();
    let query: BTreeMap<String, String> = request
        .uri()
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|part| part.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let (mood, streams) = {
        let mut store = store.lock().unwrap();
        store.asked.push(request.uri().to_string());
        (
            store.moods.get(&plural).copied().unwrap_or_default(),
            store.streams,
        )
    };
    if let Mood::Refuses(code) = mood {
        return Ok(whole(code, &failure(code, &format!("{plural}: not now"))));
    }
    if let Mood::Rests(seconds) = mood {
        let mut response = Response::new(Full::new(Bytes::from_static(b"Too many requests")).boxed());
        *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
        response.headers_mut().insert("retry-after", seconds.into());
        return Ok(response);
    }
    if let Mood::RestsByBody(seconds) = mood {
        let mut status = failure(503, "not now");
        status["details"] = json!({"retryAfterSeconds": seconds});
        return Ok(whole(503, &status));
    }
    if mood == Mood::HasNoData && !query.contains_key("watch") {
        return Ok(whole(500, &failure(500, "no leader")));
    }
    if !query.contains_key("watch") {
        return Ok(whole(200, &list(&store.lock().unwrap(), &plural, &query)));
    }
    let initial = query
        .get("sendInitialEvents")
        .is_some_and(|value| value == "true");
    if initial && !streams {
        return Ok(whole(
            422,
            &failure(
                422,
                "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
            ),
        ));
    }
    let from = query.get("resourceVersion").and_then(|text| text.parse().ok());
    Ok(Response::new(follow(store, plural, from, initial)))
}

/// Pages of two, whatever is asked for.
fn list(store: &Store, plural: &str, query: &BTreeMap<String, String>) -> Value {
    let skip: usize = query
        .get("continue")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let empty = BTreeMap::new();
    let all = store.objects.get(plural).unwrap_or(&empty);
    let items: Vec<&Value> = all.values().skip(skip).take(2).collect();
    let next = if skip + items.len() < all.len() {
        (skip + items.len()).to_string()
    } else {
        String::new()
    };
    json!({"kind": "List", "apiVersion": "v1", "items": items,
           "metadata": {"resourceVersion": store.version.to_string(), "continue": next}})
}

/// `from`: 0 is any version, `None` the newest.
fn follow(store: Arc<Mutex<Store>>, plural: String, from: Option<u64>, initial: bool) -> Body {
    let stream = async_stream::stream! {
        let any = from == Some(0);
        let mut from = from.unwrap_or(0);
        let line = |value: &Value| Ok::<_, Infallible>(Frame::data(Bytes::from(format!("{value}\n"))));
        if initial {
            let mood = store.lock().unwrap().moods.get(&plural).copied().unwrap_or_default();
            if mood == Mood::HasNoData {
                yield line(&json!({"type": "ERROR", "object": failure(500, "no leader")}));
                return;
            }
            let (objects, version) = {
                let store = store.lock().unwrap();
                let cache = store.cache.as_ref().filter(|_| any);
                let (version, objects) = cache.map_or((store.version, &store.objects), |(version, objects)| (*version, objects));
                (objects.get(&plural).cloned().unwrap_or_default(), version)
            };
            for (at, object) in objects.values().enumerate() {
                if mood == Mood::CutsLists && at == 2 {
                    return;
                }
                yield line(&json!({"type": "ADDED", "object": object}));
            }
            yield line(&json!({"type": "BOOKMARK", "object": {"kind": "X", "apiVersion": "v1", "metadata": {
                "resourceVersion": version.to_string(), "annotations": {"k8s.io/initial-events-end": "true"}}}}));
            from = version;
        }
        let mut given = 0;
        loop {
            let (events, mood, expired) = {
                let mut store = store.lock().unwrap();
                let fresh = store.log.iter().filter(|(version, of, _)| *version > from && *of == plural);
                let events: Vec<(u64, Value)> = fresh.map(|(version, _, event)| (*version, event.clone())).collect();
                let mood = store.moods.get(&plural).copied().unwrap_or_default();
                if mood == Mood::Babbles {
                    store.moods.insert(plural.clone(), Mood::Well);
                }
                (events, mood, from < store.compacted)
            };
            match mood {
                Mood::Refuses(_) | Mood::ClosesAtOnce | Mood::Rests(_) | Mood::RestsByBody(_) | Mood::HasNoData => return,
                Mood::Babbles => yield Ok(Frame::data(Bytes::from_static(b"{\"type\": \"MODIFIED\", \"object\": {{{\n"))),
                Mood::Well | Mood::Closes | Mood::CutsLists => {}
            }
            if expired {
                yield line(&json!({"type": "ERROR", "object": failure(410, "too old resource version")}));
                return;
            }
            for (version, event) in events {
                from = version;
                given += 1;
                yield line(&event);
                if mood == Mood::Closes && given == 2 {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    BodyExt::boxed(StreamBody::new(stream))
}
