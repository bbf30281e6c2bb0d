//! YAML text → documents. JSON is YAML.

use std::{cell::Cell, num::NonZeroU32, str::Chars};

use saphyr_parser::{Event, Parser, ScanError, Span};

use super::{builder::Builder, json};
use crate::source::intern::Interner;
use crate::source::parse::{Node, Value};

/// How many of `{}[],` the parser may read before it tells what they are. It holds a value in braces as a whole, at
/// some hundred bytes for each part, as the value might turn out to be a key. No API server stores so large an object.
const MAX_AHEAD: usize = 400_000;

/// What a file's text yields, in order.
#[derive(Debug, PartialEq)]
pub(super) enum Item {
    /// A document that is not empty.
    Document(Node),
    /// A list without its items, which follow.
    List(Node),
    /// An item of the last list.
    Element(Node),
    /// Something that is no YAML. Where it is a mapping's field that is given twice, the document follows.
    Broken(Syntax),
}

/// A place where the text is not YAML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Syntax {
    /// From 1.
    pub(super) line: Option<NonZeroU32>,
    pub(super) message: String,
    pub(super) help: &'static str,
}

/// Calls `each` for every document. They are parsed one by one, as Kubernetes' tools do, so that a broken one
/// takes no other with it and only one is in memory; of a list in JSON only one item.
pub(super) fn documents(text: &str, interner: &mut Interner, mut each: impl FnMut(Item, &mut Interner)) {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (before, chunk) in Chunks::new(text) {
        for (lines, part) in json::values(chunk).unwrap_or_else(|| vec![(0, chunk)]) {
            document(before + lines, part, interner, &mut each);
        }
    }
}

/// One document; a list in JSON is taken apart.
fn document(before: usize, text: &str, interner: &mut Interner, each: &mut dyn FnMut(Item, &mut Interner)) {
    let Some(list) = json::list(text) else {
        return parse(before, text, interner, each);
    };
    parse(before, &list.head, interner, &mut |item, interner| match item {
        Item::Document(node) => each(Item::List(node), interner),
        other => each(other, interner),
    });
    for (lines, item) in list.items {
        parse(before + lines, item, interner, &mut |item, interner| match item {
            Item::Document(node) => each(Item::Element(node), interner),
            other => each(other, interner),
        });
    }
}

/// Calls `each` for every document of `text`, before which there are `before` lines in the file.
fn parse(before: usize, text: &str, interner: &mut Interner, each: &mut dyn FnMut(Item, &mut Interner)) {
    let ahead = Cell::new(0);
    if text.len() <= MAX_AHEAD {
        // Without the counting, which takes time.
        build(Parser::new_from_str(text), &ahead, before, interner, each);
    } else {
        let chars = Bounded {
            chars: text.chars(),
            ahead: &ahead,
        };
        build(Parser::new_from_iter(chars), &ahead, before, interner, each);
    }
}

/// Puts the parser's events together; `ahead` counts what it reads between two of them.
fn build<'t>(
    events: impl Iterator<Item = Result<(Event<'t>, Span), ScanError>>,
    ahead: &Cell<usize>,
    before: usize,
    interner: &mut Interner,
    each: &mut dyn FnMut(Item, &mut Interner),
) {
    let mut builder = Builder::new(before);
    let mut line = builder.line(1);
    for event in events {
        if ahead.take() > MAX_AHEAD {
            // What comes is no longer the text: its end was cut off.
            return each(Item::Broken(too_long(line)), interner);
        }
        let result = match event {
            Ok((event, span)) => {
                line = builder.line(span.start.line());
                builder.event(event, span, interner)
            }
            Err(error) => Err(Syntax {
                line: builder.line(error.marker().line()),
                message: format!("not valid YAML: {}: this document is not read", error.info()),
                help: "correct it; `netpol-agent check` says when it is well",
            }),
        };
        let result = result.map(|done| done.filter(|node| node.value != Value::Null));
        for twice in builder.twice.drain(..) {
            each(Item::Broken(twice), interner);
        }
        match result {
            Ok(None) => {}
            Ok(Some(node)) => each(Item::Document(node), interner),
            Err(error) => return each(Item::Broken(error), interner),
        }
    }
}

fn too_long(line: Option<NonZeroU32>) -> Syntax {
    Syntax {
        line,
        message: "a value in braces that is larger than any object in a cluster: this document is not read"
            .into(),
        help: "split it; write large lists with each item on a line of its own that begins with `- `",
    }
}

/// Ends the text where the parser has read too far ahead.
struct Bounded<'t> {
    chars: Chars<'t>,
    ahead: &'t Cell<usize>,
}

impl Iterator for Bounded<'_> {
    type Item = char;

    fn next(&mut self) -> Option<char> {
        let next = self.chars.next().filter(|_| self.ahead.get() <= MAX_AHEAD)?;
        if matches!(next, '{' | '}' | '[' | ']' | ',') {
            self.ahead.set(self.ahead.get() + 1);
        }
        Some(next)
    }
}

/// Cuts text before lines that begin a document; gives the number of lines before each part.
struct Chunks<'t> {
    rest: &'t str,
    line: usize,
}

impl<'t> Chunks<'t> {
    fn new(text: &'t str) -> Self {
        Self { rest: text, line: 0 }
    }
}

impl<'t> Iterator for Chunks<'t> {
    type Item = (usize, &'t str);

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let (start, mut end, mut lines, mut directives) = (self.line, 0, 0, false);
        for line in self.rest.split_inclusive('\n') {
            let separator = line
                .strip_prefix("---")
                .is_some_and(|l| l.is_empty() || l.starts_with([' ', '\t', '\r', '\n']));
            // Directives belong to the document behind the separator.
            if separator && end > 0 && !directives {
                break;
            }
            directives = !separator && (line.starts_with('%') && end == 0 || directives);
            end += line.len();
            lines += 1;
        }
        let (chunk, rest) = self.rest.split_at(end);
        self.rest = rest;
        self.line += lines;
        Some((start, chunk))
    }
}
