//! What is wrong with an input, where, and what to do.

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

/// Whether something was left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something could not be understood or used and so allows nothing.
    Error,
    /// Everything is in force; it may not be what was meant.
    Warning,
}

/// One thing that is wrong with the input.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// The file; `None` for objects from the API server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// The line in that file, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// Error or warning.
    pub severity: Severity,
    /// `NetworkPolicy prod/db-policy`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// `spec.ingress[0].from[1].ipBlock.cidr`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The rule that was broken and what follows from it.
    pub message: String,
    /// What to do.
    pub help: String,
}

impl Problem {
    /// Whether something was left out because of it.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// Whether both say the same, wherever in the file.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        (self.severity, &self.object, &self.field, &self.message)
            == (other.severity, &other.object, &other.field, &other.message)
    }
}

/// `error: db.yaml:14: NetworkPolicy prod/db: spec.ingress[0].ports[0].port: 0 is not a port; help: …`
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.severity {
            Severity::Error => "error: ",
            Severity::Warning => "warning: ",
        })?;
        if let Some(file) = &self.file {
            printable(f, &file.to_string_lossy())?;
            self.line.map_or(Ok(()), |line| write!(f, ":{line}"))?;
            f.write_str(": ")?;
        }
        for part in [&self.object, &self.field].into_iter().flatten() {
            printable(f, part)?;
            f.write_str(": ")?;
        }
        write!(f, "{}; help: {}", self.message, self.help)
    }
}

/// Text of the input for a terminal, which must not take it for commands.
fn printable(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    text.chars().try_for_each(|c| match c.is_control() {
        true => write!(f, "{}", c.escape_default()),
        false => write!(f, "{c}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_no_commands_for_the_terminal() {
        let problem = Problem {
            file: Some("a\u{1b}[2J.yaml".into()),
            line: Some(3),
            severity: Severity::Error,
            object: Some("Pod default/\u{7}é".into()),
            field: None,
            message: "bad".into(),
            help: "correct it".into(),
        };
        assert_eq!(
            problem.to_string(),
            "error: a\\u{1b}[2J.yaml:3: Pod default/\\u{7}é: bad; help: correct it"
        );
    }
}
