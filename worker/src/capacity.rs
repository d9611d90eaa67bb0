//! How long a request takes on an emulated instance: one first-in-first-out queue before as many slots as vCPUs.
//!
//! Pure: the time comes in as an argument and a finish time goes out. Does not wait, burn CPU or know of HTTP.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::types::InstanceType;

/// Requests that may wait for a slot. Twice the lab's burst of 1000, so that a whole burst sent to one worker is
/// held; what lies beyond waits longer than anybody would (2 s at 1 ms of work on one vCPU) and is refused.
pub(crate) const QUEUE_MAX: usize = 2048;

/// Requests in service and waiting at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) in_service: usize,
    pub(crate) queued: usize,
}

/// The queue before an instance's vCPUs.
///
/// A `now` earlier than one already seen is treated as the latest seen.
#[derive(Debug)]
pub(crate) struct Fifo {
    /// When each slot has finished all that it was given.
    free: Vec<Instant>,
    /// When the requests that still wait will start, in order.
    starts: VecDeque<Instant>,
    speed: f64,
    factor: f64,
    credits: Option<Credits>,
    latest: Instant,
}

impl Fifo {
    /// An idle instance; with `with_credits` its vCPUs slow down to the baseline once its CPU credits are spent.
    pub(crate) fn new(kind: &InstanceType, with_credits: bool, now: Instant) -> Self {
        Self {
            free: vec![now; kind.vcpus],
            starts: VecDeque::new(),
            speed: kind.speed,
            factor: 1.0,
            credits: with_credits.then(|| Credits::at_launch(kind, now)),
            latest: now,
        }
    }

    /// Takes a request of `work` (CPU time at speed 1) behind all earlier ones and gives the time when it is done.
    ///
    /// `None` when [`QUEUE_MAX`] requests wait already; nothing has changed then.
    pub(crate) fn admit(&mut self, work: Duration, now: Instant) -> Option<Instant> {
        self.advance(now);
        if self.starts.len() >= QUEUE_MAX {
            return None;
        }
        let slot = self.earliest();
        let start = self.free[slot].max(self.latest);
        let finish = start + self.service_time(work, start);
        self.free[slot] = finish;
        if start > self.latest {
            self.starts.push_back(start);
        }
        Some(finish)
    }

    /// Requests in service and waiting at `now`.
    pub(crate) fn load(&self, now: Instant) -> Load {
        let now = now.max(self.latest);
        Load {
            in_service: self.free.iter().filter(|free| **free > now).count(),
            queued: self.starts.len() - self.starts.partition_point(|start| *start <= now),
        }
    }

    /// Multiplies the speed of requests admitted from now on; those already admitted keep their finish times.
    pub(crate) fn set_factor(&mut self, factor: f64) {
        assert!(factor > 0.0, "a speed factor is positive");
        self.factor = factor;
    }

    /// The credits left at `now`, or `None` when they are not emulated. What admitted requests will spend is
    /// already taken off.
    pub(crate) fn credits(&self, now: Instant) -> Option<f64> {
        let credits = self.credits.as_ref()?;
        let idle_s = idle_s(&self.free, credits.settled, now.max(self.latest));
        Some(credits.after(idle_s) / 60.0)
    }

    fn advance(&mut self, now: Instant) {
        self.latest = self.latest.max(now);
        let started = self.starts.partition_point(|start| *start <= self.latest);
        self.starts.drain(..started);
    }

    fn earliest(&self) -> usize {
        (0..self.free.len()).min_by_key(|slot| self.free[*slot]).expect("an instance has at least one vCPU")
    }

    fn service_time(&mut self, work: Duration, start: Instant) -> Duration {
        let busy_s = work.as_secs_f64() / (self.speed * self.factor);
        let Some(credits) = &mut self.credits else { return Duration::from_secs_f64(busy_s) };
        credits.settle(&self.free, start);
        Duration::from_secs_f64(credits.spend(busy_s))
    }
}

/// CPU credits in standard mode, counted in seconds of one vCPU.
///
/// Every vCPU earns its baseline all the time. An idle one saves it; one at full speed spends the rest of what it
/// uses from the balance; one at the baseline uses what it earns. AWS lowers the speed gradually as the balance
/// runs out; here it drops at once.
#[derive(Debug)]
struct Credits {
    baseline: f64,
    launch_s: f64,
    earned_s: f64,
    earned_s_max: f64,
    /// Up to when idle time is in the balance.
    settled: Instant,
}

impl Credits {
    fn at_launch(kind: &InstanceType, now: Instant) -> Self {
        Self {
            baseline: kind.baseline(),
            launch_s: kind.credits_at_launch * 60.0,
            earned_s: 0.0,
            earned_s_max: kind.credits_saved_max() * 60.0,
            settled: now,
        }
    }

    /// Adds what the slots earned by being idle until `start`. Starts never go backwards, because the queue is
    /// first in, first out.
    fn settle(&mut self, free: &[Instant], start: Instant) {
        self.earned_s = self.earned(idle_s(free, self.settled, start));
        self.settled = start;
    }

    /// Pays for `busy_s` of one vCPU at full speed and gives how long it takes: longer when the balance runs out.
    fn spend(&mut self, busy_s: f64) -> f64 {
        let drain = 1.0 - self.baseline;
        let full_s = busy_s.min((self.launch_s + self.earned_s) / drain);
        let spent_s = full_s * drain;
        let from_launch_s = spent_s.min(self.launch_s);
        self.launch_s -= from_launch_s;
        self.earned_s = (self.earned_s - (spent_s - from_launch_s)).max(0.0);
        full_s + (busy_s - full_s) / self.baseline
    }

    fn after(&self, idle_s: f64) -> f64 {
        self.launch_s + self.earned(idle_s)
    }

    fn earned(&self, idle_s: f64) -> f64 {
        (self.earned_s + idle_s * self.baseline).min(self.earned_s_max)
    }
}

/// The idle time of all slots together between `from` and `to`, in seconds.
fn idle_s(free: &[Instant], from: Instant, to: Instant) -> f64 {
    free.iter().map(|free| to.saturating_duration_since((*free).max(from)).as_secs_f64()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn kind(name: &str) -> InstanceType {
        InstanceType::named(name).expect(name)
    }

    fn fifo(name: &str) -> (Fifo, Instant) {
        let start = Instant::now();
        (Fifo::new(&kind(name), false, start), start)
    }

    #[test]
    fn requests_finish_in_order_of_admission() {
        let (mut fifo, t) = fifo("t2.micro");
        let finishes: Vec<_> = (0..5).map(|_| fifo.admit(MS, t).unwrap() - t).collect();
        assert_eq!(finishes, [MS, 2 * MS, 3 * MS, 4 * MS, 5 * MS]);
    }

    #[test]
    fn two_slots_serve_two_at_once() {
        let (mut fifo, t) = fifo("t2.large");
        let finishes: Vec<_> = (0..4).map(|_| fifo.admit(MS, t).unwrap() - t).collect();
        assert_eq!(finishes, [MS, MS, 2 * MS, 2 * MS]);
        assert_eq!(fifo.load(t), Load { in_service: 2, queued: 2 });
    }

    #[test]
    fn a_long_request_holds_one_slot_only() {
        let (mut fifo, t) = fifo("t2.large");
        assert_eq!(fifo.admit(10 * MS, t).unwrap(), t + 10 * MS);
        assert_eq!(fifo.admit(MS, t).unwrap(), t + MS);
        assert_eq!(fifo.admit(MS, t).unwrap(), t + 2 * MS);
    }

    #[test]
    fn an_idle_slot_starts_at_once_and_earns_no_past_time() {
        let (mut fifo, t) = fifo("t2.micro");
        fifo.admit(MS, t);
        let later = t + 50 * MS;
        assert_eq!(fifo.load(later), Load { in_service: 0, queued: 0 });
        assert_eq!(fifo.admit(MS, later), Some(later + MS));
        assert_eq!(fifo.admit(MS, later), Some(later + 2 * MS));
    }

    /// A closed loop: every connection asks again the moment it is answered.
    #[track_caller]
    fn check_closed_loop(name: &str, connections: usize, expected: usize) {
        let (mut fifo, t) = fifo(name);
        let end = t + Duration::from_secs(1);
        let mut due = vec![t; connections];
        let mut served = 0;
        loop {
            let (who, now) = due.iter().copied().enumerate().min_by_key(|(_, at)| *at).unwrap();
            let finish = fifo.admit(MS, now).expect("fewer connections than the queue holds");
            if finish > end {
                break;
            }
            served += 1;
            due[who] = finish;
        }
        assert_eq!(served, expected, "{name} with {connections} connections");
    }

    #[test]
    fn capacity_is_slots_over_work_with_any_number_of_connections() {
        for connections in [2, 3, 4, 64, 500, 1000] {
            check_closed_loop("t2.micro", connections, 1000);
            check_closed_loop("t2.large", connections, 2000);
        }
        check_closed_loop("t2.large", 1, 1000);
        check_closed_loop("t2.2xlarge", 500, 8000);
    }

    #[test]
    fn speed_factor_stretches_later_requests_only() {
        let (mut fifo, t) = fifo("t2.micro");
        assert_eq!(fifo.admit(MS, t), Some(t + MS));
        fifo.set_factor(0.5);
        assert_eq!(fifo.admit(MS, t), Some(t + 3 * MS));
        fifo.set_factor(2.0);
        assert_eq!(fifo.admit(2 * MS, t), Some(t + 4 * MS));
    }

    #[test]
    fn a_full_queue_refuses_and_changes_nothing() {
        let (mut fifo, t) = fifo("t2.micro");
        for _ in 0..=QUEUE_MAX {
            assert!(fifo.admit(MS, t).is_some());
        }
        assert_eq!(fifo.admit(MS, t), None);
        assert_eq!(fifo.load(t), Load { in_service: 1, queued: QUEUE_MAX });
        assert_eq!(fifo.admit(MS, t + MS), Some(t + (QUEUE_MAX as u32 + 2) * MS));
    }

    #[test]
    fn an_earlier_now_counts_as_the_latest_seen() {
        let (mut fifo, t) = fifo("t2.micro");
        fifo.admit(MS, t + 10 * MS);
        assert_eq!(fifo.admit(MS, t), Some(t + 12 * MS));
        assert_eq!(fifo.load(t), Load { in_service: 1, queued: 1 });
    }

    #[test]
    fn no_work_takes_no_time() {
        let (mut fifo, t) = fifo("t2.micro");
        assert_eq!(fifo.admit(Duration::ZERO, t), Some(t));
        assert_eq!(fifo.load(t), Load { in_service: 0, queued: 0 });
    }

    #[track_caller]
    fn near(value: f64, expected: f64) {
        assert!((value - expected).abs() < 1e-6, "{value} is not {expected}");
    }

    /// Keeps every slot busy for `for_s` seconds of the virtual clock and gives the requests served.
    fn saturate(fifo: &mut Fifo, from: Instant, for_s: u64, work: Duration) -> u32 {
        let end = from + Duration::from_secs(for_s);
        let mut served = 0;
        loop {
            let now = *fifo.free.iter().min().unwrap();
            if fifo.admit(work, now.max(from)).unwrap() > end {
                return served;
            }
            served += 1;
        }
    }

    #[test]
    fn launch_credits_are_spent_first_and_then_the_baseline_remains() {
        let t = Instant::now();
        let mut fifo = Fifo::new(&kind("t2.micro"), true, t);
        assert_eq!(fifo.credits(t), Some(30.0));
        // 30 credits are 1800 s of a vCPU; at full speed 0.9 of each second is not earned: 2000 s.
        let served = saturate(&mut fifo, t, 2000, Duration::from_secs(1));
        assert!((1999..=2000).contains(&served), "full speed, but for rounding at the end: {served}");
        let empty = t + Duration::from_secs(2000);
        assert!(fifo.credits(empty).unwrap() < 0.02, "what the last second earns at most");
        let served = saturate(&mut fifo, empty, 1000, Duration::from_secs(1));
        assert!((99..=100).contains(&served), "a tenth of 1000 s: {served}");
    }

    #[test]
    fn an_exhausted_two_vcpu_instance_gives_its_whole_baseline_to_one_busy_vcpu() {
        let t = Instant::now();
        let mut fifo = Fifo::new(&kind("t3.large"), true, t);
        let mut now = t;
        let mut served = 0;
        while now < t + Duration::from_secs(100) {
            now = fifo.admit(MS * 10, now).unwrap();
            served += 1;
        }
        // 36 credits an hour are 0.6 vCPU: 60 s of work in 100 s.
        assert!((5900..=6100).contains(&served), "{served}");
    }

    #[test]
    fn idle_time_earns_credits_up_to_a_day_of_them() {
        let t = Instant::now();
        let mut fifo = Fifo::new(&kind("t3.micro"), true, t);
        let hour = Duration::from_secs(3600);
        near(fifo.credits(t + hour).unwrap(), 12.0);
        near(fifo.credits(t + 48 * hour).unwrap(), 288.0);
        assert_eq!(fifo.credits(t), Some(0.0), "reading changes nothing");
        fifo.admit(Duration::from_secs(60), t + hour);
        near(fifo.credits(t + hour).unwrap(), 12.0 - 0.9);
    }

    #[test]
    fn a_balance_that_ends_within_a_request_slows_only_the_rest() {
        let t = Instant::now();
        let mut fifo = Fifo::new(&kind("t3.micro"), true, t);
        // Both vCPUs idle for 45 s at a baseline of 0.1 save 9 s, which last 10 s at full speed.
        let now = t + Duration::from_secs(45);
        let took = fifo.admit(Duration::from_secs(11), now).unwrap() - now;
        near(took.as_secs_f64(), 20.0);
    }
}
