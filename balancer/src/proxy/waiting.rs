//! A request that waits until a backend has room, in the queue that all threads share.
//!
//! Nothing here decides how many requests a backend may have, or who may wait: `select` does.

use std::future::poll_fn;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Instant;

use super::Client;
use super::flight::Flight;
use super::plan::Job;
use crate::clock;
use crate::error::Error;
use crate::thread::Thread;
use crate::watch::TICK;

/// Waits for a backend with room. Fails at once when the wait would be too long, or when no backend is up; later when
/// it was too long, when the client goes away, or when the time to drain is over.
pub(crate) async fn wait<'a>(client: &Client, thread: &Thread, job: &'a Job) -> Result<Flight<'a>, Error> {
    let shard = &job.site.generation.clusters[job.cluster];
    let now = clock::now();
    let patience = shard.view.wait(shard.queue.len(), now).ok_or_else(|| refusal(thread, job, now))?;
    let place = Place::join(thread, job).ok_or_else(|| refusal(thread, job, now))?;
    let due = now + patience;
    loop {
        if shard.queue.is_first(place.number)
            && let Some(flight) = Flight::pick(job, &[], clock::now())
        {
            return Ok(flight);
        }
        let now = clock::now();
        if thread.watch.has_ended() || now >= due || shard.view.wait(0, now).is_none() {
            return Err(refusal(thread, job, now));
        }
        if client.reader.is_gone() {
            return Err(Error::ClientGone);
        }
        // Backends also get room by time alone, and nobody tells of a client that goes away.
        let _ = monoio::time::timeout(TICK.min(due - now), place.told()).await;
    }
}

/// Whether it was for want of room that a request is refused.
fn refusal(thread: &Thread, job: &Job, now: Instant) -> Error {
    if job.site.generation.clusters[job.cluster].view.is_up(now) {
        thread.shared.totals.overloaded.fetch_add(1, Relaxed);
        Error::Overloaded
    } else {
        Error::NoBackend
    }
}

/// A place in the queue of a cluster; given up when dropped.
struct Place<'a> {
    job: &'a Job,
    number: u64,
}

impl<'a> Place<'a> {
    fn join(thread: &Thread, job: &'a Job) -> Option<Self> {
        let number = job.site.generation.clusters[job.cluster].queue.join(thread.bell.clone())?;
        job.site.pickers[job.cluster].borrow_mut().waiting.insert(number, Waiting::default());
        Some(Self { job, number })
    }

    /// Waits until somebody says that there may be room.
    async fn told(&self) {
        poll_fn(|cx| {
            let mut picker = self.job.site.pickers[self.job.cluster].borrow_mut();
            let Some(waiting) = picker.waiting.get_mut(&self.number) else { return Poll::Ready(()) };
            if std::mem::take(&mut waiting.told) {
                return Poll::Ready(());
            }
            waiting.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.job.site.pickers[self.job.cluster].borrow_mut().waiting.remove(&self.number);
        self.job.site.generation.clusters[self.job.cluster].queue.leave(self.number);
        // There may be room for more than one, or this one has left without being served.
        self.job.site.tell_first(self.job.cluster);
    }
}

/// One that waits, as its thread keeps it.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    told: bool,
    waker: Option<std::task::Waker>,
}

impl Waiting {
    pub(crate) fn tell(&mut self) {
        self.told = true;
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}
