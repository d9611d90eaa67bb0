//! What a backend's past says about its next request.

use std::time::Duration;

use crate::price::{price, worth};
use crate::sync::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Time constant of the averages: how long ago counts as past. Short enough to follow a throttled machine.
const MEMORY_NS: f64 = 1e9;
/// However slowly they come, this many samples are remembered: a single one says little.
const SAMPLES_MIN: f64 = 10.0;
/// After this long without a sample, a backend may have changed unseen.
pub(crate) const STALE_NS: u64 = 1_000_000_000;
/// A first sample after that which is better by this factor replaces what was known: averaging it in would keep a
/// backend that has healed waiting for ten more samples that it does not get.
const SURPRISE: f64 = 2.0;
/// A sample counts as at most this many times what was expected, so that one request in a hundred that takes a
/// hundred times as long does not decide where the others go.
const SAMPLE_MAX: f64 = 20.0;
/// A backend that has requests and says nothing for this many times the usual distance of its answers is losing.
/// With exponential distances that happens once in 20,000 answers.
const SILENCE: f64 = 10.0;
/// Time constant with which failures are forgiven while no request is sent.
const FORGIVE_NS: f64 = 2e9;
/// A request that fails is as bad as one that takes this long: far above any latency worth balancing on, so that a
/// quick error never looks like a quick answer.
const FAILURE_NS: f64 = 1e9;

/// A copy of one backend's averages at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Latency over requests in flight (this one included), averaged over both, in nanoseconds; 0 before the first
    /// answer. Dividing takes the queue out of the sample, so that multiplying by the queue of the next request
    /// counts it once.
    pub latency_per_request_ns: f64,
    /// Share of recent requests that failed, 0..=1.
    pub failing: f64,
    /// How long ago the last request ended.
    pub age: Duration,
    /// Finished requests that were learnt from, saturating.
    pub samples: u32,
}

/// The averages as threads share them.
///
/// One thread at a time learns ([`crate::backend::Turn`]); one that finds another at it drops its sample, which an
/// average stands, and waiting would cost every request. Readers may see a mixture of two samples' updates, which is as
/// good as either. What a choice reads comes first.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Averages {
    /// Read by every choice: [`price`] of the latency per request, 0 while unknown.
    price: AtomicU64,
    /// Until then the price is all that there is to weigh: from then on its silence may be too long. 0 while its
    /// latency is unknown or a recent request failed.
    calm_until_ns: AtomicU64,
    failing: AtomicU64,
    /// Silence that is longer than this is too long; 0 while unknown.
    overdue_ns: AtomicU64,
    /// When a request last ended, or the backend was last idle and got one: since then it has been silent.
    heard_ns: AtomicU64,
    updated_ns: AtomicU64,
    /// Decaying sums over requests: their number, those in flight, latencies.
    count: AtomicU64,
    in_flight: AtomicU64,
    latency_ns: AtomicU64,
    /// The last over the one before it, so that the next sample need not divide.
    latency_per_request_ns: AtomicU64,
    /// Average latency of requests that found few others: what an answer takes at best.
    base_ns: AtomicU64,
    samples: AtomicU32,
}

fn load(number: &AtomicU64) -> f64 {
    f64::from_bits(number.load(Relaxed))
}

fn store(number: &AtomicU64, value: f64) {
    number.store(value.to_bits(), Relaxed);
}

impl Averages {
    pub(crate) fn read(&self, now_ns: u64) -> Estimate {
        Estimate {
            latency_per_request_ns: self.latency_per_request_ns(),
            failing: load(&self.failing),
            age: Duration::from_nanos(now_ns.saturating_sub(self.updated_ns.load(Relaxed))),
            samples: self.samples.load(Relaxed),
        }
    }

    /// [`Estimate::latency_per_request_ns`].
    pub(crate) fn latency_per_request_ns(&self) -> f64 {
        load(&self.latency_per_request_ns)
    }

    /// Requests in flight that are answered within `window_ns`, or within twice the time that an answer takes at
    /// best if that is longer. Infinite while nothing is known.
    pub(crate) fn answered_within(&self, window_ns: f64) -> f64 {
        window_ns.max(2.0 * load(&self.base_ns)) * self.answers_per_ns()
    }

    /// Answers per nanosecond when it is busy; infinite while nothing is known.
    pub(crate) fn answers_per_ns(&self) -> f64 {
        SILENCE / float(self.overdue_ns.load(Relaxed))
    }

    /// [`price`] of the latency per request; 0 while unknown.
    pub(crate) fn price(&self) -> f64 {
        load(&self.price)
    }

    /// Finished requests that were learnt from, saturating.
    pub(crate) fn samples(&self) -> u32 {
        self.samples.load(Relaxed)
    }

    /// How long ago a request last ended.
    pub(crate) fn age_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.updated_ns.load(Relaxed))
    }

    /// Whether [`Self::price`] is known, nothing failed lately, and a backend that has requests would not be overdue:
    /// then neither [`Self::silence`] nor [`Self::failure_worth`] need be asked for.
    pub(crate) fn is_calm(&self, now_ns: u64) -> bool {
        now_ns < self.calm_until_ns.load(Relaxed)
    }

    /// How many times [`SILENCE`] times the usual distance of its answers a backend that has requests has said nothing,
    /// at least 1; 1 while that distance is unknown.
    pub(crate) fn silence(&self, now_ns: u64) -> f64 {
        match self.overdue_ns.load(Relaxed) {
            0 => 1.0,
            overdue_ns => (float(self.silent_ns(now_ns)) / float(overdue_ns)).max(1.0),
        }
    }

    /// Whether any of its recent requests failed.
    pub(crate) fn fails(&self) -> bool {
        self.failing.load(Relaxed) != 0
    }

    fn silent_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.heard_ns.load(Relaxed))
    }

    /// What failures make likely, in the unit of [`worth`]; forgiven with time.
    pub(crate) fn failure_worth(&self, now_ns: u64) -> f64 {
        self.failing_at(now_ns) * worth(FAILURE_NS)
    }

    /// Share of recent requests that failed, less what time has forgiven.
    pub(crate) fn failing_at(&self, now_ns: u64) -> f64 {
        let failing = load(&self.failing);
        if failing <= 0.0 {
            return 0.0;
        }
        failing * (-float(self.age_ns(now_ns)) / FORGIVE_NS).exp()
    }

    /// A request was sent to the idle backend.
    pub(crate) fn busy(&self, now_ns: u64) {
        self.hear(now_ns);
    }

    /// Its silence begins anew.
    fn hear(&self, now_ns: u64) {
        let overdue_ns = self.overdue_ns.load(Relaxed);
        let is_plain = overdue_ns != 0 && !self.fails();
        self.heard_ns.store(now_ns, Relaxed);
        self.calm_until_ns.store(if is_plain { now_ns.saturating_add(overdue_ns) } else { 0 }, Relaxed);
    }

    /// Learns from one finished request that shared its backend with `others`, on average. `latency_ns` is `None`
    /// for a failure: its time says nothing about how long an answer takes.
    pub(crate) fn learn(&self, latency_ns: Option<f64>, others: f64, now_ns: u64) {
        let age_ns = self.age_ns(now_ns);
        let decay = decay(age_ns);
        let count = load(&self.count) * decay + 1.0;
        store(&self.count, count);
        let failed = if latency_ns.is_none() { 1.0 } else { 0.0 };
        let failing = load(&self.failing);
        // Dividing costs more than looking.
        if failing != failed {
            let failing = failing + (failed - failing) / count;
            store(&self.failing, if failing < 1e-9 { 0.0 } else { failing });
        }
        if let Some(latency_ns) = latency_ns {
            self.learn_latency(latency_ns, others + 1.0, decay, age_ns);
        }
        self.samples.store(self.samples.load(Relaxed).saturating_add(1), Relaxed);
        self.updated_ns.store(now_ns, Relaxed);
        self.hear(now_ns);
    }

    fn learn_latency(&self, latency_ns: f64, in_flight: f64, decay: f64, age_ns: u64) {
        let expected_ns = self.latency_per_request_ns() * in_flight;
        let replaces = age_ns >= STALE_NS && latency_ns * SURPRISE < expected_ns;
        let kept = if replaces { 0.0 } else { decay };
        let latency_ns =
            if expected_ns > 0.0 { least(latency_ns, SAMPLE_MAX * expected_ns) } else { latency_ns };
        let in_flight = load(&self.in_flight) * kept + in_flight;
        let latency_ns = load(&self.latency_ns) * kept + most(latency_ns, 1.0);
        store(&self.in_flight, in_flight);
        store(&self.latency_ns, latency_ns);
        let latency_ns = latency_ns / in_flight;
        store(&self.latency_per_request_ns, latency_ns);
        store(&self.price, price(latency_ns));
        self.overdue_ns.store((SILENCE * latency_ns) as i64 as u64, Relaxed);
    }

    /// Learns from an answer of a request that found few others, if any. Two threads at it may lose a sample.
    pub(crate) fn learn_alone(&self, latency_ns: f64) {
        let base_ns = load(&self.base_ns);
        let known = if base_ns > 0.0 { base_ns } else { latency_ns };
        store(&self.base_ns, known + (latency_ns - known) / SAMPLES_MIN);
    }

    /// Forgets everything, as for a backend that has just come back.
    pub(crate) fn forget(&self) {
        for number in [
            &self.price,
            &self.calm_until_ns,
            &self.overdue_ns,
            &self.failing,
            &self.count,
            &self.in_flight,
            &self.latency_ns,
            &self.latency_per_request_ns,
            &self.base_ns,
        ] {
            number.store(0, Relaxed);
        }
        self.samples.store(0, Relaxed);
    }
}

/// What the past keeps of its weight at a sample so long after the one before: exp(-dt / memory) as 1 - x + x^2 / 2,
/// which is right within 0.0002 where it matters, and at least what leaves [`SAMPLES_MIN`] samples.
fn decay(age_ns: u64) -> f64 {
    let x = least(float(age_ns) * (1.0 / MEMORY_NS), 1.0);
    most(1.0 - x + 0.5 * x * x, 1.0 - 1.0 / SAMPLES_MIN)
}

/// A time as a number. Processors convert signed integers in one step; times end 292 years after the epoch.
pub(crate) fn float(ns: u64) -> f64 {
    ns as i64 as f64
}

/// The smaller of two numbers, in one step where [`f64::min`] also asks whether both are numbers.
fn least(a: f64, b: f64) -> f64 {
    if a < b { a } else { b }
}

fn most(a: f64, b: f64) -> f64 {
    if a > b { a } else { b }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::price::fourth_root;

    const MS: f64 = 1e6;
    const SECOND_NS: u64 = 1_000_000_000;

    fn latency(averages: &Averages) -> f64 {
        averages.latency_per_request_ns() / MS
    }

    #[test]
    fn first_sample_is_believed_at_once() {
        let averages = Averages::default();
        assert_eq!((averages.latency_per_request_ns(), averages.price()), (0.0, 0.0));
        averages.learn(Some(6.0 * MS), 2.0, 1);
        assert_eq!(latency(&averages), 2.0);
        assert!((fourth_root(averages.price()) / (2.0 * MS).powf(0.75) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn queue_is_taken_out_of_the_sample() {
        let averages = Averages::default();
        for in_flight in [0.0, 3.0, 9.0, 1.0] {
            averages.learn(Some(5.0 * MS * (in_flight + 1.0)), in_flight, 1);
        }
        assert!((latency(&averages) - 5.0).abs() < 1e-9);
    }

    #[test]
    fn estimate_follows_a_change_within_a_few_time_constants() {
        let averages = Averages::default();
        for step in 0..100 {
            averages.learn(Some(MS), 0.0, step * SECOND_NS / 100);
        }
        for step in 100..400 {
            averages.learn(Some(10.0 * MS), 0.0, step * SECOND_NS / 100);
        }
        assert!(latency(&averages) > 9.0, "{}", latency(&averages));
    }

    #[test]
    fn outlier_is_forgotten_in_seconds() {
        let averages = Averages::default();
        let at = |step: u64| step * SECOND_NS / 100;
        for step in 0..300 {
            averages.learn(Some(MS), 0.0, at(step));
        }
        averages.learn(Some(1000.0 * MS), 0.0, at(300));
        assert!(
            (1.1..1.3).contains(&latency(&averages)),
            "counts as 20 among about 100: {}",
            latency(&averages)
        );
        for step in 301..600 {
            averages.learn(Some(MS), 0.0, at(step));
        }
        assert!(latency(&averages) < 1.02, "{}", latency(&averages));
    }

    #[test]
    fn ten_samples_are_remembered_however_slowly_they_come() {
        let averages = Averages::default();
        for step in 0..100 {
            averages.learn(Some(MS), 0.0, step * 60 * SECOND_NS);
        }
        averages.learn(Some(11.0 * MS), 0.0, 100 * 60 * SECOND_NS);
        assert!((latency(&averages) - 2.0).abs() < 0.01, "{}", latency(&averages));
    }

    #[test]
    fn pleasant_surprise_after_silence_replaces_what_was_known() {
        let averages = Averages::default();
        averages.learn(Some(50.0 * MS), 0.0, 0);
        averages.learn(Some(5.0 * MS), 0.0, 2 * SECOND_NS);
        assert_eq!(latency(&averages), 5.0);
        averages.learn(Some(50.0 * MS), 0.0, 4 * SECOND_NS);
        assert!(latency(&averages) > 25.0, "an unpleasant one is averaged in");
    }

    #[test]
    fn reading_changes_nothing() {
        let averages = Averages::default();
        averages.learn(Some(5.0 * MS), 0.0, 0);
        averages.learn(None, 0.0, 0);
        let before = averages.read(SECOND_NS);
        let failure = averages.failure_worth(SECOND_NS);
        for later in 1..50 {
            let _ = (averages.failure_worth(later * SECOND_NS), averages.silent_ns(later), averages.price());
        }
        assert_eq!((averages.read(SECOND_NS), averages.failure_worth(SECOND_NS)), (before, failure));
    }

    #[test]
    fn failure_costs_more_than_any_latency_and_is_forgiven_with_time() {
        let averages = Averages::default();
        averages.learn(None, 0.0, 0);
        assert!(averages.failure_worth(0) > 30.0 * worth(10.0 * MS));
        assert!(averages.failure_worth(30 * SECOND_NS) < 0.1 * worth(MS));
    }

    #[test]
    fn failures_say_nothing_about_latency() {
        let averages = Averages::default();
        for step in 0..2000 {
            averages.learn(Some(MS), 0.0, step * 1_000_000);
        }
        averages.learn(None, 0.0, 2_001_000_000);
        assert!((latency(&averages) - 1.0).abs() < 1e-6);
        let failing = averages.read(2_001_000_000).failing;
        assert!((0.0005..0.002).contains(&failing), "one in about a thousand: {failing}");
    }

    #[test]
    fn backend_is_silent_from_the_last_answer_or_the_end_of_its_idleness() {
        let averages = Averages::default();
        averages.learn(Some(MS), 0.0, 10);
        assert_eq!(averages.silent_ns(25), 15);
        averages.busy(20);
        assert_eq!(averages.silent_ns(25), 5);
    }
}
