//! From a request to the backend that answers it.
//!
//! This module decides what may be sent again; `select` says to whom.

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
use crate::thread::{Streaming, Thread};

/// Backends that one request is sent to, at most: a connect that fails is cheap, but a client does not wait for ever.
const ATTEMPTS_MAX: usize = 3;

/// A request that was not answered.
pub(crate) struct Failed {
    pub(crate) error: Error,
    /// Whether the request's body was read to its end, so that the connection can go on.
    pub(crate) body_read: bool,
}

/// What a request is sent with, to whichever backend.
struct Sending<'a> {
    meta: &'a Meta,
    job: &'a Job,
    /// What is still to come of its body.
    body: &'a Body,
    /// The client waits to be told that its body is wanted.
    awaits_continue: bool,
}

impl Sending<'_> {
    /// Whether it is all at hand and may be done twice (RFC 9110, 9.2.2).
    fn may_repeat(&self) -> bool {
        self.body.is_done() && self.job.is_idempotent
    }
}

/// How an attempt failed.
struct Fault {
    error: Error,
    /// Whether the request may be sent again.
    repeatable: bool,
    /// A kept connection had been closed before the request came, which says nothing about the backend.
    stale: bool,
}

impl Fault {
    /// Before anything of the request was sent.
    fn unsent(error: Error) -> Self {
        Self { error, repeatable: true, stale: false }
    }

    fn outcome(&self) -> Outcome {
        if self.stale { Outcome::Cancelled } else { outcome_of(&self.error) }
    }
}

/// Sends a request to a backend and brings its answer back. Tries another backend when a connection cannot be made,
/// and when one dies before the first byte of an answer to an idempotent request that is still at hand; never
/// otherwise.
pub(crate) async fn forward(
    client: &mut Client,
    thread: &Thread,
    meta: &Meta,
    mut job: Job,
) -> Result<Reply, Failed> {
    let mut body = std::mem::replace(&mut job.body, Body::Empty);
    let awaits_continue = take_body(client, &job, &mut body)?;
    let whole = body.is_done();
    let failed = |error| Failed { error, body_read: whole };
    let _place = if whole { None } else { Some(place(thread, &job).map_err(failed)?) };
    thread.retries.borrow_mut().earn();
    let mut attempts = Attempts::default();
    loop {
        let mut flight = loop {
            let error = match attempts.next(client, thread, &job).await {
                Ok(flight) => break flight,
                Err(error) => error,
            };
            // All backends that the request knew may be leaving, because others have replaced them.
            if !(matches!(error, Error::NoBackend) && job.follow(thread)) {
                return Err(failed(error));
            }
        };
        let sending = Sending { meta, job: &job, body: &body, awaits_continue };
        let fault = match attempt(client, thread, &sending, &mut flight).await {
            Ok(reply) => return Ok(reply),
            Err(fault) => fault,
        };
        attempts.note(&mut flight, fault, thread).map_err(failed)?;
    }
}

/// Moves what is here of the body behind the head, to go with it in one piece. Whether the client waits to be told to
/// send it.
fn take_body(client: &mut Client, job: &Job, body: &mut Body) -> Result<bool, Failed> {
    let head_bytes = client.out.len();
    pump::take_ready(&mut client.reader.inbound, &mut client.out, body, false)
        .map_err(|refusal| Failed { error: Error::Refused(refusal), body_read: false })?;
    Ok(job.expects_continue && !body.is_done() && client.out.len() == head_bytes)
}

/// A place among the bodies that stream.
fn place(thread: &Thread, job: &Job) -> Result<Streaming, Error> {
    thread.stream(job.site.generation.config.limits.bodies).ok_or(Error::Busy)
}

/// Sends the request to the backend of `flight`.
async fn attempt(
    client: &mut Client,
    thread: &Thread,
    sending: &Sending<'_>,
    flight: &mut Flight<'_>,
) -> Result<Reply, Fault> {
    let &Sending { meta, job, body, awaits_continue } = sending;
    if let Some(entry) = &mut client.entry {
        let (cluster, backend) = flight.names();
        entry.set_backend(cluster, backend);
    }
    // Only what can be repeated may find out by failing that its connection was closed.
    let connected = flight.connect(thread, !sending.may_repeat()).await;
    let (upstream, reused) = connected.map_err(Fault::unsent)?;
    if awaits_continue && let Err(error) = send_continue(client, thread, job).await {
        return Err(Fault { error, repeatable: false, stale: false });
    }
    let error = match exchange(client, thread, meta, job, body.clone(), upstream, flight).await {
        Ok(reply) => return Ok(reply),
        Err(error) => error,
    };
    let died = matches!(error, Error::Died);
    let repeatable = died && sending.may_repeat() && !client.out.as_slice().is_empty();
    Err(Fault { error, repeatable, stale: died && reused })
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
    /// The backend to try next. The first one may have to be waited for; with none left, the request has failed as the
    /// last attempt did.
    async fn next<'a>(
        &mut self,
        client: &Client,
        thread: &Thread,
        job: &'a Job,
    ) -> Result<Flight<'a>, Error> {
        match (self.pick(job), self.last.take()) {
            (Some(flight), _) => Ok(flight),
            (None, Some(error)) => Err(error),
            (None, None) => wait(client, thread, job).await,
        }
    }

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

    /// Ends a failed attempt. Fails with its error when there shall be no other.
    fn note(&mut self, flight: &mut Flight<'_>, fault: Fault, thread: &Thread) -> Result<(), Error> {
        flight.finish(fault.outcome());
        if fault.stale {
            flight.forget_idle();
        }
        if !fault.repeatable {
            return Err(fault.error);
        }
        self.tried[self.count] = flight.backend();
        self.count += 1;
        if self.count == ATTEMPTS_MAX || !thread.retries.borrow_mut().spend(thread.watch.now_ms()) {
            return Err(fault.error);
        }
        thread.shared.totals.retries.fetch_add(1, Relaxed);
        (self.last, self.may_repeat_backend) = (Some(fault.error), fault.stale);
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
