//! A matrix as people read it: rows open connections to columns, with a legend below.

use std::{
    collections::HashMap,
    fmt::{self, Write as _},
    io::{self, IsTerminal as _},
};

use netpol_policy::oracle::Exemption;

use super::paint::Paint;
use crate::query::{
    group::Group,
    join,
    matrix::{Asked, Extent, Matrix, Outcome, Way},
};

/// Columns of the terminal, or what fits most pages.
pub(super) fn width() -> usize {
    const PAGE: usize = 120;
    let columns = std::env::var("COLUMNS")
        .ok()
        .and_then(|columns| columns.parse().ok());
    let terminal = || terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| width.0.into());
    let seen = io::stdout().is_terminal();
    columns
        .or_else(|| if seen { terminal() } else { None })
        .unwrap_or(PAGE)
        .max(40)
}

/// What is to be shown.
pub(super) struct View<'v> {
    pub(super) matrix: &'v Matrix<'v>,
    pub(super) groups: &'v [Group],
    pub(super) asked: &'v Asked,
    /// Pods that have no row, with the reason.
    pub(super) missing: &'v [String],
    /// Columns of text.
    pub(super) width: usize,
    pub(super) paint: Paint,
}

/// How a cell is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    /// The end itself: always allowed.
    Itself,
    /// Allowed, and no policy has a part in it.
    Open,
    Denied,
    NotApplicable,
    /// Allowed by policies: entry of the legend.
    By(usize),
}

/// The longest name that is shown whole.
const NAME: usize = 32;

impl fmt::Display for View<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.groups.is_empty() {
            writeln!(f, "no pod has an address")?;
            return self.write_missing(f);
        }
        let mut legend = Legend::default();
        let marks: Vec<Vec<Mark>> = (0..self.groups.len())
            .map(|from| {
                (0..self.groups.len())
                    .map(|to| legend.mark(self.cell(from, to), from == to))
                    .collect()
            })
            .collect();
        self.write_title(f)?;
        let symbol = if legend.entries.len() > LETTERS { 2 } else { 1 };
        for block in self.blocks(symbol) {
            writeln!(f)?;
            self.write_block(f, &block, &marks, symbol)?;
        }
        writeln!(f)?;
        legend.write(f, &marks, self.paint)?;
        self.write_isolation(f)?;
        self.write_missing(f)
    }
}

impl View<'_> {
    /// The answer that stands for two groups; a group of several to itself means one member to another.
    fn cell(&self, from: usize, to: usize) -> &Outcome<'_> {
        let (source, destination) = (&self.groups[from].members, &self.groups[to].members);
        let other = if from == to && destination.len() > 1 { 1 } else { 0 };
        self.matrix.outcome(source[0], destination[other])
    }

    fn write_title(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.asked {
            Asked::Everything => "all protocols and ports".to_owned(),
            Asked::One(transport, None) => transport.to_string(),
            Asked::One(transport, Some(port)) => format!("{transport} {port}"),
        };
        let ends = self.matrix.size();
        let ends = if ends == 1 {
            "1 end".into()
        } else {
            format!("{ends} ends")
        };
        writeln!(
            f,
            "Who may reach whom: {what}, {ends}. A row opens connections to a column."
        )
    }

    /// Columns that fit beside the names, by their places.
    fn blocks(&self, symbol: usize) -> Vec<Vec<usize>> {
        let room = self.width.saturating_sub(self.label_width());
        let mut blocks: Vec<Vec<usize>> = Vec::new();
        let mut used = room;
        for column in 0..self.groups.len() {
            let gap = self.gap(column);
            let fits = used + gap + symbol < room;
            match blocks.last_mut() {
                Some(block) if fits => {
                    block.push(column);
                    used += gap + symbol;
                }
                _ => {
                    blocks.push(vec![column]);
                    used = 1 + symbol;
                }
            }
        }
        blocks
    }

    /// Spaces before a column; one more where a namespace begins.
    fn gap(&self, column: usize) -> usize {
        if self.begins(column) { 2 } else { 1 }
    }

    fn begins(&self, group: usize) -> bool {
        group == 0 || self.groups[group].heading != self.groups[group - 1].heading
    }

    fn number_width(&self) -> usize {
        self.groups.len().to_string().len()
    }

    fn label_width(&self) -> usize {
        let name = self
            .groups
            .iter()
            .map(|group| label(group).chars().count())
            .max()
            .unwrap_or(0);
        2 + self.number_width() + 1 + name + 1
    }

    fn write_block(
        &self,
        f: &mut fmt::Formatter<'_>,
        columns: &[usize],
        marks: &[Vec<Mark>],
        symbol: usize,
    ) -> fmt::Result {
        let left = self.label_width();
        // The columns' numbers, written downwards.
        for digit in 0..self.number_width() {
            let mut line = " ".repeat(left);
            for (at, &column) in columns.iter().enumerate() {
                let number = format!("{:>1$}", column + 1, self.number_width());
                let gap = if at == 0 { 1 } else { self.gap(column) };
                let _ = write!(line, "{:gap$}{:>symbol$}", "", &number[digit..=digit]);
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        for (row, group) in self.groups.iter().enumerate() {
            if self.begins(row) {
                writeln!(f, "{}", self.paint.strong(&group.heading))?;
            }
            let name = label(group);
            let pad = left - 3 - self.number_width() - name.chars().count();
            write!(f, "  {:>1$} {name}{2:pad$}", row + 1, self.number_width(), "")?;
            for (at, &column) in columns.iter().enumerate() {
                let gap = if at == 0 { 1 } else { self.gap(column) };
                let mark = marks[row][column];
                let text = mark.to_string();
                let indent = gap + symbol - text.chars().count();
                write!(f, "{:indent$}{}", "", mark.paint(self.paint, &text))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }

    /// Which policies isolate whom: they are why a cell is empty.
    fn write_isolation(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut title = Some("\nisolated");
        let names = self
            .groups
            .iter()
            .map(|group| label(group).chars().count())
            .max()
            .unwrap_or(0);
        for (at, group) in self.groups.iter().enumerate() {
            let held = self.isolation(group.members[0]);
            let held = held.into_iter().filter(|(_, way)| way.isolated);
            let held: Vec<_> = held
                .map(|(word, way)| format!("{word} by {}", few(&way.isolating)))
                .collect();
            if held.is_empty() {
                continue;
            }
            if let Some(title) = title.take() {
                writeln!(f, "{title}")?;
            }
            let name = label(group);
            let pad = names - name.chars().count();
            writeln!(
                f,
                "  {:>1$} {name}{2:pad$}  {3}",
                at + 1,
                self.number_width(),
                "",
                held.join("; ")
            )?;
        }
        Ok(())
    }

    /// The end's sides of pairs that were answered: whom it talks to does not change who isolates it.
    fn isolation(&self, end: usize) -> Vec<(&'static str, &Way<'_>)> {
        let mut others = 0..self.matrix.size();
        let egress = others
            .clone()
            .find_map(|other| match self.matrix.outcome(end, other) {
                Outcome::Answer { egress, .. } => Some(("egress", egress)),
                Outcome::NotApplicable(_) => None,
            });
        let ingress = others.find_map(|other| match self.matrix.outcome(other, end) {
            Outcome::Answer { ingress, .. } => Some(("ingress", ingress)),
            Outcome::NotApplicable(_) => None,
        });
        egress.into_iter().chain(ingress).collect()
    }

    fn write_missing(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.missing.is_empty() {
            return Ok(());
        }
        writeln!(f, "\nnot shown: {}", few(self.missing))
    }
}

/// What the marks mean, in order of their first use.
#[derive(Default)]
struct Legend {
    entries: Vec<String>,
    known: HashMap<String, usize>,
}

const LETTERS: usize = 52;

impl Legend {
    fn mark(&mut self, outcome: &Outcome<'_>, diagonal: bool) -> Mark {
        let (extent, ports, egress, ingress) = match outcome {
            Outcome::NotApplicable(_) => return Mark::NotApplicable,
            Outcome::Answer {
                extent,
                ports,
                egress,
                ingress,
            } => (*extent, ports, egress, ingress),
        };
        let itself = |way: &Way<'_>| way.exempt == Some(Exemption::Itself);
        if diagonal && (itself(egress) || itself(ingress)) {
            return Mark::Itself;
        }
        if extent == Extent::None {
            return Mark::Denied;
        }
        let by = |word: &str, way: &Way<'_>| {
            let policies = way.policies();
            match way.exempt {
                Some(_) if way.isolated => Some(format!("{word}: its own node, always allowed")),
                _ if policies.is_empty() => None,
                _ => Some(format!("{word} by {}", few(&policies))),
            }
        };
        let ways: Vec<_> = [by("egress", egress), by("ingress", ingress)]
            .into_iter()
            .flatten()
            .collect();
        if ways.is_empty() {
            return Mark::Open;
        }
        let entry = if extent == Extent::Some {
            format!("{}: {}", few(ports), ways.join(", "))
        } else {
            ways.join(", ")
        };
        let next = self.entries.len();
        let place = *self.known.entry(entry).or_insert_with_key(|entry| {
            self.entries.push(entry.clone());
            next
        });
        Mark::By(place)
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, marks: &[Vec<Mark>], paint: Paint) -> fmt::Result {
        let signs = [
            (Mark::Open, "allowed: no policy in the way"),
            (Mark::Denied, "denied"),
            (Mark::Itself, "itself"),
            (Mark::NotApplicable, "no such port, or no address of that family"),
        ];
        let used = signs
            .iter()
            .filter(|(mark, _)| marks.iter().flatten().any(|seen| seen == mark));
        let used: Vec<_> = used
            .map(|(mark, text)| format!("{} {text}", mark.paint(paint, &mark.to_string())))
            .collect();
        writeln!(f, "{}", used.join("   "))?;
        for (place, entry) in self.entries.iter().enumerate() {
            let mark = Mark::By(place);
            writeln!(f, "{} {entry}", mark.paint(paint, &mark.to_string()))?;
        }
        Ok(())
    }
}

impl Mark {
    fn paint(self, paint: Paint, text: &str) -> String {
        match self {
            Self::Open | Self::By(_) => paint.good(text),
            Self::Denied | Self::NotApplicable => paint.faint(text),
            Self::Itself => text.to_owned(),
        }
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = |place: usize| {
            let letters = ('a'..='z').chain('A'..='Z');
            letters.into_iter().nth(place % LETTERS).unwrap_or('?')
        };
        match *self {
            Self::Itself => f.write_char('='),
            Self::Open => f.write_char('✓'),
            Self::Denied => f.write_char('·'),
            Self::NotApplicable => f.write_char('-'),
            Self::By(place) if place < LETTERS => f.write_char(letter(place)),
            Self::By(place) => write!(f, "{}{}", letter(place / LETTERS - 1), letter(place)),
        }
    }
}

fn label(group: &Group) -> String {
    let name = &group.name;
    // Names of objects are ASCII.
    let name = if name.len() > NAME {
        format!("{}…", &name[..NAME - 1])
    } else {
        name.clone()
    };
    match group.members.len() {
        1 => name,
        several => format!("{name} ×{several}"),
    }
}

/// The first few of a list.
fn few(items: &[impl ToString]) -> String {
    const SHOWN: usize = 6;
    match items.len().checked_sub(SHOWN + 1) {
        None => join(items.iter().map(ToString::to_string)),
        Some(more) => {
            let shown: Vec<_> = items[..SHOWN].iter().map(ToString::to_string).collect();
            format!("{} and {} more", shown.join(", "), more + 1)
        }
    }
}
