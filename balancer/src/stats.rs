//! Counters and latencies, shared by all threads through atomics.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// Values per doubling: a recorded latency is off by at most 1/16.
const STEPS: usize = 16;
/// Doublings above 16 microseconds: the last bucket begins at about 64 s, beyond every timeout that is in use.
const DOUBLINGS: usize = 23;
const BUCKETS: usize = STEPS + STEPS * DOUBLINGS;

/// What is counted per backend. Survives a reload that keeps the backend.
#[derive(Debug, Default)]
pub(crate) struct BackendStats {
    /// Requests that ended, with an answer or without; cancelled ones are not counted.
    pub(crate) requests: AtomicU64,
    /// Of these, the ones that failed: no answer, a broken one, or a 5xx that says that the backend is unwell.
    pub(crate) errors: AtomicU64,
    latencies: [Histogram; 2],
    /// Which of the two is being written; the other holds the period before.
    current: AtomicUsize,
}

impl BackendStats {
    pub(crate) fn record(&self, failed: bool, latency: Duration) {
        self.requests.fetch_add(1, Relaxed);
        if failed {
            self.errors.fetch_add(1, Relaxed);
        }
        self.latencies[self.current.load(Relaxed) & 1].record(latency);
    }

    /// Begins a new period and forgets the one before the last. Recordings that race with it may be lost.
    pub(crate) fn rotate(&self) {
        let next = (self.current.load(Relaxed) + 1) & 1;
        self.latencies[next].clear();
        self.current.store(next, Relaxed);
    }

    /// The latency below which a share `quantile` (0..=1) of the last one to two periods lies; `None` without any.
    pub(crate) fn latency(&self, quantile: f64) -> Option<Duration> {
        let counts = |bucket: usize| self.latencies.iter().map(|h| u64::from(h.count(bucket))).sum::<u64>();
        let total: u64 = (0..BUCKETS).map(counts).sum();
        let rank = ((total as f64 * quantile).ceil() as u64).max(1);
        let mut seen = 0;
        (0..BUCKETS)
            .find(|&bucket| {
                seen += counts(bucket);
                seen >= rank
            })
            .map(|bucket| Duration::from_micros(upper_bound_us(bucket)))
    }
}

#[derive(Debug)]
struct Histogram([AtomicU32; BUCKETS]);

impl Default for Histogram {
    fn default() -> Self {
        Self([const { AtomicU32::new(0) }; BUCKETS])
    }
}

impl Histogram {
    fn record(&self, latency: Duration) {
        self.0[bucket_of(latency.as_micros() as u64)].fetch_add(1, Relaxed);
    }

    fn count(&self, bucket: usize) -> u32 {
        self.0[bucket].load(Relaxed)
    }

    fn clear(&self) {
        for bucket in &self.0 {
            bucket.store(0, Relaxed);
        }
    }
}

/// Linear below 16 us, then 16 steps per doubling.
fn bucket_of(us: u64) -> usize {
    if us < STEPS as u64 {
        return us as usize;
    }
    let doubling = us.ilog2() as usize - STEPS.ilog2() as usize;
    let step = (us >> doubling) as usize - STEPS;
    (STEPS + doubling * STEPS + step).min(BUCKETS - 1)
}

fn upper_bound_us(bucket: usize) -> u64 {
    if bucket < STEPS {
        return bucket as u64 + 1;
    }
    let (doubling, step) = ((bucket - STEPS) / STEPS, (bucket - STEPS) % STEPS);
    ((STEPS + step + 1) as u64) << doubling
}

/// Classes of status, 1xx to 5xx.
pub(crate) const CLASSES: usize = 5;
/// The classes, connects to backends, cancelled requests, tunnels: see `thread::Count`.
pub(crate) const COUNTS: usize = CLASSES + 3;

/// What is counted for the whole process.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    /// Client connections open now.
    pub(crate) connections: AtomicUsize,
    pub(crate) connections_accepted: AtomicU64,
    /// Connections turned away because of the limit.
    pub(crate) connections_refused: AtomicU64,
    /// Bodies being streamed now.
    pub(crate) bodies: AtomicUsize,
    pub(crate) requests: AtomicU64,
    /// Requests answered by the balancer itself with an error.
    pub(crate) refused: AtomicU64,
    /// Of these, the ones for which every backend had too many already.
    pub(crate) overloaded: AtomicU64,
    pub(crate) retries: AtomicU64,
    /// What threads count by themselves and add ten times a second: see `thread::Count`.
    pub(crate) counts: [AtomicU64; COUNTS],
    /// Bytes from clients, to clients, from backends, to backends; added likewise.
    pub(crate) traffic: [AtomicU64; 4],
    /// Tunnels open now.
    pub(crate) tunnels: AtomicUsize,
    /// Tasks that panicked; each cost one connection.
    pub(crate) panics: AtomicU64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_rise_without_gaps() {
        let mut last = 0;
        for us in 0..200_000 {
            let bucket = bucket_of(us);
            assert!(bucket == last || bucket == last + 1, "{us}");
            assert!(upper_bound_us(bucket) > us, "{us}");
            last = bucket;
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_within_a_sixteenth() {
        let stats = BackendStats::default();
        for us in 1..=10_000 {
            stats.record(false, Duration::from_micros(us));
        }
        for (quantile, exact) in [(0.5, 5000.0), (0.99, 9900.0)] {
            let found = stats.latency(quantile).expect("some").as_micros() as f64;
            assert!((found / exact - 1.0).abs() < 0.07, "{quantile}: {found}");
        }
    }

    #[test]
    fn latencies_of_old_periods_are_forgotten() {
        let stats = BackendStats::default();
        stats.record(false, Duration::from_secs(1));
        stats.rotate();
        assert!(stats.latency(0.5).is_some());
        stats.rotate();
        assert_eq!(stats.latency(0.5), None);
        assert_eq!(stats.requests.load(Relaxed), 1);
    }
}
