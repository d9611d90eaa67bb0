//! When the requests of an open loop are due: a list without end, made before the run and not by its answers.
//!
//! Pure. Does not end: the plan cuts it off at a duration or a number of requests.

use std::{iter::StepBy, time::Duration};

use serde::{Deserialize, Serialize};

/// How far requests of an open loop are apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// Independent of each other, as from many users: intervals are exponential, and now and then several requests
    /// come almost together.
    #[default]
    Poisson,
    /// All intervals equal. The kindest load there is: a target that is fast enough never makes anyone wait.
    Constant,
}

impl Arrivals {
    /// The word a recipe writes and a report prints.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Poisson => "poisson",
            Self::Constant => "constant",
        }
    }
}

/// Due times from the start of the run, in order. The same rate, arrivals and seed give the same times, whatever
/// the machine and its number of threads.
#[derive(Debug, Clone)]
pub(super) struct Schedule {
    arrivals: Arrivals,
    /// The mean distance of two requests, in seconds.
    interval_s: f64,
    random: SplitMix64,
    index: u64,
    /// The last Poisson arrival. The sum's rounding stays far below a nanosecond within an hour.
    at_s: f64,
}

impl Schedule {
    /// `rate` in requests per second, above 0.
    pub(super) fn new(arrivals: Arrivals, rate: f64, seed: u64) -> Self {
        Self { arrivals, interval_s: 1.0 / rate, random: SplitMix64::new(seed), index: 0, at_s: 0.0 }
    }

    /// The part of one of `threads` threads: every so many-th request, so that all parts together are the whole.
    pub(super) fn part(self, thread: usize, threads: usize) -> StepBy<std::iter::Skip<Self>> {
        self.skip(thread).step_by(threads)
    }
}

impl Iterator for Schedule {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let at_s = match self.arrivals {
            Arrivals::Constant => self.index as f64 * self.interval_s,
            Arrivals::Poisson => {
                self.at_s -= self.random.unit().ln() * self.interval_s;
                self.at_s
            }
        };
        self.index += 1;
        Duration::try_from_secs_f64(at_s).ok()
    }
}

/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014. Written here because a seed in a
/// saved report has to mean the same arrivals with any version of any crate.
#[derive(Debug, Clone)]
pub(super) struct SplitMix64(u64);

impl SplitMix64 {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Above 0 and at most 1, in steps of 2^-53: its logarithm is finite.
    pub(super) fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: f64 = 1000.0;

    fn poisson(seed: u64) -> Schedule {
        Schedule::new(Arrivals::Poisson, RATE, seed)
    }

    #[test]
    fn constant_arrivals_are_multiples_of_the_interval() {
        let times: Vec<_> = Schedule::new(Arrivals::Constant, 250.0, 9).take(1001).collect();
        for (index, time) in times.iter().enumerate() {
            assert_eq!(*time, Duration::from_millis(4) * index as u32);
        }
    }

    #[test]
    fn a_seed_gives_the_same_arrivals_again_and_another_seed_others() {
        let times = |seed| poisson(seed).take(1000).collect::<Vec<_>>();
        assert_eq!(times(1), times(1));
        assert_ne!(times(1), times(2));
        assert!(times(1).is_sorted());
        // A change of these would give every saved seed another meaning.
        let nanos: Vec<_> = times(1).iter().take(3).map(Duration::as_nanos).collect();
        assert_eq!(nanos, [568_170, 861_492, 890_918]);
    }

    /// An exponential distribution has its mean as its standard deviation, and exceeds it with probability 1/e.
    #[test]
    fn poisson_intervals_are_exponential() {
        const COUNT: usize = 100_000;
        for seed in 0..10 {
            let times: Vec<_> = poisson(seed).take(COUNT).map(|time| time.as_secs_f64() * RATE).collect();
            let gaps: Vec<_> =
                times.iter().scan(0.0, |last, time| Some(time - std::mem::replace(last, *time))).collect();
            let mean = gaps.iter().sum::<f64>() / COUNT as f64;
            let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / COUNT as f64;
            let longer = gaps.iter().filter(|gap| **gap > 1.0).count() as f64 / COUNT as f64;
            // Five standard errors of each.
            assert!((mean - 1.0).abs() < 0.016, "seed {seed}: mean {mean}");
            assert!((variance - 1.0).abs() < 0.045, "seed {seed}: variance {variance}");
            assert!((longer - (-1f64).exp()).abs() < 0.008, "seed {seed}: {longer} above the mean");
        }
    }

    /// Counts in equal windows of a Poisson process have their mean as their variance; neighbours are independent.
    #[test]
    fn poisson_counts_are_dispersed_as_they_should() {
        const WINDOWS: usize = 10_000;
        for seed in 0..10 {
            let mut counts = vec![0f64; WINDOWS];
            // Ten requests are expected in each window of 10 ms.
            for time in poisson(seed).take_while(|time| time.as_secs_f64() < WINDOWS as f64 / 100.0) {
                counts[(time.as_secs_f64() * 100.0) as usize] += 1.0;
            }
            let mean = counts.iter().sum::<f64>() / WINDOWS as f64;
            let variance = counts.iter().map(|count| (count - mean).powi(2)).sum::<f64>() / WINDOWS as f64;
            let pairs: f64 = counts.windows(2).map(|pair| (pair[0] - mean) * (pair[1] - mean)).sum();
            assert!((variance / mean - 1.0).abs() < 0.08, "seed {seed}: dispersion {}", variance / mean);
            let correlation = pairs / WINDOWS as f64 / variance;
            assert!(correlation.abs() < 0.05, "seed {seed}: correlation {correlation}");
        }
    }

    #[test]
    fn parts_of_threads_are_the_whole() {
        let whole: Vec<_> = poisson(3).take(900).collect();
        for threads in [1, 2, 5] {
            let mut dealt: Vec<_> = (0..threads)
                .flat_map(|thread| poisson(3).part(thread, threads).take(900 / threads))
                .collect();
            dealt.sort_unstable();
            assert_eq!(dealt, whole);
        }
    }
}
