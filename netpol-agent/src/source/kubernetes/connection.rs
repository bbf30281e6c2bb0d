//! The connection to the API server, made again where what it was made of has changed.
//!
//! In a pod kube itself reads the service account's token and the authority's certificate again, each minute. What a kubeconfig
//! names it reads once; certificates are replaced more often than agents are restarted.

use std::{
    fs,
    hash::{BuildHasher as _, RandomState},
    path::Path,
    sync::{Arc, Mutex as Lock, PoisonError},
};

use http::Request;
use kube::{Client, Config, client::Body};
use tokio::sync::Mutex;

use super::{
    client::{Access, AccessError, direct},
    health::Health,
};

/// Shared by all watches.
pub(super) struct Connection {
    access: Access,
    health: Health,
    /// Its address.
    server: String,
    client: Client,
    newest: Arc<Lock<Client>>,
    made: Mutex<Made>,
}

/// What the newest client was made of.
struct Made {
    hasher: RandomState,
    of: u64,
    /// Why it could not be made again, as the log has it.
    said: String,
}

impl Connection {
    /// Nothing is asked of the server.
    ///
    /// # Errors
    /// What is configured can not be used.
    pub(super) async fn new(access: Access, health: Health) -> Result<Self, AccessError> {
        let hasher = RandomState::new();
        let (config, of) = read(&access, &hasher).await?;
        let (server, namespace) = (config.cluster_url.to_string(), config.default_namespace.clone());
        let newest = Arc::new(Lock::new(direct(config, health.clone())?));
        let sends = Arc::clone(&newest);
        let service = tower::service_fn(move |request: Request<Body>| {
            let client = sends.lock().unwrap_or_else(PoisonError::into_inner).clone();
            async move { client.send(request).await }
        });
        Ok(Self {
            access,
            health,
            server,
            client: Client::new(service, namespace),
            newest,
            made: Mutex::new(Made {
                hasher,
                of,
                said: String::new(),
            }),
        })
    }

    /// Sends by whichever client is the newest.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// The server's address.
    pub(super) fn server(&self) -> &str {
        &self.server
    }

    /// After a failure: whether the files have changed, and a new client is in use. One that can't be made leaves the old one.
    pub(super) async fn renew(&self) -> bool {
        if self.access == Access::InCluster {
            return false;
        }
        let mut made = self.made.lock().await;
        let text = match self.again(&made).await {
            Ok(None) => return false,
            Ok(Some((of, client))) => {
                *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = client;
                made.of = of;
                made.said.clear();
                tracing::info!(
                    "the kubeconfig or what it names has changed: connecting with what is there now"
                );
                return true;
            }
            Err(error) => error.to_string(),
        };
        if made.said != text {
            tracing::warn!("{text}; what was read before stays in use");
            made.said = text;
        }
        false
    }

    async fn again(&self, made: &Made) -> Result<Option<(u64, Client)>, AccessError> {
        let (config, of) = read(&self.access, &made.hasher).await?;
        if of == made.of {
            return Ok(None);
        }
        // Whoever edits a kubeconfig may have gone on to another cluster, whose objects are not this node's.
        let to = config.cluster_url.to_string();
        if to != self.server {
            let from = self.server.clone();
            return Err(AccessError::Moved { from, to });
        }
        Ok(Some((of, direct(config, self.health.clone())?)))
    }
}

/// The configuration, and a number for all that a client of it is made of.
async fn read(access: &Access, hasher: &RandomState) -> Result<(Config, u64), AccessError> {
    let bytes = |path: &Path| fs::read(path).ok();
    // First: what changes from here on has changed when we look again.
    let file = match access {
        Access::InCluster => None,
        Access::File(path, _) => bytes(path),
    };
    let config = access.config().await?;
    let auth = &config.auth_info;
    let named = [&auth.client_certificate, &auth.client_key]
        .map(|path| path.as_ref().and_then(|path| bytes(path.as_ref())));
    let of = hasher.hash_one((file, named, &config.root_cert));
    Ok((config, of))
}
