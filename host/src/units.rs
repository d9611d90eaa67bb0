//! Durations as recipes and flags write them: `"150ms"`, `"2s"`, `"1h30m"`, or a number of seconds; and times as files
//! and instances keep them.
//!
//! This module reads no clock.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A duration that reads `"150ms"`, `"2s"`, `"1h30m"` or a plain number of seconds, and prints the first form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Span(pub Duration);

const UNITS: [(&str, u64); 6] = [
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];

/// The longest span accepted: a year; longer ones are mistakes, and arithmetic with them could overflow.
const SPAN_MAX: Duration = Duration::from_secs(366 * 86_400);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("`{text}` is not a duration; write for example \"150ms\", \"2s\", \"5m\" or \"1h30m\"")
        };
        let mut rest = text.trim();
        let mut nanos = 0f64;
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
            let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
            rest = &rest[digits..];
            let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
            let unit = match &rest[..letters] {
                "" if digits > 0 && rest.is_empty() && nanos == 0.0 => 1_000_000_000,
                name => UNITS.iter().find(|(unit, _)| *unit == name).ok_or_else(wrong)?.1,
            };
            nanos += number * unit as f64;
            rest = &rest[letters..];
        }
        Self::from_secs_f64(nanos / 1e9).map_err(|_| wrong())
    }
}

impl Span {
    /// Errors when negative, not finite or longer than a year.
    pub fn from_secs_f64(seconds: f64) -> Result<Self, String> {
        Duration::try_from_secs_f64(seconds)
            .ok()
            .filter(|duration| *duration <= SPAN_MAX)
            .map(Self)
            .ok_or_else(|| format!("{seconds} s is not a usable duration"))
    }
}

impl fmt::Display for Span {
    /// The two largest units that are not zero: `2h`, `1h30m`, `1.5s`, `150ms`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        match seconds {
            0 if self.0.as_nanos() < 1_000_000 => write!(f, "{}us", self.0.as_nanos() as f64 / 1e3),
            0 => write!(f, "{}ms", self.0.as_micros() as f64 / 1e3),
            1..60 => write!(f, "{}s", self.0.as_millis() as f64 / 1e3),
            60..3600 if seconds.is_multiple_of(60) => write!(f, "{}m", seconds / 60),
            60..3600 => write!(f, "{}m{}s", seconds / 60, seconds % 60),
            _ if (seconds / 60).is_multiple_of(60) => write!(f, "{}h", seconds / 3600),
            _ => write!(f, "{}h{}m", seconds / 3600, seconds / 60 % 60),
        }
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Span;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as \"150ms\", \"2s\" or a number of seconds")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_f64<E: de::Error>(self, seconds: f64) -> Result<Span, E> {
                Span::from_secs_f64(seconds).map_err(E::custom)
            }
            fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Span, E> {
                self.visit_f64(seconds as f64)
            }
            fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Span, E> {
                self.visit_f64(seconds as f64)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// Seconds since the epoch; 0 for a time before it.
#[must_use]
pub fn epoch_s(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, millis: u64) {
        assert_eq!(text.parse::<Span>().unwrap().0, Duration::from_millis(millis), "{text}");
    }

    #[test]
    fn reads_units_and_sums_of_them() {
        check("150ms", 150);
        check("2s", 2_000);
        check("1.5s", 1_500);
        check("1h30m", 5_400_000);
        check("30", 30_000);
        check("2000us", 2);
    }

    #[test]
    fn refuses_what_is_not_a_duration() {
        for text in ["", "s", "-1s", "2 s x", "1y", "..s", "1s2", "999999d", "nan", "1e3s"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn prints_what_it_reads() {
        for text in ["150ms", "2s", "1.5s", "5m", "1m30s", "2h", "1h30m"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
    }
}
