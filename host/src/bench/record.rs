//! Counts what happened: one recorder for each thread, added up at the end.
//!
//! Holds no clock and no socket. Its memory does not grow with the number of requests.

use std::{collections::BTreeMap, collections::HashMap, time::Duration};

use hdrhistogram::Histogram;

use super::fault::{Class, Fault, FaultKind};

/// Different backends told apart; further ones are counted together as `(other)`. A lab has tens at most, and the
/// header comes from outside.
const BACKENDS_MAX: usize = 256;
/// Different statuses whose latencies are kept apart; servers use a handful, and the number comes from outside.
const STATUSES_MAX: usize = 32;
/// Bytes of a backend's name that are kept.
const BACKEND_BYTES_MAX: usize = 64;
/// What stands for answers that name no backend.
pub(super) const BACKEND_NONE: &str = "(none)";
const BACKEND_OTHER: &str = "(other)";
/// Characters of an error's sample that are kept.
const SAMPLE_CHARS_MAX: usize = 200;

/// The longest latency told apart: longer than the longest timeout.
pub(super) const LATENCY_MAX: Duration = Duration::from_secs(900);
/// The shortest latency told apart, in nanoseconds; a loopback answer takes a hundred times as long.
pub(super) const LATENCY_NS_MIN: u64 = 100;
/// Three significant digits: a quantile is off by at most a thousandth.
const DIGITS: u8 = 3;

/// Latencies of one sort: exact smallest, largest and mean, and quantiles from a histogram.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Series {
    histogram: Histogram<u32>,
    count: u64,
    total_ns: u128,
    min: Duration,
    max: Duration,
}

impl Series {
    pub(super) fn new() -> Self {
        let max_ns = LATENCY_MAX.as_nanos() as u64;
        let histogram =
            Histogram::new_with_bounds(LATENCY_NS_MIN, max_ns, DIGITS).expect("constant bounds are in order");
        Self { histogram, count: 0, total_ns: 0, min: Duration::MAX, max: Duration::ZERO }
    }

    pub(super) fn record(&mut self, latency: Duration) {
        let nanos = latency.as_nanos();
        self.histogram.saturating_record(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.count += 1;
        self.total_ns += nanos;
        self.min = self.min.min(latency);
        self.max = self.max.max(latency);
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.histogram.add(&other.histogram).expect("all series have the same bounds");
        self.count += other.count;
        self.total_ns += other.total_ns;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn min(&self) -> Duration {
        self.min.min(self.max)
    }

    pub(super) fn max(&self) -> Duration {
        self.max
    }

    /// Zero when nothing is recorded.
    pub(super) fn mean(&self) -> Duration {
        let nanos = self.total_ns.checked_div(u128::from(self.count)).unwrap_or(0);
        Duration::from_nanos(nanos as u64)
    }

    /// The value that a part `quantile` (0..1) of the samples does not exceed; never outside what was recorded.
    pub(super) fn quantile(&self, quantile: f64) -> Duration {
        let nanos = self.histogram.value_at_quantile(quantile);
        Duration::from_nanos(nanos).clamp(self.min(), self.max)
    }
}

/// One backend's answers.
#[derive(Clone)]
pub(super) struct BackendTally {
    /// All answers that named it, good or not.
    pub(super) answers: Series,
    /// Of these, those with a status that is not 2xx.
    pub(super) errors: u64,
}

/// One kind of error.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct FaultTally {
    pub(super) latencies: Series,
    /// The words of the first one.
    pub(super) sample: String,
}

impl FaultTally {
    fn new(sample: String) -> Self {
        Self { latencies: Series::new(), sample }
    }
}

/// What became of one request.
pub(super) struct Sample<'run> {
    /// When it was due, from the start of the run.
    pub(super) due: Duration,
    /// From the moment it was due to its end; for a timeout, its age when it was given up.
    pub(super) latency: Duration,
    /// From its sending to its end; `None` when it was not sent.
    pub(super) service: Option<Duration>,
    /// When it ended, from the start of the run.
    pub(super) end: Duration,
    /// It ended within the measured window.
    pub(super) is_inside: bool,
    /// It was due and had not ended when half of the load's time was over, and when all of it was.
    pub(super) is_unfinished: [bool; 2],
    /// The status of a complete answer.
    pub(super) outcome: Result<u16, Fault>,
    pub(super) backend: Option<&'run [u8]>,
    pub(super) connect_time: Option<Duration>,
    pub(super) stale_count: u64,
}

impl Sample<'_> {
    /// The latency of a 2xx answer; nothing when the request failed.
    pub(super) fn good_latency(&self) -> Option<Duration> {
        let is_good = |status: &u16| FaultKind::of_status(*status).is_none();
        self.outcome.as_ref().ok().filter(|status| is_good(status)).map(|_| self.latency)
    }
}

/// Everything counted.
#[derive(Clone)]
pub(super) struct Recorder {
    pub(super) scheduled: u64,
    pub(super) http_error: u64,
    pub(super) transport_error: u64,
    pub(super) timeout: u64,
    pub(super) ok: Series,
    /// Every request that was sent or tried, errors and timeouts included.
    pub(super) all: Series,
    pub(super) connect: Series,
    /// 2xx answers, from the sending of their requests.
    pub(super) service: Series,
    /// Open loop: how late the generator was by itself. Until sending, or connecting, began; for a request that then
    /// waited for a connection, until it was noticed.
    pub(super) lag: Series,
    /// Open loop: how late those were sent, or given up, that waited for a connection.
    pub(super) queued: Series,
    /// See [`Sample::is_unfinished`].
    pub(super) unfinished: [u64; 2],
    /// 2xx answers that ended within the window.
    pub(super) ok_inside: u64,
    /// Answers of any status that ended within the window.
    pub(super) answers_inside: u64,
    /// End of the last complete answer, and of the last request whatever became of it, from the start of the run.
    pub(super) last_answer: Duration,
    pub(super) last_end: Duration,
    pub(super) stale_keepalive: u64,
    pub(super) status: BTreeMap<u16, u64>,
    /// Of the first statuses that there were.
    pub(super) status_latencies: BTreeMap<u16, Series>,
    pub(super) faults: BTreeMap<FaultKind, FaultTally>,
    pub(super) backends: HashMap<Vec<u8>, BackendTally>,
}

impl Recorder {
    pub(super) fn new() -> Self {
        Self {
            scheduled: 0,
            http_error: 0,
            transport_error: 0,
            timeout: 0,
            ok: Series::new(),
            all: Series::new(),
            connect: Series::new(),
            service: Series::new(),
            lag: Series::new(),
            queued: Series::new(),
            unfinished: [0; 2],
            ok_inside: 0,
            answers_inside: 0,
            last_answer: Duration::ZERO,
            last_end: Duration::ZERO,
            stale_keepalive: 0,
            status: BTreeMap::new(),
            status_latencies: BTreeMap::new(),
            faults: BTreeMap::new(),
            backends: HashMap::new(),
        }
    }

    pub(super) fn record(&mut self, sample: &Sample<'_>) {
        self.all.record(sample.latency);
        self.last_end = self.last_end.max(sample.end);
        self.stale_keepalive += sample.stale_count;
        for (count, is_unfinished) in self.unfinished.iter_mut().zip(sample.is_unfinished) {
            *count += u64::from(is_unfinished);
        }
        if let Some(time) = sample.connect_time {
            self.connect.record(time);
        }
        match &sample.outcome {
            Ok(status) => self.record_answer(sample, *status),
            Err(fault) => self.record_fault(fault.kind, sample.latency, || fault.to_string()),
        }
    }

    /// An answer that ended within the window; its request may have been due in another stretch.
    pub(super) fn record_inside(&mut self, sample: &Sample<'_>) {
        self.answers_inside += u64::from(sample.outcome.is_ok());
        self.ok_inside += u64::from(sample.good_latency().is_some());
    }

    /// Requests that ended with an error, of any class.
    pub(super) fn errors(&self) -> u64 {
        self.http_error + self.transport_error + self.timeout
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.scheduled += other.scheduled;
        self.http_error += other.http_error;
        self.transport_error += other.transport_error;
        self.timeout += other.timeout;
        self.ok.add(&other.ok);
        self.all.add(&other.all);
        self.connect.add(&other.connect);
        self.service.add(&other.service);
        self.lag.add(&other.lag);
        self.queued.add(&other.queued);
        for (count, more) in self.unfinished.iter_mut().zip(other.unfinished) {
            *count += more;
        }
        self.ok_inside += other.ok_inside;
        self.answers_inside += other.answers_inside;
        self.last_answer = self.last_answer.max(other.last_answer);
        self.last_end = self.last_end.max(other.last_end);
        self.stale_keepalive += other.stale_keepalive;
        for (status, count) in &other.status {
            *self.status.entry(*status).or_default() += count;
        }
        for (status, latencies) in &other.status_latencies {
            if let Some(mine) = self.status_latencies(*status) {
                mine.add(latencies);
            }
        }
        for (kind, tally) in &other.faults {
            let first = || FaultTally::new(tally.sample.clone());
            self.faults.entry(*kind).or_insert_with(first).latencies.add(&tally.latencies);
        }
        for (id, tally) in &other.backends {
            let mine = self.backend(id);
            mine.answers.add(&tally.answers);
            mine.errors += tally.errors;
        }
    }

    fn record_answer(&mut self, sample: &Sample<'_>, status: u16) {
        self.last_answer = self.last_answer.max(sample.end);
        *self.status.entry(status).or_default() += 1;
        if let Some(latencies) = self.status_latencies(status) {
            latencies.record(sample.latency);
        }
        let fault = FaultKind::of_status(status);
        let backend = self.backend(sample.backend.unwrap_or(BACKEND_NONE.as_bytes()));
        backend.answers.record(sample.latency);
        backend.errors += u64::from(fault.is_some());
        if let Some(kind) = fault {
            self.record_fault(kind, sample.latency, || format!("status {status}"));
        } else {
            self.ok.record(sample.latency);
            if let Some(service) = sample.service {
                self.service.record(service);
            }
        }
    }

    fn record_fault(&mut self, kind: FaultKind, latency: Duration, words: impl Fn() -> String) {
        match kind.class() {
            Class::Http => self.http_error += 1,
            Class::Transport => self.transport_error += 1,
            Class::Timeout => self.timeout += 1,
        }
        let first = || FaultTally::new(printable(&words(), SAMPLE_CHARS_MAX));
        self.faults.entry(kind).or_insert_with(first).latencies.record(latency);
    }

    /// `None` when there are too many already.
    fn status_latencies(&mut self, status: u16) -> Option<&mut Series> {
        let known = &mut self.status_latencies;
        if known.len() >= STATUSES_MAX && !known.contains_key(&status) {
            return None;
        }
        Some(known.entry(status).or_insert_with(Series::new))
    }

    fn backend(&mut self, id: &[u8]) -> &mut BackendTally {
        let id = &id[..id.len().min(BACKEND_BYTES_MAX)];
        let known = self.backends.contains_key(id);
        let id = if known || self.backends.len() < BACKENDS_MAX { id } else { BACKEND_OTHER.as_bytes() };
        if !self.backends.contains_key(id) {
            self.backends.insert(id.to_vec(), BackendTally { answers: Series::new(), errors: 0 });
        }
        self.backends.get_mut(id).expect("inserted above")
    }
}

/// Text from outside, safe to show on a terminal: control characters and what is not ASCII become `?`.
pub(super) fn printable(text: &str, chars_max: usize) -> String {
    let safe = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
    text.chars().take(chars_max).map(safe).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(millis: u64, outcome: Result<u16, Fault>, backend: Option<&[u8]>) -> Sample<'_> {
        let latency = Duration::from_millis(millis);
        Sample {
            due: Duration::ZERO,
            latency,
            service: Some(latency / 2),
            end: latency,
            is_inside: true,
            is_unfinished: [millis > 500, millis > 1000],
            outcome,
            backend,
            connect_time: None,
            stale_count: 0,
        }
    }

    #[test]
    fn quantiles_stay_within_what_was_recorded() {
        let mut series = Series::new();
        for micros in 1..=1000u64 {
            series.record(Duration::from_micros(micros * 1_001));
        }
        assert_eq!(series.min(), Duration::from_micros(1_001));
        assert_eq!(series.max(), Duration::from_micros(1_001_000));
        assert_eq!(series.mean(), Duration::from_nanos(501_000_500));
        let p50 = series.quantile(0.5).as_secs_f64();
        assert!((p50 / 0.5005 - 1.0).abs() < 0.002, "{p50}");
        assert_eq!(series.quantile(1.0), series.max());
    }

    #[test]
    fn an_empty_series_is_all_zero() {
        let series = Series::new();
        assert_eq!((series.min(), series.mean(), series.quantile(0.99)), Default::default());
    }

    #[test]
    fn a_latency_beyond_the_histogram_keeps_its_value() {
        let mut series = Series::new();
        series.record(Duration::from_secs(5000));
        assert_eq!(series.max(), Duration::from_secs(5000));
        assert!(series.quantile(0.5) >= LATENCY_MAX);
    }

    #[test]
    fn parts_added_up_equal_one_recorder() {
        let mut parts = [Recorder::new(), Recorder::new(), Recorder::new()];
        let mut whole = Recorder::new();
        for n in 0..3000u64 {
            let outcome = || match n % 10 {
                0 => Err(Fault::new(FaultKind::TtfbTimeout, "late")),
                1 => Ok(503),
                _ => Ok(200),
            };
            let backend = [&b"a"[..], b"b"][n as usize % 2];
            parts[n as usize % 3].record(&sample(n, outcome(), Some(backend)));
            whole.record(&sample(n, outcome(), Some(backend)));
        }
        let mut sum = Recorder::new();
        parts.iter().for_each(|part| sum.add(part));
        for (one, other) in [(&sum.ok, &whole.ok), (&sum.all, &whole.all), (&sum.service, &whole.service)] {
            assert_eq!(one, other);
        }
        assert_eq!(sum.faults, whole.faults);
        assert_eq!((&sum.status, &sum.status_latencies), (&whole.status, &whole.status_latencies));
        assert_eq!(sum.status_latencies[&503].count(), 300);
        assert_eq!(sum.errors(), 600);
        assert_eq!(sum.unfinished, [2499, 1999]);
        assert_eq!(sum.backends[&b"b"[..]].errors, whole.backends[&b"b"[..]].errors);
    }

    #[test]
    fn the_number_of_statuses_is_bounded() {
        let mut recorder = Recorder::new();
        (200..999).for_each(|status| recorder.record(&sample(1, Ok(status), None)));
        assert_eq!((recorder.status.len(), recorder.status_latencies.len()), (799, STATUSES_MAX));
    }

    #[test]
    fn the_number_of_backends_is_bounded() {
        let mut recorder = Recorder::new();
        for n in 0..2000 {
            recorder.record(&sample(1, Ok(200), Some(format!("b{n}").as_bytes())));
        }
        assert_eq!(recorder.backends.len(), BACKENDS_MAX + 1);
        let total: u64 = recorder.backends.values().map(|backend| backend.answers.count()).sum();
        assert_eq!(total, 2000);
    }

    #[test]
    fn escapes_from_outside_do_not_reach_a_terminal() {
        assert_eq!(printable("a\x1b[31mb\n\u{202e}", 80), "a?[31mb??");
    }
}
