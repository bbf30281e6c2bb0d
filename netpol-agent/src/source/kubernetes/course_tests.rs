//! Unit tests of the order of requests.

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

#[tokio::test(start_paused = true)]
async fn streamed_lists_are_asked_for_again() {
    let mut lists = Lists::default();
    assert!(lists.are_streamed());
    lists.refused();
    assert!(!lists.are_streamed());
    tokio::time::advance(PAGED).await;
    assert!(lists.are_streamed());
}
