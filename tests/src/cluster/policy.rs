//! NetworkPolicies in one line each.

use std::fmt;

use serde_json::{Value as Json, json};

use super::parse;

/// A NetworkPolicy to be; its display is the manifest.
///
/// A peer is `key=value` (pods of the policy's namespace), a CIDR, or `*` (anybody).
#[derive(Clone, Debug)]
pub struct Policy {
    name: String,
    selects: String,
    ingress: Option<Vec<Json>>,
    egress: Option<Vec<Json>>,
}

impl Policy {
    /// `namespace/name` for the pods with the label `selects` (`key=value`; "" for all); isolates nobody yet.
    #[must_use]
    pub fn new(name: &str, selects: &str) -> Self {
        Self {
            name: name.to_owned(),
            selects: selects.to_owned(),
            ingress: None,
            egress: None,
        }
    }

    /// Isolates for ingress; one rule with these peers, none where there are none.
    #[must_use]
    pub fn ingress(mut self, peers: &[&str]) -> Self {
        self.ingress
            .get_or_insert_default()
            .extend(rule("from", peers, None));
        self
    }

    /// Isolates for egress; one rule with these peers, none where there are none.
    #[must_use]
    pub fn egress(mut self, peers: &[&str]) -> Self {
        self.egress
            .get_or_insert_default()
            .extend(rule("to", peers, None));
        self
    }

    /// [`Self::ingress`] for one port, `PROTOCOL/NUMBER`.
    #[must_use]
    pub fn ingress_on(mut self, port: &str, peers: &[&str]) -> Self {
        self.ingress
            .get_or_insert_default()
            .extend(rule("from", peers, Some(port)));
        self
    }

    /// [`Self::egress`] for one port, `PROTOCOL/NUMBER`.
    #[must_use]
    pub fn egress_on(mut self, port: &str, peers: &[&str]) -> Self {
        self.egress
            .get_or_insert_default()
            .extend(rule("to", peers, Some(port)));
        self
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = parse(&self.name);
        let mut spec = json!({"podSelector": selector(&self.selects)});
        let mut types = Vec::new();
        for (kind, key, rules) in [
            ("Ingress", "ingress", &self.ingress),
            ("Egress", "egress", &self.egress),
        ] {
            if let Some(rules) = rules {
                types.push(kind);
                spec[key] = json!(rules);
            }
        }
        spec["policyTypes"] = json!(types);
        let policy = json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"namespace": &*name.namespace, "name": &*name.name},
            "spec": spec,
        });
        writeln!(f, "---\n{policy}")
    }
}

fn rule(side: &str, peers: &[&str], port: Option<&str>) -> Option<Json> {
    if peers.is_empty() {
        return None;
    }
    let mut rule = json!({});
    if !peers.contains(&"*") {
        rule[side] = peers.iter().map(|text| peer(text)).collect();
    }
    if let Some((protocol, number)) = port.and_then(|port| port.split_once('/')) {
        let number: u16 = number.parse().expect("PROTOCOL/NUMBER");
        rule["ports"] = json!([{"protocol": protocol, "port": number}]);
    }
    Some(rule)
}

fn peer(text: &str) -> Json {
    if text.contains('=') {
        json!({"podSelector": selector(text)})
    } else {
        json!({"ipBlock": {"cidr": text}})
    }
}

fn selector(label: &str) -> Json {
    match label.split_once('=') {
        Some((key, value)) => json!({"matchLabels": {key: value}}),
        None => json!({}),
    }
}
