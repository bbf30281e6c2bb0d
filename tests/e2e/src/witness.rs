//! Servers that say what reached them: a datagram that nobody answers, and a SYN whose answer is dropped, got through.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::{
    asks::{Asks, tcp_to, udp_to},
    cluster::{Cluster, Placed},
    kubectl::until,
    objects::Pod,
};

/// TCP.
pub(crate) const PORT: u16 = 8080;
/// UDP.
pub(crate) const DATAGRAMS: u16 = 5353;
/// Who may reach every witness; policies of witnesses let pods with `app: CONTROL` in.
pub(crate) const CONTROL: &str = "control";

/// What arrived: `udp/5353 from 10.244.1.7`, and how often.
pub(crate) type Arrivals = BTreeMap<String, u64>;

/// The pod of a witness, labelled `app: NAME`.
pub(crate) fn pod(ns: &str, name: &str, node: &str) -> Pod {
    labelled(ns, name, &[("app", name)], node)
}

/// The pod of a witness with these labels.
pub(crate) fn labelled(ns: &str, name: &str, pairs: &[(&str, &str)], node: &str) -> Pod {
    let tcp = PORT.to_string();
    let udp = DATAGRAMS.to_string();
    let words = [
        "serve", "--name", name, "--tcp", &tcp, "--udp", &udp, "--syns", "on",
    ];
    Pod::new(ns, name, pairs, &words)
        .on(node)
        .container("securityContext", json!({"capabilities": {"add": ["NET_RAW"]}}))
}

/// The pod that asks witnesses, so that a silent one is not taken for one that nothing reached.
pub(crate) fn control(ns: &str, node: &str) -> Pod {
    Pod::server(ns, CONTROL, &[("app", CONTROL)], &[], &[]).on(node)
}

/// What a `first` process is told to try in vain.
pub(crate) fn denied(witness: &Placed) -> Vec<String> {
    let each = witness.addresses.iter().flat_map(|address| {
        let targets = [tcp_to(*address, PORT), udp_to(*address, DATAGRAMS)];
        targets.map(|target| ["--deny".to_owned(), target])
    });
    each.flatten().collect()
}

/// What reached the witness from anybody but [`CONTROL`], which reaches it now.
///
/// # Errors
/// The control does not reach it, or its log does not say so.
pub(crate) fn arrivals(cluster: &Cluster, ns: &str, witness: &str) -> Result<Arrivals> {
    let control = cluster.pod(ns, CONTROL)?;
    let own = |arrivals: &Arrivals| -> Arrivals {
        let mut own = arrivals.clone();
        own.retain(|what, _| is_from(what, &control));
        own
    };
    let before = own(&said(cluster, ns, witness)?);
    let mut asks = Asks::default();
    for address in cluster.pod(ns, witness)?.addresses {
        for to in [tcp_to(address, PORT), udp_to(address, DATAGRAMS)] {
            asks.allow((ns, CONTROL), to, witness, "the control");
        }
    }
    asks.hold(cluster)?;
    // The log is in order: with the control's packets everything that came earlier is in it.
    let kinds = 3 * control.addresses.len();
    let mut arrived = until(Duration::from_secs(10), || {
        let arrived = said(cluster, ns, witness)?;
        let grown = own(&arrived)
            .iter()
            .filter(|(what, count)| before.get(*what) < Some(count))
            .count();
        ensure!(
            grown == kinds,
            "{witness} says {arrived:?}: the control is missing"
        );
        Ok(arrived)
    })?;
    arrived.retain(|what, _| !is_from(what, &control));
    Ok(arrived)
}

/// Nothing has ever reached the witness but its control.
///
/// # Errors
/// Something has.
pub(crate) fn nothing_arrived(cluster: &Cluster, ns: &str, witness: &str) -> Result<()> {
    let arrived = arrivals(cluster, ns, witness)?;
    ensure!(
        arrived.is_empty(),
        "{witness} received what is denied: {arrived:?}"
    );
    Ok(())
}

/// Whether an arrival is from one of the pod's addresses.
pub(crate) fn is_from(what: &str, pod: &Placed) -> bool {
    let from = what.split_once(" from ").and_then(|(_, from)| from.parse().ok());
    from.is_some_and(|from| pod.addresses.contains(&from))
}

/// The last line of the witness's log.
fn said(cluster: &Cluster, ns: &str, witness: &str) -> Result<Arrivals> {
    let text = cluster.kubectl.log(ns, witness, 1)?;
    let line: Value = serde_json::from_str(text.trim()).unwrap_or_default();
    let counts = line["arrived"].as_object().into_iter().flatten();
    Ok(counts
        .map(|(what, count)| (what.clone(), count.as_u64().unwrap_or(0)))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arrival_is_of_an_address_and_not_of_its_beginning() {
        let pod = Placed {
            name: "a".into(),
            node: "n1".into(),
            addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        };
        assert!(is_from("udp/53 from 10.0.0.1", &pod) && is_from("syn/80 from fd00::1", &pod));
        assert!(!is_from("udp/53 from 10.0.0.11", &pod) && !is_from("udp/53", &pod));
    }
}
