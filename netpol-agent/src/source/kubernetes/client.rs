//! The connection to the API server: where it is, and what its answers say about it.

use std::{
    path::PathBuf,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response, header::RETRY_AFTER};
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt as _;
use kube::{
    Client, Config,
    client::{Body, ClientBuilder},
    config::{KubeConfigOptions, Kubeconfig},
};
use tower::{BoxError, Layer, Service};

use super::{
    failure::is_busy,
    health::{Health, Refusal},
};

/// An answer, or the next piece of one, takes no longer.
const READ_TIMEOUT: Duration = Duration::from_secs(100);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Which API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// The cluster that this process is a pod of.
    InCluster,
    /// A kubeconfig file, and the context to use of it (`None`: its current one).
    File(PathBuf, Option<String>),
}

/// Why there can be no connection at all.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// This process is no pod.
    #[error(
        "this is not a pod of a cluster ({0}); help: name a kubeconfig file with --kubeconfig, or a directory of manifests with --manifests"
    )]
    NotInCluster(kube::config::InClusterError),
    /// The file can not be used.
    #[error("kubeconfig {}: {error}; help: {help}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: kube::config::KubeconfigError,
        /// What to do.
        help: &'static str,
    },
    /// It names another server than when it was read first.
    #[error("the kubeconfig names the API server at {to} now; help: restart the agent to leave {from}")]
    Moved {
        /// The first one's address.
        from: String,
        /// The other one's.
        to: String,
    },
    /// No client can be made of what is configured.
    #[error(
        "the connection to the API server at {server}: {error}; help: correct certificates and credentials"
    )]
    Client {
        /// Its address.
        server: String,
        /// Why.
        error: Box<kube::Error>,
    },
}

impl Access {
    /// What is configured; nothing is asked of a server.
    ///
    /// # Errors
    /// The configuration is missing or can not be used.
    pub async fn config(&self) -> Result<Config, AccessError> {
        let mut config = match self {
            Self::InCluster => Config::incluster().map_err(AccessError::NotInCluster)?,
            Self::File(path, context) => {
                let help = "name a file that exists, with a current context, or choose one with --context";
                let failed = |error| AccessError::File {
                    path: path.clone(),
                    error,
                    help,
                };
                let options = KubeConfigOptions {
                    context: context.clone(),
                    ..KubeConfigOptions::default()
                };
                let file = Kubeconfig::read_from(path).map_err(failed)?;
                Config::from_custom_kubeconfig(file, &options)
                    .await
                    .map_err(failed)?
            }
        };
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.read_timeout = Some(READ_TIMEOUT);
        // Our own pauses are longer, have more chance in them, and are seen in the metrics.
        config.default_retry = false;
        Ok(config)
    }
}

/// A client whose answers `health` hears of.
///
/// # Errors
/// Certificates or credentials can not be used.
pub(super) fn direct(config: Config, health: Health) -> Result<Client, AccessError> {
    let server = config.cluster_url.to_string();
    let builder = ClientBuilder::try_from(config).map_err(|error| AccessError::Client {
        server,
        error: Box::new(error),
    })?;
    Ok(builder.with_layer(&Observe(health)).build())
}

/// What the head of an answer says; a server too busy to make a `Status` says nothing else.
fn refusal<B>(answer: &Response<B>) -> Option<Refusal> {
    let code = answer.status().as_u16();
    let seconds = || {
        answer
            .headers()
            .get(RETRY_AFTER)?
            .to_str()
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    let wish = if is_busy(code) { seconds() } else { None };
    (!answer.status().is_success()).then(|| Refusal {
        code,
        wish: wish.map(Duration::from_secs),
    })
}

/// Tells of refusals, and of the bytes of every answer.
#[derive(Clone, Debug)]
struct Observe(Health);

impl<S> Layer<S> for Observe {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Observed<S> {
        Observed {
            inner,
            health: self.0.clone(),
        }
    }
}

#[derive(Clone, Debug)]
struct Observed<S> {
    inner: S,
    health: Health,
}

type Answer = Response<Box<dyn HttpBody<Data = bytes::Bytes, Error = BoxError> + Send + Unpin>>;

impl<S, B> Service<Request<Body>> for Observed<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    B: HttpBody<Data = bytes::Bytes, Error = BoxError> + Send + Unpin + 'static,
{
    type Response = Answer;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // Only whole collections are asked for: the path ends in the plural of their kind.
        let plural = request
            .uri()
            .path()
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .to_owned();
        let health = self.health.clone();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            health.replied(&plural, refusal(&answer));
            Ok(
                answer.map(|body| -> Box<dyn HttpBody<Data = _, Error = _> + Send + Unpin> {
                    Box::new(body.map_frame(move |frame: Frame<bytes::Bytes>| {
                        if let Some(data) = frame.data_ref() {
                            health.received(&plural, data.len());
                        }
                        frame
                    }))
                }),
            )
        })
    }
}
