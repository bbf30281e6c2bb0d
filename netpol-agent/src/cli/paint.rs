//! Colour, where somebody sees it.

use std::{
    env,
    fmt::Display,
    io::{self, IsTerminal as _},
};

/// Colours text, or leaves it alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Paint(bool);

impl Paint {
    /// Colours only where standard output is a terminal and `NO_COLOR` is not set.
    pub(super) fn for_stdout() -> Self {
        let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self(!refused && io::stdout().is_terminal())
    }

    /// Bold green.
    pub(super) fn good(self, text: impl Display) -> String {
        self.with("1;32", text)
    }

    /// Bold red.
    pub(super) fn bad(self, text: impl Display) -> String {
        self.with("1;31", text)
    }

    /// Grey.
    pub(super) fn faint(self, text: impl Display) -> String {
        self.with("2", text)
    }

    /// Bold.
    pub(super) fn strong(self, text: impl Display) -> String {
        self.with("1", text)
    }

    fn with(self, code: &str, text: impl Display) -> String {
        if self.0 {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_string()
        }
    }
}
