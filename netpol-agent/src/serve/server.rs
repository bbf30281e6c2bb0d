//! The HTTP server.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, thread, time::Duration};

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use super::{Shared, metrics};
use crate::cli::BadInput;

/// Who does not ask within this time is hung up on.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections at a time: a scraper and probes need a few.
const CONNECTIONS: usize = 32;

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
    let places = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, or the peer is gone already.
                tracing::debug!(%error, "accepting a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let shared = Arc::clone(&shared);
        drop(tokio::spawn(async move {
            converse(stream, shared).await;
            drop(place);
        }));
    }
}

async fn converse(stream: TcpStream, shared: Arc<Shared>) {
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let response = answer(request.method(), request.uri().path(), &shared);
        async move { Ok::<_, Infallible>(response) }
    });
    let conversation = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = conversation.await {
        tracing::debug!(%error, "an HTTP connection");
    }
}

fn answer(method: &Method, path: &str, shared: &Shared) -> Response<Full<Bytes>> {
    let plain = "text/plain; charset=utf-8";
    let state = |(well, text): (bool, String)| match well {
        true => (StatusCode::OK, plain, text),
        false => (StatusCode::SERVICE_UNAVAILABLE, plain, text),
    };
    let (status, kind, text) = match (method, path) {
        (&Method::GET | &Method::HEAD, "/metrics") => match metrics::text(shared) {
            Ok(text) => (
                StatusCode::OK,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
                text,
            ),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, plain, format!("{error:#}\n")),
        },
        (&Method::GET | &Method::HEAD, "/healthz" | "/livez") => state(shared.is_healthy()),
        (&Method::GET | &Method::HEAD, "/readyz") => state(shared.is_ready()),
        (&Method::GET | &Method::HEAD, _) => (
            StatusCode::NOT_FOUND,
            plain,
            "there are /metrics, /healthz and /readyz\n".to_owned(),
        ),
        _ => (
            StatusCode::METHOD_NOT_ALLOWED,
            plain,
            "only GET and HEAD\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}
