//! An untyped object, as YAML, JSON or the API server give it.

use std::{fmt, num::NonZeroU32};

use netpol_policy::model::Str;

/// One value and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// The line on which it begins, where the source has lines.
    pub line: Option<NonZeroU32>,
}

/// The values of JSON.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `null`; as a field's value the API takes it for an absent field.
    Null,
    /// A boolean, and how it is written (`yes`).
    Bool(bool, Str),
    /// A whole number, and how it is written (`0x50`).
    Int(i64, Str),
    /// Any other number, as it is written: no field that we read may have one.
    Float(Str),
    /// A string.
    String(Str),
    /// A list.
    List(Vec<Node>),
    /// A mapping; no key is there twice.
    Map(Vec<Entry>),
    /// The value of a field that is given twice: nobody knows which was meant, so nothing can be made of it.
    Twice,
}

/// One field of a mapping.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its name.
    pub key: Str,
    /// The line of its name.
    pub line: Option<NonZeroU32>,
    /// Its value.
    pub value: Node,
}

impl Node {
    /// The value of the field `key`, also where it is null.
    #[must_use]
    pub fn field(&self, key: &str) -> Option<&Self> {
        let Value::Map(entries) = &self.value else {
            return None;
        };
        entries
            .iter()
            .find(|entry| &*entry.key == key)
            .map(|entry| &entry.value)
    }
}

impl Value {
    /// A scalar other than `null`, as it is written.
    #[must_use]
    pub fn text(&self) -> Option<Str> {
        match self {
            Self::String(text) | Self::Bool(_, text) | Self::Int(_, text) | Self::Float(text) => {
                Some(text.clone())
            }
            Self::Null | Self::List(_) | Self::Map(_) | Self::Twice => None,
        }
    }
}

/// For messages: what it is and, where short, which.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(_, text) => write!(f, "the boolean {text}"),
            Self::Int(_, text) | Self::Float(text) => write!(f, "the number {text}"),
            Self::String(value) => write!(f, "the string {}", Quoted(value)),
            Self::List(_) => f.write_str("a list"),
            Self::Map(_) => f.write_str("a mapping"),
            Self::Twice => f.write_str("a value given twice"),
        }
    }
}

/// A string of the input in a message: quoted, escaped, and cut where it is long.
pub struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: usize = 80;
        match self.0.char_indices().nth(LONGEST) {
            Some((end, _)) => write!(f, "{:?}…", &self.0[..end]),
            None => write!(f, "{:?}", self.0),
        }
    }
}
