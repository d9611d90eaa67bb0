//! What the tasks of one thread share: its view of the site, its buffers, its counters.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};

use crate::access::Recorder;
use crate::bell::Bell;
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
    /// By which other threads tell this one that a backend has room.
    pub(crate) bell: Arc<Bell>,
    pub(crate) retries: RefCell<RetryBudget>,
    /// Client connections of this thread.
    pub(crate) clients: Cell<usize>,
    /// Does nothing but take the place of a client that must be told that there is none.
    spare_descriptor: RefCell<Option<OwnedFd>>,
    /// For the log of requests, if there is one.
    pub(crate) recorder: Option<Recorder>,
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
    pub(crate) fn new(shared: Arc<Shared>, bell: Arc<Bell>, seed: u64, now: Instant) -> Self {
        let generation = shared.generation();
        Self {
            watch: Watch::new(now),
            retries: RefCell::new(RetryBudget::new(generation.config.threads, 0)),
            clients: Cell::new(0),
            spare_descriptor: RefCell::default(),
            recorder: shared.access.clone().map(Recorder::new),
            seed,
            version: Cell::new(generation.number),
            site: RefCell::new(Rc::new(Site::new(generation, Arc::clone(&bell), seed, None))),
            bell,
            spare: Spare::default(),
            idle: Spare::default(),
            crew: Crew::default(),
            counts: Default::default(),
            shared,
        }
    }

    /// Sees to it that there is a spare descriptor; whether one is to be had.
    pub(crate) fn reserve_descriptor(&self) -> bool {
        let mut spare = self.spare_descriptor.borrow_mut();
        if spare.is_none() {
            *spare = eventfd(0, EventfdFlags::CLOEXEC).ok();
        }
        spare.is_some()
    }

    /// Closes the spare descriptor, for another to take its place.
    pub(crate) fn free_descriptor(&self) {
        self.spare_descriptor.take();
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
        let next = Site::new(generation, Arc::clone(&self.bell), self.seed, Some(&self.site.borrow()));
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

    /// The bell was rung: tells the requests of this thread that are first where they wait.
    pub(crate) fn hear(&self) {
        let site = self.site();
        (0..site.pickers.len()).for_each(|cluster| site.tell_first(cluster));
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

    /// Work that is due ten times a second: deadlines, idle connections, readers of what is believed.
    pub(crate) fn tick(&self, now: Instant) {
        self.publish_counts();
        self.recorder.iter().for_each(Recorder::flush);
        self.watch.sweep(now);
        let site = self.site();
        site.sweep(self.watch.now_ms(), now);
        self.shared.insight.tick(self.seed as usize, &site, self.shared.uptime(now), now);
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
