//! Adds up what the threads of a run counted, and makes its report.
//!
//! Measures nothing, and leaves it to the judge what the figures are worth.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    book::Book,
    generate::Part,
    interval::{self, Batches},
    judge::{Facts, OpenFacts, Steadiness, Verdict, judge},
    limits::Descriptors,
    options::Warmup,
    plan::{Load, Plan},
    record::{Recorder, Series, printable},
    report::{
        BackendLine, Bounds, Client, Counts, ErrorLine, Intervals, Latencies, Little, OpenLoop, Quantiles,
        Report, SCHEMA, Spec, Summary, WarmedUp,
    },
    slo::{Evidence, Objective},
    steady::{self, CUTS},
    timeline::Block,
};

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
    let book = book(ended);
    let measured = Measured::new(ended, &book);
    let client = client(ended);
    let (verdict, reasons) = judge(&measured.facts(&client));
    let slo = measured.objectives(verdict);
    let Measured { plan, ref counts, ref sum, ref whole, window, .. } = measured;
    Report {
        schema: SCHEMA,
        name: plan.name.clone(),
        url: ended.url.to_owned(),
        address: ended.address.to_string(),
        mode: plan.options.mode,
        round: None,
        started: rfc3339(ended.started),
        spec: spec(plan),
        counts: *counts,
        requests_per_second: rate(sum.ok_inside, window),
        answers_per_second: rate(sum.answers_inside, window),
        window_s: round(window.as_secs_f64()),
        warmup: measured.warmed_up,
        little: measured.little,
        wall_s: round(whole.last_end.as_secs_f64()),
        latency_ms: Latencies { ok: summary(&sum.ok), all: summary(&sum.all) },
        interval_ms: intervals(plan, measured.batches.as_ref()),
        service_ms: summary(&sum.service),
        open: is_open(plan).then(|| open_loop(plan, sum, measured.cut, ended.parts)),
        connect_ms: summary(&sum.connect),
        errors: error_lines(sum),
        stale_keepalive: sum.stale_keepalive,
        status: sum.status.clone(),
        status_latency_ms: status_latencies(sum),
        backends: backend_lines(sum),
        verdict,
        reasons,
        slo,
        client,
    }
}

/// The part of a run that is measured, and what comes of it.
struct Measured<'run> {
    plan: &'run Plan,
    parts: &'run [Part],
    warmed_up: WarmedUp,
    /// When the measurement begins.
    cut: Duration,
    blocks: &'run [Block],
    batches: Option<Batches>,
    /// Of the whole run.
    whole: Recorder,
    /// Of the measured part, as all that follows.
    sum: Recorder,
    counts: Counts,
    window: Duration,
    little: Option<Little>,
}

impl<'run> Measured<'run> {
    fn new(ended: &Ended<'run>, book: &'run Book) -> Self {
        let plan = ended.plan;
        let (warmed_up, cut, blocks) = warm_up(plan, book);
        let (before, sum) = book.split(cut);
        let mut whole = before.clone();
        whole.add(&sum);
        let window = window(plan, &whole).saturating_sub(cut);
        Self {
            plan,
            parts: ended.parts,
            warmed_up,
            cut,
            blocks,
            batches: Batches::new(blocks),
            counts: counts(plan, &sum, before.scheduled),
            little: little(plan, book, cut, &sum, window),
            whole,
            sum,
            window,
        }
    }

    fn facts(&self, client: &Client) -> Facts {
        Facts {
            is_burst: self.plan.load == Load::Burst,
            ok: self.counts.ok,
            errors: self.counts.errors(),
            unsent: self.counts.unsent,
            client_errors: shortages(&self.sum),
            window: self.window,
            steadiness: Steadiness {
                dependence: self.batches.as_ref().map_or(0.0, Batches::dependence),
                drift: steady::drift(self.blocks),
                little: self.little,
            },
            warmup: self.warmed_up,
            busy: client.busy_max,
            occupied: share_max(self.parts, |part| part.cpu + part.wait),
            connect_max: self.sum.connect.max(),
            open: is_open(self.plan).then(|| open_facts(self.plan, &self.whole, &self.sum)),
        }
    }

    fn objectives(&self, verdict: Verdict) -> Vec<Objective> {
        let evidence = Evidence {
            verdict,
            batches: self.batches.as_ref(),
            ok: &self.sum.ok,
            failed: self.counts.errors(),
            requests_per_second: rate(self.sum.ok_inside, self.window),
            window: self.window,
        };
        self.plan.options.slo.as_ref().map_or_else(Vec::new, |slo| slo.judge(&evidence))
    }
}

fn status_latencies(sum: &Recorder) -> BTreeMap<u16, Quantiles> {
    sum.status_latencies.iter().map(|(status, series)| (*status, quantiles(series))).collect()
}

fn book(ended: &Ended<'_>) -> Book {
    let mut whole = ended.plan.book();
    ended.parts.iter().for_each(|part| whole.add(&part.book));
    whole
}

/// What is left out at the start, when the measurement begins, and the blocks after that.
fn warm_up<'book>(plan: &Plan, book: &'book Book) -> (WarmedUp, Duration, &'book [Block]) {
    let blocks = &book.timeline.blocks;
    let auto = matches!(plan.options.warmup_used(), Warmup::Auto(_));
    let cut_blocks = if auto { steady::warm_up(blocks) } else { 0 };
    let found = CUTS.iter().position(|blocks| *blocks == cut_blocks).map_or(0, |index| index + 1);
    let cut = if auto { plan.cuts()[found] } else { plan.fixed_warmup() };
    let (before, _) = book.split(cut);
    let cut_s = round(cut.as_secs_f64());
    let warmed_up = WarmedUp { auto, cut_s, requests: before.scheduled, errors: before.errors() };
    (warmed_up, cut, &blocks[cut_blocks..])
}

/// `None` for a burst, and when nothing was sent.
fn little(plan: &Plan, book: &Book, cut: Duration, sum: &Recorder, window: Duration) -> Option<Little> {
    let latencies = sum.all.mean().as_secs_f64() * sum.all.count() as f64;
    if plan.load == Load::Burst || latencies == 0.0 || window.is_zero() {
        return None;
    }
    let in_flight = book.in_flight(cut).as_secs_f64();
    Some(Little {
        in_flight: round(in_flight / window.as_secs_f64()),
        rate_times_latency: round(latencies / window.as_secs_f64()),
        difference: round(in_flight / latencies - 1.0),
    })
}

fn counts(plan: &Plan, sum: &Recorder, warmup: u64) -> Counts {
    let scheduled = plan.requests().map_or(sum.scheduled, |requests| requests - warmup);
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

/// Of the measured part, but for what was unfinished at half and at the end of the whole load.
fn open_facts(plan: &Plan, whole: &Recorder, sum: &Recorder) -> OpenFacts {
    OpenFacts {
        scheduled: whole.scheduled,
        measured: sum.scheduled,
        timeouts: sum.timeout,
        unfinished: whole.unfinished,
        lag_p99: sum.lag.quantile(0.99),
        latency_p99: sum.all.quantile(0.99),
        connections_max: plan.connections(),
        queued: sum.queued.count(),
        queued_max: sum.queued.max(),
    }
}

fn open_loop(plan: &Plan, sum: &Recorder, cut: Duration, parts: &[Part]) -> OpenLoop {
    OpenLoop {
        offered_per_second: rate(sum.scheduled, plan.load_end().unwrap_or_default().saturating_sub(cut)),
        unfinished: sum.unfinished[1],
        send_lag_ms: summary(&sum.lag),
        queued_ms: summary(&sum.queued),
        connections: parts.iter().map(|part| part.connections).sum(),
    }
}

/// Requests that failed because this machine lacked something.
fn shortages(sum: &Recorder) -> u64 {
    sum.faults.iter().filter(|(kind, _)| kind.is_shortage()).map(|(_, tally)| tally.latencies.count()).sum()
}

fn spec(plan: &Plan) -> Spec {
    let options = &plan.options;
    Spec {
        requests: plan.requests(),
        connections: plan.connections(),
        duration_s: plan.load.duration().map(|_| plan.options.duration_used().as_secs_f64()),
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
    Client {
        threads: ended.parts.len() as u64,
        cpu_s: round(ended.parts.iter().map(|part| part.cpu.as_secs_f64()).sum()),
        busy_max: share_max(ended.parts, |part| part.cpu),
        cpu_wait_max: share_max(ended.parts, |part| part.wait),
        same_machine: ended.address.ip().is_loopback(),
        descriptors: ended.descriptors,
    }
}

/// A time of each thread as its share of the load's time (0..1), the largest of all threads.
fn share_max(parts: &[Part], read: impl Fn(&Part) -> Duration) -> f64 {
    let share = |part: &Part| read(part).as_secs_f64() / part.elapsed.as_secs_f64().max(1e-9);
    round(parts.iter().map(share).fold(0.0, f64::max))
}

fn error_lines(sum: &Recorder) -> Vec<ErrorLine> {
    let line = |(kind, tally): (&super::fault::FaultKind, &super::record::FaultTally)| ErrorLine {
        kind: kind.name().to_owned(),
        side: kind.side().to_owned(),
        count: tally.latencies.count(),
        latency_ms: quantiles(&tally.latencies),
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
            emulated: false,
            count: tally.answers.count(),
            share: round(tally.answers.count() as f64 / answers.max(1) as f64),
            latency_ms: quantiles(&tally.answers),
            errors: tally.errors,
        })
        .collect();
    lines.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.id.cmp(&b.id)));
    lines
}

fn quantiles(series: &Series) -> Quantiles {
    Quantiles { p50: millis(series.quantile(0.5)), p99: millis(series.quantile(0.99)) }
}

/// Ten of so many lie above p99.9.
const P999_COUNT_MIN: u64 = 10_000;

fn summary(series: &Series) -> Option<Summary> {
    (series.count() > 0).then(|| Summary {
        count: series.count(),
        min: millis(series.min()),
        mean: millis(series.mean()),
        p50: millis(series.quantile(0.5)),
        p90: millis(series.quantile(0.9)),
        p95: millis(series.quantile(0.95)),
        p99: millis(series.quantile(0.99)),
        p999: (series.count() >= P999_COUNT_MIN).then(|| millis(series.quantile(0.999))),
        max: millis(series.max()),
    })
}

fn intervals(plan: &Plan, batches: Option<&Batches>) -> Option<Intervals> {
    let batches = batches.filter(|_| plan.load != Load::Burst)?;
    let quantile = |quantile| batches.quantile(quantile).map(bounds);
    Some(Intervals {
        mean: batches.mean().map(bounds),
        p50: quantile(0.5),
        p90: quantile(0.9),
        p95: quantile(0.95),
        p99: quantile(0.99),
        p999: quantile(0.999),
    })
}

fn bounds(bounds: interval::Bounds) -> Bounds {
    Bounds { low: millis(bounds.low), high: bounds.high.map(millis) }
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
