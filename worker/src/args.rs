//! The command line, checked once.
//!
//! Does not bind or measure anything.

use std::{net::SocketAddr, time::Duration};

use clap::{
    Parser,
    builder::{PossibleValuesParser, TypedValueParser},
};

use crate::types::{InstanceType, TYPES};

/// The longest work of one request and the longest injected delay: more is a mistake in the unit.
pub(crate) const SPAN_MAX: Duration = Duration::from_secs(60);

/// Names go into a path segment, a header and JSON; no identifier of EC2 comes near this length.
const NAME_BYTES_MAX: usize = 64;

/// A shorter token could be guessed by trying.
const TOKEN_BYTES_MIN: usize = 8;

/// Fits into one header field of a request head that every proxy accepts.
const TOKEN_BYTES_MAX: usize = 256;

/// The lab's web application: answers with its own name, and costs as much CPU time as it is told to.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Args {
    /// Address to serve on; port 0 takes a free one and the first line of output names it
    #[arg(long, value_name = "IP:PORT", value_parser = address)]
    pub(crate) listen: SocketAddr,

    /// Cluster that this worker belongs to: it answers on /NAME
    #[arg(long, value_name = "NAME", value_parser = cluster)]
    pub(crate) cluster: String,

    /// Identifier given in every answer
    #[arg(long, value_name = "ID", value_parser = name)]
    pub(crate) instance_id: String,

    /// CPU time of one request, for example 1ms, 500us or 0.2s
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = work)]
    pub(crate) work: Duration,

    /// Hold requests as long as this instance type would need, instead of burning CPU
    #[arg(long, value_name = "TYPE", env = "LABHOST_EMULATE", value_parser = kind())]
    pub(crate) emulate: Option<InstanceType>,

    /// Emulate CPU credits too: with none left the speed drops to the type's baseline
    #[arg(long)]
    pub(crate) credits: bool,

    /// Allow /admin/fault to calls whose x-fault-token field carries this token.
    /// Other users of a machine can read command lines, but not the environment.
    #[arg(long, value_name = "TOKEN", env = "LABHOST_FAULTS", hide_env_values = true, value_parser = token)]
    pub(crate) faults: Option<String>,
}

fn kind() -> impl TypedValueParser<Value = InstanceType> {
    PossibleValuesParser::new(TYPES.map(|kind| kind.name))
        .map(|name| InstanceType::named(&name).expect("the possible values are the types' names"))
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "not an address; write IP:PORT, for example 127.0.0.1:8000".to_owned())
}

fn cluster(text: &str) -> Result<String, String> {
    match text {
        "admin" => Err("`admin` is the path of the worker's own pages; choose another name".to_owned()),
        _ => name(text),
    }
}

fn name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    match text.len() {
        1..=NAME_BYTES_MAX if text.chars().all(allowed) => Ok(text.to_owned()),
        _ => Err(format!("a name has 1 to {NAME_BYTES_MAX} letters, digits, `.`, `_` or `-`")),
    }
}

fn token(text: &str) -> Result<String, String> {
    match text.len() {
        TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX if text.bytes().all(|b| b.is_ascii_graphic()) => {
            Ok(text.to_owned())
        }
        _ => Err(format!(
            "a token has {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX} visible ASCII characters without spaces"
        )),
    }
}

fn work(text: &str) -> Result<Duration, String> {
    span(text)
}

/// Reads `1ms`, `500us`, `0.2s` or `0`, up to [`SPAN_MAX`].
pub(crate) fn span(text: &str) -> Result<Duration, String> {
    let wrong = || "not a duration; write for example 500us, 1ms or 0.2s".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..digits].parse().map_err(|_| wrong())?;
    let unit_s = match &text[digits..] {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "" if number == 0.0 => 0.0,
        "" => return Err(format!("no unit; write for example {text}ms")),
        _ => return Err(wrong()),
    };
    Duration::try_from_secs_f64(number * unit_s)
        .ok()
        .filter(|span| *span <= SPAN_MAX)
        .ok_or_else(|| format!("longer than {} s", SPAN_MAX.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_with_their_unit() {
        for (text, micros) in
            [("1ms", 1000), ("500us", 500), ("0.2s", 200_000), ("1.5ms", 1500), ("0", 0), ("60s", 60_000_000)]
        {
            assert_eq!(span(text), Ok(Duration::from_micros(micros)), "{text}");
        }
    }

    #[test]
    fn what_is_no_span_is_refused() {
        for text in ["", "1", "ms", "-1ms", "1 ms", "1m", "1e3s", "61s", "..s", "1.2.3s", "nan", "inf", "é"]
        {
            assert!(span(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_that_would_break_a_path_or_a_header_are_refused() {
        for text in ["", "a/b", "a b", "a\r\nb", "a?b", "é", &"x".repeat(NAME_BYTES_MAX + 1)] {
            assert!(name(text).is_err(), "{text:?}");
        }
        assert!(cluster("admin").is_err());
        assert_eq!(cluster("cluster1"), Ok("cluster1".to_owned()));
    }

    #[test]
    fn short_or_unprintable_tokens_are_refused() {
        for text in ["", "short", "with space", "tab\ttab-tab"] {
            assert!(token(text).is_err(), "{text:?}");
        }
        assert!(token("01234567").is_ok());
    }
}
