//! Reading one JSON object strictly: every key is known, every value has the right form, every error says where.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde_json::{Map, Value};

/// A day: longer is a mistake.
const DURATION_MS_MAX: u64 = 86_400_000;

/// A configuration that cannot be used; the message names the place and what to write there.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read {path}")]
    Read { path: String, source: std::io::Error },
    #[error("{path}: not JSON")]
    Json { path: String, source: serde_json::Error },
    #[error("{place}: {problem}")]
    Value { place: String, problem: String },
}

/// An object whose keys are taken one by one; what is left at the end is unknown.
pub(super) struct Object {
    place: String,
    left: Map<String, Value>,
    known: Vec<&'static str>,
}

impl Object {
    /// `place` is the path of keys that leads here, empty at the top.
    pub(super) fn new(place: &str, value: Value) -> Result<Self, ConfigError> {
        match value {
            Value::Object(left) => Ok(Self { place: place.to_owned(), left, known: Vec::new() }),
            other => Err(wrong(place, "an object", &other)),
        }
    }

    pub(super) fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.left.remove(key)
    }

    pub(super) fn place_of(&self, key: &str) -> String {
        if self.place.is_empty() { key.to_owned() } else { format!("{}.{key}", self.place) }
    }

    pub(super) fn error(&self, key: &str, problem: impl Into<String>) -> ConfigError {
        ConfigError::Value { place: self.place_of(key), problem: problem.into() }
    }

    /// A nested object, empty when the key is absent.
    pub(super) fn object(&mut self, key: &'static str) -> Result<Self, ConfigError> {
        let value = self.take(key).unwrap_or_else(|| Value::Object(Map::new()));
        Self::new(&self.place_of(key), value)
    }

    pub(super) fn string(&mut self, key: &'static str) -> Result<Option<String>, ConfigError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(&self.place_of(key), "a string", &other)),
        }
    }

    pub(super) fn required_string(&mut self, key: &'static str) -> Result<String, ConfigError> {
        self.string(key)?.ok_or_else(|| self.missing(key))
    }

    pub(super) fn flag(&mut self, key: &'static str, default: bool) -> Result<bool, ConfigError> {
        match self.take(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(wrong(&self.place_of(key), "true or false", &other)),
        }
    }

    pub(super) fn number(
        &mut self,
        key: &'static str,
        default: u64,
        range: RangeInclusive<u64>,
    ) -> Result<u64, ConfigError> {
        let Some(value) = self.take(key) else { return Ok(default) };
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        match value.as_u64() {
            Some(number) if range.contains(&number) => Ok(number),
            _ => Err(wrong(&self.place_of(key), &expected, &value)),
        }
    }

    /// A duration in milliseconds, from 1 ms to a day.
    /// `None` without the key.
    pub(super) fn optional_duration(&mut self, key: &'static str) -> Result<Option<Duration>, ConfigError> {
        let milliseconds = self.number(key, 0, 1..=DURATION_MS_MAX)?;
        Ok((milliseconds > 0).then(|| Duration::from_millis(milliseconds)))
    }

    pub(super) fn duration(&mut self, key: &'static str, default: Duration) -> Result<Duration, ConfigError> {
        let milliseconds = self.number(key, default.as_millis() as u64, 1..=DURATION_MS_MAX)?;
        Ok(Duration::from_millis(milliseconds))
    }

    /// The error of a key that must be there; if another is there that could be meant, it names that.
    pub(super) fn missing(&self, key: &'static str) -> ConfigError {
        match self.left.keys().find(|other| nearest(other, &[key]).is_some()) {
            Some(slip) => self.error(slip, format!("unknown key, did you mean `{key}`?")),
            None => self.error(key, "is missing"),
        }
    }

    /// The keys in their order and their values, whatever they are called.
    pub(super) fn into_entries(self) -> impl Iterator<Item = (String, Value)> {
        self.left.into_iter()
    }

    /// Fails when a key was not taken; names the closest known one, and all of them.
    pub(super) fn finish(self) -> Result<(), ConfigError> {
        let Some(unknown) = self.left.keys().next() else { return Ok(()) };
        let nearest =
            nearest(unknown, &self.known).map_or(String::new(), |name| format!(", did you mean `{name}`?"));
        let problem = format!("unknown key{nearest} (known: {})", self.known.join(", "));
        Err(self.error(unknown, problem))
    }
}

pub(super) fn wrong(place: &str, expected: &str, found: &Value) -> ConfigError {
    let place = if place.is_empty() { "the configuration" } else { place };
    let found = shown(&found.to_string());
    ConfigError::Value { place: place.to_owned(), problem: format!("expected {expected}, found {found}") }
}

/// A value as messages show it: what is longer than a line would bury what is wrong with it.
fn shown(value: &str) -> String {
    const CHARACTERS_MAX: usize = 80;
    match value.char_indices().nth(CHARACTERS_MAX) {
        Some((end, _)) => format!("{}...", &value[..end]),
        None => value.to_owned(),
    }
}

/// The known name closest to `unknown`, if it is close enough to be a slip of the hand or one begins the other.
pub(super) fn nearest<'a>(unknown: &str, known: &[&'a str]) -> Option<&'a str> {
    let allowed = (unknown.chars().count() / 3).max(2);
    known
        .iter()
        .map(|name| {
            let begins = unknown.len() > 2 && (name.starts_with(unknown) || unknown.starts_with(name));
            (if begins { 1 } else { distance(unknown, name) }, *name)
        })
        .min()
        .filter(|(distance, _)| *distance <= allowed)
        .map(|(_, name)| name)
}

/// Levenshtein distance: insertions, deletions and substitutions that turn one into the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
