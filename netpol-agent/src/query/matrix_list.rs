//! A matrix as JSON and CSV: one entry an ordered pair.

use std::io::{self, Write};

use serde::{Serialize, Serializer, ser::SerializeSeq as _};

use super::{
    Found, PortName,
    answer::{Name, Rules, exemption},
    matrix::{Asked, Extent, Matrix, Outcome, Way},
};

/// Writes `{"protocol":…,"port":…,"ends":[…],"pairs":[…]}`; protocol and port only where one was asked.
///
/// # Errors
/// Those of `output`.
pub fn json(
    output: impl Write,
    matrix: &Matrix<'_>,
    ends: &[Found<'_>],
    asked: &Asked,
) -> serde_json::Result<()> {
    let (protocol, port) = match asked {
        Asked::Everything => (None, None),
        Asked::One(transport, port) => (Some(transport.to_string()), port.as_ref()),
    };
    let port = port.map(|port| match port {
        PortName::Number(number) => serde_json::Value::from(*number),
        PortName::Name(name) => name.as_str().into(),
    });
    let ends_of = ends.iter().map(|end| End {
        name: &end.label,
        kind: end.at.first().map(|at| at.kind),
        addresses: end.at.iter().map(|at| at.address.to_string()).collect(),
    });
    let document = Document {
        protocol,
        port,
        ends: ends_of.collect(),
        pairs: Pairs(matrix, ends),
    };
    serde_json::to_writer(output, &document)
}

#[derive(Serialize)]
struct Document<'d> {
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<serde_json::Value>,
    ends: Vec<End<'d>>,
    pairs: Pairs<'d>,
}

#[derive(Serialize)]
struct End<'d> {
    name: &'d str,
    kind: Option<super::Kind>,
    addresses: Vec<String>,
}

struct Pairs<'d>(&'d Matrix<'d>, &'d [Found<'d>]);

impl Serialize for Pairs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(matrix, ends) = self;
        let mut list = serializer.serialize_seq(Some(ends.len() * ends.len()))?;
        for (from, source) in ends.iter().enumerate() {
            for (to, destination) in ends.iter().enumerate() {
                list.serialize_element(&Pair::new(
                    &source.label,
                    &destination.label,
                    matrix.outcome(from, to),
                ))?;
            }
        }
        list.end()
    }
}

#[derive(Serialize)]
struct Pair<'d> {
    from: &'d str,
    to: &'d str,
    verdict: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ports: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    egress: Option<Direction<'d>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ingress: Option<Direction<'d>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'d str>,
}

#[derive(Serialize)]
struct Direction<'d> {
    verdict: &'static str,
    isolated: bool,
    policies: Vec<Name<'d>>,
    rules: Rules<'d>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exempt: Option<&'static str>,
}

impl<'d> Direction<'d> {
    fn new(way: &'d Way<'_>) -> Self {
        Self {
            verdict: word(way.extent),
            isolated: way.isolated,
            policies: way.policies().into_iter().map(Name).collect(),
            rules: Rules(&way.rules),
            exempt: way.exempt.map(exemption),
        }
    }
}

impl<'d> Pair<'d> {
    fn new(from: &'d str, to: &'d str, outcome: &'d Outcome<'_>) -> Self {
        match outcome {
            Outcome::Answer {
                extent,
                ports,
                egress,
                ingress,
            } => Self {
                from,
                to,
                verdict: word(*extent),
                ports: (*extent == Extent::Some).then(|| ports.iter().map(ToString::to_string).collect()),
                egress: Some(Direction::new(egress)),
                ingress: Some(Direction::new(ingress)),
                error: None,
            },
            Outcome::NotApplicable(error) => Self {
                from,
                to,
                verdict: "n/a",
                ports: None,
                egress: None,
                ingress: None,
                error: Some(error),
            },
        }
    }
}

const fn word(extent: Extent) -> &'static str {
    match extent {
        Extent::All => "allow",
        Extent::Some => "some",
        Extent::None => "deny",
    }
}

/// Writes a line a pair, below a line of titles; lists within a field have spaces (policies) or semicolons
/// (ports) between their entries.
///
/// # Errors
/// Those of `output`.
pub fn csv(mut output: impl Write, matrix: &Matrix<'_>, ends: &[Found<'_>]) -> io::Result<()> {
    writeln!(
        output,
        "from,to,verdict,ports,egress,egress_policies,ingress,ingress_policies,note"
    )?;
    for (from, source) in ends.iter().enumerate() {
        for (to, destination) in ends.iter().enumerate() {
            write!(output, "{},{},", field(&source.label), field(&destination.label))?;
            match matrix.outcome(from, to) {
                Outcome::Answer {
                    extent,
                    ports,
                    egress,
                    ingress,
                } => {
                    let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
                    write!(output, "{},{},", word(*extent), ports.join(";"))?;
                    let exempt = egress.exempt.or(ingress.exempt).map_or("", exemption);
                    for way in [egress, ingress] {
                        let names: Vec<_> = way.policies().iter().map(ToString::to_string).collect();
                        write!(output, "{},{},", word(way.extent), names.join(" "))?;
                    }
                    writeln!(output, "{exempt}")?;
                }
                Outcome::NotApplicable(error) => writeln!(output, "n/a,,,,,,{}", field(error))?,
            }
        }
    }
    Ok(())
}

/// Quoted where it must be (RFC 4180).
fn field(text: &str) -> std::borrow::Cow<'_, str> {
    if text.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\"")).into()
    } else {
        text.into()
    }
}
