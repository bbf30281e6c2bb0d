//! Many questions at once: one JSON object a line in, one JSON line out per line in, in order.

use std::{
    collections::HashMap,
    io::{self, BufRead as _, BufReader, BufWriter, Read, Write},
};

use serde::Serialize;

use super::{
    Answer, Found, Judge, Mismatch, QueryError, Question, Transport,
    judge::TableSide,
    line::{FlowLine, parse},
};

/// A longer line is answered by an error: no flow needs it, and memory stays bounded.
const MAX_LINE: usize = 64 << 10;
/// Ends that are remembered; then all are forgotten (there may be as many addresses as lines).
const MAX_ENDS: usize = 1 << 16;
const BUFFER: usize = 256 << 10;

/// How the lines were answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Lines that hold a verdict.
    pub answered: u64,
    /// Lines that could not be understood.
    pub bad: u64,
    /// Lines on which the oracle and the tables disagree.
    pub mismatches: u64,
}

/// Reads lines from `input` until it ends and writes one for each to `output`, which is flushed whenever the
/// next line is not there yet.
///
/// # Errors
/// Those of `input` and `output`. Bad lines and disagreements are answered in their place and counted.
pub fn run(judge: &Judge<'_>, input: impl Read, output: impl Write) -> io::Result<Tally> {
    let mut input = BufReader::with_capacity(BUFFER, input);
    let mut output = BufWriter::with_capacity(BUFFER, output);
    let mut tally = Tally::default();
    let mut ends = Cache::new(judge);
    let mut line = Vec::new();
    for number in 1_u64.. {
        let answered = match next_line(&mut input, &mut line, &mut output)? {
            Next::End => break,
            Next::TooLong => Err(format!("longer than {} KiB", MAX_LINE >> 10)),
            Next::Line => parse(&line).and_then(|flow| {
                let question = ends.question(&flow).map_err(|error| error.to_string())?;
                Ok(judge.ask(&question))
            }),
        };
        match answered {
            Ok(Ok(verdict)) => {
                tally.answered += 1;
                write_line(&mut output, &Answer(&verdict))?;
            }
            Ok(Err(mismatch)) => {
                tally.mismatches += 1;
                write_line(&mut output, &Disagreement::new(number, &mismatch))?;
            }
            Err(reason) => {
                tally.bad += 1;
                let error = format!("line {number}: {reason}");
                write_line(&mut output, &Bad { error })?;
            }
        }
    }
    output.flush()?;
    Ok(tally)
}

enum Next {
    Line,
    TooLong,
    End,
}

/// One line without its end. Before this waits for input, `output` is flushed: whoever writes a line and
/// waits for the answer gets it.
fn next_line(
    input: &mut BufReader<impl Read>,
    line: &mut Vec<u8>,
    output: &mut impl Write,
) -> io::Result<Next> {
    line.clear();
    let mut length = 0;
    let mut ended = false;
    while !ended {
        if input.buffer().is_empty() {
            output.flush()?;
        }
        let chunk = input.fill_buf()?;
        if chunk.is_empty() {
            break;
        }
        let end = chunk.iter().position(|&byte| byte == b'\n');
        ended = end.is_some();
        let part = &chunk[..end.unwrap_or(chunk.len())];
        length += part.len();
        if length <= MAX_LINE {
            line.extend_from_slice(part);
        }
        let used = part.len() + usize::from(ended);
        input.consume(used);
    }
    Ok(match (ended || length > 0, length > MAX_LINE) {
        (false, _) => Next::End,
        (true, true) => Next::TooLong,
        (true, false) => Next::Line,
    })
}

fn write_line(output: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *output, value)?;
    output.write_all(b"\n")
}

#[derive(Serialize)]
struct Bad {
    error: String,
}

#[derive(Serialize)]
struct Disagreement {
    error: String,
    oracle: BothSides,
    tables: BothSides,
}

#[derive(Serialize)]
struct BothSides {
    egress: TableSide,
    ingress: TableSide,
}

impl Disagreement {
    fn new(number: u64, mismatch: &Mismatch) -> Self {
        let sides = |which: usize| BothSides {
            egress: mismatch.egress[which],
            ingress: mismatch.ingress[which],
        };
        Self {
            error: format!("line {number}: {mismatch}"),
            oracle: sides(0),
            tables: sides(1),
        }
    }
}

/// The ends that lines named before.
struct Cache<'j, 'a> {
    judge: &'j Judge<'a>,
    places: HashMap<Box<str>, usize>,
    ends: Vec<Result<Found<'a>, QueryError>>,
}

impl<'j, 'a> Cache<'j, 'a> {
    fn new(judge: &'j Judge<'a>) -> Self {
        Self {
            judge,
            places: HashMap::new(),
            ends: Vec::new(),
        }
    }

    fn question(&mut self, flow: &FlowLine<'_>) -> Result<Question<'_>, QueryError> {
        if self.ends.len() >= MAX_ENDS {
            self.places.clear();
            self.ends.clear();
        }
        let (from, to) = (self.place(&flow.from), self.place(&flow.to));
        let end = |place: usize| self.ends[place].as_ref().map_err(Clone::clone);
        let transport = flow.protocol.unwrap_or(Transport::TCP);
        Question::new(end(from)?, end(to)?, transport, flow.port.as_ref(), flow.family)
    }

    fn place(&mut self, text: &str) -> usize {
        if let Some(&place) = self.places.get(text) {
            return place;
        }
        let found = text.parse().and_then(|name| self.judge.ends().find(&name));
        self.ends.push(found);
        self.places.insert(text.into(), self.ends.len() - 1);
        self.ends.len() - 1
    }
}
