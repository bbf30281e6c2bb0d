//! `ipBlock`.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netpol_policy::model::Peer;

use super::{Bad, Report, at::At, node::Quoted, selector::all};

/// A CIDR less its exceptions.
pub(super) fn ip_block(at: &At<'_>, report: &mut Report) -> Result<Peer, Bad> {
    at.expect_fields(&["cidr", "except"], report)?;
    let cidr = match at.get("cidr") {
        Some(field) => network(&field, report),
        None => Err(report.error(at, "has no cidr", "add `cidr: ADDRESS/BITS`")),
    };
    let except = match at.get("except") {
        Some(list) => {
            let items = list.items(report)?;
            all(items, |item| exception(&item, cidr.ok(), report))
        }
        None => Ok(Vec::new()),
    };
    let (cidr, mut except) = (cidr?, except?);
    except.sort_unstable();
    except.dedup();
    Ok(Peer::IpBlock { cidr, except })
}

/// An exception must lie within the block. The API server refuses one that is the whole block; what it
/// means is clear (nobody), so it is kept, with a warning.
fn exception(at: &At<'_>, cidr: Option<IpNet>, report: &mut Report) -> Result<IpNet, Bad> {
    let except = network(at, report)?;
    let Some(cidr) = cidr else { return Ok(except) };
    match (cidr, except) {
        (IpNet::V4(_), IpNet::V6(_)) | (IpNet::V6(_), IpNet::V4(_)) => Err(report.error(
            at,
            format!("{except} and the block's cidr {cidr} are of different IP families"),
            "use one ipBlock for each family",
        )),
        _ if except == cidr => {
            report.warn(
                at,
                format!("{except} is the whole of the block's cidr: the block matches nobody"),
                "remove the ipBlock; the API server refuses it",
            );
            Ok(except)
        }
        _ if cidr.contains(&except) => Ok(except),
        _ => Err(report.error(
            at,
            format!("{except} is not within the block's cidr {cidr}"),
            "remove the exception, or correct one of the two",
        )),
    }
}

/// `ADDRESS/BITS`; host bits are masked, as by the API server, with a warning.
fn network(at: &At<'_>, report: &mut Report) -> Result<IpNet, Bad> {
    let text = at.string(report)?;
    let (net, odd) = match parse(text) {
        Ok(parsed) => parsed,
        Err((rule, help)) => return Err(report.error(at, format!("{} {rule}", Quoted(text)), help)),
    };
    let masked = net.trunc();
    if masked != net {
        report.warn(
            at,
            format!(
                "{} has bits set behind its prefix: it means {masked}",
                Quoted(text)
            ),
            format!(
                "write {masked}, or {}/{} for the one address",
                net.addr(),
                net.max_prefix_len()
            ),
        );
    } else if odd {
        report.warn(
            at,
            format!(
                "{} has leading zeros: it is read as decimal, {masked}",
                Quoted(text)
            ),
            format!("write {masked}"),
        );
    }
    if let IpNet::V6(v6) = masked
        && v6.prefix_len() >= 96
        && v6.network().to_ipv4_mapped().is_some()
    {
        report.warn(
            at,
            format!(
                "{} is an IPv4-mapped IPv6 network: it matches no IPv4 address",
                Quoted(text)
            ),
            "write it as an IPv4 network",
        );
    }
    Ok(masked)
}

type Broken = (&'static str, String);

/// The network, and whether it was written with leading zeros, which the API server reads as decimal.
fn parse(text: &str) -> Result<(IpNet, bool), Broken> {
    let Some((address, bits)) = text.split_once('/') else {
        let help = match text.parse::<IpAddr>() {
            Ok(address) => format!("write {}", IpNet::from(address)),
            Err(_) => "write ADDRESS/BITS, as in 10.0.0.0/8 or fd00::/8".to_owned(),
        };
        return Err(("is not a CIDR: it has no '/'", help));
    };
    let parsed = address.parse::<IpAddr>().ok();
    let plain = without_leading_zeros(address);
    let Some(ip) = parsed.or_else(|| plain?.parse().ok()) else {
        return Err((
            "is not a CIDR: what stands before '/' is not an IP address",
            "write ADDRESS/BITS, as in 10.0.0.0/8 or fd00::/8".to_owned(),
        ));
    };
    let most = if ip.is_ipv4() { 32 } else { 128 };
    let digits = !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit());
    let len = bits.parse::<u32>().ok().filter(|len| digits && *len <= most);
    let Some(len) = len.and_then(|len| u8::try_from(len).ok()) else {
        return Err((
            "is not a CIDR: the prefix length is out of range",
            format!("use 0 to {most} after '/'"),
        ));
    };
    let net = match ip {
        IpAddr::V4(ip) => Ipv4Net::new(ip, len).map(IpNet::V4),
        IpAddr::V6(ip) => Ipv6Net::new(ip, len).map(IpNet::V6),
    };
    match net {
        Ok(net) => Ok((net, parsed.is_none() || bits.len() > 1 && bits.starts_with('0'))),
        Err(_) => Err(("is not a CIDR", format!("use 0 to {most} after '/'"))),
    }
}

/// `010.1.02.3` → `10.1.2.3`; the API server's parser does the same (`ParseCIDRSloppy`).
fn without_leading_zeros(address: &str) -> Option<String> {
    let octets: Option<Vec<String>> = address
        .split('.')
        .map(|octet| {
            let digits = !octet.is_empty() && octet.bytes().all(|b| b.is_ascii_digit());
            digits
                .then(|| octet.parse::<u32>().ok().map(|n| n.to_string()))
                .flatten()
        })
        .collect();
    octets.map(|octets| octets.join("."))
}
