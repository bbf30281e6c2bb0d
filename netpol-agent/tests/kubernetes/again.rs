//! A server that comes back, and is not what it was.

use netpol_policy::model::{ObjectName, Snapshot};

use super::{FIVE, Follower, filled, is, policy, server::Mood};

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
