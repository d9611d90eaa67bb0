//! The result of a run in a shape that does not change within one schema number.
//!
//! Does not print: see [`super::table()`] and [`super::csv()`].

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::{
    generate::Part,
    judge::{Facts, OpenFacts, Verdict, judge},
    limits::Descriptors,
    options::Mode,
    plan::{Load, Plan},
    record::{Recorder, Series, printable},
    schedule::Arrivals,
};

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
    /// When the run began: RFC 3339, UTC, whole seconds.
    pub started: String,
    pub spec: Spec,
    pub counts: Counts,
    /// 2xx answers that ended within the window, per second of it.
    pub requests_per_second: f64,
    /// Complete answers of any status that ended within the window, per second of it.
    pub answers_per_second: f64,
    /// The measured window. Burst: from the common start to the end of the last complete answer. Closed and open: from
    /// the start to the end of the duration, or of the last request when `requests` ended the run before.
    pub window_s: f64,
    /// From the start to the end of the last request, whatever became of it.
    pub wall_s: f64,
    /// From the moment a request was due: in a burst and an open loop by the plan, in a closed loop when the last answer
    /// on its connection was complete.
    pub latency_ms: Latencies,
    /// 2xx answers from the moment their request was sent: without connecting, and without waiting for a connection or
    /// for the generator. What a generator that is not bound to a schedule would call latency.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_ms: Option<Summary>,
    /// What there is to know of an open loop besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open: Option<OpenLoop>,
    /// How long connecting took; it is part of the latency of the request that needed it.
    pub connect_ms: Option<Summary>,
    /// In the order of a request's life.
    pub errors: Vec<ErrorLine>,
    /// Requests sent again because the server had closed an idle connection. Not errors: their clock ran on.
    pub stale_keepalive: u64,
    /// How many complete answers had each status.
    pub status: BTreeMap<u16, u64>,
    /// The most asked first.
    pub backends: Vec<BackendLine>,
    pub verdict: Verdict,
    /// Why, in words; may name doubts even about a valid run.
    pub reasons: Vec<String>,
    pub client: Client,
}

/// How an open loop went.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct OpenLoop {
    /// Requests that were due, per second of the time that they were to take; by chance it differs from the rate asked for.
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
    /// How many requests were to be sent; absent when only the duration ended the run.
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

/// `scheduled = ok + http_error + transport_error + timeout + unsent`.
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
    /// Gives backends the names that `name_of` knows for their ids.
    pub fn name_backends(&mut self, name_of: impl Fn(&str) -> Option<String>) {
        for line in &mut self.backends {
            line.name = name_of(&line.id);
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
    pub max: f64,
}

/// One kind of error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorLine {
    pub kind: String,
    /// `client` when the request never left this machine, else `server`.
    pub side: String,
    pub count: u64,
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
    /// Complete answers.
    pub count: u64,
    /// Its part of all complete answers (0..1).
    pub share: f64,
    pub latency_ms: Quantiles,
    /// Answers with another status than 2xx.
    pub errors: u64,
}

/// Milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
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
    /// It shares the machine with its target (a loopback address), and so takes CPU time from it.
    pub same_machine: bool,
    pub descriptors: Descriptors,
}

/// A run that has ended.
pub(super) struct Ended<'run> {
    pub(super) url: &'run str,
    pub(super) plan: &'run Plan,
    pub(super) address: SocketAddr,
    pub(super) started: SystemTime,
    pub(super) parts: &'run [Part],
    pub(super) descriptors: Descriptors,
}

pub(super) fn build(ended: &Ended<'_>) -> Report {
    let plan = ended.plan;
    let mut sum = Recorder::new();
    ended.parts.iter().for_each(|part| sum.add(&part.recorder));
    let counts = counts(plan, &sum);
    let window = window(plan, &sum);
    let errors = error_lines(&sum);
    let client = client(ended);
    let (verdict, reasons) = judge(&Facts {
        is_burst: plan.load == Load::Burst,
        ok: counts.ok,
        errors: counts.errors(),
        unsent: counts.unsent,
        client_errors: shortages(&sum),
        window,
        busy: client.busy_max,
        connect_max: sum.connect.max(),
        open: is_open(plan).then(|| open_facts(plan, &sum)),
    });
    Report {
        schema: SCHEMA,
        name: plan.name.clone(),
        url: ended.url.to_owned(),
        address: ended.address.to_string(),
        mode: plan.options.mode,
        started: rfc3339(ended.started),
        spec: spec(plan),
        counts,
        requests_per_second: rate(sum.ok_inside, window),
        answers_per_second: rate(sum.answers_inside, window),
        window_s: round(window.as_secs_f64()),
        wall_s: round(sum.last_end.as_secs_f64()),
        latency_ms: Latencies { ok: summary(&sum.ok), all: summary(&sum.all) },
        service_ms: summary(&sum.service),
        open: is_open(plan).then(|| open_loop(plan, &sum, ended.parts)),
        connect_ms: summary(&sum.connect),
        errors,
        stale_keepalive: sum.stale_keepalive,
        status: sum.status.clone(),
        backends: backend_lines(&sum),
        verdict,
        reasons,
        client,
    }
}

fn counts(plan: &Plan, sum: &Recorder) -> Counts {
    let scheduled = plan.requests().unwrap_or(sum.scheduled);
    let counts = Counts {
        scheduled,
        ok: sum.ok.count(),
        http_error: sum.http_error,
        transport_error: sum.transport_error,
        timeout: sum.timeout,
        unsent: scheduled - sum.scheduled,
    };
    assert_eq!(scheduled, counts.ok + counts.errors() + counts.unsent, "every request is accounted for");
    counts
}

/// See [`Report::window_s`].
fn window(plan: &Plan, sum: &Recorder) -> Duration {
    match plan.load {
        Load::Burst => sum.last_answer,
        Load::Closed { duration } | Load::Open { duration, .. } => {
            let is_counted = plan.options.requests == Some(sum.scheduled);
            if is_counted { sum.last_end.min(duration) } else { duration }
        }
    }
}

fn is_open(plan: &Plan) -> bool {
    matches!(plan.load, Load::Open { .. })
}

fn open_facts(plan: &Plan, sum: &Recorder) -> OpenFacts {
    OpenFacts {
        scheduled: sum.scheduled,
        timeouts: sum.timeout,
        unfinished: sum.unfinished,
        lag_p99: sum.lag.quantile(0.99),
        latency_p99: sum.all.quantile(0.99),
        connections_max: plan.connections(),
        queued: sum.queued.count(),
        queued_max: sum.queued.max(),
    }
}

fn open_loop(plan: &Plan, sum: &Recorder, parts: &[Part]) -> OpenLoop {
    OpenLoop {
        offered_per_second: rate(sum.scheduled, plan.load_end().unwrap_or_default()),
        unfinished: sum.unfinished[1],
        send_lag_ms: summary(&sum.lag),
        queued_ms: summary(&sum.queued),
        connections: parts.iter().map(|part| part.connections).sum(),
    }
}

/// Requests that failed because this machine lacked something.
fn shortages(sum: &Recorder) -> u64 {
    sum.faults.iter().filter(|(kind, _)| kind.is_shortage()).map(|(_, tally)| tally.count).sum()
}

fn spec(plan: &Plan) -> Spec {
    let options = &plan.options;
    Spec {
        requests: plan.requests(),
        connections: plan.connections(),
        duration_s: plan.load.duration().map(|duration| duration.as_secs_f64()),
        rate: options.rate,
        arrivals: is_open(plan).then(|| options.arrivals_used()),
        seed: is_open(plan).then(|| options.seed_used()),
        timeout_ms: millis(options.timeout.0),
        connect_timeout_ms: millis(options.connect_timeout.0),
        method: options.method.to_ascii_uppercase(),
        headers: options.headers.keys().cloned().collect(),
        body_bytes: options.body.as_ref().map_or(0, |body| body.len() as u64),
        backend_header: options.backend_header.clone(),
        keepalive: options.keepalive,
        cpus: options.cpus.clone(),
    }
}

fn client(ended: &Ended<'_>) -> Client {
    let busy = |part: &Part| part.cpu.as_secs_f64() / part.elapsed.as_secs_f64().max(1e-9);
    Client {
        threads: ended.parts.len() as u64,
        cpu_s: round(ended.parts.iter().map(|part| part.cpu.as_secs_f64()).sum()),
        busy_max: round(ended.parts.iter().map(busy).fold(0.0, f64::max)),
        same_machine: ended.address.ip().is_loopback(),
        descriptors: ended.descriptors,
    }
}

fn error_lines(sum: &Recorder) -> Vec<ErrorLine> {
    let line = |(kind, tally): (&super::fault::FaultKind, &super::record::FaultTally)| ErrorLine {
        kind: kind.name().to_owned(),
        side: kind.side().to_owned(),
        count: tally.count,
        sample: tally.sample.clone(),
    };
    sum.faults.iter().map(line).collect()
}

fn backend_lines(sum: &Recorder) -> Vec<BackendLine> {
    let answers: u64 = sum.status.values().sum();
    let mut lines: Vec<_> = sum
        .backends
        .iter()
        .map(|(id, tally)| BackendLine {
            id: printable(&String::from_utf8_lossy(id), id.len()),
            name: None,
            count: tally.answers.count(),
            share: round(tally.answers.count() as f64 / answers.max(1) as f64),
            latency_ms: Quantiles {
                p50: millis(tally.answers.quantile(0.5)),
                p99: millis(tally.answers.quantile(0.99)),
            },
            errors: tally.errors,
        })
        .collect();
    lines.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.id.cmp(&b.id)));
    lines
}

fn summary(series: &Series) -> Option<Summary> {
    (series.count() > 0).then(|| Summary {
        count: series.count(),
        min: millis(series.min()),
        mean: millis(series.mean()),
        p50: millis(series.quantile(0.5)),
        p90: millis(series.quantile(0.9)),
        p95: millis(series.quantile(0.95)),
        p99: millis(series.quantile(0.99)),
        max: millis(series.max()),
    })
}

/// Zero when there is no window.
fn rate(count: u64, window: Duration) -> f64 {
    if window.is_zero() { 0.0 } else { round(count as f64 / window.as_secs_f64()) }
}

fn millis(duration: Duration) -> f64 {
    round(duration.as_secs_f64() * 1e3)
}

/// Six decimals: nanoseconds of a millisecond, and no digits that mean nothing.
fn round(number: f64) -> f64 {
    (number * 1e6).round() / 1e6
}

/// UTC by the civil calendar (days to date after Hinnant, "chrono-compatible low-level date algorithms").
fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_follow_the_calendar() {
        let at = |seconds| rfc3339(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(951_868_799), "2000-02-29T23:59:59Z");
        assert_eq!(at(1_704_067_200), "2024-01-01T00:00:00Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn a_rate_without_a_window_is_zero() {
        assert_eq!(rate(5, Duration::ZERO), 0.0);
        assert_eq!(rate(5, Duration::from_millis(500)), 10.0);
    }
}
