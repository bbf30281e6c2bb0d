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
    /// `true`, `false`
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number.
    Float(f64),
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
    /// The text of a scalar that is neither `null` nor a container.
    #[must_use]
    pub fn text(&self) -> Option<Str> {
        match self {
            Self::String(text) => Some(text.clone()),
            Self::Bool(value) => Some(value.to_string().into()),
            Self::Int(value) => Some(value.to_string().into()),
            Self::Float(value) => Some(value.to_string().into()),
            Self::Null | Self::List(_) | Self::Map(_) | Self::Twice => None,
        }
    }
}

/// For messages: what it is and, where short, which.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => write!(f, "the boolean {value}"),
            Self::Int(value) => write!(f, "the number {value}"),
            Self::Float(value) => write!(f, "the number {value:?}"),
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
