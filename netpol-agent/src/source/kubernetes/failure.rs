//! How a watch fails, and what that means, in words for people, in a word for the metrics, and for what to do next.

use std::time::Duration;

use kube::{Error, core::Status};

use super::{health::Refusal, store::Which};

/// The server no longer knows the version from which a watch would go on.
pub(super) const EXPIRED: &str = "expired";

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
    /// The server is at an older version than we are.
    Back { ours: u64, theirs: u64 },
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

/// A failure, understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// For metrics.
    pub(super) kind: &'static str,
    /// For the log.
    pub(super) text: String,
    /// The watch can not go on from where it was.
    pub(super) anew: bool,
    /// A busy server wishes to be left alone for so long, by the body of its answer.
    pub(super) wish: Option<Duration>,
}

impl Failure {
    pub(super) fn of(broken: &Broken, which: Which) -> Self {
        let plural = which.plural();
        match broken {
            Broken::List(error) => Self::of_client(error, which, "list"),
            Broken::Watch { error, .. } => Self::of_client(error, which, "watch"),
            Broken::Refused { status, .. } | Broken::Told { status, .. } => {
                Self::of_status(status, which, "watch")
            }
            Broken::NoVersion => Self::new(
                "decode",
                format!("watching {plural}: an object without resourceVersion"),
                true,
            ),
            Broken::Back { ours, theirs } => Self::new(
                EXPIRED,
                format!(
                    "the API server has gone back from version {ours} to {theirs}, as after a backup was restored: listing {plural} again"
                ),
                true,
            ),
            Broken::Early { lived, listing } => {
                let what = match listing {
                    true => "list, which was not complete,",
                    false => "watch",
                };
                let seconds = lived.as_secs();
                Self::new(
                    "connection",
                    format!("the API server ended the {what} of {plural} too early, after {seconds} s"),
                    false,
                )
            }
        }
    }

    fn new(kind: &'static str, text: String, anew: bool) -> Self {
        Self {
            kind,
            text,
            anew,
            wish: None,
        }
    }

    fn of_client(error: &Error, which: Which, verb: &str) -> Self {
        let plural = which.plural();
        match error {
            Error::Api(status) => Self::of_status(status, which, verb),
            Error::SerdeError(error) => Self::new(
                "decode",
                format!("what the API server sends for {plural} is not understood: {error}"),
                true,
            ),
            Error::Auth(error) => Self::new(
                "unauthorized",
                format!("credentials for the API server can not be had ({verb} {plural}): {error}"),
                false,
            ),
            error => Self::new(
                "connection",
                format!(
                    "the API server does not answer ({verb} {plural}): {}",
                    chain(error)
                ),
                false,
            ),
        }
    }

    fn of_status(status: &Status, which: Which, verb: &str) -> Self {
        let seconds = status
            .details
            .as_ref()
            .map_or(0, |details| details.retry_after_seconds);
        let wishes = is_busy(status.code) && seconds > 0;
        Self {
            wish: wishes.then(|| Duration::from_secs(seconds.into())),
            ..Self::of_code(status, which, verb)
        }
    }

    fn of_code(status: &Status, which: Which, verb: &str) -> Self {
        let (plural, message) = (which.plural(), &status.message);
        let group = match which {
            Which::Policies => "networking.k8s.io",
            _ => "",
        };
        match status.code {
            403 => Self::new(
                "forbidden",
                format!(
                    "may not {verb} {plural} (API group \"{group}\") in all namespaces: {message}; help: grant get, list and watch \
                     on {plural} to the agent's service account, as deploy/netpol.yaml does"
                ),
                false,
            ),
            401 => Self::new(
                "unauthorized",
                format!(
                    "the API server does not accept our credentials ({verb} {plural}): {message}; help: check the service account's token or the kubeconfig's user"
                ),
                false,
            ),
            410 => Self::new(
                EXPIRED,
                format!("the watch of {plural} has fallen too far behind: listing again"),
                true,
            ),
            429 => Self::new(
                "throttled",
                format!("the API server is busy ({verb} {plural}): {message}"),
                false,
            ),
            code => Self::new(
                "server",
                format!("the API server answers {code} ({verb} {plural}): {message}"),
                false,
            ),
        }
    }
}

/// Whether an answer of this code may say when to come back.
pub(super) fn is_busy(code: u16) -> bool {
    matches!(code, 429 | 503)
}

/// Every cause once, the innermost last: `connection refused`.
fn chain(error: &dyn std::error::Error) -> String {
    let mut texts = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // Wrappers repeat what they wrap.
        if let Some(outer) = texts.last_mut().filter(|outer| outer.contains(&text)) {
            *outer = text;
        } else {
            texts.push(text);
        }
        cause = error.source();
    }
    texts.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(code: u16, message: &str) -> Broken {
        let status = Status::failure(message, "").with_code(code).boxed();
        Broken::Refused {
            status,
            listing: false,
        }
    }

    #[test]
    fn missing_rights_are_named() {
        let failure = Failure::of(&api(403, "pods is forbidden"), Which::Policies);
        assert_eq!((failure.kind, failure.anew), ("forbidden", false));
        assert_eq!(
            failure.text,
            "may not watch networkpolicies (API group \"networking.k8s.io\") in all namespaces: pods is forbidden; help: grant get, \
             list and watch on networkpolicies to the agent's service account, as deploy/netpol.yaml does"
        );
    }

    #[test]
    fn what_can_go_on_goes_on_and_what_can_not_begins_anew() {
        let of = |code| {
            let failure = Failure::of(&api(code, "m"), Which::Pods);
            (failure.kind, failure.anew)
        };
        assert_eq!(
            [410, 429, 500, 401, 422].map(of),
            [
                ("expired", true),
                ("throttled", false),
                ("server", false),
                ("unauthorized", false),
                ("server", false),
            ]
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
        // 504 is that of a server whose cache lags ("too large resource version").
        assert_eq!(
            [422, 500, 503, 504].map(|code| told(code, true)),
            [true, true, false, false]
        );
        assert!(!watch(422, false) && !told(500, false));
    }
}
