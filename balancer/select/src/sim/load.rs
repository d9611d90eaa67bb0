//! When requests arrive.

use std::time::Duration;

use super::work::exponential;
use crate::random::Random;

/// How requests arrive.
#[derive(Debug, Clone, PartialEq)]
pub enum Load {
    /// Arrivals that do not wait for answers, at a rate that changes in steps.
    Open { arrivals: Arrivals, steps: Vec<Step> },
    /// `clients` that each send a request, wait for its answer, think, and send the next. All start at once.
    Closed { clients: usize, think: Duration },
}

/// Distances between the arrivals of an open load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrivals {
    /// Exponential distances.
    Poisson,
    /// Even distances.
    Constant,
}

/// From `at` on, `per_second` requests arrive each second; 0 is a pause.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    pub at: Duration,
    pub per_second: f64,
}

impl Load {
    /// Poisson arrivals at one rate.
    #[must_use]
    pub fn poisson(per_second: f64) -> Self {
        let steps = vec![Step { at: Duration::ZERO, per_second }];
        Self::Open { arrivals: Arrivals::Poisson, steps }
    }
}

/// The times of the arrivals of an open load, one after the other.
#[derive(Debug)]
pub(super) struct Timetable {
    arrivals: Arrivals,
    steps: Vec<Step>,
    step: usize,
    random: Random,
    /// Time of the last arrival in nanoseconds; a fraction is kept so that even distances do not drift.
    last_ns: f64,
}

impl Timetable {
    pub(super) fn new(arrivals: Arrivals, steps: &[Step], seed: u64) -> Self {
        Self { arrivals, steps: steps.to_vec(), step: 0, random: Random::new(seed), last_ns: 0.0 }
    }

    /// Time of the next arrival, or `None` when there is none any more.
    ///
    /// A distance is drawn in units of the mean and spent across steps, which is exact for Poisson arrivals.
    pub(super) fn advance(&mut self) -> Option<u64> {
        let mut distance = match self.arrivals {
            Arrivals::Poisson => exponential(&mut self.random),
            Arrivals::Constant => 1.0,
        };
        loop {
            let step = self.steps.get(self.step)?;
            let from_ns = self.last_ns.max(step.at.as_nanos() as f64);
            let per_ns = step.per_second / 1e9;
            let until_ns =
                self.steps.get(self.step + 1).map_or(f64::INFINITY, |next| next.at.as_nanos() as f64);
            if per_ns > 0.0 && from_ns + distance / per_ns <= until_ns {
                self.last_ns = from_ns + distance / per_ns;
                return Some(self.last_ns as u64);
            }
            if until_ns.is_infinite() {
                return None;
            }
            distance -= (until_ns - from_ns).max(0.0) * per_ns;
            self.last_ns = until_ns;
            self.step += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(arrivals: Arrivals, steps: &[Step], until_ns: u64) -> Vec<u64> {
        let mut timetable = Timetable::new(arrivals, steps, 5);
        std::iter::from_fn(|| timetable.advance()).take_while(|&at| at <= until_ns).collect()
    }

    #[test]
    fn even_arrivals_follow_the_steps() {
        let steps = [
            Step { at: Duration::ZERO, per_second: 10.0 },
            Step { at: Duration::from_secs(1), per_second: 0.0 },
            Step { at: Duration::from_secs(2), per_second: 2.0 },
        ];
        let times = times(Arrivals::Constant, &steps, 4_000_000_000);
        assert_eq!(times.len(), 14);
        assert_eq!(&times[9..12], [1_000_000_000, 2_500_000_000, 3_000_000_000]);
    }

    #[test]
    fn poisson_arrivals_have_the_rate_of_their_step() {
        let second = Duration::from_secs(1);
        let steps = [
            Step { at: Duration::ZERO, per_second: 20_000.0 },
            Step { at: second, per_second: 80_000.0 },
            Step { at: 2 * second, per_second: 0.0 },
        ];
        let times = times(Arrivals::Poisson, &steps, u64::MAX);
        let first = times.iter().filter(|&&at| at < 1_000_000_000).count();
        assert!((19_300..20_700).contains(&first), "{first}");
        assert!((78_800..81_200).contains(&(times.len() - first)), "{}", times.len() - first);
    }
}
