//! From a request to the backend that answers it.

use std::sync::atomic::Ordering::Relaxed;

use select::Outcome;

use super::exchange::exchange;
use super::flight::{Flight, outcome_of};
use super::plan::{Job, Meta};
use super::waiting::wait;
use super::{Client, Reply, pump};
use crate::buffer::Buffer;
use crate::clock;
use crate::error::Error;
use crate::http::Body;
use crate::thread::Thread;

/// Backends that one request is sent to, at most: a connect that fails is cheap, but a client does not wait for ever.
const ATTEMPTS_MAX: usize = 3;

/// A request that was not answered.
pub(crate) struct Failed {
    pub(crate) error: Error,
    /// Whether the request's body was read to its end, so that the connection can go on.
    pub(crate) body_read: bool,
}

/// Sends a request to a backend and brings its answer back. Tries another backend when a connection cannot be made,
/// and when one dies before the first byte of an answer to an idempotent request that is still at hand; never
/// otherwise (RFC 9110, 9.2.2).
pub(crate) async fn forward(
    client: &mut Client,
    thread: &Thread,
    meta: &Meta,
    mut job: Job,
) -> Result<Reply, Failed> {
    let mut body = std::mem::replace(&mut job.body, Body::Empty);
    let head_bytes = client.out.len();
    let failed = |error, body_read| Failed { error, body_read };
    // What is here of the body goes with the head, in one piece.
    pump::take_ready(&mut client.reader.inbound, &mut client.out, &mut body, false)
        .map_err(|refusal| failed(Error::Refused(refusal), false))?;
    let whole = body.is_done();
    let limit = job.site.generation.config.limits.bodies;
    let _streaming =
        if whole { None } else { Some(thread.stream(limit).ok_or_else(|| failed(Error::Busy, false))?) };
    thread.retries.borrow_mut().earn();

    let mut attempts = Attempts::default();
    let mut awaits_continue = job.expects_continue && !whole;
    loop {
        let mut flight = loop {
            if let Some(flight) = attempts.pick(&job) {
                break flight;
            }
            if let Some(error) = attempts.last.take() {
                return Err(failed(error, whole));
            }
            let error = match wait(client, thread, &job).await {
                Ok(flight) => break flight,
                Err(error) => error,
            };
            // All backends that the request knew may be leaving, because others have replaced them.
            if !(matches!(error, Error::NoBackend) && job.follow(thread)) {
                return Err(failed(error, whole));
            }
        };
        if let Some(entry) = &mut client.entry {
            let (cluster, backend) = flight.names();
            entry.set_backend(cluster, backend);
        }
        // Only what can be repeated may find out by failing that its connection was closed.
        let must_live = !(whole && job.is_idempotent);
        let (upstream, reused) = match flight.connect(thread, must_live).await {
            Ok(connected) => connected,
            Err(error) => {
                flight.finish(outcome_of(&error));
                attempts.note(&flight, error, thread).map_err(|error| failed(error, whole))?;
                continue;
            }
        };
        if std::mem::take(&mut awaits_continue) && client.out.len() == head_bytes {
            send_continue(client, thread, &job).await.map_err(|error| failed(error, false))?;
        }
        let error = match exchange(client, thread, meta, &job, body.clone(), upstream, &mut flight).await {
            Ok(reply) => return Ok(reply),
            Err(error) => error,
        };
        let died = matches!(error, Error::Died);
        // A kept connection may have been closed before the request came, which says nothing about the backend.
        let stale = reused && died;
        flight.finish(if stale { Outcome::Cancelled } else { outcome_of(&error) });
        if stale {
            flight.forget_idle();
        }
        if !(died && whole && job.is_idempotent && !client.out.as_slice().is_empty()) {
            return Err(failed(error, whole));
        }
        attempts.note(&flight, error, thread).map_err(|error| failed(error, whole))?;
        attempts.may_repeat_backend = stale;
    }
}

/// What was tried for one request.
#[derive(Default)]
struct Attempts {
    tried: [usize; ATTEMPTS_MAX],
    count: usize,
    last: Option<Error>,
    /// The last backend was not at fault, so it may be used again when there is no other.
    may_repeat_backend: bool,
}

impl Attempts {
    fn pick<'a>(&self, job: &'a Job) -> Option<Flight<'a>> {
        let shard = &job.site.generation.clusters[job.cluster];
        if self.count == 0 && !shard.queue.is_empty() {
            // Who comes when others wait waits behind them.
            return None;
        }
        let now = clock::now();
        let other = Flight::pick(job, &self.tried[..self.count], now);
        if other.is_none() && self.may_repeat_backend { Flight::pick(job, &[], now) } else { other }
    }

    /// Notes a failed attempt. Fails with its error when there shall be no other.
    fn note(&mut self, flight: &Flight<'_>, error: Error, thread: &Thread) -> Result<(), Error> {
        self.tried[self.count] = flight.backend();
        self.count += 1;
        self.may_repeat_backend = false;
        if self.count == ATTEMPTS_MAX || !thread.retries.borrow_mut().spend(thread.watch.now_ms()) {
            return Err(error);
        }
        thread.shared.totals.retries.fetch_add(1, Relaxed);
        self.last = Some(error);
        Ok(())
    }
}

/// The client waits to be told that its body is wanted; now a backend is there to take it.
async fn send_continue(client: &mut Client, thread: &Thread, job: &Job) -> Result<(), Error> {
    let mut buffer: Buffer = thread.take_buffer();
    buffer.end().extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
    let wait = job.site.generation.config.timeouts.body_idle;
    let (sent, buffer) = client.writer.send(buffer, wait).await;
    thread.give_buffer(buffer);
    sent.map_err(|_| Error::ClientGone)
}
