//! Rules of a policy: `from`/`to` and `ports`.

use netpol_policy::model::{
    Direction, NamespaceScope, Peer, Peers, PortMatch, PortSpec, Ports, Protocol, Rule, Selector,
};

use super::{
    Bad, Report,
    at::{At, closest},
    cidr::ip_block,
    names,
    node::{Quoted, Value},
    selector::{all, selector},
};

/// The rules of `spec.ingress` or `spec.egress` that were understood. A rule with anything bad in it is left
/// out as a whole: dropping the bad part might widen the rest (`from` without entries is everyone).
pub(super) fn rules(at: &At<'_>, direction: Direction, report: &mut Report) -> Vec<Rule> {
    let items = report.with_effect("nothing is allowed in this direction", |report| at.items(report));
    let Ok(items) = items else {
        return Vec::new();
    };
    let rules = items.enumerate().filter_map(|(index, item)| {
        let index = u32::try_from(index).ok()?;
        report.with_effect("the whole rule allows nothing", |report| {
            rule(&item, index, direction, report).ok()
        })
    });
    rules.collect()
}

fn rule(at: &At<'_>, index: u32, direction: Direction, report: &mut Report) -> Result<Rule, Bad> {
    if at.node.value == Value::Null {
        return Err(report.error(
            at,
            "null is not a rule",
            "write {} to allow everyone, or remove the item",
        ));
    }
    let side = match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    let shape = at.expect_fields(&[side, "ports"], report);
    let peers = some_of(at, side, report, peer);
    let ports = some_of(at, "ports", report, port);
    shape?;
    Ok(Rule {
        index,
        peers: peers?.map_or(Peers::Any, Peers::Of),
        ports: ports?.map_or(Ports::Any, Ports::Of),
    })
}

/// The entries of `field`; `None` where it is absent or empty, which means no restriction. No entry is ever
/// dropped here: a list that has entries stays a list that has entries, or is bad.
fn some_of<T>(
    at: &At<'_>,
    field: &str,
    report: &mut Report,
    parse: impl Fn(&At<'_>, &mut Report) -> Result<T, Bad>,
) -> Result<Option<Vec<T>>, Bad> {
    let Some(list) = at.raw(field) else {
        return Ok(None);
    };
    if list.node.value == Value::Null {
        let message = format!("{field} is null, which means the same as absent: no restriction");
        report.warn(
            &list,
            message,
            format!("add entries, or remove `{field}` if that is meant"),
        );
        return Ok(None);
    }
    let items = list.items(report)?;
    let parsed = all(items, |item| parse(&item, report))?;
    Ok(Some(parsed).filter(|entries| !entries.is_empty()))
}

fn peer(at: &At<'_>, report: &mut Report) -> Result<Peer, Bad> {
    at.expect_fields(&["podSelector", "namespaceSelector", "ipBlock"], report)?;
    let (block, pods, namespaces) = (
        at.get("ipBlock"),
        at.get("podSelector"),
        at.get("namespaceSelector"),
    );
    match block {
        Some(_) if pods.is_some() || namespaces.is_some() => Err(report.error(
            at,
            "a peer is either an ipBlock or selectors, not both",
            "make two peers of it: begin the second with `- `",
        )),
        Some(block) => ip_block(&block, report),
        None if pods.is_none() && namespaces.is_none() => Err(report.error(
            at,
            "the peer is empty",
            "use `podSelector: {}` for the pods of this namespace, `namespaceSelector: {}` for those of all",
        )),
        None => {
            let pods = pods.map_or(Ok(Selector::default()), |at| selector(&at, report));
            let namespaces = match namespaces {
                Some(at) => selector(&at, report).map(NamespaceScope::Matching),
                None => Ok(NamespaceScope::Own),
            };
            Ok(Peer::Pods {
                namespaces: namespaces?,
                pods: pods?,
            })
        }
    }
}

fn port(at: &At<'_>, report: &mut Report) -> Result<PortMatch, Bad> {
    at.expect_fields(&["protocol", "port", "endPort"], report)?;
    let protocol = protocol(at, report);
    let first = at.get("port").map(|at| port_or_name(&at, report)).transpose();
    let last = at.get("endPort");
    let port = match (first?, last) {
        (None, None) => PortSpec::All,
        (Some(port), None) => port,
        (Some(PortSpec::Range(first, _)), Some(last)) => end_port(&last, first, report)?,
        (Some(_), Some(last)) => {
            return Err(report.error(
                &last,
                "endPort can not follow a named port",
                "give the port's number",
            ));
        }
        (None, Some(last)) => return Err(report.error(&last, "endPort needs port", "add `port: FIRST`")),
    };
    Ok(PortMatch {
        protocol: protocol?,
        port,
    })
}

/// `protocol`, TCP where absent.
pub(super) fn protocol(at: &At<'_>, report: &mut Report) -> Result<Protocol, Bad> {
    let Some(at) = at.get("protocol") else {
        return Ok(Protocol::Tcp);
    };
    let name = at.string(report)?;
    match &**name {
        "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        "SCTP" => Ok(Protocol::Sctp),
        _ => Err(report.error(
            &at,
            format!("{} is not a protocol that NetworkPolicy knows", Quoted(name)),
            match closest(name, &["TCP", "UDP", "SCTP"]) {
                Some(meant) => format!("did you mean {meant}?"),
                None => "use TCP, UDP or SCTP; other protocols match only rules without ports".to_owned(),
            },
        )),
    }
}

fn port_or_name(at: &At<'_>, report: &mut Report) -> Result<PortSpec, Bad> {
    let Value::String(name) = &at.node.value else {
        return number(at, report).map(|port| PortSpec::Range(port, port));
    };
    names::port_name(name)
        .map(|()| PortSpec::Named(name.clone()))
        .map_err(|rule| {
            let help = match name.parse::<u16>() {
                Ok(number) => format!("write the number without quotes: {number}"),
                Err(_) => "use the name of a container's port, or a number".to_owned(),
            };
            report.error(at, format!("{} {rule}", Quoted(name)), help)
        })
}

fn end_port(at: &At<'_>, first: u16, report: &mut Report) -> Result<PortSpec, Bad> {
    let last = number(at, report)?;
    if last < first {
        return Err(report.error(
            at,
            format!("endPort {last} is below port {first}"),
            "give the lower number as port and the higher as endPort",
        ));
    }
    Ok(PortSpec::Range(first, last))
}

/// A port's number, 1 to 65535.
pub(super) fn number(at: &At<'_>, report: &mut Report) -> Result<u16, Bad> {
    let port = match &at.node.value {
        Value::Int(number, _) => u16::try_from(*number).ok().filter(|port| *port != 0),
        _ => None,
    };
    port.ok_or_else(|| {
        report.error(
            at,
            format!("{} is not a port", at.node.value),
            "use a whole number from 1 to 65535",
        )
    })
}
