//! Lines of `--flows`: cut out of the input as they come, and read.

use std::{
    borrow::Cow,
    fmt,
    io::{self, Read},
    marker::PhantomData,
    str::FromStr,
};

use serde::{Deserialize, Deserializer, de};

use super::{Family, PortName, QueryError, Transport};

/// A longer line is answered by an error: no flow needs it, and memory stays bounded.
pub(super) const MAX_LINE: usize = 64 << 10;
const CHUNK: usize = 1 << 20;

/// Cuts input into lines, in batches: all that is there, without waiting for more.
pub(super) struct Lines<R> {
    input: R,
    /// What was read, then room for more.
    buffer: Vec<u8>,
    /// How much was read.
    filled: usize,
    /// How much of that has been handed out.
    used: usize,
}

impl<R: Read> Lines<R> {
    pub(super) fn new(input: R) -> Self {
        Self {
            input,
            buffer: vec![0; CHUNK],
            filled: 0,
            used: 0,
        }
    }

    /// The next lines, without their ends; `None` at the end of the input. Of a line longer than
    /// [`MAX_LINE`] only the beginning is kept: more than [`MAX_LINE`] bytes of it.
    pub(super) fn next_batch(&mut self) -> io::Result<Option<impl Iterator<Item = &[u8]>>> {
        self.buffer.copy_within(self.used..self.filled, 0);
        self.filled = (self.filled - self.used).min(MAX_LINE + 1);
        self.used = 0;
        loop {
            let read = match self.input.read(&mut self.buffer[self.filled..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            let new = &self.buffer[self.filled..self.filled + read];
            let end = new
                .iter()
                .rposition(|&byte| byte == b'\n')
                .map(|at| self.filled + at);
            self.filled += read;
            if let Some(end) = end {
                self.used = end + 1;
                return Ok(Some(self.lines(end)));
            }
            if read == 0 {
                self.used = self.filled;
                return Ok((self.filled > 0).then(|| self.lines(self.filled)));
            }
            self.filled = self.filled.min(MAX_LINE + 1);
        }
    }

    fn lines(&self, end: usize) -> impl Iterator<Item = &[u8]> {
        self.buffer[..end].split(|&byte| byte == b'\n')
    }
}

/// A flow as a line gives it. Other fields are ignored: they are the writer's own.
#[derive(Debug, Deserialize, PartialEq, Eq)]
pub(super) struct FlowLine<'l> {
    #[serde(borrow)]
    pub(super) from: Cow<'l, str>,
    #[serde(borrow)]
    pub(super) to: Cow<'l, str>,
    #[serde(default, deserialize_with = "written")]
    pub(super) protocol: Option<Transport>,
    #[serde(default, deserialize_with = "written")]
    pub(super) port: Option<PortName>,
    #[serde(default, deserialize_with = "written")]
    pub(super) family: Option<Family>,
}

/// Reads a line.
///
/// # Errors
/// What is wrong with it, in words.
pub(super) fn parse(line: &[u8]) -> Result<FlowLine<'_>, String> {
    // serde would take an array for the object, too.
    if line.trim_ascii_start().first() != Some(&b'{') {
        return Err(r#"not a JSON object; write {"from":…,"to":…,"protocol":…,"port":…}"#.into());
    }
    serde_json::from_slice(line).map_err(|error| {
        let place = format!(" at line {} column {}", error.line(), error.column());
        let text = error.to_string();
        text.strip_suffix(&place)
            .map_or(text.clone(), |text| format!("{text} (column {})", error.column()))
    })
}

/// A value that is written as a number or as a string.
trait Written: FromStr<Err = QueryError> {
    const WHAT: &'static str;

    /// A number means what its digits mean.
    fn of_number(number: u64) -> Result<Self, QueryError> {
        number.to_string().parse()
    }
}

impl Written for Transport {
    const WHAT: &'static str = "a protocol's name or number";
}

impl Written for PortName {
    const WHAT: &'static str = "a port's number or name";

    fn of_number(number: u64) -> Result<Self, QueryError> {
        Self::number(number)
    }
}

impl Written for Family {
    const WHAT: &'static str = "an address family, 4 or 6";
}

fn written<'de, T: Written, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    struct Visitor<T>(PhantomData<T>);

    impl<T: Written> de::Visitor<'_> for Visitor<T> {
        type Value = Option<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(T::WHAT)
        }

        fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
            T::of_number(number).map(Some).map_err(E::custom)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            text.parse().map(Some).map_err(E::custom)
        }
    }

    deserializer.deserialize_any(Visitor(PhantomData))
}
