//! What one thread counts of a run, apart by the stretches of time in which the requests were due.
//!
//! The load runs on from a warm-up into the measurement without a gap, and where the warm-up ended may be known only
//! afterwards; so each stretch that it could end with has a recorder of its own. Decides nothing.

use std::time::Duration;

use super::{
    record::{Recorder, Sample},
    timeline::Timeline,
};

/// Everything one thread counted.
#[derive(Clone)]
pub(super) struct Book {
    stretches: Vec<Stretch>,
    /// From the start to the end of the load, the first stretch left out when it is surely a warm-up.
    pub(super) timeline: Timeline,
    timeline_from: Duration,
    load_end: Duration,
}

#[derive(Clone)]
struct Stretch {
    from: Duration,
    recorder: Recorder,
    /// How long requests were in flight from its beginning to the load's end, all of them added up: the integral of
    /// their number. Kept by comings and goings, and not from latencies, in nanoseconds.
    in_flight_ns: i128,
}

impl Book {
    /// `cuts` are the times, from the start and in order, at which a warm-up may end, 0 first.
    pub(super) fn new(
        cuts: &[Duration],
        timeline: Timeline,
        timeline_from: Duration,
        load_end: Duration,
    ) -> Self {
        let stretch = |from: &Duration| Stretch { from: *from, recorder: Recorder::new(), in_flight_ns: 0 };
        Self { stretches: cuts.iter().map(stretch).collect(), timeline, timeline_from, load_end }
    }

    /// The recorder of requests that are due at a time from the start.
    pub(super) fn recorder(&mut self, due: Duration) -> &mut Recorder {
        &mut self.stretch(due).recorder
    }

    /// A request came at this time from the start: when it was due.
    pub(super) fn come(&mut self, at: Duration) {
        self.change(at, 1);
    }

    /// One came earlier and ended now; counts it, and what became of it.
    pub(super) fn go(&mut self, sample: &Sample<'_>) {
        self.change(sample.end, -1);
        let recorder = self.recorder(sample.due);
        recorder.scheduled += 1;
        recorder.record(sample);
        if sample.is_inside {
            self.recorder(sample.end).record_inside(sample);
        }
        if let Some(due) = sample.due.checked_sub(self.timeline_from) {
            self.timeline.record(due, sample.good_latency());
        }
    }

    /// The numbers of requests that ended, and of those that failed.
    pub(super) fn ended(&self) -> (u64, u64) {
        let sum = |read: fn(&Recorder) -> u64| self.stretches.iter().map(|it| read(&it.recorder)).sum();
        (sum(|recorder| recorder.all.count()), sum(Recorder::errors))
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.stretches.iter_mut().zip(&other.stretches) {
            mine.recorder.add(&theirs.recorder);
            mine.in_flight_ns += theirs.in_flight_ns;
        }
        self.timeline.add(&other.timeline);
    }

    /// What was counted of requests due before `cut`, which is one of the cuts, and from then on.
    pub(super) fn split(&self, cut: Duration) -> (Recorder, Recorder) {
        let (mut before, mut after) = (Recorder::new(), Recorder::new());
        for stretch in &self.stretches {
            let part = if stretch.from < cut { &mut before } else { &mut after };
            part.add(&stretch.recorder);
        }
        (before, after)
    }

    /// How long requests were in flight from `cut`, one of the cuts, to the load's end, all of them added up.
    pub(super) fn in_flight(&self, cut: Duration) -> Duration {
        let stretch = self.stretches.iter().find(|stretch| stretch.from >= cut);
        let nanos = stretch.map_or(0, |stretch| stretch.in_flight_ns);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
    }

    fn stretch(&mut self, at: Duration) -> &mut Stretch {
        let index = self.stretches.partition_point(|stretch| stretch.from <= at).max(1);
        &mut self.stretches[index - 1]
    }

    /// One request more or less in flight from now on.
    fn change(&mut self, at: Duration, by: i128) {
        for stretch in &mut self.stretches {
            let rest = self.load_end.saturating_sub(at.max(stretch.from));
            stretch.in_flight_ns += by * rest.as_nanos() as i128;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::fault::{Fault, FaultKind};

    fn millis(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    fn sample(due: u64, end: u64, outcome: Result<u16, Fault>) -> Sample<'static> {
        Sample {
            due: millis(due),
            latency: millis(end - due),
            service: None,
            end: millis(end),
            is_inside: end <= 1000,
            is_unfinished: [false; 2],
            outcome,
            backend: None,
            connect_time: None,
            stale_count: 0,
        }
    }

    /// 200 requests in a second, each taking 50 ms, one in ten of which times out.
    fn book() -> Book {
        let cuts = [Duration::ZERO, millis(100), millis(500)];
        let mut book = Book::new(&cuts, Timeline::new(millis(900)), millis(100), millis(1000));
        for n in 0..200 {
            let outcome = if n % 10 == 0 { Err(Fault::new(FaultKind::TtfbTimeout, "late")) } else { Ok(200) };
            book.come(millis(n * 5));
            book.go(&sample(n * 5, n * 5 + 50, outcome));
        }
        book
    }

    #[test]
    fn what_is_before_a_cut_and_what_is_after_are_the_whole() {
        let book = book();
        for (cut, first) in [(0, 0), (100, 20), (500, 100)] {
            let (before, after) = book.split(millis(cut));
            assert_eq!((before.scheduled, after.scheduled), (first, 200 - first));
            assert_eq!((before.errors(), after.ok.count()), (first / 10, (200 - first) * 9 / 10));
        }
        assert_eq!(book.ended(), (200, 20));
        let in_timeline = book.timeline.blocks.iter().map(|block| block.ok.len() + block.failed);
        assert_eq!(in_timeline.sum::<u64>(), 180);
    }

    /// Answers count for the rate of the time in which they came, whenever their requests were due.
    #[test]
    fn the_rate_after_a_cut_counts_answers_after_it() {
        let (_, after) = book().split(millis(500));
        // 101 requests ended in that half, 11 of them in a timeout; of those that were due in it, 10 were too late.
        assert_eq!((after.answers_inside, after.ok_inside, after.scheduled), (90, 90, 100));
    }

    #[test]
    fn littles_law_holds_in_the_book() {
        let book = book();
        // 200 per second of 50 ms each are 10 in flight, but in the first 50 ms.
        assert_eq!(book.in_flight(millis(100)), millis(9000));
        assert_eq!(book.in_flight(millis(500)), millis(5000));
        let mut twice = book.clone();
        twice.add(&book);
        assert_eq!(twice.in_flight(millis(100)), millis(18000));
    }
}
