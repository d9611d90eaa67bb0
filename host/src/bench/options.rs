//! What a recipe asks of a benchmark: the keys of its options map, and their limits.
//!
//! Does not decide how the load is made ([`super::plan`] does) and does not look at the URL.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rustix::thread::CpuSet;
use serde::{Deserialize, Serialize};

use super::{schedule::Arrivals, slo::Slo};
use crate::{
    error::{Error, Kind},
    options_map,
    units::Span,
};

/// How requests are released.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// All requests at one instant, each on a connection of its own. Shows a start-up transient, not a rate that lasts.
    #[default]
    Burst,
    /// A fixed number of connections; each sends its next request when its last one is answered.
    Closed,
    /// A rate: requests are due at times that were settled before the run, whatever becomes of the answers. Latency
    /// counts from those times, so that a target which stops for a while cannot hide the requests it kept waiting.
    Open,
}

impl Mode {
    /// The word a recipe writes and a report prints.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Burst => "burst",
            Self::Closed => "closed",
            Self::Open => "open",
        }
    }
}

/// What of the start of a closed or open loop is left out of the figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "\"auto\", a duration such as \"2s\", or 0")]
pub enum Warmup {
    Auto(AutoWord),
    /// So much, before `duration` begins.
    Fixed(Span),
}

/// The word `"auto"`: as much as differs from the second half of the run, at most a third of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AutoWord {
    Auto,
}

impl Warmup {
    pub const AUTO: Self = Self::Auto(AutoWord::Auto);
    pub const NONE: Self = Self::Fixed(Span(Duration::ZERO));
}

options_map! {
    /// The options of `bench::http`. Every key may be left out; an unknown key is an error.
    #[derive(PartialEq, Serialize)]
    #[serde(default)]
    pub struct Options {
        /// `"burst"` (the default), `"closed"` or `"open"`.
        pub mode: Mode,
        /// Burst: how many requests are in flight at once, 1 to 28000, by default 1000. Closed and open: stop after so
        /// many, even before `duration` is over; by default there is no such limit.
        pub requests: Option<u64>,
        /// Open only, and needed there: how many requests are due per second, 0.01 to 250000.
        pub rate: Option<f64>,
        /// Open: `"poisson"` (the default), as from many independent users, or `"constant"`, all equally far apart.
        pub arrivals: Option<Arrivals>,
        /// Open: the seed of Poisson arrivals, by default 1; the same rate and seed make the same arrivals.
        pub seed: Option<u64>,
        /// Closed: how many connections send, 1 to 28000, by default 64. Open: at most so many are open at once, by
        /// default 1024; they are made as needed, and a request that finds all busy waits for one, which counts.
        /// Burst: always equal to `requests`.
        pub connections: Option<u64>,
        /// Closed and open: how long new requests are sent, 1 ms to 1 h; by default 10 s, or 10 min when `requests` is
        /// given. Requests under way at the end are awaited, up to their `timeout`.
        pub duration: Option<Span>,
        /// Closed and open: what of the start is left out of all figures; the load runs on without a gap. A duration,
        /// up to 1 h, is sent before `duration` begins. `"auto"` leaves out as much of `duration` as differs from its
        /// second half, at most a third. By default `"auto"`, or 0 when `requests` is given, as then all of them count.
        pub warmup: Option<Warmup>,
        /// How long one request may take from the moment it was due, connecting included; 1 ms to 10 min, by default
        /// 10 s. A request that takes longer counts as a timeout, with its age as its latency.
        pub timeout: Span,
        /// How long connecting may take within `timeout`; by default 5 s, so that the second repetition of a lost
        /// SYN (after 3 s) can still succeed.
        pub connect_timeout: Span,
        /// The request's method, by default `"GET"`.
        pub method: String,
        /// Further header fields; Host may be replaced, what frames the message may not. Reports keep the names only.
        pub headers: BTreeMap<String, String>,
        /// The request's body, at most 1 MiB; by default there is none.
        pub body: Option<String>,
        /// Closed and open: whether a connection is used again for the next request; by default true. With false every
        /// request says `Connection: close` and has a connection of its own, whose making is part of its latency.
        pub keepalive: bool,
        /// CPUs of this machine that make the load, one thread pinned to each, for example `[1]`; by default half as
        /// many threads as it has CPUs, pinned to none.
        pub cpus: Vec<u16>,
        /// The answer's header field that names the backend; by default `"x-instance-id"`, `""` for no split by
        /// backend.
        pub backend_header: String,
        /// Closed and open: limits that the result is held against, for example `#{ p99_ms: 20, error_rate: 0.001 }`. A
        /// recipe in which one is not met ends with exit code 6.
        pub slo: Option<Slo>,
        /// What the report calls the target; by default the first segment of the path, or the host and port.
        pub name: Option<String>,
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            requests: None,
            rate: None,
            arrivals: None,
            seed: None,
            connections: None,
            duration: None,
            warmup: None,
            timeout: Span(Duration::from_secs(10)),
            connect_timeout: Span(Duration::from_secs(5)),
            method: "GET".to_owned(),
            headers: BTreeMap::new(),
            body: None,
            keepalive: true,
            cpus: Vec::new(),
            backend_header: "x-instance-id".to_owned(),
            slo: None,
            name: None,
        }
    }
}

/// Linux has 28232 local ports by default, and every connection to one address needs one of its own.
pub const CONNECTIONS_MAX: u64 = 28_000;
/// Keeps every counter of a histogram cell (32 bits) far from its end.
const REQUESTS_MAX: u64 = 1_000_000_000;
/// As above; longer runs are soak tests, and want results before their end.
pub(super) const DURATION_MAX: Duration = Duration::from_secs(3600);
const TIMEOUT_MIN: Duration = Duration::from_millis(1);
/// Also the longest time a run may wait after its last request.
const TIMEOUT_MAX: Duration = Duration::from_secs(600);
/// Every connection sends the same bytes from one buffer, so this only guards against mistakes.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Servers refuse larger heads (8 to 64 KiB are usual).
const HEAD_BYTES_MAX: usize = 32 << 10;
/// Tables cut names to fewer; this only keeps them readable elsewhere.
pub(super) const NAME_CHARS_MAX: usize = 64;

/// These decide where a message ends or whether its connection stays; labhost writes them itself.
const FIELDS_OWN: [&str; 7] =
    ["content-length", "transfer-encoding", "connection", "upgrade", "expect", "te", "trailer"];

/// Slower is a probe and no load.
pub(super) const RATE_MIN: f64 = 0.01;
/// More than a machine sends, and within `REQUESTS_MAX` in the longest run.
pub(super) const RATE_MAX: f64 = 250_000.0;

const BURST_REQUESTS: u64 = 1000;
const CLOSED_CONNECTIONS: u64 = 64;
/// Enough for 1000 requests per second that take a second each.
const OPEN_CONNECTIONS: u64 = 1024;
const SEED: u64 = 1;
const DURATION: Duration = Duration::from_secs(10);
/// Bounds a run that is to end by its number of requests but whose target hardly answers.
const DURATION_COUNTED: Duration = Duration::from_secs(600);

impl Options {
    /// Errors (of kind `recipe`, with a hint) when a value is out of range or contradicts another.
    pub fn check(&self) -> Result<(), Error> {
        let counts_max = if self.mode == Mode::Burst { CONNECTIONS_MAX } else { REQUESTS_MAX };
        count("requests", self.requests, counts_max)?;
        count("connections", self.connections, CONNECTIONS_MAX)?;
        self.check_mode()?;
        span("timeout", self.timeout, TIMEOUT_MAX)?;
        span("connect_timeout", self.connect_timeout, TIMEOUT_MAX)?;
        if let Some(duration) = self.duration {
            span("duration", duration, DURATION_MAX)?;
        }
        self.check_warmup()?;
        self.check_slo()?;
        self.check_cpus()?;
        self.check_message()?;
        self.check_name()
    }

    /// How many connections are open at once; in an open loop, at most.
    #[must_use]
    pub fn connections_used(&self) -> u64 {
        // More connections than requests would never send.
        let useful = |connections: u64| connections.min(self.requests.unwrap_or(CONNECTIONS_MAX));
        match self.mode {
            Mode::Burst => self.requests.or(self.connections).unwrap_or(BURST_REQUESTS),
            Mode::Closed => useful(self.connections.unwrap_or(CLOSED_CONNECTIONS)),
            Mode::Open => useful(self.connections.unwrap_or(OPEN_CONNECTIONS)),
        }
    }

    /// How long new requests are sent in a closed or open loop.
    #[must_use]
    pub fn duration_used(&self) -> Duration {
        let default = if self.requests.is_some() { DURATION_COUNTED } else { DURATION };
        self.duration.map_or(default, |span| span.0)
    }

    pub(super) fn warmup_used(&self) -> Warmup {
        let is_counted = self.mode == Mode::Burst || self.requests.is_some();
        self.warmup.unwrap_or(if is_counted { Warmup::NONE } else { Warmup::AUTO })
    }

    pub(super) fn arrivals_used(&self) -> Arrivals {
        self.arrivals.unwrap_or_default()
    }

    pub(super) fn seed_used(&self) -> u64 {
        self.seed.unwrap_or(SEED)
    }

    fn check_mode(&self) -> Result<(), Error> {
        self.check_rate()?;
        if self.mode != Mode::Burst {
            return Ok(());
        }
        if self.duration.is_some() {
            return Err(wrong("duration has no meaning in a burst: it ends when every request is answered")
                .with_hint("leave duration out, or use mode: \"closed\""));
        }
        match (self.requests, self.connections) {
            (Some(requests), Some(connections)) if requests != connections => {
                Err(wrong(format!("a burst of {requests} requests cannot use {connections} connections"))
                    .with_hint(
                        "in a burst each request has a connection of its own: \
                     leave connections out, or use mode: \"closed\"",
                    ))
            }
            _ => Ok(()),
        }
    }

    fn check_warmup(&self) -> Result<(), Error> {
        match (self.mode, self.warmup) {
            (_, None | Some(Warmup::NONE)) => Ok(()),
            (Mode::Burst, _) => {
                Err(wrong("warmup has no meaning in a burst, which is a start and nothing else")
                    .with_hint("leave warmup out, or use mode: \"closed\""))
            }
            (_, Some(Warmup::Fixed(span))) if span.0 > DURATION_MAX => {
                Err(wrong(format!("warmup: {span} is out of range")).with_hint("warmup may be 0 to 1h"))
            }
            (Mode::Closed, Some(Warmup::Auto(_))) if self.requests.is_some() => {
                Err(wrong("how long so many requests take is not known, so no part of it can be a warmup")
                    .with_hint("say duration instead of requests, or give warmup as a duration"))
            }
            _ => Ok(()),
        }
    }

    fn check_slo(&self) -> Result<(), Error> {
        match (self.mode, &self.slo) {
            (_, None) => Ok(()),
            (Mode::Burst, Some(_)) => Err(wrong(
                "slo has no meaning in a burst: a start is one event, and no interval says how sure it is",
            )
            .with_hint("leave slo out, or use mode: \"closed\" or \"open\"")),
            (_, Some(slo)) => slo.check(self.rate),
        }
    }

    fn check_rate(&self) -> Result<(), Error> {
        match (self.mode, self.rate) {
            (Mode::Open, Some(rate)) if (RATE_MIN..=RATE_MAX).contains(&rate) => Ok(()),
            (Mode::Open, Some(rate)) => Err(wrong(format!("rate: {rate} is out of range"))
                .with_hint(format!("rate may be {RATE_MIN} to {RATE_MAX} requests per second"))),
            (Mode::Open, None) => Err(wrong("an open loop needs a rate")
                .with_hint("say how many requests are due per second, for example rate: 1000")),
            (mode, _) if self.rate.is_some() || self.arrivals.is_some() || self.seed.is_some() => {
                Err(wrong(format!("rate, arrivals and seed have no meaning in mode \"{}\"", mode.name()))
                    .with_hint("leave them out, or use mode: \"open\""))
            }
            _ => Ok(()),
        }
    }

    fn check_cpus(&self) -> Result<(), Error> {
        let unique: BTreeSet<_> = self.cpus.iter().collect();
        match self.cpus.iter().find(|cpu| usize::from(**cpu) >= CpuSet::MAX_CPU) {
            Some(cpu) => Err(wrong(format!("cpus: there is no CPU {cpu}"))
                .with_hint("CPUs are counted from 0; `nproc` says how many there are")),
            None if unique.len() < self.cpus.len() => {
                Err(wrong("cpus: a CPU is named twice").with_hint("each has one thread of the generator"))
            }
            None => Ok(()),
        }
    }

    fn check_message(&self) -> Result<(), Error> {
        if !is_token(&self.method) || self.method.eq_ignore_ascii_case("CONNECT") {
            return Err(wrong(format!("method {:?} cannot be sent", self.method))
                .with_hint("use a method such as \"GET\", \"HEAD\" or \"POST\""));
        }
        if self.body.as_ref().is_some_and(|body| body.len() > BODY_BYTES_MAX) {
            return Err(
                wrong("body is larger than 1 MiB").with_hint("a benchmark sends at most 1 MiB per request")
            );
        }
        if !self.backend_header.is_empty() && !is_token(&self.backend_header) {
            return Err(wrong(format!(
                "backend_header {:?} is not a header field's name",
                self.backend_header
            ))
            .with_hint("write for example \"x-instance-id\", or \"\" for no split by backend"));
        }
        self.check_headers()
    }

    fn check_headers(&self) -> Result<(), Error> {
        for (name, value) in &self.headers {
            if FIELDS_OWN.iter().any(|own| name.eq_ignore_ascii_case(own)) {
                return Err(wrong(format!("header {name} cannot be set")).with_hint(
                    "labhost writes the fields that frame a message itself; leave it out of headers",
                ));
            }
            if !is_token(name) || !is_field_value(value) {
                return Err(wrong(format!("header {name:?} has a character that HTTP does not allow"))
                    .with_hint(
                        "a name is letters, digits and -; \
                     a value has no line breaks or other control characters",
                    ));
            }
        }
        let bytes: usize = self.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        if bytes > HEAD_BYTES_MAX {
            return Err(wrong("headers are larger than 32 KiB together")
                .with_hint("servers refuse heads of that size"));
        }
        Ok(())
    }

    fn check_name(&self) -> Result<(), Error> {
        let Some(name) = &self.name else { return Ok(()) };
        if name.is_empty() || name.chars().count() > NAME_CHARS_MAX || name.chars().any(char::is_control) {
            return Err(wrong(format!("name {name:?} cannot be printed"))
                .with_hint("use 1 to 64 characters without line breaks"));
        }
        Ok(())
    }
}

pub(super) fn wrong(message: impl Into<String>) -> Error {
    Error::new(Kind::Recipe, message)
}

fn count(key: &str, value: Option<u64>, max: u64) -> Result<(), Error> {
    match value {
        Some(value) if !(1..=max).contains(&value) => Err(wrong(format!("{key}: {value} is out of range"))
            .with_hint(format!("{key} may be 1 to {max} here"))),
        _ => Ok(()),
    }
}

fn span(key: &str, value: Span, max: Duration) -> Result<(), Error> {
    if (TIMEOUT_MIN..=max).contains(&value.0) {
        return Ok(());
    }
    Err(wrong(format!("{key}: {value} is out of range")).with_hint(format!(
        "{key} may be {} to {}",
        Span(TIMEOUT_MIN),
        Span(max)
    )))
}

/// A token of RFC 9110, section 5.6.2.
fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// A field value of RFC 9110, section 5.5, without bytes above ASCII, whose meaning differs between servers.
fn is_field_value(text: &str) -> bool {
    text.bytes().all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Options, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[track_caller]
    fn check(json: &str, word: &str) {
        let error = read(json).unwrap().check().expect_err(json);
        assert_eq!(error.kind, Kind::Recipe);
        assert!(error.message.contains(word), "{json}: {}", error.message);
        assert!(error.hint.is_some(), "{json} has no hint");
    }

    #[test]
    fn an_empty_map_is_the_course_burst() {
        let options = read("{}").unwrap();
        options.check().unwrap();
        assert_eq!((options.mode, options.connections_used()), (Mode::Burst, 1000));
    }

    #[test]
    fn closed_defaults_to_64_connections_for_ten_seconds() {
        let options = read(r#"{"mode":"closed"}"#).unwrap();
        options.check().unwrap();
        assert_eq!((options.connections_used(), options.duration_used()), (64, Duration::from_secs(10)));
    }

    #[test]
    fn open_needs_a_rate_and_bounds_its_connections() {
        let options = read(r#"{"mode":"open", "rate": 1000}"#).unwrap();
        options.check().unwrap();
        assert_eq!((options.connections_used(), options.duration_used()), (1024, Duration::from_secs(10)));
        assert_eq!((options.arrivals_used(), options.seed_used()), (Arrivals::Poisson, 1));
    }

    #[test]
    fn a_warmup_is_found_unless_requests_are_counted() {
        let used = |json: &str| read(json).unwrap().warmup_used();
        assert_eq!(used(r#"{"mode":"closed"}"#), Warmup::AUTO);
        assert_eq!(used(r#"{"mode":"closed", "requests": 9}"#), Warmup::NONE);
        assert_eq!(used(r#"{"mode":"open", "warmup": "auto"}"#), Warmup::AUTO);
        for (json, seconds) in [(r#"{"warmup": 0}"#, 0), (r#"{"warmup": "2s"}"#, 2), (r#"{"warmup": 2}"#, 2)]
        {
            assert_eq!(used(json), Warmup::Fixed(Span(Duration::from_secs(seconds))));
        }
        assert!(read(r#"{"warmup": "soon"}"#).unwrap_err().to_string().contains("\"auto\""));
    }

    #[test]
    fn the_list_of_keys_is_complete() {
        let value = serde_json::to_value(Options::default()).unwrap();
        let mut keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
        let mut listed: Vec<_> =
            <Options as crate::options::Options>::OPTIONS.iter().map(|key| key.name).collect();
        keys.sort_unstable();
        listed.sort_unstable();
        assert_eq!(keys, listed);
    }

    #[test]
    fn an_unknown_key_is_refused() {
        assert!(read(r#"{"conections": 3}"#).unwrap_err().to_string().contains("conections"));
        assert!(read(r#"{"mode": "opened"}"#).is_err());
        assert!(read(r#"{"requests": -1}"#).is_err());
    }

    #[test]
    fn values_out_of_range_name_their_key() {
        check(r#"{"requests": 0}"#, "requests");
        check(r#"{"requests": 28001}"#, "requests");
        check(r#"{"mode":"closed","connections": 0}"#, "connections");
        check(r#"{"timeout": 0}"#, "timeout");
        check(r#"{"timeout": "11m"}"#, "timeout");
        check(r#"{"connect_timeout": "1h"}"#, "connect_timeout");
        check(r#"{"mode":"closed","duration": "2h"}"#, "duration");
        for rate in ["0", "-1", "0.001", "250001", "1e300"] {
            check(&format!(r#"{{"mode":"open","rate": {rate}}}"#), "rate");
        }
        check(r#"{"name": "a\nb"}"#, "name");
        check(r#"{"name": ""}"#, "name");
        check(r#"{"cpus": [60000]}"#, "CPU 60000");
        check(r#"{"cpus": [1, 1]}"#, "twice");
    }

    #[test]
    fn contradictions_are_refused() {
        check(r#"{"requests": 10, "connections": 5}"#, "burst of 10");
        check(r#"{"duration": 5}"#, "duration");
        check(r#"{"mode":"open"}"#, "needs a rate");
        check(r#"{"mode":"closed", "rate": 5}"#, "closed");
        check(r#"{"warmup": "auto"}"#, "burst");
        check(r#"{"warmup": 2}"#, "burst");
        check(r#"{"mode":"closed", "warmup": "auto", "requests": 9}"#, "not known");
        check(r#"{"mode":"closed", "warmup": "2h"}"#, "warmup");
        check(r#"{"slo": {"p99_ms": 20}}"#, "burst");
        check(r#"{"mode":"closed", "slo": {}}"#, "no objective");
        check(r#"{"mode":"open", "rate": 5, "slo": {"requests_per_second": 6}}"#, "rate of 5");
        check(r#"{"arrivals": "constant"}"#, "burst");
        check(r#"{"mode":"closed", "seed": 5}"#, "seed");
    }

    #[test]
    fn a_message_cannot_be_smuggled() {
        check(r#"{"method": "GET / HTTP/1.1\r\n"}"#, "method");
        check(r#"{"method": ""}"#, "method");
        check(r#"{"headers": {"a b": "1"}}"#, "header");
        check(r#"{"headers": {"a": "1\r\nb: 2"}}"#, "header");
        check(r#"{"headers": {"Content-Length": "1"}}"#, "Content-Length");
        check(r#"{"backend_header": "x y"}"#, "backend_header");
    }
}
