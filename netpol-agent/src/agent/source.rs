//! Where this agent's objects come from, whichever it is.

use std::path::PathBuf;

use tokio::time::Instant;

use crate::{
    cli::BadInput,
    source::{
        Change, Loaded,
        kubernetes::{self, Access, health::Status},
        manifests,
    },
};

/// Which source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    /// A directory of manifests.
    Manifests(PathBuf),
    /// An API server.
    Kubernetes(Access),
}

/// A source that was opened.
pub(super) enum Source {
    Manifests {
        directory: PathBuf,
        watcher: manifests::Watcher,
        /// Read when it was opened.
        loaded: Option<Loaded>,
    },
    Kubernetes(kubernetes::Watcher),
}

impl Source {
    /// Opens it; outside of a runtime.
    pub(super) fn open(from: &From) -> anyhow::Result<Self> {
        match from {
            From::Manifests(directory) => {
                // `status` shows it, from anywhere.
                let directory = std::path::absolute(directory).map_err(bad_input)?;
                let (loaded, watcher) = manifests::Watcher::start(&directory).map_err(bad_input)?;
                Ok(Self::Manifests {
                    directory,
                    watcher,
                    loaded: Some(loaded),
                })
            }
            From::Kubernetes(access) => {
                let watcher = kubernetes::Watcher::start(access);
                Ok(Self::Kubernetes(watcher.map_err(
                    |error| match error.is::<kubernetes::AccessError>() {
                        true => bad_input(format!("{error:#}")).into(),
                        false => error,
                    },
                )?))
            }
        }
    }

    /// The next change, and when it came. The first ones are everything, as soon as all of it is known: of an API server that is away, that
    /// may take long.
    pub(super) async fn next(&mut self) -> anyhow::Result<(Change, Instant)> {
        let change = match self {
            Self::Manifests { watcher, loaded, .. } => match loaded.take() {
                Some(loaded) => Some(Change {
                    events: loaded.snapshot.into_events().collect(),
                    problems: loaded.problems,
                    complete: true,
                }),
                None => watcher.next().await,
            }
            .map(|change| (change, Instant::now())),
            Self::Kubernetes(watcher) => watcher.next().await,
        };
        change.ok_or_else(|| self.ended())
    }

    fn ended(&self) -> anyhow::Error {
        anyhow::anyhow!("the thread that follows {} has ended", self.name())
    }

    /// The directory, or the server's address.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Manifests { directory, .. } => directory.display().to_string(),
            Self::Kubernetes(watcher) => watcher.server().to_owned(),
        }
    }

    /// How the watches of an API server fare.
    pub(super) fn health(&self) -> Option<Status> {
        match self {
            Self::Manifests { .. } => None,
            Self::Kubernetes(watcher) => Some(watcher.health().status()),
        }
    }

    /// The watcher of an API server.
    pub(super) fn kubernetes(&self) -> Option<&kubernetes::Watcher> {
        match self {
            Self::Manifests { .. } => None,
            Self::Kubernetes(watcher) => Some(watcher),
        }
    }
}

pub(super) fn bad_input(error: impl std::fmt::Display) -> BadInput {
    BadInput(error.to_string())
}
