//! Ratios that were measured several times: their median, and an interval that supposes nothing of how they are spread.
//!
//! Pure. Supposes that the measurements do not depend on each other; an order of measuring that makes them so is
//! [`super::rounds`]' business.

use serde::{Deserialize, Serialize};

/// An interval shall hold the truth at least so often.
const CONFIDENCE_MIN: f64 = 0.95;

/// Below so many rounds there is no interval of that confidence.
pub(super) const ROUNDS_FOR_INTERVAL: u64 = 6;

/// How many times one target's figure another one's is, over some rounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// The median of the rounds.
    pub median: f64,
    /// The ends of the interval, each one of the rounds' ratios; absent with fewer than six rounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high: Option<f64>,
    /// How often such an interval holds the true median, at least 0.95.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
    /// A difference is shown: 1 is not in the interval.
    pub differs: bool,
    /// The ratio of each round, in their order.
    pub rounds: Vec<f64>,
}

impl Ratio {
    /// `None` without a round.
    pub(super) fn of(rounds: Vec<f64>) -> Option<Self> {
        let mut sorted = rounds.clone();
        sorted.sort_by(f64::total_cmp);
        let count = sorted.len();
        let (below, above) = (sorted.get((count.max(1) - 1) / 2)?, sorted[count / 2]);
        let ends = ends(count).map(|(rank, confidence)| (sorted[rank - 1], sorted[count - rank], confidence));
        Some(Self {
            median: rounded((below + above) / 2.0),
            low: ends.map(|(low, ..)| rounded(low)),
            high: ends.map(|(_, high, _)| rounded(high)),
            confidence: ends.map(|(.., confidence)| rounded(confidence)),
            differs: ends.is_some_and(|(low, high, _)| low > 1.0 || high < 1.0),
            rounds: rounds.into_iter().map(rounded).collect(),
        })
    }

    /// `1.19 [1.17, 1.20]`.
    pub(super) fn shown(&self) -> (String, String) {
        let interval = self.low.zip(self.high).map(|(low, high)| format!(" [{low:.2}, {high:.2}]"));
        (format!("{:.2}", self.median), interval.unwrap_or_default())
    }
}

/// The largest rank, counted from both ends of so many sorted values, between which the median is with enough
/// confidence, and that confidence. Each value is above the median or below it with the same probability, so how many
/// are below is binomial.
fn ends(count: usize) -> Option<(usize, f64)> {
    let mut found = None;
    // The probability that just `rank - 1` values are below the median, and that at most so many are.
    let mut probability = 0.5f64.powi(i32::try_from(count).ok()?);
    let mut outside = 0.0;
    for rank in 1..=count / 2 {
        outside += probability;
        let confidence = 1.0 - 2.0 * outside;
        if confidence < CONFIDENCE_MIN {
            break;
        }
        found = Some((rank, confidence));
        probability *= (count - rank + 1) as f64 / rank as f64;
    }
    found
}

/// Four decimals: more would be noise.
fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::schedule::SplitMix64;

    #[test]
    fn ranks_are_those_of_the_sign_test() {
        let known = |count| ends(count).map(|(rank, confidence)| (rank, (confidence * 1e4).round() / 1e4));
        // Tables of the sign test, two-sided: n = 6, 9, 12 and 20.
        assert_eq!((known(5), known(6)), (None, Some((1, 0.9688))));
        assert_eq!((known(9), known(12)), (Some((2, 0.9609)), Some((3, 0.9614))));
        assert_eq!((known(20), known(0)), (Some((6, 0.9586)), None));
        assert!(ends(100).is_some_and(|(rank, confidence)| rank == 40 && confidence > 0.95));
    }

    #[test]
    fn few_rounds_have_a_median_and_no_interval() {
        let five = Ratio::of(vec![2.0, 1.9, 2.1, 2.2, 1.8]).unwrap();
        assert_eq!((five.median, five.low, five.differs), (2.0, None, false));
        assert_eq!(Ratio::of(vec![1.0, 2.0]).unwrap().median, 1.5);
        assert_eq!(Ratio::of(Vec::new()), None);
    }

    #[test]
    fn a_difference_is_shown_when_one_is_outside() {
        let six = Ratio::of(vec![0.7, 0.72, 0.69, 0.73, 0.71, 0.7]).unwrap();
        assert_eq!((six.median, six.low, six.high), (0.705, Some(0.69), Some(0.73)));
        assert!(six.differs && six.shown() == ("0.70".to_owned(), " [0.69, 0.73]".to_owned()), "{six:?}");
        assert!(!Ratio::of(vec![0.7, 0.72, 0.69, 1.0, 0.71, 0.7]).unwrap().differs);
    }

    /// Lopsided on purpose: the interval must not need a normal distribution.
    #[test]
    fn intervals_hold_the_true_median_as_often_as_they_claim() {
        let mut random = SplitMix64::new(5);
        let mut draw = || -random.unit().ln() / 2f64.ln();
        for count in [6, 9, 12] {
            let mut is_inside = || {
                let found = Ratio::of((0..count).map(|_| draw()).collect()).unwrap();
                found.low.unwrap() <= 1.0 && found.high.unwrap() >= 1.0
            };
            let hits = (0..4000).filter(|_| is_inside()).count() as f64 / 4000.0;
            let claimed = ends(count).unwrap().1;
            // Four standard deviations of so many tries.
            assert!((hits - claimed).abs() < 0.013, "{count} rounds: {hits} of {claimed}");
        }
    }
}
