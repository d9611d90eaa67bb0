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
    /// The client for whom an answer is awaited here, looked at from `silent_ms` on.
    client: Option<RawFd>,
    silent_ms: u64,
    abandoned: bool,
}

/// The slots of one thread.
#[derive(Debug)]
pub(crate) struct Watch {
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<usize>>,
    epoch: Instant,
    now_ms: Cell<u64>,
    /// Clients were shut for reading, so that they all look as if they had closed.
    ended: Cell<bool>,
    traffic: [Cell<u64>; 4],
}

impl Watch {
    pub(crate) fn new(now: Instant) -> Rc<Self> {
        Rc::new(Self {
            slots: RefCell::default(),
            free: RefCell::default(),
            epoch: now,
            now_ms: Cell::new(0),
            ended: Cell::new(false),
            traffic: Default::default(),
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
        if !self.ended.get() {
            self.abandon();
        }
    }

    /// Ends the wait for answers whose clients are gone. Only waits that have lasted are looked at, so that a quick
    /// answer costs nothing; a slow one costs a system call per [`TICK`].
    fn abandon(&self) {
        let now_ms = self.now_ms();
        for slot in self.slots.borrow_mut().iter_mut().filter(|slot| slot.silent_ms <= now_ms) {
            let Some(client) = slot.client else { continue };
            // SAFETY: the client outlives the wait that it was given for, and the wait the slot's use.
            let client = unsafe { BorrowedFd::borrow_raw(client) };
            if is_gone(client) {
                (slot.abandoned, slot.client) = (true, None);
                // SAFETY: as in `sweep`.
                let fd = unsafe { BorrowedFd::borrow_raw(slot.fd) };
                let _ = rustix::net::shutdown(fd, Shutdown::Both);
            }
        }
    }

    /// Whether [`Self::end_requests`] was called: clients look gone then, and are not.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// Counts bytes that went one way; see [`Traffic`].
    pub(crate) fn count(&self, way: Traffic, bytes: usize) {
        let counter = &self.traffic[way as usize];
        counter.set(counter.get() + bytes as u64);
    }

    /// The bytes counted since the last call, in the order of [`Traffic`].
    pub(crate) fn take_traffic(&self) -> [u64; 4] {
        std::array::from_fn(|way| self.traffic[way].take())
    }

    /// Shuts down all halves on which clients send requests. What they have sent already can still be read.
    pub(crate) fn end_requests(&self) {
        self.ended.set(true);
        for slot in self.slots.borrow().iter().filter(|slot| slot.requests) {
            // SAFETY: as above; a freed slot is not marked.
            let fd = unsafe { BorrowedFd::borrow_raw(slot.fd) };
            let _ = rustix::net::shutdown(fd, slot.how);
        }
    }

    /// A slot for one half of a socket. The timer must be dropped before the socket is closed.
    pub(crate) fn timer(self: &Rc<Self>, fd: RawFd, how: Shutdown) -> Timer {
        let slot = Slot {
            fd,
            due_ms: NEVER,
            how,
            overdue: false,
            requests: false,
            client: None,
            silent_ms: NEVER,
            abandoned: false,
        };
        let mut slots = self.slots.borrow_mut();
        let index = self.free.borrow_mut().pop().unwrap_or_else(|| {
            slots.push(slot);
            slots.len() - 1
        });
        slots[index] = slot;
        Timer { watch: Rc::clone(self), index }
    }
}

/// Which way bytes go, as seen from here.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Traffic {
    FromClient,
    ToClient,
    FromBackend,
    ToBackend,
}

/// Whether the peer has closed its side or the connection is broken. Bytes that wait to be read do not matter and are
/// left alone.
pub(crate) fn is_gone(fd: BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut asked = [PollFd::from_borrowed_fd(fd, PollFlags::RDHUP)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut asked, Some(&at_once)).is_ok_and(|ready| ready > 0)
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

    /// Whether the wait ended because the client of [`Deadline::arm_for`] is gone.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.watch.slots.borrow()[self.index].abandoned
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

    /// Like [`Self::arm`], and the wait ends when `client` is gone: looked at after one to two [`TICK`]s. The client
    /// must stay open until [`Self::disarm`], or until the timer is dropped.
    pub(crate) fn arm_for(&self, wait: Duration, client: RawFd) {
        self.arm(wait);
        let slot = &mut self.watch.slots.borrow_mut()[self.index];
        slot.client = Some(client);
        slot.silent_ms = self.watch.now_ms() + 2 * TICK.as_millis() as u64;
    }

    pub(crate) fn disarm(&self) {
        let slot = &mut self.watch.slots.borrow_mut()[self.index];
        (slot.due_ms, slot.client, slot.silent_ms) = (NEVER, None, NEVER);
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let slot = &mut self.watch.slots.borrow_mut()[self.index];
        (slot.due_ms, slot.requests, slot.client, slot.silent_ms) = (NEVER, false, None, NEVER);
        self.watch.free.borrow_mut().push(self.index);
    }
}
