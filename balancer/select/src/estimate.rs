//! What a backend's past says about its next request.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Time constant of both averages: how long ago counts as past. Short enough to follow a throttled machine.
const MEMORY: Duration = Duration::from_secs(1);
/// An estimate without new samples is believed for this long, then drifts toward the cluster's median.
const FRESH: Duration = Duration::from_secs(2);
/// Time constant of that drift, so that a backend that was slow is tried again within half a minute.
const DRIFT: Duration = Duration::from_secs(5);
/// Time constant with which failures are forgiven while no request is sent.
const FORGIVE: Duration = Duration::from_secs(2);
/// What a certain failure costs in the comparison: far above any latency worth balancing on, so that a quick
/// error never looks like a quick answer.
const FAILURE_COST_NS: f64 = 1e9;
/// A sample counts as at most so many times the average: one request with a hundred times the work says little
/// about its backend. A backend that really became slower is followed all the same, in a few samples more.
const OUTLIER_FACTOR: f64 = 4.0;
/// The first samples are averaged evenly, whatever the time between them.
const WARM_UP_SAMPLES: u32 = 16;

/// A copy of one backend's averages at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Average of latency / (requests in flight including this one), in nanoseconds. Dividing takes the queue
    /// out of the sample, so that multiplying by the queue of the next request counts it once.
    pub latency_per_request_ns: f64,
    /// Share of recent requests that failed, 0..=1.
    pub failing: f64,
    /// How long ago the last sample came.
    pub age: Duration,
    /// Finished requests that were learnt from, saturating.
    pub samples: u32,
}

impl Estimate {
    /// What one more request is expected to cost in nanoseconds with `in_flight` already there.
    ///
    /// `median_ns` is the cluster's median of `latency_per_request_ns`: the value of an unknown backend, and what
    /// an old estimate drifts to. Reading changes nothing.
    #[must_use]
    pub fn cost_ns(&self, in_flight: u32, median_ns: f64) -> f64 {
        let latency = self.latency_now_ns(median_ns) * f64::from(in_flight + 1);
        if self.failing <= 0.0 {
            return latency;
        }
        latency + self.failing * (-self.age.as_secs_f64() / FORGIVE.as_secs_f64()).exp() * FAILURE_COST_NS
    }

    fn latency_now_ns(&self, median_ns: f64) -> f64 {
        if self.latency_per_request_ns <= 0.0 {
            return median_ns;
        }
        let Some(old) = self.age.checked_sub(FRESH) else {
            return self.latency_per_request_ns;
        };
        let kept = (-old.as_secs_f64() / DRIFT.as_secs_f64()).exp();
        median_ns + (self.latency_per_request_ns - median_ns) * kept
    }
}

/// The averages as threads share them.
///
/// Two threads that learn at once may lose one of the two samples: an average stands that, and a lock or a
/// retry loop would cost every request.
#[derive(Debug, Default)]
pub(crate) struct Averages {
    latency_ns: AtomicU64,
    failing: AtomicU64,
    updated_ns: AtomicU64,
    samples: AtomicU32,
}

impl Averages {
    pub(crate) fn read(&self, now_ns: u64) -> Estimate {
        let age = now_ns.saturating_sub(self.updated_ns.load(Relaxed));
        Estimate {
            latency_per_request_ns: f64::from_bits(self.latency_ns.load(Relaxed)),
            failing: f64::from_bits(self.failing.load(Relaxed)),
            age: Duration::from_nanos(age),
            samples: self.samples.load(Relaxed),
        }
    }

    /// Learns from one finished request, a latency of more than [`OUTLIER_FACTOR`] averages as that. `latency_ns` is `None` for a failure: its time says nothing about how
    /// long an answer takes.
    pub(crate) fn learn(&self, latency_ns: Option<f64>, now_ns: u64) {
        let old = self.read(now_ns);
        let weight = weight(&old);
        let failed = if latency_ns.is_none() { 1.0 } else { 0.0 };
        let failing = old.failing + (failed - old.failing) * weight;
        self.failing.store(if failing < 1e-9 { 0.0 } else { failing }.to_bits(), Relaxed);
        if let Some(sample) = latency_ns {
            let known = old.latency_per_request_ns > 0.0;
            let (weight, sample) = if known {
                (weight, sample.min(OUTLIER_FACTOR * old.latency_per_request_ns))
            } else {
                (1.0, sample)
            };
            let latency = old.latency_per_request_ns + (sample - old.latency_per_request_ns) * weight;
            self.latency_ns.store(latency.max(1.0).to_bits(), Relaxed);
        }
        self.samples.store(old.samples.saturating_add(1), Relaxed);
        self.updated_ns.store(now_ns, Relaxed);
    }

    /// Forgets everything, as for a backend that has just come back.
    pub(crate) fn forget(&self) {
        self.samples.store(0, Relaxed);
        self.latency_ns.store(0, Relaxed);
        self.failing.store(0, Relaxed);
    }
}

/// 1 - exp(-dt / tau) for samples at uneven distances, at least 1/(n+1) for the first few.
fn weight(old: &Estimate) -> f64 {
    let by_time = 1.0 - (-old.age.as_secs_f64() / MEMORY.as_secs_f64()).exp();
    if old.samples < WARM_UP_SAMPLES { by_time.max(1.0 / f64::from(old.samples + 1)) } else { by_time }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: f64 = 1e6;
    const SECOND_NS: u64 = 1_000_000_000;

    #[test]
    fn unknown_backend_costs_the_median() {
        let averages = Averages::default();
        assert_eq!(averages.read(0).cost_ns(0, 3.0 * MS), 3.0 * MS);
        assert_eq!(averages.read(0).cost_ns(1, 3.0 * MS), 6.0 * MS);
    }

    #[test]
    fn first_sample_is_believed_at_once() {
        let averages = Averages::default();
        averages.learn(Some(2.0 * MS), 1);
        assert_eq!(averages.read(1).latency_per_request_ns, 2.0 * MS);
    }

    #[test]
    fn estimate_follows_a_change_within_a_few_time_constants() {
        let averages = Averages::default();
        for step in 0..100 {
            averages.learn(Some(MS), step * SECOND_NS / 100);
        }
        for step in 100..400 {
            averages.learn(Some(10.0 * MS), step * SECOND_NS / 100);
        }
        let latency = averages.read(4 * SECOND_NS).latency_per_request_ns;
        assert!(latency > 9.0 * MS, "{latency}");
    }

    #[test]
    fn one_request_of_a_hundred_times_the_work_moves_the_estimate_little() {
        let averages = Averages::default();
        for step in 0..200 {
            averages.learn(Some(MS), step * SECOND_NS / 100);
        }
        averages.learn(Some(100.0 * MS), 2 * SECOND_NS);
        let latency = averages.read(2 * SECOND_NS).latency_per_request_ns;
        assert!(latency > MS && latency < 1.1 * MS, "{latency}");
    }

    #[test]
    fn old_estimate_drifts_to_the_median_and_never_to_zero() {
        let averages = Averages::default();
        averages.learn(Some(10.0 * MS), 0);
        let at = |seconds: u64| averages.read(seconds * SECOND_NS).cost_ns(0, MS);
        assert_eq!(at(1), 10.0 * MS);
        assert!(at(10) < 5.0 * MS && at(10) > MS, "{}", at(10));
        assert!((at(120) - MS).abs() < 0.01 * MS, "{}", at(120));
    }

    #[test]
    fn reading_changes_nothing() {
        let averages = Averages::default();
        averages.learn(Some(5.0 * MS), 0);
        let before = averages.read(SECOND_NS);
        for later in 1..50 {
            let _ = averages.read(later * SECOND_NS).cost_ns(3, MS);
        }
        assert_eq!(averages.read(SECOND_NS), before);
    }

    #[test]
    fn failure_costs_more_than_any_latency_and_is_forgiven_with_time() {
        let averages = Averages::default();
        averages.learn(None, 0);
        assert!(averages.read(0).cost_ns(0, MS) > 900.0 * MS);
        assert!(averages.read(30 * SECOND_NS).cost_ns(0, MS) < 2.0 * MS);
    }

    #[test]
    fn one_failure_in_many_does_not_hide_the_latency() {
        let averages = Averages::default();
        for step in 0..2000 {
            averages.learn(Some(MS), step * 1_000_000);
        }
        averages.learn(None, 2_001_000_000);
        let latency = averages.read(2_001_000_000).latency_per_request_ns;
        assert!((latency - MS).abs() < 1.0, "{latency}");
    }
}
