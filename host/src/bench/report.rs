//! The result of a run in a shape that does not change within one schema number.
//!
//! Does not count ([`super::total`] does) and does not print: see [`super::table()`] and [`super::csv()`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{judge::Verdict, limits::Descriptors, options::Mode, schedule::Arrivals, slo::Objective};

/// Changes when a key changes its meaning or goes away; new keys may come at any time.
pub const SCHEMA: u32 = 1;

/// The result of one run against one target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub schema: u32,
    pub name: String,
    pub url: String,
    /// The address that the URL's host stood for.
    pub address: String,
    pub mode: Mode,
    /// Which round of [`super::rounds()`] this was, from 1; absent elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round: Option<u64>,
    /// When the run began: RFC 3339, UTC, whole seconds.
    pub started: String,
    pub spec: Spec,
    pub counts: Counts,
    /// 2xx answers that ended within the window, per second of it.
    pub requests_per_second: f64,
    /// Complete answers of any status that ended within the window, per second of it.
    pub answers_per_second: f64,
    /// What of the start was left out of everything else here, `counts` and `errors` included.
    #[serde(default)]
    pub warmup: WarmedUp,
    /// The measured window. Burst: from the common start to the end of the last complete answer. Closed and open: from
    /// the end of the warm-up to the end of the duration, or of the last request when `requests` ended the run before.
    pub window_s: f64,
    /// From the start to the end of the last request, whatever became of it.
    pub wall_s: f64,
    /// From the moment a request was due: in a burst and an open loop by the plan, in a closed loop when the last
    /// answer on its connection was complete.
    pub latency_ms: Latencies,
    /// How sure the figures of `latency_ms.ok` are; absent for a burst, whose requests are one event, and for a run of
    /// too few requests. See [`Intervals`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<Intervals>,
    /// 2xx answers from the moment their request was sent: without connecting, and without waiting for a connection or
    /// for the generator. What a generator that is not bound to a schedule would call latency.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_ms: Option<Summary>,
    /// What there is to know of an open loop besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open: Option<OpenLoop>,
    /// Closed and open: the check that no request was lost in counting, and that the run was steady at its ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub little: Option<Little>,
    /// How long connecting took; it is part of the latency of the request that needed it.
    pub connect_ms: Option<Summary>,
    /// In the order of a request's life.
    pub errors: Vec<ErrorLine>,
    /// Requests that met a connection which the server had closed while it was idle, and went over a new one. Not
    /// errors: their clock ran on.
    pub stale_keepalive: u64,
    /// How many complete answers had each status.
    pub status: BTreeMap<u16, u64>,
    /// The latencies of answers with each status, as far as there are not more than 32 different ones.
    #[serde(default)]
    pub status_latency_ms: BTreeMap<u16, Quantiles>,
    /// The most asked first.
    pub backends: Vec<BackendLine>,
    pub verdict: Verdict,
    /// Why, in words; may name doubts even about a valid run.
    pub reasons: Vec<String>,
    /// What came of the objectives that the option `slo` named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slo: Vec<Objective>,
    pub client: Client,
}

/// The start of a run that is left out of its figures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct WarmedUp {
    /// It was found in the latencies, and not given.
    pub auto: bool,
    /// From the start.
    pub cut_s: f64,
    /// How many requests were due in it.
    pub requests: u64,
    /// How many of these failed.
    pub errors: u64,
}

/// Little's law: as many requests are in flight on average as come per second, times the seconds that each takes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Little {
    /// Requests due and not ended, on average over the window, counted by their comings and goings.
    pub in_flight: f64,
    /// All requests per second of the window times their mean latency.
    pub rate_times_latency: f64,
    /// By how much the first differs from the second, as a part of the second (0.01 is 1 %).
    pub difference: f64,
}

/// How an open loop went.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct OpenLoop {
    /// Requests that were due, per second of the time that they were to take; by chance not quite the rate asked for.
    pub offered_per_second: f64,
    /// Requests due and not ended when the time for new ones was over. They were awaited, and are samples.
    pub unfinished: u64,
    /// How late the generator was by itself: it is part of the latencies, and the target's fault in no way.
    pub send_lag_ms: Option<Summary>,
    /// How late those requests were sent, or given up, that found all connections busy; part of the latencies.
    pub queued_ms: Option<Summary>,
    /// Connections that there were at the most.
    pub connections: u64,
}

/// What was asked for, with every default filled in. Values of header fields are left out, as they may be secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// How many requests were to be sent, those of the warm-up included; absent when only the duration ended the run.
    pub requests: Option<u64>,
    /// In an open loop, the most that there may be.
    pub connections: u64,
    pub duration_s: Option<f64>,
    /// Open loop only, as are the next two: requests per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arrivals: Option<Arrivals>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    pub timeout_ms: f64,
    pub connect_timeout_ms: f64,
    pub method: String,
    pub headers: Vec<String>,
    pub body_bytes: u64,
    pub backend_header: String,
    /// Whether connections were used for more than one request.
    #[serde(default = "yes")]
    pub keepalive: bool,
    /// The CPUs that the generator was pinned to; empty when it was not.
    #[serde(default)]
    pub cpus: Vec<u16>,
}

/// Reports of schema 1 without the key are of runs that kept their connections.
fn yes() -> bool {
    true
}

/// `scheduled = ok + http_error + transport_error + timeout + unsent`. Requests of the warm-up are counted apart, in
/// `warmup`: together with `scheduled` they are all there were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub scheduled: u64,
    /// Complete answers with a 2xx status.
    pub ok: u64,
    /// Complete answers with another status.
    pub http_error: u64,
    pub transport_error: u64,
    pub timeout: u64,
    /// Asked for by `requests`, but the duration ended before their turn came.
    pub unsent: u64,
}

impl Report {
    /// Gives backends the names that `known` has for their ids, and says whether their capacity is emulated.
    pub fn name_backends(&mut self, known: impl Fn(&str) -> Option<(String, bool)>) {
        for line in &mut self.backends {
            (line.name, line.emulated) = known(&line.id).map_or((None, false), |(name, is)| (Some(name), is));
        }
    }
}

impl BackendLine {
    /// `NAME (ID)`, or the id alone.
    #[must_use]
    pub fn shown(&self) -> String {
        self.name.as_ref().map_or_else(|| self.id.clone(), |name| format!("{name} ({})", self.id))
    }
}

impl Counts {
    /// Requests that were sent or tried and failed.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.http_error + self.transport_error + self.timeout
    }
}

/// Latencies of 2xx answers, and of all requests, errors and timeouts included; absent when there are none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latencies {
    pub ok: Option<Summary>,
    pub all: Option<Summary>,
}

/// A distribution in milliseconds. `min`, `mean` and `max` are exact, quantiles are within a thousandth.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub count: u64,
    pub min: f64,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    /// Absent when fewer than ten samples lie above it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p999: Option<f64>,
    pub max: f64,
}

/// 95 % confidence intervals of the latencies of 2xx answers, in milliseconds. They count with the dependence of
/// neighbouring latencies, and know nothing of what would be different in another run. Each is absent where there are
/// too few samples for one: fewer than ten beyond the quantile.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Intervals {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean: Option<Bounds>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p50: Option<Bounds>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p90: Option<Bounds>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p95: Option<Bounds>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99: Option<Bounds>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p999: Option<Bounds>,
}

/// The ends of an interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bounds {
    pub low: f64,
    /// Absent when the samples do not bound it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high: Option<f64>,
}

/// One kind of error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorLine {
    pub kind: String,
    /// `client` when the request never left this machine, else `server`.
    pub side: String,
    pub count: u64,
    /// How long it took until it failed so; for a timeout, how old it was.
    #[serde(default)]
    pub latency_ms: Quantiles,
    /// The first one, in words.
    pub sample: String,
}

/// One backend as its answers named it; `(none)` for answers that named none, such as a balancer's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackendLine {
    pub id: String,
    /// What a person calls it, where the caller knows; see [`Report::name_backends`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// It holds requests as long as an instance of its type would need, and has not its real capacity.
    #[serde(default)]
    pub emulated: bool,
    /// Complete answers.
    pub count: u64,
    /// Its part of all complete answers (0..1).
    pub share: f64,
    pub latency_ms: Quantiles,
    /// Answers with another status than 2xx.
    pub errors: u64,
}

/// A quantile is known when so many samples lie at it or above.
const BEYOND_MIN: u64 = 10;

/// Whether `count` samples are enough for a quantile (0..1).
pub(super) fn is_supported(count: u64, quantile: f64) -> bool {
    count - (count as f64 * quantile) as u64 >= BEYOND_MIN
}

/// Milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    pub p50: f64,
    pub p99: f64,
}

/// The generator's own state.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Client {
    pub threads: u64,
    /// CPU time of all its threads while they sent.
    pub cpu_s: f64,
    /// The part of that time that the busiest thread was on a CPU (0..1).
    pub busy_max: f64,
    /// The part of that time that the thread which waited most was ready to run and had no CPU (0..1); 0 where the
    /// kernel does not say.
    #[serde(default)]
    pub cpu_wait_max: f64,
    /// It shares the machine with its target (a loopback address), and so takes CPU time from it.
    pub same_machine: bool,
    pub descriptors: Descriptors,
}
