//! What the tasks of one thread share: its view of the site, its buffers, its counters.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use crate::buffer::Buffer;
use crate::crew::Crew;
use crate::retry::RetryBudget;
use crate::site::{Shared, Site};
use crate::stats::{CLASSES, COUNTS};
use crate::watch::Watch;

/// A buffer that holds most messages whole: a typical answer is sent as it was received, in one piece.
pub(crate) const BUFFER_BYTES: usize = 16 << 10;
/// What an idle client connection holds: enough for nearly every head, small enough for ten thousand clients.
pub(crate) const IDLE_BYTES: usize = 4 << 10;
/// Buffers of each size kept for reuse by one thread, 5 MiB in all; more are freed after a burst.
const SPARE_MAX: usize = 256;

pub(crate) struct Thread {
    pub(crate) shared: Arc<Shared>,
    pub(crate) watch: Rc<Watch>,
    pub(crate) retries: RefCell<RetryBudget>,
    /// Client connections of this thread.
    pub(crate) clients: Cell<usize>,
    seed: u64,
    site: RefCell<Rc<Site>>,
    version: Cell<u64>,
    spare: Spare<BUFFER_BYTES>,
    idle: Spare<IDLE_BYTES>,
    /// Tasks that wait for a client.
    pub(crate) crew: Crew,
    counts: [Cell<u64>; COUNTS],
}

/// What a thread counts by itself; it is added to the process's totals at each tick.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Count {
    /// An answer to a client, by its status.
    Status(u16),
    /// A connection made to a backend.
    Connect,
    /// A request whose client went away.
    Cancelled,
    /// A connection that changed its protocol.
    Tunnel,
}

impl Count {
    fn index(self) -> usize {
        match self {
            Self::Status(status) => usize::from(status / 100).clamp(1, CLASSES) - 1,
            Self::Connect => CLASSES,
            Self::Cancelled => CLASSES + 1,
            Self::Tunnel => CLASSES + 2,
        }
    }
}

impl Thread {
    pub(crate) fn new(shared: Arc<Shared>, seed: u64, now: Instant) -> Self {
        let generation = shared.generation();
        Self {
            watch: Watch::new(now),
            retries: RefCell::new(RetryBudget::new(generation.config.threads, 0)),
            clients: Cell::new(0),
            seed,
            version: Cell::new(generation.number),
            site: RefCell::new(Rc::new(Site::new(generation, seed, None))),
            spare: Spare::default(),
            idle: Spare::default(),
            crew: Crew::default(),
            counts: Default::default(),
            shared,
        }
    }

    /// The current site. Costs one atomic load while the configuration stays the same.
    pub(crate) fn site(&self) -> Rc<Site> {
        if self.version.get() != self.shared.version() {
            self.renew();
        }
        Rc::clone(&self.site.borrow())
    }

    fn renew(&self) {
        let generation = self.shared.generation();
        self.version.set(generation.number);
        let next = Site::new(generation, self.seed, Some(&self.site.borrow()));
        self.site.replace(Rc::new(next));
    }

    /// An empty buffer of at least [`BUFFER_BYTES`].
    pub(crate) fn take_buffer(&self) -> Buffer {
        self.spare.take()
    }

    /// Keeps a buffer for reuse, unless it has grown or lost its memory.
    pub(crate) fn give_buffer(&self, buffer: Buffer) {
        self.spare.give(buffer);
    }

    /// An empty buffer of at least [`IDLE_BYTES`], for a new client.
    pub(crate) fn take_idle_buffer(&self) -> Buffer {
        self.idle.take()
    }

    /// Like [`Self::give_buffer`], for that of a client that is gone.
    pub(crate) fn give_idle_buffer(&self, buffer: Buffer) {
        self.idle.give(buffer);
    }

    pub(crate) fn count(&self, what: Count) {
        let counter = &self.counts[what.index()];
        counter.set(counter.get() + 1);
    }

    fn publish_counts(&self) {
        let totals = &self.shared.totals;
        for (total, counter) in totals.counts.iter().zip(&self.counts) {
            total.fetch_add(counter.take(), Relaxed);
        }
        for (total, bytes) in totals.traffic.iter().zip(self.watch.take_traffic()) {
            total.fetch_add(bytes, Relaxed);
        }
    }

    /// Work that is due ten times a second: deadlines, idle connections.
    pub(crate) fn tick(&self, now: Instant) {
        self.publish_counts();
        self.watch.sweep(now);
        self.site().sweep(self.watch.now_ms(), now);
    }

    /// A place for one more streamed body; `None` when too many are under way.
    pub(crate) fn stream(&self, limit: usize) -> Option<Streaming> {
        let shared = Arc::clone(&self.shared);
        if shared.totals.bodies.fetch_add(1, Relaxed) >= limit {
            shared.totals.bodies.fetch_sub(1, Relaxed);
            return None;
        }
        Some(Streaming { shared })
    }
}

/// Buffers kept for reuse, each of `BYTES` or a little more.
#[derive(Default)]
struct Spare<const BYTES: usize>(RefCell<Vec<Buffer>>);

impl<const BYTES: usize> Spare<BYTES> {
    fn take(&self) -> Buffer {
        self.0.borrow_mut().pop().unwrap_or_else(|| Buffer::with_capacity(BYTES))
    }

    fn give(&self, mut buffer: Buffer) {
        let mut spare = self.0.borrow_mut();
        if spare.len() < SPARE_MAX && (BYTES..=2 * BYTES).contains(&buffer.capacity()) {
            buffer.clear();
            spare.push(buffer);
        }
    }
}

/// A body being streamed; ends when dropped.
pub(crate) struct Streaming {
    shared: Arc<Shared>,
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.shared.totals.bodies.fetch_sub(1, Relaxed);
    }
}
