//! A choice and its end do not touch the heap, whatever the policy, once every buffer has its size.
#![cfg(not(loom))]
#![allow(
    clippy::disallowed_methods,
    reason = "a starting point for the virtual clock, which then moves by itself"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use select::{Backend, Cluster, Ejection, Limits, Outcome, PolicyKind, Ticket, View};

/// Enough for Envoy's peak-EWMA, which keeps the answers of 100 ms, up to a thousand of a backend.
const WARM_UP: u64 = 40_000;
const CHOICES: u64 = 20_000;
/// Requests in flight at once: one that was chosen ends so many choices later.
const IN_FLIGHT: usize = 200;

thread_local! {
    /// What this thread asked for: the threads of other tests are not counted.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: the system's allocator does the work; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Busy {
    cluster: Cluster,
    open: VecDeque<Ticket>,
    now: Instant,
}

impl Busy {
    fn new(size: usize, policy: PolicyKind) -> Self {
        let now = Instant::now();
        let backends = (0..size).map(|n| Arc::new(Backend::new(&format!("i-{n}"), now))).collect();
        let limits = Limits { deadline: Duration::from_secs(30), learns: true, in_flight_max: u32::MAX };
        let view = Arc::new(View::new(backends, Ejection::default()).limited(limits));
        let open = VecDeque::with_capacity(IN_FLIGHT + 1);
        Self { cluster: Cluster::new(view, policy, 1), open, now }
    }

    /// One request in a thousand fails, one is given up, and now and then a few in a row fail, which ejects.
    fn choose(&mut self, choice: u64) {
        self.now += Duration::from_micros(10);
        self.open.push_back(self.cluster.pick(self.now).expect("not all are ejected"));
        if self.open.len() <= IN_FLIGHT {
            return;
        }
        let outcome = match choice % 1000 {
            0 => Outcome::Failure,
            1 => Outcome::Cancelled,
            2..=200 if choice % 10_000 < 1000 => Outcome::Failure,
            _ => Outcome::Success,
        };
        let oldest = self.open.pop_front().expect("more than one");
        self.cluster.finish(oldest, outcome, self.now);
    }
}

#[track_caller]
fn check(size: usize, recording: bool) {
    for policy in PolicyKind::ALL {
        let mut busy = Busy::new(size, policy);
        busy.cluster.set_recording(recording);
        (0..WARM_UP).for_each(|choice| busy.choose(choice));
        let before = ALLOCATIONS.get();
        (WARM_UP..WARM_UP + CHOICES).for_each(|choice| busy.choose(choice));
        assert_eq!(ALLOCATIONS.get() - before, 0, "{} of {size} backends", policy.name());
    }
}

#[test]
fn allocations_are_counted() {
    let before = ALLOCATIONS.get();
    drop(std::hint::black_box(Box::new(1)));
    assert_eq!(ALLOCATIONS.get() - before, 1);
}

#[test]
fn choice_of_few_allocates_nothing() {
    check(8, false);
}

#[test]
fn choice_of_many_allocates_nothing() {
    check(300, false);
}

#[test]
fn remembered_choice_allocates_nothing() {
    check(8, true);
}
