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
        match (&self.file, self.line) {
            (Some(file), Some(line)) => write!(f, "{}:{line}: ", file.display())?,
            (Some(file), None) => write!(f, "{}: ", file.display())?,
            (None, _) => {}
        }
        for part in [&self.object, &self.field].into_iter().flatten() {
            write!(f, "{part}: ")?;
        }
        write!(f, "{}; help: {}", self.message, self.help)
    }
}
