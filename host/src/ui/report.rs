//! Failures laid out for the terminal: what went wrong, the recipe's line with a caret, and what to do.
//!
//! It prints nothing.

use std::fmt::Write as _;

/// A place in a recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// As shown, for example `recipes/run.rhai`.
    pub file: String,
    /// Counts from 1.
    pub line: usize,
    /// In characters, counts from 1.
    pub column: usize,
    /// The whole line, when the file can be read.
    pub text: Option<String>,
}

/// The parts of a failure's message, in the order in which they are shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Failure {
    pub message: String,
    pub place: Option<Place>,
    /// Calls that led there, innermost first: `provision in recipes/run.rhai:3`.
    pub trace: Vec<String>,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

/// The most lines of a command's output that are shown below an error.
const DETAIL_LINES_MAX: usize = 30;

impl Failure {
    /// The whole message, some lines of text without a line break at the end.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = format!("error: {}\n", self.message);
        if let Some(place) = &self.place {
            text.push_str(&snippet(place));
        }
        for call in &self.trace {
            let _ = writeln!(text, "  called from {call}");
        }
        if let Some(detail) = &self.detail {
            let lines: Vec<_> = detail.lines().collect();
            for line in &lines[lines.len().saturating_sub(DETAIL_LINES_MAX)..] {
                let _ = writeln!(text, "  | {line}");
            }
        }
        if let Some(hint) = &self.hint {
            let _ = writeln!(text, "  = {hint}");
        }
        text.trim_end().to_owned()
    }
}

fn snippet(place: &Place) -> String {
    let number = place.line.to_string();
    let margin = " ".repeat(number.len());
    let mut text = format!("{margin}--> {}:{}:{}\n", place.file, place.line, place.column);
    if let Some(line) = &place.text {
        let before = place.column.saturating_sub(1);
        // Tabs stay tabs, so that the caret stands under its character whatever their width.
        let lead: String = line.chars().take(before).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        let carets = "^".repeat(word_chars(line, before).max(1));
        let _ = write!(text, "{margin} |\n{number} | {}\n{margin} | {lead}{carets}\n", line.trim_end());
    }
    text
}

/// Length of the name that begins at this character (counted from 0).
fn word_chars(line: &str, start: usize) -> usize {
    line.chars().skip(start).take_while(|c| c.is_alphanumeric() || *c == '_').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snippet_points_at_the_word() {
        let place =
            Place { file: "recipes/x.rhai".into(), line: 12, column: 5, text: Some("    cuont: 4,".into()) };
        let failure = Failure {
            message: "unknown option `cuont`".into(),
            place: Some(place),
            hint: Some("did you mean `count`?".into()),
            ..Failure::default()
        };
        let expected = "error: unknown option `cuont`\n  --> recipes/x.rhai:12:5\n   |\n12 |     cuont: 4,\n   |     \
                        ^^^^^\n  = did you mean `count`?";
        assert_eq!(failure.render(), expected);
    }
}
