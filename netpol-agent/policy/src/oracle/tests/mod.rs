//! Every semantic by example. A verdict is compared whole, as text: see [`said`].

mod addresses;
mod exemptions;
mod isolation;
mod ports;
mod selectors;

use super::{Oracle, Side, Verdict};
use crate::{
    model::Snapshot,
    oracle::{End, Flow},
};

/// The whole verdict on `flow`, egress then ingress.
fn said(snapshot: &Snapshot, flow: &Flow) -> [String; 2] {
    let oracle = Oracle::new(snapshot);
    let Verdict { egress, ingress } = oracle.evaluate(flow);
    [text(&egress), text(&ingress)]
}

/// `open`; `PASS` or `DROP`, exemption, `by` the isolating policies, `rules` that allow.
fn text(side: &Side<'_>) -> String {
    let mut text = match (side.isolated, side.allowed) {
        (false, true) => "open".to_owned(),
        (true, true) => "PASS".to_owned(),
        (true, false) => "DROP".to_owned(),
        (false, false) => "IMPOSSIBLE".to_owned(),
    };
    if let Some(exemption) = side.exempt {
        text += &format!(" {exemption:?}");
    }
    let isolating: Vec<_> = side.isolating.iter().map(ToString::to_string).collect();
    if !isolating.is_empty() {
        text += &format!(" by {}", isolating.join(" "));
    }
    let rules: Vec<_> = side
        .allowing
        .iter()
        .map(|r| format!("{}#{}", r.policy, r.rule))
        .collect();
    if !rules.is_empty() {
        text += &format!(" rules {}", rules.join(" "));
    }
    text
}

/// What ingress says to a TCP connection; egress must be open.
fn ingress(snapshot: &Snapshot, from: End, to: End, port: u16) -> String {
    let [egress, ingress] = said(snapshot, &crate::build::tcp_flow(from, to, port));
    assert_eq!(egress, "open", "these tests isolate the receiver only");
    ingress
}

/// What egress says to a TCP connection; ingress must be open.
fn egress(snapshot: &Snapshot, from: End, to: End, port: u16) -> String {
    let [egress, ingress] = said(snapshot, &crate::build::tcp_flow(from, to, port));
    assert_eq!(ingress, "open", "these tests isolate the sender only");
    egress
}
