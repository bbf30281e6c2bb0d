//! Who reaches whom, in as few characters as possible: rows ask, columns answer.

use std::collections::BTreeMap;

use super::{
    Run, Scene,
    checks::{Check, Questions, Site},
};
use crate::net::Transport;

/// What of a column's ports a row reaches: the ports, or (for a Service) how many endpoints of how many.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cell {
    /// Not asked: itself, or no pod at either end.
    Blank,
    /// Everything, also what nobody declared.
    All,
    /// Nothing.
    Nothing,
    /// This.
    Some(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Column {
    Site(Site),
    Service(usize),
}

/// One row for each group of alike senders.
#[derive(Debug)]
pub(super) struct Matrix {
    rows: Vec<String>,
    columns: Vec<String>,
    /// (what happened, what the oracle says)
    cells: Vec<Vec<(Cell, Cell)>>,
    differ: Vec<Vec<bool>>,
}

type Facts<'r> = BTreeMap<(Site, Column), Vec<(&'r Check, bool, bool, bool)>>;

impl Matrix {
    pub(super) fn new(scene: &Scene, questions: &Questions<'_>, run: &Run) -> Self {
        let mut facts: Facts<'_> = BTreeMap::new();
        for (check, answer) in run.checks.iter().zip(&run.answers) {
            let column = check
                .via
                .map_or(Column::Site(check.to), |via| Column::Service(via.service));
            let fact = (check, answer.outcome.reached(), answer.expected, answer.same);
            facts.entry((check.from, column)).or_default().push(fact);
        }
        let rows: Vec<Site> = questions
            .sites()
            .filter(|site| facts.keys().any(|(from, _)| from == site))
            .collect();
        let sites = questions.sites().map(Column::Site);
        let columns: Vec<Column> = sites
            .chain((0..scene.services.len()).map(Column::Service))
            .collect();
        let columns: Vec<Column> = columns
            .into_iter()
            .filter(|column| facts.keys().any(|(_, to)| to == column))
            .collect();
        let cell = |row: Site, column: Column| {
            let facts = facts.get(&(row, column)).map_or(&[][..], Vec::as_slice);
            (
                read(facts, |fact| fact.1),
                read(facts, |fact| fact.2),
                facts.iter().any(|fact| !fact.3),
            )
        };
        let full: Vec<Vec<(Cell, Cell, bool)>> = rows
            .iter()
            .map(|row| columns.iter().map(|column| cell(*row, *column)).collect())
            .collect();
        let alike = alike(questions, &rows, &columns, &full);
        let chosen_rows: Vec<usize> = representatives(&alike, rows.iter().map(|site| Column::Site(*site)));
        let chosen_columns: Vec<usize> = representatives(&alike, columns.iter().copied());
        let title = |column: &Column| title(scene, questions, *column, &alike);
        let pick = |row: usize| chosen_columns.iter().map(move |column| (row, *column));
        // Within a group: what the first has to do with the second.
        let shown = |(row, column): (usize, usize)| match (alike.get(&rows[row]), columns[column]) {
            (Some((first, size)), Column::Site(to)) if *size > 1 && to == *first => {
                let second = columns.iter().position(|at| *at != columns[column] && matches!(at, Column::Site(site) if alike.get(site).is_some_and(|(one, _)| one == first)));
                full[row][second.unwrap_or(column)].clone()
            }
            _ => full[row][column].clone(),
        };
        Self {
            rows: chosen_rows
                .iter()
                .map(|at| title(&Column::Site(rows[*at])))
                .collect(),
            columns: chosen_columns.iter().map(|at| title(&columns[*at])).collect(),
            cells: chosen_rows
                .iter()
                .map(|row| {
                    pick(*row)
                        .map(shown)
                        .map(|(got, expected, _)| (got, expected))
                        .collect()
                })
                .collect(),
            differ: chosen_rows
                .iter()
                .map(|row| pick(*row).map(shown).map(|(_, _, differ)| differ).collect())
                .collect(),
        }
    }

    /// `width` is the terminal's; the matrices stand side by side where they fit.
    pub(super) fn draw(&self, width: usize, colour: bool) -> String {
        let mut letters: Vec<&str> = Vec::new();
        for (got, expected) in self.cells.iter().flatten() {
            for cell in [got, expected] {
                if let Cell::Some(text) = cell
                    && !letters.contains(&text.as_str())
                {
                    letters.push(text);
                }
            }
        }
        let name = self.rows.iter().map(|row| row.chars().count()).max().unwrap_or(0);
        let number = self
            .columns
            .len()
            .to_string()
            .len()
            .max(if letters.len() > 26 { 2 } else { 1 });
        let block = self.columns.len() * (number + 1);
        let beside = name + 6 + 2 * block + 3 <= width;
        let mut text = String::new();
        let style = Style { colour, number };
        if beside {
            let pad = block.max(22);
            text += &format!(
                "{:name$}      {:pad$}   {}\n",
                "", "what really happens", "what the oracle says"
            );
            let heads = style.heads(self.columns.len());
            text += &format!("{:name$}     {heads:pad$}   {heads}\n", "from \\ to");
            for (at, row) in self.rows.iter().enumerate() {
                let (got, expected) = (
                    self.line(at, true, &letters, style),
                    self.line(at, false, &letters, style),
                );
                let gap = " ".repeat(pad - block);
                text += &format!("{row:name$} {:>3} {got}{gap}   {expected}\n", at + 1);
            }
        } else {
            for (title, real) in [("what really happens", true), ("what the oracle says", false)] {
                text += &format!(
                    "{title}\n{:name$}     {}\n",
                    "from \\ to",
                    style.heads(self.columns.len())
                );
                for (at, row) in self.rows.iter().enumerate() {
                    text += &format!(
                        "{row:name$} {:>3} {}\n",
                        at + 1,
                        self.line(at, real, &letters, style)
                    );
                }
            }
        }
        text + &self.legend(&letters)
    }

    fn line(&self, row: usize, real: bool, letters: &[&str], style: Style) -> String {
        let cells = self.cells[row].iter().zip(&self.differ[row]);
        cells
            .map(|((got, expected), differ)| {
                style.cell(if real { got } else { expected }, *differ && real, letters)
            })
            .collect()
    }

    fn legend(&self, letters: &[&str]) -> String {
        let columns: Vec<String> = self
            .columns
            .iter()
            .enumerate()
            .map(|(at, name)| format!("{} {name}", at + 1))
            .collect();
        let mut text = format!("to: {}\n● every port   · nothing", columns.join(", "));
        for (at, what) in letters.iter().enumerate() {
            text += &format!("   {} {what}", letter(at));
        }
        text.push('\n');
        text
    }
}

#[derive(Clone, Copy)]
struct Style {
    colour: bool,
    number: usize,
}

impl Style {
    fn heads(self, columns: usize) -> String {
        (1..=columns)
            .map(|at| format!(" {at:>width$}", width = self.number))
            .collect()
    }

    fn cell(self, cell: &Cell, differs: bool, letters: &[&str]) -> String {
        let (text, colour) = match cell {
            Cell::Blank => (" ".to_owned(), ""),
            Cell::All => ("●".to_owned(), "32"),
            Cell::Nothing => ("·".to_owned(), "2"),
            Cell::Some(what) => (
                letter(letters.iter().position(|one| one == what).unwrap_or(0)),
                "33",
            ),
        };
        let text = format!(" {text:>width$}", width = self.number);
        match (self.colour, differs) {
            (true, true) => format!("\x1b[1;41m{text}\x1b[0m"),
            (true, false) if !colour.is_empty() => format!("\x1b[{colour}m{text}\x1b[0m"),
            (false, true) => format!("!{}", &text[1..]),
            _ => text,
        }
    }
}

/// a, b, ... z, aa, ab, ...
fn letter(at: usize) -> String {
    let last = char::from(b'a' + u8::try_from(at % 26).unwrap_or_default());
    if at < 26 {
        last.to_string()
    } else {
        format!("{}{last}", letter(at / 26 - 1))
    }
}

fn read(facts: &[(&Check, bool, bool, bool)], open: impl Fn(&(&Check, bool, bool, bool)) -> bool) -> Cell {
    if facts.is_empty() {
        return Cell::Blank;
    }
    let through: Vec<_> = facts.iter().filter(|fact| open(fact)).collect();
    if through.len() == facts.len() {
        return Cell::All;
    }
    if through.is_empty() {
        return Cell::Nothing;
    }
    if facts[0].0.via.is_some() {
        return Cell::Some(format!("{} of {} ways", through.len(), facts.len()));
    }
    let mut by_port: BTreeMap<(Transport, u16), Vec<bool>> = BTreeMap::new();
    for fact in facts {
        by_port
            .entry((fact.0.probe.transport, fact.0.probe.to.port()))
            .or_default()
            .push(open(fact));
    }
    let mut words: BTreeMap<Transport, Vec<String>> = BTreeMap::new();
    for ((transport, port), open) in by_port {
        if open.iter().all(|open| *open) {
            words.entry(transport).or_default().push(port.to_string());
        } else if open.contains(&true) {
            words
                .entry(transport)
                .or_default()
                .push(format!("{port} of one family"));
        }
    }
    let words = words
        .into_iter()
        .map(|(transport, ports)| format!("{transport:?}").to_uppercase() + " " + &ports.join("+"));
    Cell::Some(words.collect::<Vec<_>>().join(", "))
}

/// Groups of pods of one namespace and workload that nobody can tell apart: site → (first of the group, size).
type Alike = BTreeMap<Site, (Site, usize)>;

fn alike(
    questions: &Questions<'_>,
    rows: &[Site],
    columns: &[Column],
    full: &[Vec<(Cell, Cell, bool)>],
) -> Alike {
    let mut groups: Vec<Vec<Site>> = Vec::new();
    let row_of = |site: Site| rows.iter().position(|row| *row == site);
    let column_of = |site: Site| columns.iter().position(|column| *column == Column::Site(site));
    let same = |a: Site, b: Site| {
        let (ra, rb, ca, cb) = (row_of(a), row_of(b), column_of(a), column_of(b));
        let (Some(ca), Some(cb)) = (ca, cb) else {
            return false;
        };
        let columns_same = (0..rows.len())
            .filter(|row| rows[*row] != a && rows[*row] != b)
            .all(|row| full[row][ca] == full[row][cb]);
        let rows_same = match (ra, rb) {
            (Some(ra), Some(rb)) => (0..columns.len())
                .filter(|at| *at != ca && *at != cb)
                .all(|at| full[ra][at] == full[rb][at]),
            (None, None) => true,
            _ => false,
        };
        columns_same && rows_same && workload(&questions.name(a)) == workload(&questions.name(b))
    };
    for site in questions.sites() {
        let pod = matches!(site, Site::Pod(_));
        match groups
            .iter_mut()
            .find(|group| pod && matches!(group[0], Site::Pod(_)) && same(group[0], site))
        {
            Some(group) => group.push(site),
            None => groups.push(vec![site]),
        }
    }
    groups
        .into_iter()
        .flat_map(|group| {
            let (first, size) = (group[0], group.len());
            group.into_iter().map(move |site| (site, (first, size)))
        })
        .collect()
}

/// A pod's name without what a workload appends: `web-7d4b9c-x2x4z`, `db-0` → `web`, `db`.
fn workload(name: &str) -> &str {
    let mut name = name;
    while let Some((rest, last)) = name.rsplit_once('-') {
        let generated = last.chars().any(|c| c.is_ascii_digit())
            || (last.len() == 5 && !last.contains(['a', 'e', 'i', 'o', 'u']));
        if !generated || rest.ends_with('/') {
            break;
        }
        name = rest;
    }
    name
}

fn representatives(alike: &Alike, all: impl Iterator<Item = Column>) -> Vec<usize> {
    all.enumerate()
        .filter(|(_, column)| match column {
            Column::Site(site) => alike.get(site).is_none_or(|(first, _)| first == site),
            Column::Service(_) => true,
        })
        .map(|(at, _)| at)
        .collect()
}

fn title(scene: &Scene, questions: &Questions<'_>, column: Column, alike: &Alike) -> String {
    match column {
        Column::Site(site) => {
            let name = questions.name(site);
            match alike.get(&site) {
                Some((_, size)) if *size > 1 => format!("{} ×{size}", workload(&name)),
                _ => name,
            }
        }
        Column::Service(at) => format!(
            "service {}:{}",
            scene.services[at].service, scene.services[at].port
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_lose_their_suffixes() {
        let names = [
            "shop/web-7d4b9c-x2x4z",
            "shop/db-0",
            "shop/web",
            "a/b-c",
            "x/y-backup",
        ];
        assert_eq!(
            names.map(workload),
            ["shop/web", "shop/db", "shop/web", "a/b-c", "x/y-backup"]
        );
    }

    #[test]
    fn letters_go_on_after_z() {
        assert_eq!([0, 25, 26, 52].map(letter), ["a", "z", "aa", "ba"]);
    }
}
