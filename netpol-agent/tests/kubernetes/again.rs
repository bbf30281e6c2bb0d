//! A server that comes back, and is not what it was.

use netpol_policy::model::{ObjectName, Snapshot};

use super::{FIVE, Follower, filled, is, pod, policy, server::Mood};

#[test]
fn what_a_restored_backup_does_not_have_is_gone() {
    let server = filled(true);
    let mut follower = Follower::new(&server);
    follower.until("the list", is(FIVE));
    let backup = server.backup();
    server.delete("pods", "prod/a1");
    server.put("pods", "prod/b", pod("b", "10.0.0.9"));
    follower.until("the changes", is(&["a2", "a3", "a4", "a5", "b"]));
    server.restore(backup);
    follower.until("what was there", is(FIVE));
}

#[test]
fn a_database_that_is_away_does_not_end_streamed_lists() {
    let server = filled(true);
    server.mood("pods", Mood::HasNoData);
    let mut follower = Follower::new(&server);
    follower.wait("a failure", |follower| follower.errors("pods", "server") >= 1);
    server.mood("pods", Mood::Well);
    follower.until("the list", is(FIVE));
    assert_eq!(server.asked(&["/pods?", "continue="]), 0, "no pages");
}

#[test]
fn a_server_that_lags_behind_takes_nothing_back() {
    let server = filled(true);
    let mut follower = Follower::new(&server);
    follower.until("the list", is(FIVE));
    server.lag();
    server.put("networkpolicies", "prod/q", policy("q"));
    let holds =
        |name| move |snapshot: &Snapshot| snapshot.policies.contains_key(&ObjectName::new("prod", name));
    follower.until("the policy", holds("q"));
    server.mood("networkpolicies", Mood::Babbles);
    follower.wait("the new list", |_| {
        server.asked(&["/networkpolicies?", "sendInitialEvents=true"]) == 2
    });
    server.put("networkpolicies", "prod/r", policy("r"));
    follower.until("what came after", holds("r"));
    assert!(!follower.revoked, "the list lacked a policy");
}
