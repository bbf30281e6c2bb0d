//! Probes come to where the agent listens: one that is not heard has the agent restarted for ever.

use std::net::IpAddr;

use serde_json::Value;

use super::valid::list;

/// Each fault of a container's probes in one line.
pub(super) fn faults(container: &Value, add: &mut impl FnMut(String)) {
    let variable = |name: &str| {
        let variables = list(&container["env"]).iter();
        variables.rev().find(|variable| variable["name"] == name)
    };
    let listen = variable("NETPOL_LISTEN").and_then(|variable| variable["value"].as_str());
    if listen.is_some_and(|listen| listen.contains("$(HOST_IP)")) {
        let path = variable("HOST_IP").map(|variable| &variable["valueFrom"]["fieldRef"]["fieldPath"]);
        if path.is_none_or(|path| path != "status.hostIP") {
            add("HOST_IP is not the node's address".to_owned());
        }
    }
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let asks = &container[probe]["httpGet"];
        if asks.is_null() {
            continue;
        }
        let Some((host, port)) = listen.and_then(heard) else {
            add(format!("{probe} asks, but NETPOL_LISTEN is {listen:?}"));
            continue;
        };
        if asks["host"].as_str() != host.as_deref() {
            add(format!(
                "{probe} asks the host {}, NETPOL_LISTEN is {listen:?}",
                asks["host"]
            ));
        }
        let named = list(&container["ports"])
            .iter()
            .find(|port| port["name"] == asks["port"]);
        let asked = named.map_or(&asks["port"], |port| &port["containerPort"]);
        if *asked != port {
            add(format!(
                "{probe} asks the port {asked}, NETPOL_LISTEN is {listen:?}"
            ));
        }
    }
}

/// What a probe has to ask: the host, unless it is the pod's own address, which is the node's; and the port.
fn heard(listen: &str) -> Option<(Option<String>, u16)> {
    let (address, port) = listen.rsplit_once(':')?;
    let port = port.parse().ok()?;
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let bare = bare.unwrap_or(address);
    if bare == "$(HOST_IP)" {
        return Some((None, port));
    }
    let address: IpAddr = bare.parse().ok()?;
    Some((address.is_loopback().then(|| address.to_string()), port))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults_of(listen: &str, host: Option<&str>, port: &Value, host_ip: &str) -> Vec<String> {
        let mut asks = json!({ "path": "/healthz", "port": port });
        if let Some(host) = host {
            asks["host"] = host.into();
        }
        let container = json!({
            "env": [
                { "name": "HOST_IP", "valueFrom": { "fieldRef": { "fieldPath": host_ip } } },
                { "name": "NETPOL_LISTEN", "value": listen },
            ],
            "ports": [{ "name": "metrics", "containerPort": 9478 }],
            "livenessProbe": { "httpGet": asks },
        });
        let mut found = Vec::new();
        faults(&container, &mut |fault| found.push(fault));
        found
    }

    #[test]
    fn probes_ask_where_the_agent_hears() {
        let well = |listen, host| faults_of(listen, host, &json!("metrics"), "status.hostIP").is_empty();
        for listen in [
            "0.0.0.0:9478",
            "[::]:9478",
            "$(HOST_IP):9478",
            "[$(HOST_IP)]:9478",
        ] {
            assert!(well(listen, None), "{listen}");
            assert!(!well(listen, Some("127.0.0.1")), "{listen}");
        }
        for (listen, host) in [("127.0.0.1:9478", "127.0.0.1"), ("[::1]:9478", "::1")] {
            assert!(well(listen, Some(host)), "{listen}");
            assert!(!well(listen, None), "{listen}");
        }
        assert!(!well("[::1]:9478", Some("127.0.0.1")));
        assert!(!well("9478", None));
    }

    #[test]
    fn the_port_and_the_nodes_address_are_what_they_say() {
        let all = "0.0.0.0:9478";
        assert_eq!(faults_of(all, None, &json!(9478), "x"), [""; 0]);
        assert_eq!(
            faults_of(all, None, &json!(9479), "x"),
            ["livenessProbe asks the port 9479, NETPOL_LISTEN is Some(\"0.0.0.0:9478\")"]
        );
        assert_eq!(
            faults_of("$(HOST_IP):9478", None, &json!(9478), "status.podIP"),
            ["HOST_IP is not the node's address"]
        );
    }
}
