//! Whether a run was steady: where its warm-up ended, and whether its latencies still drifted after that.
//!
//! Both look at medians of pieces of the run, so that a stall, which few pieces have, is neither cut off as a warm-up
//! nor taken for a drift. Pure. Cuts only what the run itself shows to be different, and never more than a third.

use super::timeline::{BLOCKS_MAX, Block};

/// A warm-up may end after so many blocks: a 24th of the run, a 12th, a 6th or a third.
pub(super) const CUTS: [usize; 4] = [BLOCKS_MAX / 24, BLOCKS_MAX / 12, BLOCKS_MAX / 6, BLOCKS_MAX / 3];
/// A difference that chance makes in one of a thousand runs.
const SIGMAS: f64 = 3.3;
/// Smaller differences between parts of a run are not worth a word, however sure.
const CHANGE_MIN: f64 = 0.1;
/// The median of fewer latencies is mostly chance.
const SAMPLES_MIN: f64 = 10.0;
/// So many pieces tell a drift from chance, and are long enough not to depend on each other much.
const PIECES: usize = 24;

/// How many blocks at the start differ from the second half of a complete run; 0 or one of [`CUTS`].
pub(super) fn warm_up(blocks: &[Block]) -> usize {
    // The last requests may have been due a little before the end.
    if blocks.len() < BLOCKS_MAX - CUTS[0] || blocks[blocks.len() / 2..].iter().any(is_outage) {
        return 0;
    }
    let Some(medians) = medians(blocks) else { return 0 };
    let half = &medians[medians.len() / 2..];
    let mut end = 0;
    for next in CUTS {
        // Failures are figures, and no warm-up.
        let fails = blocks[end..next].iter().any(|block| block.failed > 0);
        if fails || !differs(&medians[end..next], half) {
            break;
        }
        end = next;
    }
    end
}

/// How many times the median latency of the first half that of the second is, when it drifted from the one to the
/// other.
pub(super) fn drift(blocks: &[Block]) -> Option<f64> {
    if blocks.len() < PIECES {
        return None;
    }
    let mut pieces: Vec<Block> = (0..PIECES).map(|_| Block::new()).collect();
    for (index, block) in blocks.iter().enumerate() {
        pieces[index * PIECES / blocks.len()].add(block);
    }
    if pieces.iter().any(is_outage) {
        return None;
    }
    let medians = medians(&pieces)?;
    let (first, second) = medians.split_at(PIECES / 2);
    differs(first, second).then(|| median(second) / median(first))
}

/// Nothing was answered, so that there is no median to compare.
fn is_outage(block: &Block) -> bool {
    block.ok.is_empty() && block.failed > 0
}

/// `None` when blocks have too few latencies.
fn medians(blocks: &[Block]) -> Option<Vec<f64>> {
    let count: u64 = blocks.iter().map(|block| block.ok.len()).sum();
    let is_enough = count as f64 >= SAMPLES_MIN * blocks.len() as f64;
    is_enough.then(|| blocks.iter().map(|block| block.ok.value_at_quantile(0.5) as f64).collect())
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2].max(1.0)
}

/// The rank-sum test of Mann and Whitney, for differences that are large enough besides.
fn differs(some: &[f64], others: &[f64]) -> bool {
    let above = |one: &f64, other: &f64| f64::from(one > other) + f64::from(one == other) / 2.0;
    let wins: f64 = some.iter().map(|one| others.iter().map(|other| above(one, other)).sum::<f64>()).sum();
    let pairs = (some.len() * others.len()) as f64;
    let deviation = (pairs * (some.len() + others.len() + 1) as f64 / 12.0).sqrt();
    let ratio = median(some) / median(others);
    ratio.max(1.0 / ratio) > 1.0 + CHANGE_MIN && (wins - pairs / 2.0).abs() > SIGMAS * deviation
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bench::schedule::SplitMix64;

    /// Blocks of 25 latencies that are exponential with this mean, in milliseconds, at a time (0..1) of the run.
    fn run(seed: u64, mean_ms: impl Fn(f64) -> f64) -> Vec<Block> {
        let mut random = SplitMix64::new(seed);
        let block = |index: usize| {
            let mut block = Block::new();
            let mean = Duration::from_secs_f64(mean_ms(index as f64 / BLOCKS_MAX as f64) / 1e3);
            (0..25).for_each(|_| block.record(Some(mean.mul_f64(-random.unit().ln()))));
            block
        };
        (0..BLOCKS_MAX).map(block).collect()
    }

    #[test]
    fn steady_runs_are_left_whole() {
        let cut = |seed| (warm_up(&run(seed, |_| 5.0)), drift(&run(seed, |_| 5.0)));
        let touched = (0..500).filter(|seed| cut(*seed) != (0, None)).count();
        assert!(touched <= 3, "{touched} of 500 steady runs");
    }

    #[test]
    fn a_slow_start_is_cut_off_and_nothing_more() {
        for seed in 0..20 {
            let cold = run(seed, |at| if at < 0.08 { 9.0 } else { 5.0 });
            assert_eq!(warm_up(&cold), BLOCKS_MAX / 12, "seed {seed}");
            assert_eq!(drift(&cold[BLOCKS_MAX / 12..]), None, "seed {seed}");
            // A queue that fills is a warm-up too: its first latencies are too short.
            assert!(warm_up(&run(seed, |at| if at < 0.04 { 2.0 } else { 5.0 })) > 0, "seed {seed}");
        }
    }

    #[test]
    fn a_stall_is_no_warm_up_and_no_drift() {
        for begin in [0.01, 0.1, 0.3, 0.7, 0.97] {
            let stalled = run(3, |at| if (begin..begin + 0.015).contains(&at) { 500.0 } else { 5.0 });
            assert_eq!((warm_up(&stalled), drift(&stalled)), (0, None), "at {begin}");
        }
    }

    #[test]
    fn an_outage_is_no_warm_up_and_no_drift() {
        for outage in [0.0..0.3, 0.0..0.05, 0.5..1.0] {
            let mut blocks = run(3, |_| 5.0);
            for (index, block) in blocks.iter_mut().enumerate() {
                if outage.contains(&(index as f64 / BLOCKS_MAX as f64)) {
                    *block = Block::new();
                    (0..25).for_each(|_| block.record(None));
                }
            }
            assert_eq!((warm_up(&blocks), drift(&blocks)), (0, None), "{outage:?}");
        }
    }

    #[test]
    fn a_drift_is_seen_in_both_directions() {
        for seed in 0..20 {
            assert!(
                drift(&run(seed, |at| 5.0 + 10.0 * at)).is_some_and(|change| change > 1.3),
                "seed {seed}"
            );
            assert!(
                drift(&run(seed, |at| 15.0 - 10.0 * at)).is_some_and(|change| change < 0.8),
                "seed {seed}"
            );
            assert!(drift(&run(seed, |at| if at < 0.5 { 5.0 } else { 7.0 })).is_some(), "seed {seed}");
        }
    }

    #[test]
    fn a_run_that_is_too_small_is_not_judged() {
        assert_eq!((warm_up(&[]), drift(&[])), (0, None));
        let empty: Vec<_> = (0..BLOCKS_MAX).map(|_| Block::new()).collect();
        assert_eq!((warm_up(&empty), drift(&empty)), (0, None));
    }
}
