//! Many questions at once: one JSON object a line in, one JSON line out per line in, in order.

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    thread,
};

use serde::Serialize;

use super::{
    Answer, Found, Judge, Mismatch, QueryError, Question, Transport,
    judge::TableSide,
    line::{FlowLine, Lines, MAX_LINE, parse},
};

/// Ends that a worker remembers; then it forgets all (there may be as many addresses as lines).
const MAX_ENDS: usize = 1 << 16;
/// Fewer lines are not worth a thread.
const MIN_SHARE: usize = 128;

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

/// Reads lines from `input` until it ends and writes one for each to `output`. Lines are answered as soon as
/// they are there, so whoever writes one and waits for the answer gets it; many at once are shared between
/// `workers` threads (at least one).
///
/// # Errors
/// Those of `input` and `output`. Bad lines and disagreements are answered in their place and counted.
pub fn run(judge: &Judge<'_>, input: impl Read, mut output: impl Write, workers: usize) -> io::Result<Tally> {
    let mut lines = Lines::new(input);
    let mut workers: Vec<_> = (0..workers.max(1)).map(|_| Worker::new(judge)).collect();
    let mut number = 1;
    while let Some(batch) = lines.next_batch()? {
        let batch: Vec<&[u8]> = batch.collect();
        let share = batch.len().div_ceil(workers.len()).max(MIN_SHARE);
        let shares = batch
            .chunks(share)
            .zip((number..).step_by(share))
            .zip(&mut workers);
        if batch.len() <= share {
            shares.for_each(|((lines, first), worker)| worker.answer(lines, first));
        } else {
            thread::scope(|scope| {
                for ((lines, first), worker) in shares {
                    scope.spawn(move || worker.answer(lines, first));
                }
            });
        }
        for worker in &mut workers {
            output.write_all(&worker.output)?;
            worker.output.clear();
        }
        output.flush()?;
        number += batch.len();
    }
    Ok(workers
        .iter()
        .map(|worker| worker.tally)
        .fold(Tally::default(), |sum, part| Tally {
            answered: sum.answered + part.answered,
            bad: sum.bad + part.bad,
            mismatches: sum.mismatches + part.mismatches,
        }))
}

/// Answers its share of each batch.
struct Worker<'j, 'a> {
    judge: &'j Judge<'a>,
    tally: Tally,
    output: Vec<u8>,
    /// The ends that lines named before, by their text.
    places: HashMap<Box<str>, usize>,
    ends: Vec<Result<Found<'a>, QueryError>>,
}

impl<'j, 'a> Worker<'j, 'a> {
    fn new(judge: &'j Judge<'a>) -> Self {
        Self {
            judge,
            tally: Tally::default(),
            output: Vec::new(),
            places: HashMap::new(),
            ends: Vec::new(),
        }
    }

    fn answer(&mut self, lines: &[&[u8]], first: usize) {
        for (number, line) in (first..).zip(lines) {
            self.answer_one(number, line);
        }
    }

    fn answer_one(&mut self, number: usize, line: &[u8]) {
        let judge = self.judge;
        let answered = if line.len() > MAX_LINE {
            Err(format!("longer than {} KiB", MAX_LINE >> 10))
        } else {
            parse(line).and_then(|flow| {
                let question = self.question(&flow).map_err(|error| error.to_string())?;
                Ok(judge.ask(&question))
            })
        };
        match answered {
            Ok(Ok(verdict)) => {
                self.tally.answered += 1;
                self.write(&Answer(&verdict));
            }
            Ok(Err(mismatch)) => {
                self.tally.mismatches += 1;
                self.write(&Disagreement::new(number, &mismatch));
            }
            Err(reason) => {
                self.tally.bad += 1;
                let error = format!("line {number}: {reason}");
                self.write(&Bad { error });
            }
        }
    }

    fn write(&mut self, value: &impl Serialize) {
        serde_json::to_writer(&mut self.output, value).expect("memory takes every answer");
        self.output.push(b'\n');
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
    fn new(number: usize, mismatch: &Mismatch) -> Self {
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
