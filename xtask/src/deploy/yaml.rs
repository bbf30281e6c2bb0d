//! What renderers print, as values: the part of YAML that they use.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span};
use serde_json::{Map, Value};

/// The documents of `text` that are not empty.
///
/// # Errors
/// It is no YAML, or a field is given twice.
pub(super) fn documents(text: &str) -> Result<Vec<Value>> {
    let mut reader = Reader {
        events: Parser::new_from_str(text),
        anchors: BTreeMap::new(),
    };
    let mut documents = Vec::new();
    loop {
        match reader.next()? {
            Event::StreamEnd => return Ok(documents),
            Event::DocumentStart(_) => {
                let event = reader.next()?;
                documents.extend(Some(reader.value(event)?).filter(|value| !value.is_null()));
            }
            _ => {}
        }
    }
}

struct Reader<I> {
    events: I,
    /// What aliases stand for.
    anchors: BTreeMap<usize, Value>,
}

impl<'t, I: Iterator<Item = Result<(Event<'t>, Span), ScanError>>> Reader<I> {
    fn next(&mut self) -> Result<Event<'t>> {
        let event = self.events.next().context("the text ends within a document")?;
        Ok(event?.0)
    }

    /// The value that begins with `event`.
    fn value(&mut self, event: Event) -> Result<Value> {
        let (anchor, value) = match event {
            Event::Alias(anchor) => {
                let value = self.anchors.get(&anchor).context("an alias of nothing")?;
                return Ok(value.clone());
            }
            Event::Scalar(text, ScalarStyle::Plain, anchor, _) => (anchor, plain(&text)),
            Event::Scalar(text, _, anchor, _) => (anchor, Value::String(text.into_owned())),
            Event::SequenceStart(anchor, _) => (anchor, self.sequence()?),
            Event::MappingStart(anchor, _) => (anchor, self.mapping()?),
            other => bail!("{other:?} where a value belongs"),
        };
        if anchor > 0 {
            self.anchors.insert(anchor, value.clone());
        }
        Ok(value)
    }

    fn sequence(&mut self) -> Result<Value> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                Event::SequenceEnd => return Ok(Value::Array(items)),
                event => items.push(self.value(event)?),
            }
        }
    }

    fn mapping(&mut self) -> Result<Value> {
        let mut fields = Map::new();
        loop {
            let key = match self.next()? {
                Event::MappingEnd => return Ok(Value::Object(fields)),
                Event::Scalar(key, ..) => key.into_owned(),
                other => bail!("{other:?} as the name of a field"),
            };
            let event = self.next()?;
            let value = self.value(event)?;
            if fields.insert(key.clone(), value).is_some() {
                bail!("the field {key} is given twice");
            }
        }
    }
}

/// A scalar without quotes.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" => Value::Null,
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        _ => match text.parse::<i64>() {
            Ok(number) => number.into(),
            Err(_) => Value::String(text.to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_what_is_written() {
        let text = "a: &x [1, '1', true, ~]\nb: *x\n---\n---\n{c: {d: e-1}}\n";
        let expected = [
            json!({ "a": [1, "1", true, null], "b": [1, "1", true, null] }),
            json!({ "c": { "d": "e-1" } }),
        ];
        assert_eq!(documents(text).expect("YAML"), expected);
    }

    #[test]
    fn a_field_that_is_given_twice_is_an_error() {
        assert!(documents("a: 1\na: 2\n").is_err());
        assert!(documents("a: [1\n").is_err());
    }
}
