//! How sure a run's figures are: 95 % intervals that hold although neighbouring latencies depend on each other.
//!
//! In a queue they do, and an interval for independent samples is several times too narrow. So the run is divided
//! into a few long batches, whose sums hardly depend on each other (Schmeiser, "Batch size effects in the analysis of
//! simulation output", 1982), and what is left of it widens the interval as in Tafazzoli and Wilson's Skart (2011).
//! A value is in the interval of a quantile when the batches do not contradict that it is the quantile: when the
//! number of latencies below it is as close to its share as chance allows. This needs no density and no normal
//! latencies, and draws no random numbers.
//!
//! Pure. Says nothing of bias: a run that was not steady has no interval that helps.

use std::time::Duration;

use super::timeline::Block;

/// More batches are shorter and depend on each other; fewer make the intervals wide by themselves.
const BATCHES: usize = 24;
/// Student's t, 97.5 %, for the 23 degrees of freedom of so many batches.
const T: f64 = 2.069;
/// A batch is made of at least so many blocks, or the run is not cut finely enough for batches of equal length.
const BLOCKS_PER_BATCH_MIN: usize = 2;
/// So many are expected at least, with 97.5 %, where none, one, two or three were seen (Poisson).
const POISSON_LOW: [f64; 4] = [0.0, 0.0253, 0.2422, 0.6187];
/// What happens by chance in less than this part of all runs is not put down to it.
const CHANCE: f64 = 0.025;
/// With fewer samples beyond it a quantile is not known.
const BEYOND_MIN: f64 = 10.0;
/// More dependence than this between neighbours is not corrected for but reported; see [`Batches::dependence`].
const DEPENDENCE_MAX: f64 = 0.8;
/// Less than this is seen in a third of all runs whose batches are independent, and is not corrected for.
const DEPENDENCE_MIN: f64 = 0.2;

/// The ends of a 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) low: Duration,
    /// Nothing when the samples do not bound it.
    pub(super) high: Option<Duration>,
}

/// The ends of a 95 % interval of any figure; an end that the samples do not bound is infinite.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Reach {
    pub(super) low: f64,
    pub(super) high: f64,
}

/// A run in batches.
pub(super) struct Batches {
    /// For each latency that occurred, in order: how many of each batch are not above it.
    steps: Vec<Step>,
    /// Of 2xx answers.
    count: [f64; BATCHES],
    failed: [f64; BATCHES],
    total_ns: [f64; BATCHES],
    /// How long each batch is, in blocks.
    length: [f64; BATCHES],
}

struct Step {
    /// What the histogram cannot tell apart, in nanoseconds.
    low: u64,
    high: u64,
    below: [f64; BATCHES],
}

impl Batches {
    /// `None` for a run of too few blocks.
    pub(super) fn new(blocks: &[Block]) -> Option<Self> {
        if blocks.len() < BATCHES * BLOCKS_PER_BATCH_MIN {
            return None;
        }
        let mut batches: Vec<Block> = (0..BATCHES).map(|_| Block::new()).collect();
        let mut length = [0.0; BATCHES];
        for (index, block) in blocks.iter().enumerate() {
            batches[index * BATCHES / blocks.len()].add(block);
            length[index * BATCHES / blocks.len()] += 1.0;
        }
        let of = |read: fn(&Block) -> f64| std::array::from_fn(|index| read(&batches[index]));
        Some(Self {
            steps: steps(&batches),
            count: of(|batch| batch.ok.len() as f64),
            failed: of(|batch| batch.failed as f64),
            total_ns: of(|batch| batch.total_ns as f64),
            length,
        })
    }

    /// Of 2xx answers; `None` when there are too few to say.
    pub(super) fn mean(&self) -> Option<Bounds> {
        let count: f64 = self.count.iter().sum();
        if count < BATCHES as f64 * BEYOND_MIN {
            return None;
        }
        let mean = self.total_ns.iter().sum::<f64>() / count;
        let excess = std::array::from_fn(|index| self.total_ns[index] - mean * self.count[index]);
        let reach = T * variance(&excess).sqrt() / count;
        let nanos = |nanos: f64| Duration::from_nanos(nanos.max(0.0) as u64);
        Some(Bounds { low: nanos(mean - reach), high: Some(nanos(mean + reach)) })
    }

    /// Of the value that a part `quantile` (0..1) of 2xx answers does not exceed; `None` when fewer than ten samples
    /// lie beyond it.
    pub(super) fn quantile(&self, quantile: f64) -> Option<Bounds> {
        let count: f64 = self.count.iter().sum();
        if count * quantile.min(1.0 - quantile) < BEYOND_MIN {
            return None;
        }
        let (low, high) = self.ends(&self.count, quantile);
        Some(Bounds {
            low: Duration::from_nanos(low?.low),
            high: high.map(|step| Duration::from_nanos(step.high)),
        })
    }

    /// In nanoseconds: as [`Self::quantile`], but of all requests, where those that failed are above every latency. The
    /// low end is infinite when more failed than are beyond the quantile, the high one besides when fewer than ten are
    /// beyond it. `None` when there is less than one, unless none of them succeeded and that is no chance.
    pub(super) fn quantile_of_all(&self, quantile: f64) -> Option<Reach> {
        let count: [f64; BATCHES] = std::array::from_fn(|index| self.count[index] + self.failed[index]);
        let all = count.iter().sum::<f64>();
        let none_is_ok = all > 0.0 && self.failed.iter().sum::<f64>() >= all;
        if none_is_ok && (1.0 - quantile).powf(all) < CHANCE {
            return Some(Reach { low: f64::INFINITY, high: f64::INFINITY });
        }
        let beyond = all * (1.0 - quantile);
        // 1000 * (1 - 0.99) is a little less than 10.
        if beyond < 1.0 - 1e-9 {
            return None;
        }
        let (low, high) = self.ends(&count, quantile);
        let high = high.filter(|_| beyond > BEYOND_MIN - 1e-9);
        Some(Reach {
            low: low.map_or(f64::INFINITY, |step| step.low as f64),
            high: high.map_or(f64::INFINITY, |step| step.high as f64),
        })
    }

    /// The steps between which the quantile of `count` samples is, those without a step being above all.
    fn ends(&self, count: &[f64; BATCHES], quantile: f64) -> (Option<&Step>, Option<&Step>) {
        // Of independent samples: those in a queue vary more, and none vary less but by chance.
        let least = count.iter().sum::<f64>() * quantile * (1.0 - quantile);
        let steps = self.steps.iter().map(|step| {
            let excess = excess(step, count, quantile);
            (step, excess.iter().sum::<f64>(), variance(&excess).max(least))
        });
        let mut steps = steps.skip_while(|(_, sum, var)| *sum < -T * var.sqrt()).peekable();
        let low = steps.peek().map(|(step, ..)| *step);
        // Beyond the quantile few samples are left, which vary less than they would if the quantile were there.
        let mut spread = least;
        let high = steps.find(|(_, sum, var)| {
            spread = spread.max(*var);
            *sum >= T * spread.sqrt()
        });
        (low, high.map(|(step, ..)| step))
    }

    /// Of the part of all requests that fail (0..1): Wilson's score interval, of as many independent requests as vary
    /// like these; its low end is no higher than chance allows where fewer than four failed. `None` when there are no
    /// requests.
    pub(super) fn error_rate(&self) -> Option<Reach> {
        let failed: f64 = self.failed.iter().sum();
        let count = failed + self.count.iter().sum::<f64>();
        if count == 0.0 {
            return None;
        }
        let (part, count_all) = (failed / count, count);
        let excess =
            std::array::from_fn(|index| self.failed[index] - part * (self.failed[index] + self.count[index]));
        let least = count * part * (1.0 - part);
        let count = if least > 0.0 { count * least / variance(&excess).max(least) } else { count };
        let (weight, half) =
            (T * T / count, T * (part * (1.0 - part) / count + (T / (2.0 * count)).powi(2)).sqrt());
        let end = |half: f64| ((part + weight / 2.0 + half) / (1.0 + weight)).clamp(0.0, 1.0);
        // Where few failed, Wilson's low end is above what as few by chance allow; these are exact.
        let few = POISSON_LOW.get(failed as usize).map_or(f64::INFINITY, |low| low / count_all);
        Some(Reach { low: end(-half).min(few), high: end(half) })
    }

    /// How far the number of 2xx answers, by when their requests were due, may be from what it is on average.
    pub(super) fn count_reach(&self) -> f64 {
        let per_block = self.count.iter().sum::<f64>() / self.length.iter().sum::<f64>();
        T * variance(&std::array::from_fn(|index| self.count[index] - per_block * self.length[index])).sqrt()
    }

    /// The correlation of neighbouring batches in how much time their 2xx answers took beyond the mean. Above about a
    /// half, the run is too short for its own swings, and the intervals may be too narrow.
    pub(super) fn dependence(&self) -> f64 {
        let count: f64 = self.count.iter().sum();
        let mean = self.total_ns.iter().sum::<f64>() / count.max(1.0);
        correlation(&std::array::from_fn(|index| self.total_ns[index] - mean * self.count[index]))
    }
}

fn steps(batches: &[Block]) -> Vec<Step> {
    let mut whole = Block::new();
    batches.iter().for_each(|batch| whole.add(batch));
    let mut cells: Vec<_> = batches.iter().map(|batch| batch.ok.iter_recorded().peekable()).collect();
    let mut below = [0.0; BATCHES];
    let mut step = |value: u64| {
        for (below, cells) in below.iter_mut().zip(&mut cells) {
            if let Some(cell) = cells.next_if(|cell| cell.value_iterated_to() == value) {
                *below += cell.count_at_value() as f64;
            }
        }
        Step { low: whole.ok.lowest_equivalent(value), high: whole.ok.highest_equivalent(value), below }
    };
    whole.ok.iter_recorded().map(|cell| step(cell.value_iterated_to())).collect()
}

/// How many more of each batch are below a step than should be if it were the quantile.
fn excess(step: &Step, counts: &[f64; BATCHES], quantile: f64) -> [f64; BATCHES] {
    std::array::from_fn(|index| step.below[index] - quantile * counts[index])
}

/// Of the sum of all batches, which depend on their neighbours.
fn variance(excess: &[f64; BATCHES]) -> f64 {
    let mean = excess.iter().sum::<f64>() / BATCHES as f64;
    let squares: f64 = excess.iter().map(|value| (value - mean).powi(2)).sum();
    let dependence = Some(correlation(excess)).filter(|found| *found > DEPENDENCE_MIN).unwrap_or(0.0);
    let dependence = dependence.min(DEPENDENCE_MAX);
    squares * BATCHES as f64 / (BATCHES - 1) as f64 * (1.0 + dependence) / (1.0 - dependence)
}

/// Of neighbours; 0 where nothing varies.
fn correlation(values: &[f64; BATCHES]) -> f64 {
    let mean = values.iter().sum::<f64>() / BATCHES as f64;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let products: f64 = values.windows(2).map(|pair| (pair[0] - mean) * (pair[1] - mean)).sum();
    if squares > 0.0 { products / squares } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{
        schedule::{Arrivals, Schedule, SplitMix64},
        timeline::Timeline,
    };

    const SERVICE: Duration = Duration::from_millis(1);

    /// A queue with one server, Poisson arrivals and exponential service times of 1 ms on average: its latencies are
    /// exponential with a mean of 1 ms / (1 - load), and depend on each other the longer the higher the load is.
    fn queue(load: f64, requests: usize, seed: u64) -> Timeline {
        let rate = load / SERVICE.as_secs_f64();
        let length = Duration::from_secs_f64(requests as f64 / rate);
        let mut timeline = Timeline::new(length);
        let mut random = SplitMix64::new(!seed);
        let mut free = Duration::ZERO;
        // The queue is empty at first; twenty relaxation times make it forget that.
        let warmup = SERVICE.mul_f64(20.0 / (1.0 - load).powi(2));
        let arrivals = Schedule::new(Arrivals::Poisson, rate, seed);
        for due in arrivals.take_while(|due| *due < warmup + length) {
            free = free.max(due) + SERVICE.mul_f64(-random.unit().ln());
            if due >= warmup {
                timeline.record(due - warmup, Some(free - due));
            }
        }
        timeline
    }

    /// How often, of so many runs, the true value was within the interval: of the mean, p50, p90 and p99.
    fn coverage(load: f64, requests: usize, runs: u64) -> [f64; 4] {
        let mean = SERVICE.as_secs_f64() / (1.0 - load);
        let truth = [1.0, 2f64.ln(), 10f64.ln(), 100f64.ln()].map(|factor| mean * factor);
        let mut hits = [0; 4];
        for seed in 0..runs {
            let batches = Batches::new(&queue(load, requests, seed).blocks).unwrap();
            let quantile = |quantile| batches.quantile(quantile).unwrap();
            let bounds = [batches.mean().unwrap(), quantile(0.5), quantile(0.9), quantile(0.99)];
            for (hit, (bounds, truth)) in hits.iter_mut().zip(bounds.iter().zip(truth)) {
                let is_below = bounds.high.is_none_or(|high| truth <= high.as_secs_f64());
                *hit += u64::from(bounds.low.as_secs_f64() <= truth && is_below);
            }
        }
        hits.map(|hits| hits as f64 / runs as f64)
    }

    /// Of 200 runs 180 to 197: chance alone leaves 187 to 195 in two of three tries when 95 % is true.
    #[track_caller]
    fn check_coverage(load: f64, requests: usize) {
        let found = coverage(load, requests, 200);
        assert!(found.iter().all(|part| (0.9..=0.985).contains(part)), "load {load}: {found:?}");
    }

    #[test]
    fn intervals_cover_the_truth_of_a_half_loaded_queue_as_often_as_they_claim() {
        check_coverage(0.5, 8_000);
    }

    #[test]
    fn intervals_cover_the_truth_of_a_busy_queue_as_often_as_they_claim() {
        check_coverage(0.7, 16_000);
    }

    fn batches(requests: u32, latency: impl Fn(u32) -> Option<Duration>) -> Batches {
        let length = Duration::from_secs(10);
        let mut timeline = Timeline::new(length);
        (0..requests).for_each(|n| timeline.record(length * n / requests, latency(n)));
        Batches::new(&timeline.blocks).unwrap()
    }

    #[test]
    fn what_ten_samples_do_not_exceed_is_not_known() {
        let few = batches(900, |n| Some(Duration::from_micros(u64::from(n * 7919 % 900) + 1000)));
        assert!(few.quantile(0.99).is_none() && few.mean().is_some());
        let p90 = few.quantile(0.9).unwrap();
        let truth = Duration::from_micros(1810);
        assert!(p90.low < truth && p90.high.unwrap() > truth, "{p90:?}");
        assert!(Batches::new(&[Block::new(), Block::new()]).is_none());
    }

    #[test]
    fn equal_latencies_leave_no_doubt() {
        let calm = batches(5000, |_| Some(Duration::from_millis(3)));
        for bounds in [calm.mean(), calm.quantile(0.5), calm.quantile(0.99)] {
            let Bounds { low, high } = bounds.unwrap();
            let near = |bound: Duration| (bound.as_secs_f64() / 0.003 - 1.0).abs() < 0.01;
            assert!(near(low) && near(high.unwrap()), "{low:?} {high:?}");
        }
    }

    #[test]
    fn a_few_failures_may_be_chance() {
        let low = |failed: u32| {
            let run = batches(1500, move |n| (n % (1500 / failed) != 7).then_some(SERVICE));
            run.error_rate().unwrap().low * 1500.0
        };
        for (failed, expected) in [(1, 0.0253), (2, 0.2422), (3, 0.6187)] {
            assert!(low(failed) <= expected + 1e-9, "{failed}: {}", low(failed));
        }
        assert!(low(10) > 4.0, "{}", low(10));
    }

    #[test]
    fn a_few_requests_of_which_none_succeeds_show_that() {
        let dead = batches(67, |_| None);
        assert_eq!(dead.quantile_of_all(0.99).unwrap().low, f64::INFINITY);
        let half = batches(67, |n| (n % 2 == 0).then_some(SERVICE));
        assert!(half.quantile_of_all(0.99).is_none());
    }

    #[test]
    fn latencies_that_come_in_waves_depend_on_their_neighbours() {
        let wave = |n: u32| Some(Duration::from_micros(1000 + u64::from(n / 1250 % 2) * 500));
        assert!(batches(5000, wave).dependence() > 0.5);
        let chance = |n| SplitMix64::new(n).unit();
        let mixed = batches(5000, |n| Some(SERVICE.mul_f64(chance(u64::from(n)))));
        assert!(mixed.dependence() < 0.5);
    }
}
