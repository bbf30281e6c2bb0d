//! Unit tests of the order of requests.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use futures::stream;
use http::{Request, Response};
use http_body_util::StreamBody;
use hyper::body::{Bytes, Frame};
use kube::{Client, client::Body};

use super::*;
use crate::source::kubernetes::object::Pods;

/// A line of a watch that says how far the server is.
fn bookmark(version: u64, annotations: &str) -> String {
    let meta = format!(r#"{{"resourceVersion": "{version}", "annotations": {{{annotations}}}}}"#);
    format!(
        r#"{{"type": "BOOKMARK", "object": {{"kind": "Pod", "apiVersion": "v1", "metadata": {meta}}}}}{}"#,
        "\n"
    )
}

/// A streamed list without an object.
fn streamed(version: u64) -> String {
    bookmark(version, &format!(r#""{LIST_END}": "true""#))
}

/// A page without an object.
fn page(version: u64) -> String {
    format!(
        r#"{{"kind": "PodList", "apiVersion": "v1", "metadata": {{"resourceVersion": "{version}"}}, "items": []}}"#
    )
}

/// A course whose requests are answered with these texts, in this order, and what it has asked. An answer that is no page goes on without a word if
/// it `stays`.
fn course(answers: Vec<String>, stays: bool) -> (Course<Pods>, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    let service = tower::service_fn(move |request: Request<Body>| {
        let mut log = log.lock().unwrap();
        let frame = Frame::data(Bytes::from(answers[log.len()].clone()));
        let uri = request.uri().to_string();
        let rest = match stays && uri.contains("watch=true") {
            true => stream::pending().left_stream(),
            false => stream::empty().right_stream(),
        };
        log.push(uri);
        let frames = stream::iter([Ok::<_, Infallible>(frame)]).chain(rest);
        async { Ok::<_, Infallible>(Response::new(StreamBody::new(frames))) }
    });
    (Course::new(Api::all(Client::new(service, "default"))), asked)
}

/// Steps until a watch ends.
async fn until_end(course: &mut Course<Pods>) -> Result<(), Broken> {
    loop {
        if let Step::Ended = course.step().await? {
            return Ok(());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_quiet_watch_goes_on_and_has_not_failed() {
    let (mut course, asked) = course(vec![streamed(1000), String::new()], true);
    let begun = Instant::now();
    until_end(&mut course).await.expect("no failure");
    assert_eq!(begun.elapsed(), QUIET);
    assert!(matches!(course.step().await, Ok(Step::Opened)));
    let asked = &asked.lock().unwrap()[1];
    assert!(
        asked.contains("resourceVersion=1000") && !asked.contains("sendInitialEvents"),
        "{asked}"
    );
}

#[tokio::test]
async fn after_a_failure_a_watch_goes_on_unless_the_server_went_back() {
    for (theirs, goes_on) in [(500, false), (1000, true), (1001, true)] {
        let (mut course, asked) = course(vec![streamed(1000), page(theirs), String::new()], false);
        let end = until_end(&mut course).await;
        assert!(
            matches!(end, Err(Broken::Early { listing: false, .. })),
            "{end:?}"
        );
        match course.step().await {
            Ok(Step::Opened) => assert!(goes_on && asked.lock().unwrap()[2].contains("resourceVersion=1000")),
            Err(Broken::Back { ours: 1000, .. }) => assert!(!goes_on),
            other => panic!("{:?}", other.map(|_| ())),
        }
    }
}

#[tokio::test]
async fn a_version_that_goes_back_within_a_watch_ends_it() {
    let lines = streamed(1000) + &bookmark(1000, "") + &bookmark(999, "");
    let (mut course, _) = course(vec![lines], true);
    let end = until_end(&mut course).await;
    assert!(
        matches!(
            end,
            Err(Broken::Back {
                ours: 1000,
                theirs: 999
            })
        ),
        "{end:?}"
    );
}

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

#[tokio::test(start_paused = true)]
async fn streamed_lists_are_asked_for_again() {
    let mut lists = Lists::default();
    assert_eq!(lists.way(), Way::Streamed);
    lists.refused();
    assert_eq!(lists.way(), Way::Paged);
    tokio::time::advance(PAGED).await;
    assert_eq!(lists.way(), Way::Streamed);
}
