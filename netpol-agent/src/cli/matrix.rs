//! `matrix`: who may reach whom, and by which policies.

use std::{
    io::{self, BufWriter, Write as _},
    net::IpAddr,
};

use clap::ValueEnum;
use netpol_policy::compile;

use super::{BadInput, Exit, Manifests, input, paint::Paint, table};
use crate::query::{
    EndName, Family, Found, Judge, PortName, QueryError, Transport, group,
    matrix::{Asked, Matrix},
    matrix_list,
};

/// Show who may reach whom, and by which policies.
///
/// A row opens the connection to a column. Pods of one workload that no policy tells apart share a row and a
/// column. Without --port, a cell says whether everything, some ports or nothing is allowed; json and csv
/// list the ports, and every pod by itself.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 shown; 2 bad input, or manifests with errors (the matrix is printed, but what \
    they leave out allows nothing); 3 policies and tables disagree, an error of netpol's own."
)]
pub(super) struct Args {
    #[command(flatten)]
    manifests: Manifests,

    /// Only this port of each destination: a number, or a name that each resolves for itself.
    #[arg(long)]
    port: Option<PortName>,

    /// With --port: TCP, UDP or SCTP [default: TCP]. Without: ICMP, ICMPv6 or a protocol number.
    #[arg(long)]
    protocol: Option<Transport>,

    /// 4 or 6, where both ends have both [default: that of the destination's first address].
    #[arg(long)]
    family: Option<Family>,

    /// Only pods of this namespace; may be repeated.
    #[arg(long, short, value_name = "NAME")]
    namespace: Vec<String>,

    /// Nodes, too.
    #[arg(long)]
    nodes: bool,

    /// This address, too; may be repeated.
    #[arg(long, value_name = "IP")]
    outside: Vec<IpAddr>,

    /// How to answer.
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
    /// For spreadsheets.
    Csv,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Exit> {
    let asked = asked(args)?;
    let input = input::read(&args.manifests)?;
    let judge = Judge::new(&input.snapshot, compile::full);
    let (ends, missing) = ends(args, &input, &judge)?;
    let matrix = Matrix::new(&input.snapshot, &judge, &ends, &asked, args.family)
        .map_err(|mismatch| anyhow::anyhow!("{mismatch}"))?;
    let mut output = BufWriter::new(io::stdout().lock());
    match args.output {
        Format::Json => {
            matrix_list::json(&mut output, &matrix, &ends, &asked)?;
            writeln!(output)?;
        }
        Format::Csv => matrix_list::csv(&mut output, &matrix, &ends)?,
        Format::Text => {
            let groups = group::groups(&matrix, &ends);
            let view = table::View {
                matrix: &matrix,
                groups: &groups,
                asked: &asked,
                missing: &missing,
                width: table::width(),
                paint: Paint::for_stdout(),
            };
            output.write_all(view.to_string().as_bytes())?;
        }
    }
    output.flush()?;
    Ok(input.exit(Exit::Ok))
}

fn asked(args: &Args) -> Result<Asked, BadInput> {
    let transport = args.protocol.unwrap_or(Transport::TCP);
    let bad = |error: QueryError| BadInput(error.to_string());
    match (&args.port, args.protocol) {
        (None, None) => Ok(Asked::Everything),
        (Some(_), _) if !transport.has_ports() => Err(bad(QueryError::PortNotWanted(transport.to_string()))),
        (None, Some(_)) if transport.has_ports() => Err(bad(QueryError::PortMissing(transport.to_string()))),
        (port, _) => Ok(Asked::One(transport, port.clone())),
    }
}

/// The rows, which are the columns, too; and what has none, in words.
fn ends<'a>(
    args: &Args,
    input: &'a input::Input,
    judge: &Judge<'a>,
) -> anyhow::Result<(Vec<Found<'a>>, Vec<String>)> {
    let snapshot = &input.snapshot;
    for name in &args.namespace {
        if !snapshot.pods.keys().any(|pod| *pod.namespace == **name) {
            anyhow::bail!(BadInput(format!("there are no pods in namespace {name}")));
        }
    }
    let wanted = |pod: &&netpol_policy::model::Pod| {
        args.namespace.is_empty() || args.namespace.iter().any(|name| **name == *pod.name.namespace)
    };
    let mut missing = Vec::new();
    let mut names = Vec::new();
    for pod in snapshot.pods.values().filter(wanted) {
        let why = match pod {
            pod if pod.completed => "completed",
            pod if pod.host_network => "on its node's network",
            pod if pod.addresses.is_empty() => "no address yet",
            _ => {
                names.push(EndName::Pod(pod.name.clone()));
                continue;
            }
        };
        missing.push(format!("{} ({why})", pod.name));
    }
    if args.nodes {
        names.extend(snapshot.nodes.keys().cloned().map(EndName::Node));
    }
    names.extend(args.outside.iter().copied().map(EndName::Address));
    let found = names
        .iter()
        .map(|name| judge.ends().find(name))
        .collect::<Result<_, _>>();
    let found = found.map_err(|error| BadInput(error.to_string()))?;
    Ok((found, missing))
}
