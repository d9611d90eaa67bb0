//! The open loop of one thread: a request is sent when it is due, over a free connection or a new one.
//!
//! When all connections are busy and no more may be opened, requests wait, and the connection that is free first
//! takes the one that was due first. They wait as arrivals of the schedule, so that a backlog of any length takes no
//! memory. Threads share nothing: a request may wait while another thread has a connection free.
//!
//! Does not decide when requests are due, and slows down for nothing.

use std::{
    cell::{Cell, RefCell},
    io,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{
    sync::Notify,
    task::{JoinSet, yield_now},
};

use super::{alarm::Alarm, generate::Work, link::Link};

/// A generator that is late releases so many requests before it looks at answers again.
const BATCH_MAX: u32 = 64;

/// Sends all requests of a thread; returns when none is due any more. The tasks of its connections end when they have
/// served those that still wait.
///
/// Errors when there is no timer.
pub(super) async fn run(
    work: &Rc<Work>,
    thread: usize,
    connections_max: u64,
    tasks: &mut JoinSet<()>,
) -> io::Result<()> {
    let alarm = Alarm::new()?;
    let arrivals = work.plan.arrivals(thread);
    let pool = Rc::new(Pool {
        work: Rc::clone(work),
        idle: RefCell::new(Vec::new()),
        untaken: RefCell::new(arrivals.clone()),
        waiting: Cell::new(0),
        is_over: Cell::new(false),
    });
    let mut batch = 0;
    for due in arrivals {
        let at = work.start + due;
        batch = if alarm.wait_until(at).await? { 0 } else { batch + 1 };
        pool.release(at, connections_max, tasks);
        if batch == BATCH_MAX {
            batch = 0;
            yield_now().await;
        }
    }
    pool.end();
    Ok(())
}

/// The connections of one thread. Either some are idle or some requests wait, never both.
struct Pool<A> {
    work: Rc<Work>,
    /// The one used last is used first, so that no more are kept alive than are needed.
    idle: RefCell<Vec<Rc<Slot>>>,
    /// The arrivals that no connection has taken yet.
    untaken: RefCell<A>,
    /// How many of these have been due already.
    waiting: Cell<u64>,
    /// No more will be due.
    is_over: Cell<bool>,
}

/// Where an idle connection waits for its next request.
#[derive(Default)]
struct Slot {
    /// When it was due; nothing when the connection is to end.
    due: Cell<Option<Instant>>,
    filled: Notify,
}

impl<A: Iterator<Item = Duration> + 'static> Pool<A> {
    /// The request that is due now.
    fn release(self: &Rc<Self>, due: Instant, connections_max: u64, tasks: &mut JoinSet<()>) {
        self.work.come(due);
        let idle = self.idle.borrow_mut().pop();
        if idle.is_none() && tasks.len() as u64 >= connections_max {
            self.waiting.set(self.waiting.get() + 1);
            self.work.recorder(due).lag.record(due.elapsed());
            return;
        }
        self.untaken.borrow_mut().next();
        match idle {
            Some(slot) => slot.fill(Some(due)),
            None => {
                let pool = Rc::clone(self);
                tasks.spawn_local(async move { pool.serve(due).await });
            }
        }
    }

    /// The life of one connection.
    async fn serve(&self, first: Instant) {
        let mut link = Link::new(self.work.address);
        let slot = Rc::new(Slot::default());
        let mut next = Some(first);
        while let Some(due) = next {
            self.work.recorder(due).lag.record(due.elapsed());
            self.work.exchange(&mut link, due).await;
            self.serve_waiting(&mut link).await;
            if self.is_over.get() {
                return;
            }
            self.idle.borrow_mut().push(Rc::clone(&slot));
            slot.filled.notified().await;
            next = slot.due.take();
            link.drop_if_stale();
        }
    }

    async fn serve_waiting(&self, link: &mut Link) {
        while let Some(due) = self.take_waiting() {
            let late = due.elapsed();
            self.work.recorder(due).queued.record(late);
            if late < self.work.plan.options.timeout.0 {
                self.work.exchange(link, due).await;
            } else {
                self.work.give_up(due);
            }
        }
    }

    /// The one that has waited longest.
    fn take_waiting(&self) -> Option<Instant> {
        self.waiting.set(self.waiting.get().checked_sub(1)?);
        Some(self.work.start + self.untaken.borrow_mut().next()?)
    }

    fn end(&self) {
        self.is_over.set(true);
        for slot in self.idle.borrow_mut().drain(..) {
            slot.fill(None);
        }
    }
}

impl Slot {
    fn fill(&self, due: Option<Instant>) {
        self.due.set(due);
        self.filled.notify_one();
    }
}
