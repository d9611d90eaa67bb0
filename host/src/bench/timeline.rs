//! A run cut into equal pieces of time, with what became of the requests that were due in each.
//!
//! What [`super::interval`] needs to see how latencies hang together in time. Its memory is bounded: when a run turns
//! out longer than the pieces reach, neighbours are joined. Holds no clock, and draws no conclusions.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::record::{LATENCY_MAX, LATENCY_NS_MIN};

/// So many pieces at the most, of 14 KB each: fine enough to cut off a beginning, and enough to make batches of.
pub(super) const BLOCKS_MAX: usize = 240;
/// Two significant digits: the edge of an interval is off by at most a hundredth.
const DIGITS: u8 = 2;
/// Shorter pieces of a run of unknown length would hold no request each.
const WIDTH_MIN: Duration = Duration::from_micros(500);

/// The requests that were due in one piece of time.
#[derive(Debug, Clone)]
pub(super) struct Block {
    /// Latencies of 2xx answers in nanoseconds.
    pub(super) ok: Histogram<u32>,
    pub(super) total_ns: u128,
    /// Requests that failed in any way.
    pub(super) failed: u64,
}

impl Block {
    pub(super) fn new() -> Self {
        let max_ns = LATENCY_MAX.as_nanos() as u64;
        let ok =
            Histogram::new_with_bounds(LATENCY_NS_MIN, max_ns, DIGITS).expect("constant bounds are in order");
        Self { ok, total_ns: 0, failed: 0 }
    }

    /// `latency` of a 2xx answer; nothing for a request that failed.
    pub(super) fn record(&mut self, latency: Option<Duration>) {
        let Some(latency) = latency else {
            self.failed += 1;
            return;
        };
        self.ok.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
        self.total_ns += latency.as_nanos();
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.ok.add(&other.ok).expect("all blocks have the same bounds");
        self.total_ns += other.total_ns;
        self.failed += other.failed;
    }
}

/// The pieces of a run, each `width` long.
#[derive(Debug, Clone)]
pub(super) struct Timeline {
    width: Duration,
    pub(super) blocks: Vec<Block>,
}

impl Timeline {
    /// For a run that is expected to take `length`: one that takes just so long has [`BLOCKS_MAX`] blocks, one that
    /// ends earlier at least half as many, as far as it lasts.
    pub(super) fn new(length: Duration) -> Self {
        let mut width = (length / BLOCKS_MAX as u32).max(WIDTH_MIN);
        while width >= WIDTH_MIN * 2 {
            width /= 2;
        }
        Self { width, blocks: Vec::new() }
    }

    /// One request; `due` from the start of the timeline, `latency` as for [`Block::record`].
    pub(super) fn record(&mut self, due: Duration, latency: Option<Duration>) {
        self.reach(due);
        let index = self.index(due);
        while self.blocks.len() <= index {
            self.blocks.push(Block::new());
        }
        self.blocks[index].record(latency);
    }

    /// Adds what another thread recorded in the same run.
    pub(super) fn add(&mut self, other: &Self) {
        while self.width < other.width {
            self.join_neighbours();
        }
        // Widths are the same but for a power of two, and rounding must not keep them apart.
        let mut other = other.clone();
        while other.width < self.width {
            other.join_neighbours();
        }
        for (index, block) in other.blocks.iter().enumerate() {
            match self.blocks.get_mut(index) {
                Some(mine) => mine.add(block),
                None => self.blocks.push(block.clone()),
            }
        }
    }

    fn index(&self, due: Duration) -> usize {
        usize::try_from(due.as_nanos() / self.width.as_nanos()).unwrap_or(usize::MAX)
    }

    /// Joins blocks until one is there for `due`. Rounding may leave the last moment of a run beyond the last block,
    /// where it belongs all the same.
    fn reach(&mut self, due: Duration) {
        while self.index(due) > BLOCKS_MAX {
            self.join_neighbours();
        }
    }

    fn join_neighbours(&mut self) {
        self.width *= 2;
        let pairs = self.blocks.chunks(2).map(|pair| {
            let mut joined = pair[0].clone();
            pair[1..].iter().for_each(|second| joined.add(second));
            joined
        });
        self.blocks = pairs.collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(timeline: &Timeline) -> Vec<u64> {
        timeline.blocks.iter().map(|block| block.ok.len() + block.failed).collect()
    }

    #[test]
    fn a_run_of_the_expected_length_fills_all_blocks() {
        for seconds in [1, 2, 7, 30, 3600] {
            let length = Duration::from_secs(seconds);
            let mut timeline = Timeline::new(length);
            for n in 0..24_000 {
                timeline.record(length * n / 24_000, Some(Duration::from_millis(1)));
            }
            let blocks = timeline.blocks.len();
            assert!((BLOCKS_MAX..=BLOCKS_MAX + 1).contains(&blocks), "{seconds} s: {blocks}");
            assert!(counts(&timeline)[..BLOCKS_MAX].iter().all(|count| (99..=101).contains(count)));
        }
    }

    #[test]
    fn a_run_of_any_other_length_stays_within_the_bound() {
        for millis in [1, 100, 999, 5_000, 60_000, 3_600_000] {
            let mut timeline = Timeline::new(Duration::from_secs(600));
            (0..1000).for_each(|n| timeline.record(Duration::from_millis(millis) * n / 1000, None));
            assert!(timeline.blocks.len() <= BLOCKS_MAX + 1, "{millis} ms");
            assert!(millis < 500 || timeline.blocks.len() >= BLOCKS_MAX / 2, "{millis} ms");
            assert_eq!(counts(&timeline).iter().sum::<u64>(), 1000);
        }
    }

    #[test]
    fn threads_that_reached_differently_far_add_up() {
        let (mut short, mut long) =
            (Timeline::new(Duration::from_secs(60)), Timeline::new(Duration::from_secs(60)));
        let mut whole = Timeline::new(Duration::from_secs(60));
        for n in 0..6000u32 {
            let due = Duration::from_millis(10) * n;
            let part = if n < 500 { &mut short } else { &mut long };
            part.record(due, Some(Duration::from_micros(u64::from(n) + 1)));
            whole.record(due, Some(Duration::from_micros(u64::from(n) + 1)));
        }
        for (mut first, second) in [(short.clone(), &long), (long.clone(), &short)] {
            first.add(second);
            assert_eq!(counts(&first), counts(&whole));
            assert!(first.blocks.iter().zip(&whole.blocks).all(|(a, b)| a.ok == b.ok));
        }
    }
}
