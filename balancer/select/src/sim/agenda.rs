//! What is going to happen at a known time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::front::News;
use super::machine::NEVER;

/// An event that is not the end of a request on a backend, an arrival of an open load, or a deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// Position in the scenario's list.
    Change(usize),
    /// A client of a closed load sends its next request.
    Send { client: u32 },
    /// An attempt that reached no backend is over.
    Unreached { job: u32 },
    /// An answer comes from a backend that delays its answers.
    Answered { job: u32 },
    /// A probe of this backend is sent.
    Probe { backend: usize },
    /// A probe is given up, unless it was answered.
    ProbeOver { job: u32, number: u64 },
    /// Another thread hears the news.
    Hear { thread: usize, news: News },
}

/// Events in the order of their times; of equal times, in the order in which they were added.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    events: BinaryHeap<Reverse<(u64, u64, Slot)>>,
    added: u64,
}

/// An event in the heap, which orders by time and number alone.
#[derive(Debug, Clone, Copy)]
struct Slot(Event);

impl PartialEq for Slot {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl Eq for Slot {}
impl Ord for Slot {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}
impl PartialOrd for Slot {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Agenda {
    pub(super) fn add(&mut self, at_ns: u64, event: Event) {
        self.added += 1;
        self.events.push(Reverse((at_ns, self.added, Slot(event))));
    }

    pub(super) fn next_ns(&self) -> u64 {
        self.events.peek().map_or(NEVER, |Reverse((at_ns, ..))| *at_ns)
    }

    pub(super) fn take(&mut self) -> Option<(u64, Event)> {
        self.events.pop().map(|Reverse((at_ns, _, Slot(event)))| (at_ns, event))
    }
}
