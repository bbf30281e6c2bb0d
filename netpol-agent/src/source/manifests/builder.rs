//! Events of the YAML parser → values.

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroU32,
};

use netpol_policy::model::Str;
use saphyr_parser::{Event, ScalarStyle, Span, Tag};

use super::{scalar, yaml::Syntax};
use crate::source::intern::Interner;
use crate::source::parse::{Entry, Node, Quoted, Value};

/// No Kubernetes object nests deeper; values are dropped recursively.
const MAX_DEPTH: usize = 64;
/// Values in one document, about 200 MB.
const MAX_NODES: usize = 4_000_000;
/// Values that aliases may add to one document.
const MAX_ALIASED: usize = 100_000;

/// A container that is not complete yet.
struct Open {
    line: Option<NonZeroU32>,
    anchor: usize,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    Map {
        entries: Vec<Entry>,
        key: Option<Key>,
        merges: Vec<Node>,
    },
}

enum Key {
    Name(Str, Option<NonZeroU32>),
    /// `<<`
    Merge,
}

/// Puts the events of one document together.
pub(super) struct Builder {
    before: usize,
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    aliased: usize,
    /// Keys that stand twice in one mapping.
    pub(super) twice: Vec<Syntax>,
}

impl Builder {
    /// There are `before` lines before the text.
    pub(super) fn new(before: usize) -> Self {
        Self {
            before,
            open: Vec::new(),
            anchors: HashMap::new(),
            nodes: 0,
            aliased: 0,
            twice: Vec::new(),
        }
    }

    /// The line of the file.
    pub(super) fn line(&self, in_chunk: usize) -> Option<NonZeroU32> {
        u32::try_from(self.before + in_chunk)
            .ok()
            .and_then(NonZeroU32::new)
    }

    /// The document that this event completes.
    pub(super) fn event(
        &mut self,
        event: Event<'_>,
        span: Span,
        interner: &mut Interner,
    ) -> Result<Option<Node>, Syntax> {
        let line = self.line(span.start.line());
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                if style == ScalarStyle::Plain && text == "<<" && self.at_key() {
                    return self.set_key(Key::Merge);
                }
                let value = scalar_value(&text, style, tag.as_deref(), interner);
                self.complete(Node { value, line }, anchor, interner)
            }
            Event::SequenceStart(anchor, _) => self.open(line, anchor, Content::List(Vec::new())),
            Event::MappingStart(anchor, _) => self.open(
                line,
                anchor,
                Content::Map {
                    entries: Vec::new(),
                    key: None,
                    merges: Vec::new(),
                },
            ),
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(open) = self.open.pop() else {
                    return Ok(None);
                };
                let value = match open.content {
                    Content::List(items) => Value::List(items),
                    Content::Map { entries, merges, .. } => Value::Map(self.close_map(entries, merges)?),
                };
                self.complete(
                    Node {
                        value,
                        line: open.line,
                    },
                    open.anchor,
                    interner,
                )
            }
            Event::Alias(anchor) => {
                let node = self.alias(anchor, line)?;
                self.complete(node, 0, interner)
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(None),
        }
    }

    fn at_key(&self) -> bool {
        matches!(
            self.open.last(),
            Some(Open {
                content: Content::Map { key: None, .. },
                ..
            })
        )
    }

    fn set_key(&mut self, name: Key) -> Result<Option<Node>, Syntax> {
        if let Some(Open {
            content: Content::Map { key, .. },
            ..
        }) = self.open.last_mut()
        {
            *key = Some(name);
        }
        Ok(None)
    }

    fn open(
        &mut self,
        line: Option<NonZeroU32>,
        anchor: usize,
        content: Content,
    ) -> Result<Option<Node>, Syntax> {
        if self.open.len() == MAX_DEPTH {
            return Err(Syntax {
                line,
                message: format!("nested deeper than {MAX_DEPTH} levels: this document is not read"),
                help: "no Kubernetes object nests so deep: remove the document",
            });
        }
        self.open.push(Open {
            line,
            anchor,
            content,
        });
        Ok(None)
    }

    /// Puts a complete value where it belongs; gives it back where it is the document.
    fn complete(
        &mut self,
        node: Node,
        anchor: usize,
        interner: &mut Interner,
    ) -> Result<Option<Node>, Syntax> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(Syntax {
                line: node.line,
                message: format!("more than {MAX_NODES} values in one document: it is not read"),
                help: "split the document",
            });
        }
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let Some(parent) = self.open.last_mut() else {
            return Ok(Some(node));
        };
        match &mut parent.content {
            Content::List(items) => items.push(node),
            Content::Map { entries, key, merges } => match key.take() {
                None => *key = Some(key_of(&node, interner)?),
                Some(Key::Name(name, line)) => entries.push(Entry {
                    key: name,
                    line,
                    value: node,
                }),
                Some(Key::Merge) => merges.push(node),
            },
        }
        Ok(None)
    }

    /// Poisons fields that are given twice: nobody knows which was meant. Then adds merged ones.
    fn close_map(&mut self, entries: Vec<Entry>, merges: Vec<Node>) -> Result<Vec<Entry>, Syntax> {
        let mut result: Vec<Entry> = Vec::with_capacity(entries.len());
        let mut places: HashMap<Str, usize> = HashMap::new();
        for entry in entries {
            let place = if result.len() < 16 {
                result.iter().position(|known| known.key == entry.key)
            } else {
                if places.is_empty() {
                    places.extend(
                        result
                            .iter()
                            .enumerate()
                            .map(|(at, entry)| (entry.key.clone(), at)),
                    );
                }
                places.get(&entry.key).copied()
            };
            let Some(place) = place else {
                if !places.is_empty() {
                    places.insert(entry.key.clone(), result.len());
                }
                result.push(entry);
                continue;
            };
            let first = result[place]
                .line
                .map_or_else(String::new, |line| format!(", first on line {line}"));
            self.twice.push(Syntax {
                line: entry.line,
                message: format!(
                    "the field {} is given twice{first}: neither is used",
                    Quoted(&entry.key)
                ),
                help: "remove one of them",
            });
            result[place].value.value = Value::Twice;
        }
        self.merge(&mut result, merges)?;
        Ok(result)
    }

    /// `<<: *anchor` or `<<: [*a, *b]`: what the mapping does not say itself, the first that says it wins.
    fn merge(&mut self, entries: &mut Vec<Entry>, merges: Vec<Node>) -> Result<(), Syntax> {
        if merges.is_empty() {
            return Ok(());
        }
        let mut known: HashSet<Str> = entries.iter().map(|entry| entry.key.clone()).collect();
        for merge in merges {
            let line = merge.line;
            let parts = match merge.value {
                Value::List(parts) => parts.into_iter().map(|part| part.value).collect(),
                value => vec![value],
            };
            for part in parts {
                let Value::Map(merged) = part else {
                    return Err(Syntax {
                        line,
                        message: "`<<` merges something that is not a mapping: this document is not read"
                            .into(),
                        help: "merge mappings only",
                    });
                };
                entries.extend(merged.into_iter().filter(|entry| known.insert(entry.key.clone())));
            }
        }
        Ok(())
    }

    fn alias(&mut self, anchor: usize, line: Option<NonZeroU32>) -> Result<Node, Syntax> {
        let broken = |message: &str| Syntax {
            line,
            message: format!("{message}: this document is not read"),
            help: "write the values out",
        };
        let node = self
            .anchors
            .get(&anchor)
            .ok_or_else(|| broken("the alias stands within its own anchor"))?;
        let (size, depth) = measure(node);
        self.aliased += size;
        if self.aliased > MAX_ALIASED {
            return Err(broken(&format!("aliases add more than {MAX_ALIASED} values")));
        }
        if self.open.len() + depth > MAX_DEPTH {
            return Err(broken(&format!("aliases nest deeper than {MAX_DEPTH} levels")));
        }
        Ok(node.clone())
    }
}

/// Number of values, and levels.
fn measure(node: &Node) -> (usize, usize) {
    let inner: Vec<(usize, usize)> = match &node.value {
        Value::List(items) => items.iter().map(measure).collect(),
        Value::Map(entries) => entries.iter().map(|entry| measure(&entry.value)).collect(),
        _ => return (1, 0),
    };
    let levels = inner.iter().map(|(_, depth)| *depth).max().unwrap_or(0);
    (1 + inner.iter().map(|(size, _)| *size).sum::<usize>(), 1 + levels)
}

fn scalar_value(text: &str, style: ScalarStyle, tag: Option<&Tag>, interner: &mut Interner) -> Value {
    let typed = tag
        .filter(|tag| tag.is_yaml_core_schema())
        .map(|tag| tag.suffix.as_str());
    let as_string = match typed {
        Some("int" | "float" | "bool" | "null") => false,
        Some(_) => true,
        None => style != ScalarStyle::Plain,
    };
    if as_string {
        Value::String(interner.get(text))
    } else {
        scalar::plain(text, |text| interner.get(text))
    }
}

fn key_of(node: &Node, interner: &mut Interner) -> Result<Key, Syntax> {
    // As Kubernetes' tools turn YAML into JSON: `on: 1` is the field "true".
    let name = match &node.value {
        Value::String(text) | Value::Float(text) => Some(text.clone()),
        Value::Bool(value, _) => Some(interner.get(if *value { "true" } else { "false" })),
        Value::Int(value, _) => Some(interner.get(&value.to_string())),
        Value::Null | Value::List(_) | Value::Map(_) | Value::Twice => None,
    };
    name.map(|name| Key::Name(name, node.line)).ok_or_else(|| Syntax {
        line: node.line,
        message: format!("{} as the name of a field: this document is not read", node.value),
        help: "the name of a field is a string",
    })
}
