//! `v1` Pod.

use std::net::IpAddr;

use netpol_policy::model::{Labels, NamedPort, ObjectName, Pod, Str};

use super::{
    Bad, Report,
    at::{At, closest},
    names,
    node::{Quoted, Value},
    rule::{number, protocol},
};

/// The fields that decide something.
const SPEC: [&str; 4] = ["nodeName", "hostNetwork", "containers", "initContainers"];
const STATUS: [&str; 3] = ["phase", "podIP", "podIPs"];
const PHASES: [&str; 5] = ["Pending", "Running", "Succeeded", "Failed", "Unknown"];

/// The annotation by which a mirror pod names its static pod: the UID that the kubelet has given it.
pub(crate) const MIRROR: &str = "kubernetes.io/config.mirror";

/// The pod; what was not understood in it is left out.
pub(super) fn pod(name: ObjectName, labels: Labels, at: &At<'_>, report: &mut Report) -> Pod {
    let mut pod = Pod {
        name,
        uid: "".into(),
        labels,
        node: None,
        host_network: false,
        completed: false,
        terminating: false,
        addresses: Vec::new(),
        ports: Vec::new(),
    };
    if let Some(meta) = at.get("metadata") {
        let annotations = meta.get("annotations");
        let mirror = annotations.as_ref().and_then(|at| at.get(MIRROR));
        // Of a static pod the API has a mirror with a UID of its own; the runtime was told the kubelet's.
        let uid = mirror.or_else(|| meta.get("uid"));
        pod.uid = uid.and_then(|at| at.text(report)).unwrap_or(pod.uid);
        pod.terminating = meta.get("deletionTimestamp").is_some();
    }
    if let Some(spec) = at.get("spec")
        && spec.expect_map(report).is_ok()
    {
        spec.misspelt(&SPEC, report);
        pod.node = spec
            .get("nodeName")
            .and_then(|at| at.text(report))
            .filter(|name| !name.is_empty());
        pod.host_network = spec
            .get("hostNetwork")
            .is_some_and(|at| at.bool(report) == Ok(true));
        pod.ports = ports(&spec, report);
    }
    if let Some(status) = at.get("status")
        && status.expect_map(report).is_ok()
    {
        status.misspelt(&STATUS, report);
        pod.completed = status.get("phase").is_some_and(|at| is_completed(&at, report));
        pod.addresses = addresses(&status, report);
    }
    pod
}

/// Whether `status.phase` says that the pod has ended. A phase that is not known counts as running: the pod stays
/// isolated, and an address that it still has is not taken for somebody else's.
fn is_completed(at: &At<'_>, report: &mut Report) -> bool {
    let Some(phase) = at.text(report) else {
        return false;
    };
    if !PHASES.contains(&&*phase) && !phase.is_empty() {
        report.warn(
            at,
            format!("{} is not a phase: the pod counts as running", Quoted(&phase)),
            match closest(&phase, &PHASES) {
                Some(meant) => format!("did you mean {meant}?"),
                None => format!("use {}", PHASES.join(", ")),
            },
        );
    }
    matches!(&*phase, "Succeeded" | "Failed")
}

/// Named ports of containers and of sidecars, sorted.
fn ports(spec: &At<'_>, report: &mut Report) -> Vec<NamedPort> {
    let mut ports = Vec::new();
    for (field, only_sidecars) in [("containers", false), ("initContainers", true)] {
        let Some(list) = spec.get(field) else { continue };
        let Ok(containers) = list.items(report) else {
            continue;
        };
        for container in containers {
            let policy = container.get("restartPolicy");
            let sidecar =
                policy.is_some_and(|at| matches!(&at.node.value, Value::String(p) if &**p == "Always"));
            if sidecar || !only_sidecars {
                container_ports(&container, &mut ports, report);
            }
        }
    }
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn container_ports(container: &At<'_>, ports: &mut Vec<NamedPort>, report: &mut Report) {
    let Some(list) = container.get("ports") else {
        return;
    };
    let Ok(items) = list.items(report) else { return };
    for item in items {
        let parsed = report.with_effect("rules that name this port do not match it", |report| {
            container_port(&item, report)
        });
        ports.extend(parsed.ok().flatten());
    }
}

/// `None` where the port has no name.
fn container_port(at: &At<'_>, report: &mut Report) -> Result<Option<NamedPort>, Bad> {
    at.expect_map(report)?;
    let number = match at.get("containerPort") {
        Some(at) => number(&at, report),
        None => Err(report.error(at, "has no containerPort", "add `containerPort: NUMBER`")),
    };
    let protocol = protocol(at, report);
    let Some(field) = at.get("name") else {
        return number.and(protocol).map(|_| None);
    };
    let name = port_name(&field, report);
    Ok(Some(NamedPort {
        name: name?,
        protocol: protocol?,
        number: number?,
    }))
}

fn port_name(at: &At<'_>, report: &mut Report) -> Result<Str, Bad> {
    let name = at.string(report)?;
    names::port_name(name)
        .map(|()| name.clone())
        .map_err(|rule| report.error(at, format!("{} {rule}", Quoted(name)), "rename the port"))
}

/// Every entry of `status.podIPs`, or `status.podIP` where there is none; at most one of each family.
fn addresses(status: &At<'_>, report: &mut Report) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    let list = status
        .get("podIPs")
        .filter(|at| !matches!(&at.node.value, Value::List(l) if l.is_empty()));
    if let Some(list) = list {
        let Ok(items) = list.items(report) else {
            return found;
        };
        for item in items {
            if let Some(field) = item.get("ip") {
                add_address(&field, &mut found, report);
            } else {
                report.error(&item, "has no ip", "write `- ip: ADDRESS`");
            }
        }
        if let Some(field) = status.get("podIP")
            && let Ok(address) = address(&field, report)
            && !found.contains(&address)
        {
            report.warn(
                &field,
                format!("{address} is not among status.podIPs: it is not used"),
                "make it the first entry of podIPs, as the API does, or remove one of the two",
            );
        }
    } else if let Some(field) = status.get("podIP") {
        add_address(&field, &mut found, report);
    }
    found
}

fn add_address(at: &At<'_>, found: &mut Vec<IpAddr>, report: &mut Report) {
    let Ok(address) = address(at, report) else { return };
    match found.iter().find(|other| other.is_ipv4() == address.is_ipv4()) {
        None => found.push(address),
        Some(first) if *first == address => {}
        Some(first) => {
            let message = format!("{address} is the pod's second address of this IP family: {first} stays");
            report.error(at, message, "a pod has at most one IPv4 and one IPv6 address");
        }
    }
}

/// The address of a pod or node; empty text is no address yet.
pub(super) fn address(at: &At<'_>, report: &mut Report) -> Result<IpAddr, Bad> {
    let text = at.string(report)?;
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) if address.to_ipv4_mapped().is_some() => Err(report.error(
            at,
            format!("{} is an IPv4-mapped IPv6 address: it is not used", Quoted(text)),
            "write it as an IPv4 address",
        )),
        Ok(address) if address.is_unspecified() || address.is_multicast() || address.is_loopback() => {
            Err(report.error(
                at,
                format!(
                    "{} can not be the address of a pod or node: it is not used",
                    Quoted(text)
                ),
                "correct the address",
            ))
        }
        Ok(address) => Ok(address),
        Err(_) => Err(report.error(
            at,
            format!("{} is not an IP address: it is not used", Quoted(text)),
            "correct the address, without a prefix length or port",
        )),
    }
}
