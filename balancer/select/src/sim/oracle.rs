//! The clairvoyant: a mark that no balancer can reach.

use std::collections::VecDeque;

use super::machine::Machine;

/// Waiting requests that are looked at for a place; those behind them wait anyway.
const LOOK_AHEAD: usize = 64;

/// Which of the waiting requests comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Arrival,
    /// The least work first.
    Work,
}

/// Knows the work of each request, what each backend has left and how fast it is now. Keeps requests in one queue
/// and gives the first to the slot where it ends earliest, once that slot is free; the others see that slot as
/// taken. No backend ever has more requests than slots.
#[derive(Debug)]
pub(super) struct Oracle {
    order: Order,
    waiting: VecDeque<(u32, f64)>,
}

impl Oracle {
    pub(super) fn new(order: Order) -> Self {
        Self { order, waiting: VecDeque::new() }
    }

    pub(super) fn add(&mut self, request: u32, work_ns: f64) {
        let place = match self.order {
            Order::Arrival => self.waiting.len(),
            Order::Work => self.waiting.partition_point(|&(_, other)| other <= work_ns),
        };
        self.waiting.insert(place, (request, work_ns));
    }

    /// Takes back a request that waits no longer.
    pub(super) fn remove(&mut self, request: u32) {
        self.waiting.retain(|&(other, _)| other != request);
    }

    /// The next request that shall go, and where to. `usable` says whether a backend answers requests now.
    pub(super) fn next(
        &mut self,
        machines: &[Machine],
        usable: impl Fn(usize) -> bool,
        now_ns: u64,
    ) -> Option<(u32, usize)> {
        if self.waiting.is_empty() {
            return None;
        }
        let speed = |index: usize| if usable(index) { machines[index].speed_now() } else { 0.0 };
        let speeds: Vec<f64> = (0..machines.len()).map(speed).collect();
        let mut slots: Vec<Vec<f64>> = (0..machines.len())
            .map(|index| if speeds[index] > 0.0 { machines[index].free_in_ns(now_ns) } else { Vec::new() })
            .collect();
        for (place, &(request, work_ns)) in self.waiting.iter().take(LOOK_AHEAD).enumerate() {
            if !slots.iter().any(|slots| slots.first() == Some(&0.0)) {
                return None;
            }
            let ends = |index: usize| Some((slots[index].first()? + work_ns / speeds[index], index));
            let (end, index) = (0..machines.len()).filter_map(ends).min_by(|a, b| a.0.total_cmp(&b.0))?;
            if slots[index][0] == 0.0 {
                self.waiting.remove(place);
                return Some((request, index));
            }
            slots[index][0] = end;
            slots[index].sort_unstable_by(f64::total_cmp);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::machine::Spec;

    #[test]
    fn waits_for_the_quick_backend_when_that_ends_earlier() {
        let mut machines = [Machine::new(Spec::queue(1, 1.0)), Machine::new(Spec::queue(1, 0.1))];
        let mut oracle = Oracle::new(Order::Arrival);
        for request in 0..3 {
            oracle.add(request, 1000.0);
        }
        assert_eq!(oracle.next(&machines, |_| true, 0), Some((0, 0)));
        machines[0].add(0, 1000.0, 0);
        // Two more end on the quick one at 2 and 3 us; the slow one would need 10.
        assert_eq!(oracle.next(&machines, |_| true, 0), None);
        assert_eq!(oracle.next(&machines, |index| index == 1, 0), Some((1, 1)));
    }

    #[test]
    fn least_work_goes_first_when_that_is_the_order() {
        let machines = [Machine::new(Spec::queue(1, 1.0))];
        let mut oracle = Oracle::new(Order::Work);
        oracle.add(0, 5.0);
        oracle.add(1, 3.0);
        assert_eq!(oracle.next(&machines, |_| true, 0), Some((1, 0)));
    }
}
