//! What is asked of an API server, and when.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    sync::{Arc, Mutex},
    task::{self, Poll},
};

use http::{Request, Response};
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde_json::{Value, json};
use tower::Service;

use super::*;

/// Answers to requests, in their order, and what was asked.
#[derive(Clone, Default)]
struct Server {
    answers: Arc<Mutex<Vec<(u16, Value)>>>,
    asked: Arc<Mutex<Vec<Request<Body>>>>,
}

impl Service<Request<Body>> for Server {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.asked.lock().unwrap().push(request);
        let mut answers = self.answers.lock().unwrap();
        let (status, answer) = match answers.is_empty() {
            true => (500, refusal(500)),
            false => answers.remove(0),
        };
        let mut response = Response::new(Body::from(answer.to_string().into_bytes()));
        *response.status_mut() = status.try_into().unwrap();
        ready(Ok(response))
    }
}

/// The verbs and bodies of what is asked of a server that answers so.
async fn asked(answers: &[(u16, Value)]) -> Vec<(String, Value)> {
    let server = Server::default();
    *server.answers.lock().unwrap() = answers.to_vec();
    let done = remove(Client::new(server.clone(), "default"), "n1".to_owned());
    let ended = tokio::time::timeout(PAUSE * 10, done).await;
    let requests = std::mem::take(&mut *server.asked.lock().unwrap());
    let mut asked = Vec::new();
    for request in requests {
        assert_eq!(request.uri().path(), "/api/v1/nodes/n1");
        let verb = request.method().to_string();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        asked.push((verb, serde_json::from_slice(&body).unwrap_or_default()));
    }
    assert!(ended.is_ok(), "still trying: {asked:?}");
    asked
}

fn node(taints: &[Value]) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": "n1", "resourceVersion": "7" },
        "spec": { "taints": taints },
    })
}

fn refusal(code: u16) -> Value {
    let reason = match code {
        404 => "NotFound",
        409 => "Conflict",
        _ => "InternalError",
    };
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": "no" })
}

#[tokio::test(start_paused = true)]
async fn only_our_taint_is_removed_and_nobodys_change_is_lost() {
    let get = || ("GET".to_owned(), Value::Null);
    let (ours, other) = (
        json!({ "key": KEY, "effect": "NoSchedule" }),
        json!({ "key": "other", "effect": "NoExecute", "value": "1" }),
    );
    let patch = json!({ "metadata": { "resourceVersion": "7" }, "spec": { "taints": [other] } });
    let patch = || ("PATCH".to_owned(), patch.clone());
    let both = (200, node(&[ours.clone(), other.clone()]));
    let kept = (200, node(&[other]));
    assert_eq!(asked(&[both.clone(), kept.clone()]).await, [get(), patch()]);
    // Somebody else was faster: with the version of before it is refused, and read again.
    let conflict = (409, refusal(409));
    let again = asked(&[both.clone(), conflict, both.clone(), kept.clone()]).await;
    assert_eq!(again, [get(), patch(), get(), patch()]);
    // Nothing to remove, nobody to remove it from.
    assert_eq!(asked(&[kept]).await, [get()]);
    assert_eq!(asked(&[(404, refusal(404))]).await, [get()]);
}

#[tokio::test(start_paused = true)]
async fn the_taint_goes_at_the_first_round_without_failures_and_whenever_the_node_comes_anew() {
    let mut removal = Removal::default();
    let rounds = |removal: &mut Removal, rounds: &[bool]| -> Vec<bool> {
        rounds.iter().map(|in_force| removal.is_time(*in_force)).collect()
    };
    assert_eq!(
        rounds(&mut removal, &[false, false, true, true, false, true]),
        [false, false, true, false, false, false]
    );
    removal.node_came();
    assert_eq!(rounds(&mut removal, &[false, true, true]), [false, true, false]);
    // The watch may have missed it.
    tokio::time::advance(AGAIN).await;
    assert_eq!(rounds(&mut removal, &[true, true]), [true, false]);
    // Who still tries is not overtaken, and what came meanwhile is looked at then.
    removal.task = Some(tokio::spawn(std::future::pending()));
    removal.node_came();
    assert_eq!(rounds(&mut removal, &[true]), [false]);
    removal.task.take().unwrap().abort();
    assert_eq!(rounds(&mut removal, &[true, true]), [true, false]);
}
