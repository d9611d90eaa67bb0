//! Requests that wait for a backend with room.
//!
//! Nothing here wakes anybody or knows the time.

use std::collections::VecDeque;
use std::sync::PoisonError;

use crate::sync::{
    AtomicU32, Mutex, MutexGuard,
    Ordering::{Acquire, Release},
};

/// Requests of one cluster that wait until a backend has room, in the order of their arrival; all threads share it. A
/// backend is chosen for a request only when one has room, so that it goes where room comes first.
///
/// Whoever waits keeps to this order, so that no room is lost between two threads:
/// - it joins, and tries to pick once more, if it is [first](Self::is_first);
/// - it tries again when it is first and is told that room may be there: whoever [finishes](crate::Cluster::finish) a
///   request afterwards sees that the queue is not empty, and tells the first;
/// - when it leaves, served or not, it tells the one that is first then.
///
/// What a request is told by (`T`) is the caller's business, and so is how long it waits.
#[derive(Debug)]
pub struct Queue<T> {
    /// Number of those that wait, to be read without the lock.
    count: AtomicU32,
    waiting: Mutex<Waiting<T>>,
    count_max: usize,
}

#[derive(Debug)]
struct Waiting<T> {
    places: VecDeque<(u64, T)>,
    next: u64,
}

impl<T> Queue<T> {
    /// A queue in which at most `count_max` requests wait.
    #[must_use]
    pub fn new(count_max: usize) -> Self {
        let waiting = Waiting { places: VecDeque::new(), next: 0 };
        Self { count: AtomicU32::new(0), waiting: Mutex::new(waiting), count_max }
    }

    /// Costs one load. A newcomer that finds somebody waiting waits too.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.count.load(Acquire) as usize
    }

    /// A place at the end; `None` when the queue is full.
    #[must_use]
    pub fn join(&self, who: T) -> Option<u64> {
        let mut waiting = self.lock();
        if waiting.places.len() >= self.count_max {
            return None;
        }
        let place = waiting.next;
        waiting.next += 1;
        waiting.places.push_back((place, who));
        self.count.store(waiting.places.len() as u32, Release);
        Some(place)
    }

    /// Gives a place up, wherever it is in the queue; a second time does nothing.
    pub fn leave(&self, place: u64) {
        let mut waiting = self.lock();
        if let Ok(position) = waiting.places.binary_search_by_key(&place, |&(place, _)| place) {
            waiting.places.remove(position);
            self.count.store(waiting.places.len() as u32, Release);
        }
    }

    #[must_use]
    pub fn is_first(&self, place: u64) -> bool {
        self.lock().places.front().is_some_and(|&(first, _)| first == place)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<T>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone> Queue<T> {
    /// Who is to be told when there may be room.
    #[must_use]
    pub fn first(&self) -> Option<(u64, T)> {
        self.lock().places.front().cloned()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn first_come_is_first_and_whoever_gives_up_leaves_no_gap() {
        let queue = Queue::new(3);
        let places: Vec<u64> = ["a", "b", "c"].map(|who| queue.join(who).expect("room")).into();
        assert_eq!(queue.first(), Some((places[0], "a")));
        queue.leave(places[1]);
        queue.leave(places[1]);
        assert_eq!(queue.len(), 2);
        queue.leave(places[0]);
        assert!(queue.is_first(places[2]));
        queue.leave(places[2]);
        assert!(queue.is_empty());
        assert_eq!(queue.first(), None);
    }

    #[test]
    fn full_queue_takes_nobody_until_somebody_leaves() {
        let queue = Queue::new(1);
        let place = queue.join(()).expect("room");
        assert_eq!(queue.join(()), None);
        queue.leave(place);
        assert!(queue.join(()).is_some());
        assert_eq!(Queue::new(0).join(()), None);
    }
}
