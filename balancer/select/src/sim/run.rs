//! What came of a simulation.

use std::time::Duration;

/// How a request ended for its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Answered,
    /// A backend answered that it failed, or no attempt reached one.
    Failed,
    /// No answer by the deadline.
    TimedOut,
    /// The balancer said no at once: no backend, or a full queue.
    Refused,
}

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    pub arrived_ns: u64,
    /// From arrival to the end, whatever it was.
    pub latency_ns: u64,
    /// That of the last attempt, or [`Record::NOBODY`].
    pub backend: u32,
    pub attempts: u32,
    pub ending: Ending,
}

impl Record {
    pub const NOBODY: u32 = u32::MAX;
}

/// All requests of one simulation after the warm-up, in the order of their arrival.
#[derive(Debug, Clone)]
pub struct Run {
    pub records: Vec<Record>,
    pub deadline: Duration,
    /// From the end of the warm-up to the last arrival.
    pub measured: Duration,
    /// Choices made, all attempts and the warm-up included.
    pub picks: u64,
}

/// Latencies in nanoseconds over all requests; one that was not answered counts as the deadline, so that failing
/// quickly does not look good.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    pub requests: usize,
    pub mean_ns: f64,
    pub p50_ns: f64,
    pub p90_ns: f64,
    pub p99_ns: f64,
    pub p999_ns: f64,
    /// Share of the requests that were not answered.
    pub failed: f64,
}

impl Run {
    #[must_use]
    pub fn summary(&self) -> Summary {
        self.summary_of(|_| true)
    }

    /// As [`Self::summary`], of the requests that `wanted` accepts. All zero when there are none.
    #[must_use]
    pub fn summary_of(&self, wanted: impl Fn(&Record) -> bool) -> Summary {
        let chosen: Vec<&Record> = self.records.iter().filter(|record| wanted(record)).collect();
        let mut latencies: Vec<f64> = chosen.iter().map(|record| self.charged_ns(record)).collect();
        latencies.sort_unstable_by(f64::total_cmp);
        let count = latencies.len().max(1) as f64;
        let failed = chosen.iter().filter(|record| record.ending != Ending::Answered).count();
        Summary {
            requests: latencies.len(),
            mean_ns: latencies.iter().sum::<f64>() / count,
            p50_ns: quantile(&latencies, 0.5),
            p90_ns: quantile(&latencies, 0.9),
            p99_ns: quantile(&latencies, 0.99),
            p999_ns: quantile(&latencies, 0.999),
            failed: failed as f64 / count,
        }
    }

    /// Share of the requests between two times since the start whose last attempt went to `backend`.
    #[must_use]
    pub fn share(&self, backend: usize, from: Duration, to: Duration) -> f64 {
        let (from, to) = (from.as_nanos() as u64, to.as_nanos() as u64);
        let begin = self.records.partition_point(|record| record.arrived_ns < from);
        let end = self.records.partition_point(|record| record.arrived_ns < to);
        let among = &self.records[begin..end];
        let to_it = among.iter().filter(|record| record.backend as usize == backend).count();
        to_it as f64 / among.len().max(1) as f64
    }

    fn charged_ns(&self, record: &Record) -> f64 {
        match record.ending {
            Ending::Answered => record.latency_ns as f64,
            _ => (self.deadline.as_nanos() as f64).max(record.latency_ns as f64),
        }
    }
}

/// The smallest value that at least a share `q` of `sorted` does not exceed; 0 of nothing.
#[must_use]
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantile_is_the_smallest_value_that_enough_do_not_exceed() {
        let sorted = [1.0, 2.0, 3.0, 4.0];
        let values = [0.0, 0.25, 0.26, 0.5, 0.99, 1.0].map(|q| quantile(&sorted, q));
        assert_eq!(values, [1.0, 1.0, 2.0, 2.0, 4.0, 4.0]);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }

    #[test]
    fn unanswered_request_counts_as_the_deadline() {
        let record =
            |ending, latency_ns| Record { arrived_ns: 0, latency_ns, backend: 0, attempts: 1, ending };
        let records =
            vec![record(Ending::Answered, 5), record(Ending::Failed, 1), record(Ending::Answered, 3)];
        let second = Duration::from_secs(1);
        let run = Run { records, deadline: second, measured: second, picks: 3 };
        let summary = run.summary();
        assert_eq!((summary.p50_ns, summary.p99_ns), (5.0, 1e9));
        assert!((summary.failed - 1.0 / 3.0).abs() < 1e-12);
    }
}
