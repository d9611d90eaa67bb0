//! One backend as all threads see it.

use std::time::{Duration, Instant};

use crate::estimate::{Averages, Estimate};
use crate::sync::{
    AtomicU32, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};

/// Weight of a probe in the average of their latency.
const PROBE_WEIGHT: f64 = 0.3;

/// Whether a backend may be given requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Takes requests.
    Up,
    /// The active probe fails; takes none.
    Down,
    /// Failed too many requests in a row; takes none until its time is over, except in panic mode.
    Ejected,
    /// Finishes what it has and takes nothing new; for ever, until [`Backend::set_draining`] says otherwise.
    Draining,
}

impl Health {
    /// The word used in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Ejected => "ejected",
            Self::Draining => "draining",
        }
    }
}

/// Why a backend may not simply be used, as bits of one word: a choice reads that word and, of a healthy backend,
/// nothing more.
const DRAINING: u32 = 1;
/// The active probe fails.
const DOWN: u32 = 2;
/// It was ejected and has not had a success since. Whether it is ejected now is a matter of time.
const SUSPECT: u32 = 4;

/// The limit of a backend of which nothing is known, or in a cluster without limits.
const UNLIMITED: u32 = u32::MAX;
/// The limit is taken anew from one in so many answers: an average moves by little with one, and the division costs as
/// much as a twentieth of a choice. The number of samples saturates at one that counts.
const LIMIT_EVERY: u32 = 8;
/// However slow it is, a backend may have this many requests: with fewer, the other cores of a small machine would
/// idle between two answers.
const LIMIT_MIN: u32 = 4;

/// The right to learn from an answer, which one thread has at a time. It must be used, or nobody learns any more.
#[derive(Debug)]
#[must_use]
pub(crate) struct Turn(u32);

/// Shared state of one backend: in-flight count, health, averages.
///
/// Everything that a choice reads lies in the first cache line, and no line is shared with a neighbour, so that busy
/// ones do not slow each other down.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Backend {
    /// Requests in flight in the lower half; in the upper one, how often a thread has begun to learn from an answer.
    requests: AtomicU64,
    doubts: AtomicU32,
    /// Requests that it may have at once.
    limit: AtomicU32,
    averages: Averages,
    /// How often a thread has ended to learn. While it is behind, one is at it.
    learnt: AtomicU32,
    failures_in_row: AtomicU32,
    ejections: AtomicU32,
    ejected_until_ns: AtomicU64,
    /// What `limit` may be at most, and is while nothing is known.
    limit_max: AtomicU32,
    /// Average of active probes' latency in nanoseconds, as bits of an `f64`; 0 before the first.
    probe_latency: AtomicU64,
    epoch: Instant,
    id: Box<str>,
}

impl Backend {
    /// A backend that is up and about which nothing is known. Times are counted from `epoch`; all backends of a
    /// process share one.
    #[must_use]
    pub fn new(id: &str, epoch: Instant) -> Self {
        Self {
            requests: AtomicU64::new(0),
            doubts: AtomicU32::new(0),
            limit: AtomicU32::new(UNLIMITED),
            averages: Averages::default(),
            learnt: AtomicU32::new(0),
            failures_in_row: AtomicU32::new(0),
            ejections: AtomicU32::new(0),
            ejected_until_ns: AtomicU64::new(0),
            limit_max: AtomicU32::new(UNLIMITED),
            probe_latency: AtomicU64::new(0),
            epoch,
            id: id.into(),
        }
    }

    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Requests picked and not yet finished.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.requests.load(Relaxed) as u32
    }

    /// Requests that it may have at once, as far as is known.
    #[must_use]
    pub fn limit(&self) -> Option<u32> {
        Some(self.limit.load(Relaxed)).filter(|&limit| limit != UNLIMITED)
    }

    /// Draining wins over down, down over ejected.
    #[must_use]
    pub fn health(&self, now: Instant) -> Health {
        self.health_at(self.nanoseconds(now))
    }

    /// The averages as they are now. Reading changes nothing.
    #[must_use]
    pub fn estimate(&self, now: Instant) -> Estimate {
        self.averages.read(self.nanoseconds(now))
    }

    /// Reports what the active probe found. A backend that comes back starts with a clean record, so that it is
    /// used at once.
    pub fn set_up(&self, up: bool) {
        if self.doubt(DOWN, !up) && up {
            self.readmit();
        }
    }

    /// Learns how long an active probe took to be answered. Only the policy that goes by probes reads it.
    pub fn probed(&self, latency: Duration) {
        let sample = latency.as_nanos() as f64;
        let old = match self.probe_latency_ns() {
            0.0 => sample,
            old => old,
        };
        self.probe_latency.store((old + (sample - old) * PROBE_WEIGHT).to_bits(), Relaxed);
    }

    pub(crate) fn probe_latency_ns(&self) -> f64 {
        f64::from_bits(self.probe_latency.load(Relaxed))
    }

    /// Ends an ejection and forgets the failures that led to it.
    pub fn readmit(&self) {
        self.averages.forget();
        self.limit.store(self.limit_max.load(Relaxed), Relaxed);
        self.failures_in_row.store(0, Relaxed);
        self.ejections.store(0, Relaxed);
        self.ejected_until_ns.store(0, Relaxed);
        self.doubt(SUSPECT, false);
    }

    pub fn set_draining(&self, draining: bool) {
        self.doubt(DRAINING, draining);
    }

    pub(crate) fn epoch(&self) -> Instant {
        self.epoch
    }

    fn nanoseconds(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.epoch).as_nanos() as u64
    }

    pub(crate) fn health_at(&self, now_ns: u64) -> Health {
        let doubts = self.doubts.load(Relaxed);
        if doubts == 0 {
            Health::Up
        } else if doubts & DRAINING != 0 {
            Health::Draining
        } else if doubts & DOWN != 0 {
            Health::Down
        } else if now_ns < self.ejected_until_ns.load(Relaxed) {
            Health::Ejected
        } else {
            Health::Up
        }
    }

    /// Whether it may be sent a request: it is up, and not busy with its trial.
    pub(crate) fn may_take(&self, now_ns: u64) -> bool {
        self.doubts.load(Relaxed) == 0
            || (self.health_at(now_ns) == Health::Up && !(self.is_on_trial() && self.in_flight() > 0))
    }

    /// Whether it was ejected and has not had a success since.
    pub(crate) fn is_on_trial(&self) -> bool {
        self.doubts.load(Relaxed) & SUSPECT != 0
    }

    /// Sets or clears one doubt and returns whether it was there.
    fn doubt(&self, which: u32, there: bool) -> bool {
        let before =
            if there { self.doubts.fetch_or(which, Relaxed) } else { self.doubts.fetch_and(!which, Relaxed) };
        before & which != 0
    }

    pub(crate) fn averages(&self) -> &Averages {
        &self.averages
    }

    /// Counts one more request and returns how many were there before.
    pub(crate) fn enter(&self, now_ns: u64) -> u32 {
        let before = self.requests.fetch_add(1, Relaxed) as u32;
        if before == 0 {
            self.averages.busy(now_ns);
        }
        before
    }

    /// Whether it may have one more request. Threads that ask at the same time may exceed the limit together, by one
    /// each.
    pub(crate) fn has_room(&self) -> bool {
        self.in_flight() < self.limit.load(Relaxed)
    }

    /// Like [`Self::has_room`], for one who will wait if there is none. Writing the count puts this into one order
    /// with [`Self::leave`]: a request that left before is seen here, and whoever leaves later sees that this thread
    /// is waiting.
    pub(crate) fn finds_room(&self) -> bool {
        (self.requests.fetch_add(0, AcqRel) as u32) < self.limit.load(Relaxed)
    }

    /// Sets what it may have at most. What was learnt is kept where it is less, if it is still to be `learnt`.
    pub(crate) fn set_limit_max(&self, limit_max: u32, learnt: bool) {
        let before = self.limit_max.swap(limit_max, Relaxed);
        if !learnt || self.limit.load(Relaxed) >= before.min(limit_max) {
            self.limit.store(limit_max, Relaxed);
        }
    }

    /// Lets it have what it answers within `window_ns`, by Little's law: as many requests as that is times the latency
    /// per request. But always twice as many as it is known to answer undisturbed, or a service that takes its
    /// time by nature would get less and less of them.
    ///
    /// Called for each answer, with what it took and how many requests it found.
    pub(crate) fn learn_limit(&self, latency_ns: f64, in_flight_before: u32, window_ns: f64) {
        let samples = self.averages.samples();
        if samples > LIMIT_EVERY && samples % LIMIT_EVERY != LIMIT_EVERY - 1 {
            return;
        }
        if in_flight_before < LIMIT_MIN {
            self.averages.learn_alone(latency_ns);
        }
        let limit = self.averages.answered_within(window_ns) as u32;
        self.limit.store(limit.max(LIMIT_MIN).min(self.limit_max.load(Relaxed)), Relaxed);
    }

    /// Takes a request off that nothing is learnt from.
    pub(crate) fn leave(&self) {
        let before = self.requests.fetch_sub(1, AcqRel) as u32;
        assert!(before > 0, "a ticket is finished once");
    }

    /// Takes a request off and returns how many are left, and the turn to learn from it unless another thread is at
    /// it. Both are one atomic step, since each has to wait for all writes before it.
    pub(crate) fn leave_to_learn(&self) -> (u32, Option<Turn>) {
        let mut before = self.requests.load(Relaxed);
        loop {
            assert!(before as u32 > 0, "a ticket is finished once");
            let begun = (before >> 32) as u32;
            let is_free = self.learnt.load(Acquire) == begun;
            let after = (before - 1).wrapping_add(if is_free { 1 << 32 } else { 0 });
            match self.requests.compare_exchange(before, after, AcqRel, Relaxed) {
                Ok(_) => return (after as u32, is_free.then_some(Turn(begun.wrapping_add(1)))),
                Err(changed) => before = changed,
            }
        }
    }

    /// Learns from one finished request: see [`Averages::learn`].
    pub(crate) fn learn(&self, turn: Turn, latency_ns: Option<f64>, others: f64, now_ns: u64) {
        self.averages.learn(latency_ns, others, now_ns);
        self.learnt.store(turn.0, Release);
    }

    /// Notes a success. A record clean for `forget_after` since the last ejection ended resets the back-off.
    pub(crate) fn succeeded(&self, forget_after: Duration, now_ns: u64) {
        // Loads first: the common case writes nothing, so the line stays shared between threads.
        if self.failures_in_row.load(Relaxed) != 0 {
            self.failures_in_row.store(0, Relaxed);
        }
        if self.ejections.load(Relaxed) != 0 || self.is_on_trial() {
            self.passed(forget_after, now_ns);
        }
    }

    /// Notes a success of one that was ejected not long ago.
    #[cold]
    fn passed(&self, forget_after: Duration, now_ns: u64) {
        let until_ns = self.ejected_until_ns.load(Relaxed);
        if self.is_on_trial() && now_ns >= until_ns {
            self.doubt(SUSPECT, false);
        }
        if now_ns > until_ns.saturating_add(forget_after.as_nanos() as u64) {
            self.ejections.store(0, Relaxed);
        }
    }

    /// Notes a failure of a request picked at `picked_ns` and returns how many came in a row. Requests picked
    /// before the current ejection ended say nothing new and are not counted.
    pub(crate) fn failed(&self, picked_ns: u64) -> u32 {
        if picked_ns < self.ejected_until_ns.load(Relaxed) {
            return 0;
        }
        self.failures_in_row.fetch_add(1, Relaxed) + 1
    }

    /// Ejects for `base` doubled per earlier ejection, at most `max`.
    pub(crate) fn eject(&self, base: Duration, max: Duration, now_ns: u64) {
        let doublings = self.ejections.fetch_add(1, Relaxed).min(16);
        let time = base.saturating_mul(1 << doublings).min(max);
        self.ejected_until_ns.store(now_ns.saturating_add(time.as_nanos() as u64), Relaxed);
        self.doubt(SUSPECT, true);
    }
}
