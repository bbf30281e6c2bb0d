//! The HTTP server.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use super::{Shared, metrics};
use crate::cli::BadInput;

/// Who has not asked within this time is hung up on.
const PATIENCE: Duration = Duration::from_secs(2);
/// Who has not taken the answer either, too: a scrape may be a megabyte over a slow line.
const LIFE: Duration = Duration::from_secs(15);
/// Connections at a time from one address: a scraper, or the kubelet's probes, need a few. Whoever fills them takes nobody
/// else's.
const OF_ONE: usize = 8;
/// Connections at a time. The node itself, whose kubelet probes, is served beside as many others.
const CONNECTIONS: usize = 256;
/// Scrapes within this time get the same text: a scrape walks tables.
const FRESH: Duration = Duration::from_secs(1);

/// Begins to serve; ends with the process.
pub(crate) fn start(address: SocketAddr, shared: Arc<Shared>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let listener = runtime.block_on(TcpListener::bind(address)).map_err(|error| {
        BadInput(format!(
            "--listen {address}: {error}; help: choose an address of this node and a port that is free"
        ))
    })?;
    tracing::info!(%address, "serving /metrics, /healthz and /readyz");
    thread::Builder::new()
        .name("http".to_owned())
        .spawn(move || runtime.block_on(serve(listener, shared)))?;
    Ok(())
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let places = Places::default();
    let scrapes = Scrapes::default();
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or the peer is gone already.
                tracing::debug!(%error, "accepting a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Hung up on at once rather than left to wait: who waits behind them may be a probe.
        let own = stream.local_addr().is_ok_and(|here| here.ip() == peer.ip());
        let Some(place) = places.take(peer.ip(), own) else {
            tracing::debug!(%peer, "too many connections");
            continue;
        };
        let (shared, scrapes) = (Arc::clone(&shared), scrapes.clone());
        drop(tokio::spawn(async move {
            let conversation = converse(stream, shared, scrapes);
            if tokio::time::timeout(LIFE, conversation).await.is_err() {
                tracing::debug!(%peer, "an HTTP connection took too long");
            }
            drop(place);
        }));
    }
}

/// Who is connected: how often, by address.
#[derive(Clone, Debug, Default)]
struct Places(Arc<Mutex<BTreeMap<IpAddr, usize>>>);

impl Places {
    /// `None` where all are taken, or all that one address gets; `own`: the peer is this node.
    fn take(&self, peer: IpAddr, own: bool) -> Option<Place> {
        let peer = peer.to_canonical();
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = taken.values().sum();
        let of_peer = taken.get(&peer).copied().unwrap_or(0);
        if of_peer >= OF_ONE || (all >= CONNECTIONS && !own) {
            return None;
        }
        taken.insert(peer, of_peer + 1);
        Some(Place(self.clone(), peer))
    }
}

/// One connection; ends when dropped.
#[derive(Debug)]
struct Place(Places, IpAddr);

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get_mut(&self.1) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(taken.remove(&self.1)),
        }
    }
}

/// The last scrape, and when it was made. Who holds it makes the next: there is one at a time.
#[derive(Clone, Debug, Default)]
struct Scrapes(Arc<tokio::sync::Mutex<Option<(Instant, Bytes)>>>);

impl Scrapes {
    /// On a thread of its own: a scrape walks the flow tables, and probes must not wait for it.
    async fn text(
        &self,
        scrape: impl FnOnce() -> anyhow::Result<String> + Send + 'static,
    ) -> anyhow::Result<Bytes> {
        let mut last = Arc::clone(&self.0).lock_owned().await;
        if let Some((made, text)) = &*last
            && made.elapsed() < FRESH
        {
            return Ok(text.clone());
        }
        // The lock goes along: the thread goes on where who has asked is hung up on.
        let made = tokio::task::spawn_blocking(move || {
            let text = Bytes::from(scrape()?);
            *last = Some((Instant::now(), text.clone()));
            Ok(text)
        });
        made.await?
    }
}

async fn converse(stream: TcpStream, shared: Arc<Shared>, scrapes: Scrapes) {
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let (shared, scrapes) = (Arc::clone(&shared), scrapes.clone());
        async move {
            let (method, path) = (request.method(), request.uri().path());
            Ok::<_, Infallible>(answer(method, path, &shared, &scrapes).await)
        }
    });
    let conversation = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        // A connection is a question: who keeps one keeps a place.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = conversation.await {
        tracing::debug!(%error, "an HTTP connection");
    }
}

fn scrape(shared: &Arc<Shared>) -> impl FnOnce() -> anyhow::Result<String> + Send + 'static {
    let shared = Arc::clone(shared);
    move || metrics::text(&shared)
}

async fn answer(
    method: &Method,
    path: &str,
    shared: &Arc<Shared>,
    scrapes: &Scrapes,
) -> Response<Full<Bytes>> {
    let plain = "text/plain; charset=utf-8";
    let state = |(well, text): (bool, String)| match well {
        true => (StatusCode::OK, plain, text.into()),
        false => (StatusCode::SERVICE_UNAVAILABLE, plain, text.into()),
    };
    let (status, kind, text) = match (method, path) {
        (&Method::GET | &Method::HEAD, "/metrics") => match scrapes.text(scrape(shared)).await {
            Ok(text) => (
                StatusCode::OK,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
                text,
            ),
            Err(error) => (
                StatusCode::INTERNAL_SERVER_ERROR,
                plain,
                format!("{error:#}\n").into(),
            ),
        },
        (&Method::GET | &Method::HEAD, "/healthz" | "/livez") => state(shared.is_healthy()),
        (&Method::GET | &Method::HEAD, "/readyz") => state(shared.is_ready()),
        (&Method::GET | &Method::HEAD, _) => (
            StatusCode::NOT_FOUND,
            plain,
            "there are /metrics, /healthz and /readyz\n".into(),
        ),
        _ => (
            StatusCode::METHOD_NOT_ALLOWED,
            plain,
            "only GET and HEAD\n".into(),
        ),
    };
    let mut response = Response::new(Full::new(text));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpStream,
        sync::mpsc,
    };

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};

    use super::*;
    use crate::datapath::object::Pins;

    fn serving() -> SocketAddr {
        let shared = Arc::new(Shared::new(Pins::new("/nonexistent"), "n1".to_owned(), None));
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
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
        receiver.recv().unwrap()
    }

    fn from(last: u8, to: SocketAddr) -> TcpStream {
        let stream = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
        let raw = std::os::fd::AsRawFd::as_raw_fd(&stream);
        bind(raw, &SockaddrIn::new(127, 0, 0, last, 0)).unwrap();
        connect(raw, &SockaddrIn::new(127, 0, 0, 1, to.port())).unwrap();
        TcpStream::from(stream)
    }

    /// What comes until the server hangs up.
    fn ask(mut stream: TcpStream, question: &str) -> String {
        let mut text = String::new();
        // Who is refused may see a reset.
        let _refused = stream.write_all(question.as_bytes());
        let _reset = stream.read_to_string(&mut text);
        text
    }

    #[test]
    fn who_fills_the_places_of_an_address_takes_nobody_elses() {
        const HEALTHZ: &str = "GET /healthz HTTP/1.1\r\nHost: n1\r\n\r\n";
        let address = serving();
        let idle: Vec<TcpStream> = (0..OF_ONE).map(|_| from(1, address)).collect();
        assert_eq!(ask(from(1, address), HEALTHZ), "");
        for _ in 0..3 {
            let text = ask(from(2, address), HEALTHZ);
            assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
        }
        // They are hung up on, and the places are free again.
        for stream in idle {
            ask(stream, "");
        }
        assert!(ask(from(1, address), HEALTHZ).starts_with("HTTP/1.1 200 OK"));
    }

    #[tokio::test]
    async fn a_scrape_that_nobody_waits_for_any_more_is_still_the_only_one() {
        let scrapes = Scrapes::default();
        let (begun, begins) = tokio::sync::oneshot::channel();
        let (end, ends) = mpsc::channel();
        let first = scrapes.clone();
        let first = tokio::spawn(async move {
            let scrape = move || {
                let _ = begun.send(());
                ends.recv()?;
                Ok("first".to_owned())
            };
            first.text(scrape).await
        });
        begins.await.unwrap();
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        let second = tokio::spawn(async move { scrapes.text(|| Ok("second".to_owned())).await });
        // It has come to where it waits.
        tokio::task::yield_now().await;
        end.send(()).unwrap();
        assert_eq!(second.await.unwrap().unwrap(), "first");
    }

    #[test]
    fn many_addresses_leave_a_place_for_the_node() {
        let places = Places::default();
        let others: Vec<Place> = (0..CONNECTIONS)
            .filter_map(|at| places.take(IpAddr::from([10, 0, (at / 250) as u8, (at % 250) as u8]), false))
            .collect();
        assert_eq!(others.len(), CONNECTIONS);
        let another = IpAddr::from([10, 1, 0, 0]);
        assert!(places.take(another, false).is_none());
        assert!(places.take(another, true).is_some());
        drop(others);
        assert!(places.take(another, false).is_some());
        assert!(places.0.lock().unwrap().is_empty());
    }
}
