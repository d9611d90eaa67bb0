//! How much work a request is.

use crate::random::Random;

/// Smallest amount of work, in nanoseconds on a backend of speed 1: a request of no work would end at the instant
/// at which it begins.
const WORK_MIN_NS: f64 = 1.0;

/// Distribution of the work of a request, in nanoseconds that one slot of a backend of speed 1 spends on it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Work {
    Constant {
        mean_ns: f64,
    },
    Exponential {
        mean_ns: f64,
    },
    /// Normal, drawn again until it is not negative, and scaled so that `mean_ns` is the mean of what remains.
    /// `cv` is the standard deviation over the mean *before* the cut, as in Prequal's evaluation (1.0 there).
    Normal {
        mean_ns: f64,
        cv: f64,
    },
    /// `cv` is the standard deviation over the mean.
    LogNormal {
        mean_ns: f64,
        cv: f64,
    },
    /// One request in `one_in` takes `ratio` times the others.
    Bimodal {
        mean_ns: f64,
        one_in: u32,
        ratio: f64,
    },
}

impl Work {
    #[must_use]
    pub fn mean_ns(&self) -> f64 {
        match *self {
            Self::Constant { mean_ns }
            | Self::Exponential { mean_ns }
            | Self::Normal { mean_ns, .. }
            | Self::LogNormal { mean_ns, .. }
            | Self::Bimodal { mean_ns, .. } => mean_ns,
        }
    }

    #[must_use]
    pub fn sample_ns(&self, random: &mut Random) -> f64 {
        let sample = match *self {
            Self::Constant { mean_ns } => mean_ns,
            Self::Exponential { mean_ns } => mean_ns * exponential(random),
            Self::Normal { mean_ns, cv } => mean_ns * truncated_normal(cv, random),
            Self::LogNormal { mean_ns, cv } => {
                let variance = (1.0 + cv * cv).ln();
                mean_ns * (normal(random) * variance.sqrt() - variance / 2.0).exp()
            }
            Self::Bimodal { mean_ns, one_in, ratio } => {
                let share = 1.0 / f64::from(one_in);
                let short = mean_ns / (1.0 - share + share * ratio);
                if unit(random) < share { short * ratio } else { short }
            }
        };
        sample.max(WORK_MIN_NS)
    }
}

/// Uniform in 0..1.
pub(super) fn unit(random: &mut Random) -> f64 {
    (random.bits() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// Exponential with mean 1.
pub(super) fn exponential(random: &mut Random) -> f64 {
    -(1.0 - unit(random)).ln()
}

/// Standard normal (Box and Muller, 1958); the second number of the pair is not kept, so that a draw depends on the
/// generator's state alone.
fn normal(random: &mut Random) -> f64 {
    let radius = (2.0 * exponential(random)).sqrt();
    radius * (std::f64::consts::TAU * unit(random)).cos()
}

/// 1 + cv * normal, cut at 0, divided by its mean.
fn truncated_normal(cv: f64, random: &mut Random) -> f64 {
    let mean = 1.0 + cv * density(1.0 / cv) / below(1.0 / cv);
    loop {
        let sample = 1.0 + cv * normal(random);
        if sample > 0.0 {
            return sample / mean;
        }
    }
}

/// Density of the standard normal distribution.
fn density(x: f64) -> f64 {
    (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt()
}

/// Distribution function of the standard normal distribution for x >= 0; error below 7.5e-8 (Abramowitz and
/// Stegun, 26.2.17).
fn below(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * x);
    let series = t
        * (0.319_381_530
            + t * (-0.356_563_782 + t * (1.781_477_937 + t * (-1.821_255_978 + t * 1.330_274_429))));
    1.0 - density(x) * series
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEAN_NS: f64 = 1e6;
    const SAMPLES: usize = 400_000;

    #[track_caller]
    fn check(work: Work, cv: f64) {
        let mut random = Random::new(11);
        let samples: Vec<f64> = (0..SAMPLES).map(|_| work.sample_ns(&mut random)).collect();
        let mean = samples.iter().sum::<f64>() / SAMPLES as f64;
        let variance = samples.iter().map(|s| (s - mean) * (s - mean)).sum::<f64>() / SAMPLES as f64;
        assert!((mean / MEAN_NS - 1.0).abs() < 0.02, "{work:?}: mean {mean}");
        assert!(
            (variance.sqrt() / mean - cv).abs() < 0.05 * cv + 1e-9,
            "{work:?}: cv {}",
            variance.sqrt() / mean
        );
    }

    #[test]
    fn samples_have_the_mean_and_spread_that_were_asked_for() {
        check(Work::Constant { mean_ns: MEAN_NS }, 0.0);
        check(Work::Exponential { mean_ns: MEAN_NS }, 1.0);
        check(Work::LogNormal { mean_ns: MEAN_NS, cv: 2.0 }, 2.0);
        // One in 100 takes 100 times as long: the others take 1/1.99 of the mean.
        let (short, long): (f64, f64) = (1.0 / 1.99, 100.0 / 1.99);
        let square = 0.99 * short * short + 0.01 * long * long;
        check(Work::Bimodal { mean_ns: MEAN_NS, one_in: 100, ratio: 100.0 }, (square - 1.0).sqrt());
        // Normal of mean 1 and deviation 1 cut at 0: mean 1.2876, deviation 0.7935 (by hand).
        check(Work::Normal { mean_ns: MEAN_NS, cv: 1.0 }, 0.7935 / 1.2876);
    }
}
