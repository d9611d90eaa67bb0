//! Deadlines of one thread's sockets.
//!
//! A read that is dropped may have taken bytes with it, and a timer per read costs more than the read. So every
//! socket half has a slot with the time at which it is overdue; a sweep ten times a second shuts overdue sockets
//! down, and the pending operation then returns by itself. Deadlines are therefore met up to [`TICK`] late.
//!
//! This module does not close sockets and wakes no task itself.

use std::cell::{Cell, RefCell};
use std::os::fd::{BorrowedFd, RawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::net::Shutdown;

/// How often deadlines are looked at. A sweep of 10,000 idle slots takes some 20 us.
pub(crate) const TICK: Duration = Duration::from_millis(100);

const NEVER: u64 = u64::MAX;

#[derive(Debug, Clone, Copy)]
struct Slot {
    fd: RawFd,
    due_ms: u64,
    how: Shutdown,
    overdue: bool,
    /// A client's requests are read here.
    requests: bool,
}

/// The slots of one thread.
#[derive(Debug)]
pub(crate) struct Watch {
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<usize>>,
    epoch: Instant,
    now_ms: Cell<u64>,
}

impl Watch {
    pub(crate) fn new(now: Instant) -> Rc<Self> {
        Rc::new(Self {
            slots: RefCell::default(),
            free: RefCell::default(),
            epoch: now,
            now_ms: Cell::new(0),
        })
    }

    /// Milliseconds since the thread began, as of the last [`Self::advance`]: good to [`TICK`].
    pub(crate) fn now_ms(&self) -> u64 {
        self.now_ms.get()
    }

    pub(crate) fn advance(&self, now: Instant) {
        self.now_ms.set(now.saturating_duration_since(self.epoch).as_millis() as u64);
    }

    /// Shuts down every socket that is overdue.
    pub(crate) fn sweep(&self, now: Instant) {
        self.advance(now);
        let now_ms = self.now_ms();
        for slot in self.slots.borrow_mut().iter_mut().filter(|slot| slot.due_ms <= now_ms) {
            slot.due_ms = NEVER;
            slot.overdue = true;
            // SAFETY: a slot is freed before its socket is closed (see `Timer`), so the descriptor is open.
            let fd = unsafe { BorrowedFd::borrow_raw(slot.fd) };
            // A socket that is no longer connected has nothing pending, and its next operation fails anyway.
            let _ = rustix::net::shutdown(fd, slot.how);
        }
    }

    /// Shuts down all halves on which clients send requests. What they have sent already can still be read.
    pub(crate) fn end_requests(&self) {
        for slot in self.slots.borrow().iter().filter(|slot| slot.requests) {
            // SAFETY: as above; a freed slot is not marked.
            let fd = unsafe { BorrowedFd::borrow_raw(slot.fd) };
            let _ = rustix::net::shutdown(fd, slot.how);
        }
    }

    /// A slot for one half of a socket. The timer must be dropped before the socket is closed.
    pub(crate) fn timer(self: &Rc<Self>, fd: RawFd, how: Shutdown) -> Timer {
        let slot = Slot { fd, due_ms: NEVER, how, overdue: false, requests: false };
        let mut slots = self.slots.borrow_mut();
        let index = self.free.borrow_mut().pop().unwrap_or_else(|| {
            slots.push(slot);
            slots.len() - 1
        });
        slots[index] = slot;
        Timer { watch: Rc::clone(self), index }
    }
}

/// One slot; freed on drop.
#[derive(Debug)]
pub(crate) struct Timer {
    watch: Rc<Watch>,
    index: usize,
}

impl Timer {
    pub(crate) fn arm(&self, wait: Duration) {
        self.arm_until(self.watch.now_ms() + wait.as_millis() as u64);
    }

    /// `due_ms` is on the scale of [`Watch::now_ms`].
    pub(crate) fn arm_until(&self, due_ms: u64) {
        self.watch.slots.borrow_mut()[self.index].due_ms = due_ms;
    }

    pub(crate) fn disarm(&self) {
        self.arm_until(NEVER);
    }

    /// Marks the half on which a client sends its requests; see [`Watch::end_requests`].
    pub(crate) fn carries_requests(&self) {
        self.watch.slots.borrow_mut()[self.index].requests = true;
    }

    /// Whether the deadline passed and the socket was shut down for it.
    pub(crate) fn is_overdue(&self) -> bool {
        self.watch.slots.borrow()[self.index].overdue
    }

    pub(crate) fn watch(&self) -> &Watch {
        &self.watch
    }

    pub(crate) fn deadline(&self) -> Deadline {
        Deadline { watch: Rc::clone(&self.watch), index: self.index }
    }
}

/// Access to a timer's deadline. Must not be used after the timer is dropped.
pub(crate) struct Deadline {
    watch: Rc<Watch>,
    index: usize,
}

impl Deadline {
    pub(crate) fn arm(&self, wait: Duration) {
        self.watch.slots.borrow_mut()[self.index].due_ms = self.watch.now_ms() + wait.as_millis() as u64;
    }

    pub(crate) fn disarm(&self) {
        self.watch.slots.borrow_mut()[self.index].due_ms = NEVER;
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let slot = &mut self.watch.slots.borrow_mut()[self.index];
        (slot.due_ms, slot.requests) = (NEVER, false);
        self.watch.free.borrow_mut().push(self.index);
    }
}
