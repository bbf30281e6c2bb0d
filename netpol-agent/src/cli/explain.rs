//! `explain`: may X reach Y, and which policies say so?

use std::{
    fs::File,
    io::{self, Write},
    num::NonZero,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use netpol_policy::compile;
use serde::Serialize;

use super::{BadInput, Exit, Manifests, Output, input, paint::Paint};
use crate::query::{
    EndName, Family, Found, Judge, Kind, Located, PortName, Question, SideAnswer, Story, Transport, bulk,
    protocol_name, word,
};

/// Say whether one end may open a connection to another, and which policies decide.
///
/// An end is namespace/pod, an IP address (a running pod's address means that pod by that address, a
/// node's means that node), or node/NAME. pod/NAMESPACE/POD always means a pod. A pod on the host network is
/// its node. The port is the destination's own: after a Service's translation.
///
/// The answer is worked out twice: from the policies, and from the tables that the kernel would hold.
///
/// With --flows, each line of the file is an object such as
/// {"from":"default/client","to":"default/db","protocol":"TCP","port":5432,"family":4}; protocol (TCP) and
/// family may be absent. Each is answered by one line in its place:
/// {"verdict":"allow"|"deny","egress":{…},"ingress":{…}}, or {"error":"line N: …"}.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct Args {
    #[command(flatten)]
    manifests: Manifests,

    /// Who opens the connection.
    #[arg(long, value_name = "END", required_unless_present = "flows")]
    from: Option<EndName>,

    /// To whom.
    #[arg(long, value_name = "END", required_unless_present = "flows")]
    to: Option<EndName>,

    /// The destination's port: a number, or the name of one of the destination pod's ports.
    #[arg(long)]
    port: Option<PortName>,

    /// TCP, UDP, SCTP, or (without port) ICMP, ICMPv6 or a protocol number.
    #[arg(long, default_value = "TCP")]
    protocol: Transport,

    /// 4 or 6, where both ends have both [default: that of the destination's first address].
    #[arg(long)]
    family: Option<Family>,

    /// Answer one flow a line from this file (`-`: standard input), as JSON lines.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["from", "to", "port", "protocol", "family"])]
    flows: Option<PathBuf>,

    /// How to answer one flow; --flows always answers in JSON lines.
    #[arg(short, long, default_value = "text")]
    output: Output,
}

const EXIT_CODES: &str = "Exit codes: 0 allowed (--flows: every line has a verdict); 1 denied; 2 bad input: a flow \
    that can not be answered, or manifests with errors (the answer is printed, but what they leave out \
    allows nothing); 3 policies and tables disagree, an error of netpol's own.";

pub(super) fn run(args: &Args) -> anyhow::Result<Exit> {
    let input = input::read(&args.manifests)?;
    let judge = Judge::new(&input.snapshot, compile::full);
    let exit = match (&args.flows, &args.from, &args.to) {
        (Some(flows), ..) => many(&judge, flows)?,
        (None, Some(from), Some(to)) => one(args, &input, &judge, [from, to])?,
        (None, ..) => anyhow::bail!(BadInput(
            "--from and --to, or --flows: say what to explain".into()
        )),
    };
    Ok(input.exit(exit))
}

fn many(judge: &Judge<'_>, flows: &Path) -> anyhow::Result<Exit> {
    let output = io::stdout().lock();
    let workers = std::thread::available_parallelism().map_or(1, NonZero::get);
    let tally = if flows == Path::new("-") {
        bulk::run(judge, io::stdin().lock(), output, workers)
            .context("answering flows from standard input")?
    } else {
        let what = || format!("--flows {}", flows.display());
        let bad = |error: io::Error| BadInput(format!("{}: {error}", what()));
        let file = File::open(flows).map_err(bad)?;
        if file.metadata().map_err(bad)?.is_dir() {
            return Err(bad(io::ErrorKind::IsADirectory.into()).into());
        }
        bulk::run(judge, file, output, workers).with_context(what)?
    };
    if tally.bad > 0 {
        let lines = if tally.bad == 1 { "line" } else { "lines" };
        eprintln!(
            "error: {} {lines} of --flows could not be answered; see `error` in the output",
            tally.bad
        );
    }
    if tally.mismatches > 0 {
        eprintln!(
            "error: policies and tables disagree about {} flows; please report it",
            tally.mismatches
        );
    }
    Ok(match (tally.mismatches, tally.bad) {
        (0, 0) => Exit::Ok,
        (0, _) => Exit::BadInput,
        _ => Exit::Own,
    })
}

fn one(args: &Args, input: &input::Input, judge: &Judge<'_>, ends: [&EndName; 2]) -> anyhow::Result<Exit> {
    let bad = |error: crate::query::QueryError| BadInput(error.to_string());
    let [from, to] = ends.map(|name| judge.ends().find(name));
    let (from, to) = (from.map_err(bad)?, to.map_err(bad)?);
    let port = args.port.as_ref();
    let question = Question::new(&from, &to, args.protocol, port, args.family).map_err(bad)?;
    let verdict = judge
        .ask(&question)
        .map_err(|mismatch| anyhow::anyhow!("{mismatch}"))?;
    let story = Story::new(&input.snapshot, [&from, &to], &question, &verdict);
    let mut output = io::stdout().lock();
    match args.output {
        Output::Text => tell(&mut output, [&from, &to], &question, &story, verdict.allowed())?,
        Output::Json => {
            let object = Object {
                verdict: word(verdict.allowed()),
                from: End::new(&from, question.from),
                to: End::new(&to, question.to),
                family: question.family().number(),
                protocol: &protocol_name(question.protocol),
                port: (question.port != 0).then_some(question.port),
                egress: SideAnswer(&verdict.egress),
                ingress: SideAnswer(&verdict.ingress),
                sentence: &story.sentence,
            };
            serde_json::to_writer(&mut output, &object)?;
            writeln!(output)?;
        }
    }
    Ok(if verdict.allowed() { Exit::Ok } else { Exit::No })
}

/// One flow as `-o json`: what a line of `--flows` gets, and who the ends are.
#[derive(Serialize)]
struct Object<'o> {
    verdict: &'static str,
    from: End<'o>,
    to: End<'o>,
    family: u8,
    protocol: &'o str,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    egress: SideAnswer<'o>,
    ingress: SideAnswer<'o>,
    sentence: &'o str,
}

#[derive(Serialize)]
struct End<'o> {
    name: &'o str,
    kind: Kind,
    address: String,
}

impl<'o> End<'o> {
    fn new(found: &'o Found<'_>, at: &Located<'_>) -> Self {
        Self {
            name: &found.label,
            kind: at.kind,
            address: at.address.to_string(),
        }
    }
}

fn tell(
    output: &mut impl Write,
    [from, to]: [&Found<'_>; 2],
    question: &Question<'_>,
    story: &Story,
    allowed: bool,
) -> io::Result<()> {
    let paint = Paint::for_stdout();
    let verdict = if allowed {
        paint.good("ALLOWED")
    } else {
        paint.bad("DENIED")
    };
    let (from, to) = (shown(from, question.from), shown(to, question.to));
    writeln!(output, "{verdict}  {from} -> {to}  {}", story.service)?;
    for (title, lines) in [("egress", &story.egress), ("ingress", &story.ingress)] {
        let mut title = title;
        for line in lines {
            writeln!(output, "  {title:<7}  {line}")?;
            title = "";
        }
    }
    Ok(())
}

fn shown(found: &Found<'_>, at: &Located<'_>) -> String {
    let address = at.address.to_string();
    if address == found.label || at.address.is_unspecified() {
        found.label.clone()
    } else {
        format!("{} ({address})", found.label)
    }
}
