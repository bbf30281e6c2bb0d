//! Protocols and ports as a person names them.

use std::{fmt, str::FromStr};

use netpol_common::proto;

use super::{
    QueryError,
    end::{Family, Found},
};

/// A transport protocol: `ICMP` means the one of the flow's family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// By its IP protocol number.
    Number(u8),
    /// ICMP for IPv4, ICMPv6 for IPv6.
    Icmp,
}

impl Transport {
    /// TCP, the default.
    pub const TCP: Self = Self::Number(proto::TCP);

    /// The IP protocol number in a flow of `family`.
    #[must_use]
    pub const fn number(self, family: Family) -> u8 {
        match (self, family) {
            (Self::Number(number), _) => number,
            (Self::Icmp, Family::V4) => proto::ICMP,
            (Self::Icmp, Family::V6) => proto::ICMPV6,
        }
    }

    /// Whether a flow of it has a port.
    #[must_use]
    pub const fn has_ports(self) -> bool {
        matches!(self, Self::Number(number) if proto::has_ports(number))
    }
}

impl FromStr for Transport {
    type Err = QueryError;

    fn from_str(text: &str) -> Result<Self, QueryError> {
        let known = [
            ("TCP", Self::TCP),
            ("UDP", Self::Number(proto::UDP)),
            ("SCTP", Self::Number(proto::SCTP)),
            ("ICMP", Self::Icmp),
            ("ICMPv6", Self::Number(proto::ICMPV6)),
        ];
        let named = known.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match named {
            Some((_, transport)) => Ok(*transport),
            None if digits => text
                .parse()
                .map(Self::Number)
                .map_err(|_| QueryError::Protocol(text.into())),
            None => Err(QueryError::Protocol(text.into())),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Icmp => f.write_str("ICMP"),
            Self::Number(number) => f.write_str(&protocol_name(*number)),
        }
    }
}

/// What an IP protocol number is called.
#[must_use]
pub fn protocol_name(number: u8) -> std::borrow::Cow<'static, str> {
    match number {
        proto::TCP => "TCP".into(),
        proto::UDP => "UDP".into(),
        proto::SCTP => "SCTP".into(),
        proto::ICMP => "ICMP".into(),
        proto::ICMPV6 => "ICMPv6".into(),
        _ => format!("protocol {number}").into(),
    }
}

/// A port as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PortName {
    /// From 1 on.
    Number(u16),
    /// The name of one of the destination's ports.
    Name(String),
}

impl PortName {
    /// A port from a number of any size.
    ///
    /// # Errors
    /// It is not from 1 to 65535.
    pub fn number(number: u64) -> Result<Self, QueryError> {
        match u16::try_from(number) {
            Ok(number) if number != 0 => Ok(Self::Number(number)),
            _ => Err(QueryError::PortSyntax(number.to_string())),
        }
    }

    /// Its number at `to`, for `protocol` (one that has ports).
    ///
    /// # Errors
    /// `to` is not a pod, or has no port of this name and protocol, or has several.
    pub fn at(&self, to: &Found<'_>, protocol: u8) -> Result<u16, QueryError> {
        let name = match self {
            Self::Number(number) => return Ok(*number),
            Self::Name(name) => name,
        };
        let Some(ports) = to.ports else {
            return Err(QueryError::PortNeedsPod {
                end: to.label.clone(),
                name: name.clone(),
            });
        };
        let fits = |port: &&netpol_policy::model::NamedPort| {
            *port.name == **name && port.protocol.number() == protocol
        };
        let mut numbers: Vec<u16> = ports.iter().filter(fits).map(|port| port.number).collect();
        numbers.dedup();
        match numbers[..] {
            [number] => Ok(number),
            [] => Err(QueryError::UnknownPort {
                end: to.label.clone(),
                protocol: protocol_name(protocol).into(),
                name: name.clone(),
                has: super::join(
                    ports
                        .iter()
                        .map(|port| format!("{} ({} {})", port.name, port.protocol.name(), port.number)),
                ),
            }),
            _ => Err(QueryError::AmbiguousPort {
                end: to.label.clone(),
                protocol: protocol_name(protocol).into(),
                name: name.clone(),
                numbers: super::join(numbers),
            }),
        }
    }
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl FromStr for PortName {
    type Err = QueryError;

    /// The syntax of `IANA_SVC_NAME` asks for a letter, so digits alone are always a number.
    fn from_str(text: &str) -> Result<Self, QueryError> {
        let name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            let number = text.parse().map_err(|_| QueryError::PortSyntax(text.into()))?;
            Self::number(number)
        } else if text.bytes().all(name) && text.bytes().any(|byte| byte.is_ascii_alphabetic()) {
            Ok(Self::Name(text.into()))
        } else {
            Err(QueryError::PortSyntax(text.into()))
        }
    }
}

/// The port number that `transport` and `port` mean at `to`; 0 for a protocol without ports.
///
/// # Errors
/// A port where there is none, none where there must be one, or a name that `to` does not have.
pub(super) fn resolve(
    transport: Transport,
    port: Option<&PortName>,
    to: &Found<'_>,
) -> Result<u16, QueryError> {
    match (transport, port) {
        (Transport::Number(number), Some(port)) if proto::has_ports(number) => port.at(to, number),
        (_, Some(_)) => Err(QueryError::PortNotWanted(transport.to_string())),
        (_, None) if transport.has_ports() => Err(QueryError::PortMissing(transport.to_string())),
        (_, None) => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use netpol_policy::model::{NamedPort, Protocol};

    use super::*;

    #[test]
    fn protocols() {
        let number = |text: &str, family| text.parse::<Transport>().map(|t| t.number(family)).ok();
        assert_eq!(number("tcp", Family::V4), Some(6));
        assert_eq!(number("SCTP", Family::V6), Some(132));
        assert_eq!(number("icmp", Family::V4), Some(1));
        assert_eq!(number("ICMP", Family::V6), Some(58));
        assert_eq!(number("1", Family::V6), Some(1));
        assert_eq!(number("0", Family::V4), Some(0));
        for bad in ["", "256", "-1", "+6", "http", "6.0"] {
            assert_eq!(number(bad, Family::V4), None, "{bad}");
        }
    }

    #[test]
    fn ports() {
        let read = |text: &str| text.parse::<PortName>().ok();
        assert_eq!(read("80"), Some(PortName::Number(80)));
        assert_eq!(read("65535"), Some(PortName::Number(65535)));
        assert_eq!(read("web-1"), Some(PortName::Name("web-1".into())));
        for bad in [
            "",
            "0",
            "65536",
            "99999999999999999999",
            "-1",
            "1-2",
            "a b",
            "80.0",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_of_ports_are_the_destinations() {
        let named = |name: &str, protocol, number| NamedPort {
            name: name.into(),
            protocol,
            number,
        };
        let ports = [
            named("dns", Protocol::Tcp, 53),
            named("dns", Protocol::Udp, 5353),
            named("web", Protocol::Tcp, 80),
            named("web", Protocol::Tcp, 8080),
        ];
        let mut to = Found {
            label: "default/db".into(),
            at: vec![],
            ports: Some(&ports),
        };
        let ask = |to: &Found<'_>, transport, name: &str| {
            resolve(transport, Some(&name.parse().unwrap()), to).map_err(|error| error.to_string())
        };
        let udp = Transport::Number(proto::UDP);
        assert_eq!(ask(&to, udp, "dns"), Ok(5353));
        assert_eq!(ask(&to, Transport::TCP, "dns"), Ok(53));
        assert_eq!(ask(&to, Transport::TCP, "99"), Ok(99));
        assert_eq!(
            ask(&to, Transport::TCP, "web"),
            Err("default/db has several TCP ports named `web`: 80 and 8080; give the number".into())
        );
        assert_eq!(
            ask(&to, udp, "web"),
            Err("default/db has no UDP port named `web`; it has dns (TCP 53), dns (UDP 5353), web (TCP 80) and \
                 web (TCP 8080)"
                .into())
        );
        assert_eq!(
            ask(&to, Transport::Icmp, "80"),
            Err("ICMP has no ports; leave the port out".into())
        );
        assert_eq!(resolve(Transport::Icmp, None, &to), Ok(0));
        assert_eq!(
            resolve(udp, None, &to),
            Err(QueryError::PortMissing("UDP".into()))
        );
        to.ports = None;
        assert_eq!(
            ask(&to, udp, "dns"),
            Err("default/db is not a pod, so it has no port named `dns`; give the port's number".into())
        );
    }
}
