//! A backend as it really is: slots, speed and credits, of which a balancer sees only answers.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

/// The time of what never happens.
pub(super) const NEVER: u64 = u64::MAX;
/// Work left below this many nanoseconds is rounding.
const ROUNDING_NS: f64 = 1e-2;

/// What a backend is made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spec {
    /// Requests that are worked on at full speed at once: cores, or workers of a pool.
    pub slots: u32,
    /// Work done by one slot per unit of time.
    pub speed: f64,
    pub discipline: Discipline,
    pub credits: Option<Credits>,
}

/// What happens to requests beyond the number of slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discipline {
    /// All requests share the slots evenly (processor sharing): threads or an event loop on cores.
    Shared,
    /// They wait for a free slot in the order of their arrival.
    Queue,
}

/// CPU credits as T2 instances have them in standard mode, in core time. With an empty balance the machine does
/// only as much as it earns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Credits {
    /// What can be spent at the start.
    pub balance: Duration,
    /// Cores' worth earned all the time; the baseline of the instance type (t2.micro 0.1, t2.large 0.6).
    pub earned: f64,
    pub max: Duration,
}

impl Spec {
    /// A backend whose requests share `slots`.
    #[must_use]
    pub fn shared(slots: u32, speed: f64) -> Self {
        Self { slots, speed, discipline: Discipline::Shared, credits: None }
    }

    /// A backend whose requests wait for one of `slots`.
    #[must_use]
    pub fn queue(slots: u32, speed: f64) -> Self {
        Self { slots, speed, discipline: Discipline::Queue, credits: None }
    }

    /// Work done per unit of time with all slots busy and credits to spend.
    #[must_use]
    pub fn capacity(&self) -> f64 {
        f64::from(self.slots) * self.speed
    }
}

/// A request on a machine. Ordered so that the heap's greatest is the one that ends first.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Job {
    /// Level of `attained_ns` at which it ends.
    ends_ns: f64,
    id: u32,
}

impl Eq for Job {}

impl Ord for Job {
    fn cmp(&self, other: &Self) -> Ordering {
        other.ends_ns.total_cmp(&self.ends_ns).then(other.id.cmp(&self.id))
    }
}

impl PartialOrd for Job {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The state of one backend.
///
/// All requests in a slot progress at one rate, so one number, the work that each has attained since the start,
/// stands for all of them: a request ends when it has grown by its work. An arrival or a departure costs a heap
/// operation, however many requests share.
#[derive(Debug)]
pub(super) struct Machine {
    spec: Spec,
    speed: f64,
    attained_ns: f64,
    balance_ns: f64,
    /// The time that `attained_ns` and `balance_ns` refer to.
    at_ns: u64,
    active: BinaryHeap<Job>,
    waiting: VecDeque<(u32, f64)>,
}

impl Machine {
    pub(super) fn new(spec: Spec) -> Self {
        Self {
            spec,
            speed: spec.speed,
            attained_ns: 0.0,
            balance_ns: spec.credits.map_or(0.0, |credits| credits.balance.as_nanos() as f64),
            at_ns: 0,
            active: BinaryHeap::new(),
            waiting: VecDeque::new(),
        }
    }

    pub(super) fn jobs(&self) -> usize {
        self.active.len() + self.waiting.len()
    }

    pub(super) fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Work one slot does per unit of time now, credits considered.
    pub(super) fn speed_now(&self) -> f64 {
        self.speed * self.throttle(self.busy().max(1.0))
    }

    /// Changes the speed of each slot; 0 is a stall.
    pub(super) fn set_speed(&mut self, speed: f64, now_ns: u64) {
        self.advance(now_ns);
        self.speed = speed;
    }

    pub(super) fn add(&mut self, id: u32, work_ns: f64, now_ns: u64) {
        self.advance(now_ns);
        if self.spec.discipline == Discipline::Queue && self.active.len() >= self.spec.slots as usize {
            self.waiting.push_back((id, work_ns));
        } else {
            self.active.push(Job { ends_ns: self.attained_ns + work_ns, id });
        }
    }

    /// The next time at which something changes by itself: a request ends or the credits do.
    pub(super) fn next_ns(&self) -> u64 {
        let Some(first) = self.active.peek() else { return NEVER };
        let rate = self.rate();
        if rate <= 0.0 {
            return NEVER;
        }
        let left_ns = ((first.ends_ns - self.attained_ns) / rate).max(0.0);
        let end = self.at_ns.saturating_add(left_ns.ceil() as u64);
        end.min(self.exhausted_ns())
    }

    /// Moves on to `now_ns`, one of the times that [`Self::next_ns`] gave, and takes a request that has ended.
    pub(super) fn take_ended(&mut self, now_ns: u64) -> Option<u32> {
        self.advance(now_ns);
        let ended = self.active.peek().is_some_and(|job| job.ends_ns <= self.attained_ns + ROUNDING_NS);
        if !ended {
            return None;
        }
        let job = self.active.pop()?;
        if let Some((id, work_ns)) = self.waiting.pop_front() {
            self.active.push(Job { ends_ns: self.attained_ns + work_ns, id });
        }
        Some(job.id)
    }

    /// Loses all requests, as in a crash, and says which.
    pub(super) fn clear(&mut self, now_ns: u64) -> Vec<u32> {
        self.advance(now_ns);
        let waiting = self.waiting.drain(..).map(|(id, _)| id);
        let mut lost: Vec<u32> = self.active.drain().map(|job| job.id).chain(waiting).collect();
        lost.sort_unstable();
        lost
    }

    /// For each slot, how long from now until it is free when nothing more arrives; sorted. For the oracle.
    pub(super) fn free_in_ns(&self, now_ns: u64) -> Vec<f64> {
        let rate = self.rate();
        let gone = (now_ns - self.at_ns) as f64 * rate;
        let mut left: Vec<f64> =
            self.active.iter().map(|job| (job.ends_ns - self.attained_ns - gone).max(0.0) / rate).collect();
        left.sort_unstable_by(f64::total_cmp);
        let idle = (self.spec.slots as usize).saturating_sub(left.len());
        let mut free = vec![0.0; idle];
        free.extend(left);
        free
    }

    fn busy(&self) -> f64 {
        (self.active.len() as f64).min(f64::from(self.spec.slots))
    }

    /// Share of full speed that credits allow with `busy` slots at work.
    fn throttle(&self, busy: f64) -> f64 {
        match self.spec.credits {
            Some(credits) if self.balance_ns <= 0.0 && busy > credits.earned => credits.earned / busy,
            _ => 1.0,
        }
    }

    /// Growth of `attained_ns` per nanosecond.
    fn rate(&self) -> f64 {
        let active = self.active.len() as f64;
        if active == 0.0 {
            return 0.0;
        }
        let busy = self.busy();
        self.speed * self.throttle(busy) * busy / active
    }

    fn exhausted_ns(&self) -> u64 {
        let Some(credits) = self.spec.credits else { return NEVER };
        let spent = self.busy() - credits.earned;
        if self.balance_ns <= 0.0 || spent <= 0.0 {
            return NEVER;
        }
        self.at_ns.saturating_add((self.balance_ns / spent).ceil() as u64)
    }

    fn advance(&mut self, now_ns: u64) {
        let passed = (now_ns - self.at_ns) as f64;
        self.at_ns = now_ns;
        if passed == 0.0 {
            return;
        }
        if let Some(credits) = self.spec.credits {
            let busy = self.busy();
            let spent = busy * self.throttle(busy);
            let balance = self.balance_ns + (credits.earned - spent) * passed;
            self.balance_ns = balance.clamp(0.0, credits.max.as_nanos() as f64);
            self.attained_ns += self.rate_before(spent) * passed;
        } else {
            self.attained_ns += self.rate() * passed;
        }
    }

    /// The rate while `spent` cores were at work, as the balance may have run out at the end of the interval.
    fn rate_before(&self, spent: f64) -> f64 {
        if self.active.is_empty() { 0.0 } else { self.speed * spent / self.active.len() as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: f64 = 1e6;

    /// Runs until nothing is left and returns the requests with the times at which they ended, in milliseconds.
    fn drain(machine: &mut Machine) -> Vec<(u32, f64)> {
        let mut ended = Vec::new();
        while machine.next_ns() != NEVER {
            let now = machine.next_ns();
            if let Some(id) = machine.take_ended(now) {
                ended.push((id, (now as f64 / 1e3).round() / 1e3));
            }
        }
        ended
    }

    #[test]
    fn requests_share_a_slot_evenly() {
        let mut machine = Machine::new(Spec::shared(1, 1.0));
        machine.add(1, 2.0 * MS, 0);
        machine.add(2, 1.0 * MS, 1_000_000);
        // From 1 ms on both have 1 ms left and get half of the slot each.
        assert_eq!(drain(&mut machine), [(1, 3.0), (2, 3.0)]);
    }

    #[test]
    fn requests_do_not_slow_each_other_while_slots_are_free() {
        let mut machine = Machine::new(Spec::shared(2, 2.0));
        machine.add(1, 2.0 * MS, 0);
        machine.add(2, 4.0 * MS, 0);
        assert_eq!(drain(&mut machine), [(1, 1.0), (2, 2.0)]);
    }

    #[test]
    fn queue_serves_in_order_of_arrival() {
        let mut machine = Machine::new(Spec::queue(1, 1.0));
        for (id, work) in [(1, 3.0), (2, 1.0), (3, 2.0)] {
            machine.add(id, work * MS, 0);
        }
        assert_eq!(drain(&mut machine), [(1, 3.0), (2, 4.0), (3, 6.0)]);
    }

    #[test]
    fn work_waits_while_the_machine_stalls() {
        let mut machine = Machine::new(Spec::queue(1, 1.0));
        machine.add(1, 3.0 * MS, 0);
        machine.set_speed(0.0, 1_000_000);
        assert_eq!(machine.next_ns(), NEVER);
        machine.set_speed(0.5, 10_000_000);
        assert_eq!(drain(&mut machine), [(1, 14.0)]);
    }

    #[test]
    fn credits_run_out_and_leave_the_baseline() {
        let credits = Credits { balance: Duration::from_millis(9), earned: 0.1, max: Duration::from_secs(1) };
        let mut machine = Machine::new(Spec { credits: Some(credits), ..Spec::shared(1, 1.0) });
        machine.add(1, 12.0 * MS, 0);
        // The balance falls by 0.9 a millisecond, so 10 ms of work are done by 10 ms; the rest runs at 0.1.
        assert_eq!(drain(&mut machine), [(1, 30.0)]);
        // 10 ms of idling earn 1 ms.
        machine.add(2, 1.0 * MS, 40_000_000);
        assert_eq!(drain(&mut machine), [(2, 41.0)]);
    }

    #[test]
    fn crash_loses_what_is_running_and_what_waits() {
        let mut machine = Machine::new(Spec::queue(1, 1.0));
        machine.add(1, MS, 0);
        machine.add(2, MS, 0);
        assert_eq!(machine.clear(500_000), [1, 2]);
        assert_eq!((machine.jobs(), machine.next_ns()), (0, NEVER));
    }

    #[test]
    fn slots_are_free_when_their_work_is_done() {
        let mut machine = Machine::new(Spec::queue(3, 2.0));
        machine.add(1, 4.0 * MS, 0);
        machine.add(2, 2.0 * MS, 0);
        assert_eq!(machine.free_in_ns(500_000), [0.0, 0.5 * MS, 1.5 * MS]);
    }
}
