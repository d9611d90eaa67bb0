//! One command for a host, what it gave back, and how both are judged.
//!
//! This module sends nothing.

use std::{collections::BTreeMap, time::Duration};

use super::{
    quote::{is_variable, quote},
    trailer,
};
use crate::{Error, units::Span};

/// Linux takes at most 128 KiB in one argument of a program, and the login shell gets the whole text as one
/// argument; what quoting and the wrapper add must fit as well.
const TEXT_MAX: usize = 120 * 1024;
/// Lines of stderr shown below a failure: enough for a compiler's or a server's last words.
const DETAIL_LINES: usize = 20;
const DETAIL_BYTES_MAX: usize = 8 * 1024;
/// Characters of a command's first line in a message.
const SHOWN_MAX: usize = 60;

/// A command line for the host's `/bin/sh`, and how to run it.
///
/// It runs in the login's home directory unless `cwd` says otherwise. The environment and the line are visible
/// to the host's users in `ps`; secrets go through `stdin` or a file.
#[derive(Debug, Clone, Default)]
pub struct Command {
    /// Shell text. Values that come from elsewhere go through [`quote`](super::quote()).
    pub line: String,
    /// Without it the command reads an empty input.
    pub stdin: Option<Vec<u8>>,
    pub env: BTreeMap<String, String>,
    pub cwd: Option<String>,
    /// Counted from the call, waiting for a free channel included. `None`: until the command ends.
    pub timeout: Option<Duration>,
    /// Whether an exit status other than 0 is an error.
    pub check: bool,
}

impl Command {
    /// A checked command without a time limit.
    pub fn new(line: impl Into<String>) -> Self {
        Self { line: line.into(), check: true, ..Self::default() }
    }

    /// A failing exit status becomes a result rather than an error.
    #[must_use]
    pub fn unchecked(self) -> Self {
        Self { check: false, ..self }
    }

    /// What the command reads.
    #[must_use]
    pub fn stdin(self, bytes: impl Into<Vec<u8>>) -> Self {
        Self { stdin: Some(bytes.into()), ..self }
    }

    /// After this long the command is killed, and that is an error.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self }
    }

    /// The text for the server, or why there is none.
    pub(crate) fn render(&self, label: &str) -> Result<String, Error> {
        let mut environment = String::new();
        for (name, value) in &self.env {
            if !is_variable(name) {
                return Err(Error::usage(format!(
                    "environment: `{}` is no variable's name",
                    name.escape_debug()
                )));
            }
            environment += &format!("{name}={} ", quote(value));
        }
        let text = trailer::wrap(label, self.cwd.as_deref().unwrap_or_default(), &environment, &self.line);
        if text.contains('\0') {
            return Err(Error::usage(format!("run `{}`: no shell can read a NUL byte", shown(&self.line))));
        }
        if text.len() > TEXT_MAX {
            let what = format!("run `{}`: the command is longer than {TEXT_MAX} bytes", shown(&self.line));
            return Err(Error::usage(what).with_hint("upload it as a file, or send the data on stdin"));
        }
        Ok(text)
    }
}

/// What a command that ran to its end gave back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    /// Exit status; 128 plus the signal's number where a signal ended the command, as shells say it.
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// From the call to the end, waiting for a free channel included.
    pub elapsed: Duration,
}

impl Output {
    /// Standard output as text; bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub(crate) fn checked(self, command: &Command, operation: &str) -> Result<Self, Error> {
        if command.check && self.code != 0 {
            let signal = match self.code {
                129..=192 => format!(" (signal {})", self.code - 128),
                _ => String::new(),
            };
            let message = format!("{operation}: exit {}{signal}", self.code);
            return Err(Error::host(message).with_detail(last_lines(&self.stderr)));
        }
        Ok(self)
    }
}

/// A command as messages name it: the first line, shortened.
pub(crate) fn shown(line: &str) -> String {
    let mut lines = line.trim().lines();
    let first = lines.next().unwrap_or_default();
    let short: String = first.chars().take(SHOWN_MAX).collect();
    let cut = short.len() < first.len() || lines.next().is_some();
    if cut { short + " ..." } else { short }
}

/// The end of a stream, for a person.
pub(crate) fn last_lines(bytes: &[u8]) -> String {
    let end = &bytes[bytes.len().saturating_sub(DETAIL_BYTES_MAX)..];
    let text = String::from_utf8_lossy(end);
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(DETAIL_LINES)..].join("\n")
}

pub(crate) fn too_late(operation: &str, timeout: Duration) -> Error {
    Error::host(format!("{operation}: still running after {}", Span(timeout)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_show_one_short_line() {
        assert_eq!(shown("ls"), "ls");
        assert_eq!(shown("ls\npwd"), "ls ...");
        assert_eq!(shown(&"é".repeat(70)), "é".repeat(60) + " ...");
    }

    #[test]
    fn the_detail_is_the_end() {
        let many: String = (0..100).map(|n| format!("line {n}\n")).collect();
        let end = last_lines(many.as_bytes());
        assert!(end.starts_with("line 80") && end.ends_with("line 99"), "{end}");
        assert!(last_lines(&vec![b'x'; 1 << 20]).len() <= DETAIL_BYTES_MAX);
    }

    #[test]
    fn refuses_what_cannot_be_sent() {
        assert!(Command::new("a\0b").render("l").is_err());
        assert!(Command::new("x".repeat(TEXT_MAX)).render("l").is_err());
        let mut named = Command::new("x");
        named.env.insert("A B".into(), "1".into());
        assert!(named.render("l").is_err());
    }
}
