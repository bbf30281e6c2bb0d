//! A server that comes back, and is not what it was.

use std::path::Path;

use netpol_policy::model::{ObjectName, Snapshot};
use tokio_rustls::TlsAcceptor;

use super::{
    FIVE, Follower, filled, is, kubeconfig, pod, policy,
    server::Mood,
    tls::{NEW, OLD},
};

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

/// The server becomes `tls`, then the agent's files become those that `write` writes.
fn rotate(tls: TlsAcceptor, write: impl Fn(&Path)) {
    let server = filled(true);
    server.let_in(OLD.acceptor(OLD));
    let files = tempfile::tempdir().unwrap();
    OLD.write_authority(files.path());
    OLD.write_client(files.path());
    kubeconfig(
        &files,
        &format!(
            "server: \"https://{}\", certificate-authority: ca.crt",
            server.address
        ),
        "client-certificate: client.crt, client-key: client.key",
    );
    let mut follower = Follower::of(files);
    follower.until("the list", is(FIVE));
    server.let_in(tls);
    server.put("pods", "prod/b", pod("b", "10.0.0.9"));
    // The first is the end of the watch, the second a connection that did not come about.
    follower.wait("a refusal", |follower| follower.errors("pods", "connection") >= 2);
    write(follower.files.path());
    follower.until("what was missed", |snapshot| snapshot.pods.len() == 6);
}

#[test]
fn an_authority_that_is_replaced_is_read_again() {
    rotate(NEW.acceptor(OLD), |dir| NEW.write_authority(dir));
}

#[test]
fn a_client_certificate_that_is_replaced_is_read_again() {
    rotate(OLD.acceptor(NEW), |dir| NEW.write_client(dir));
}

#[test]
fn a_kubeconfig_that_leads_elsewhere_is_not_followed() {
    let (server, other) = (filled(true), filled(true));
    let mut follower = Follower::new(&server);
    follower.until("the list", is(FIVE));
    kubeconfig(
        &follower.files,
        &format!("server: \"http://{}\"", other.address),
        "",
    );
    server.mood("pods", Mood::Refuses(503));
    // With each failure it looks at the file, the last time before it has counted the next.
    follower.wait("failures", |follower| follower.errors("pods", "server") >= 2);
    server.put("pods", "prod/b", pod("b", "10.0.0.9"));
    server.mood("pods", Mood::Well);
    follower.until("what was missed", |snapshot| snapshot.pods.len() == 6);
    assert_eq!(other.asked(&["/"]), 0);
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
