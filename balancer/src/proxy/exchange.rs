//! One request and its answer over one connection to a backend.
//!
//! This module does not choose the backend and sends nothing twice.

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;

use super::flight::{Flight, outcome_of, outcome_of_status};
use super::head::{Expected, Head, receive_head};
use super::plan::{Job, Meta};
use super::pump::{BESIDE_BYTES, PumpError, STREAM_BYTES, pump};
use super::tunnel::tunnel;
use super::upload::{Upload, Uploaded};
use super::{Client, Reply, Then};
use crate::access::Entry;
use crate::buffer::Buffer;
use crate::error::Error;
use crate::http::Body;
use crate::pool::{Keep, Upstream};
use crate::socket::{Reader, Writer};
use crate::thread::{Count, Streaming, Thread};

/// An answer that was brought back.
struct Carried {
    reply: Reply,
    /// What becomes of the connection to the backend.
    upstream: Keep,
    /// The connection has changed its protocol; the reply is what the client is sent first.
    switched: Option<Streaming>,
}

/// Sends the request in `client.out` with the rest of its `body`, and brings the answer back. Small answers are left
/// to the caller to send; larger ones are streamed here. An error means that the client was sent nothing; if the
/// whole request can be sent again, `client.out` still holds it.
pub(crate) async fn exchange(
    client: &mut Client,
    thread: &Thread,
    meta: &Meta,
    job: &Job,
    body: Body,
    mut upstream: Upstream,
    flight: &mut Flight<'_>,
) -> Result<Reply, Error> {
    let config = &job.site.generation.config;
    let expected = Expected {
        meta,
        config,
        whole: body.is_done(),
        uploading: Cell::new(true),
        upgrade: job.upgrade.as_deref(),
    };
    upstream.reader.inbound = thread.take_buffer();
    let mut head_out = thread.take_buffer();
    let carried = carry(client, thread, &expected, body, &mut upstream, &mut head_out, flight).await;
    thread.give_buffer(head_out);
    if let Ok(Carried { switched: Some(_place), reply: Reply::Send(head, _), .. }) = carried {
        tunnel(client, thread, upstream, head, config.timeouts.body_idle).await;
        return Ok(Reply::Sent(Then::Close));
    }
    thread.give_buffer(std::mem::take(&mut upstream.reader.inbound));
    let carried = carried?;
    flight.checkin(upstream, carried.upstream);
    Ok(carried.reply)
}

async fn carry(
    client: &mut Client,
    thread: &Thread,
    expected: &Expected<'_>,
    mut body: Body,
    upstream: &mut Upstream,
    head_out: &mut Buffer,
    flight: &mut Flight<'_>,
) -> Result<Carried, Error> {
    let timeouts = &expected.config.timeouts;
    let Upstream { reader, writer } = upstream;
    let Client { reader: from, writer: client, out, entry, .. } = client;
    let (deadline, client_fd) = (reader.deadline(), from.fd());
    let request = std::mem::take(out);
    let sending = pin!(pump(from, writer, &mut body, request, false, STREAM_BYTES, timeouts.body_idle));
    let upload = Upload::new(sending, &expected.uploading, deadline, client_fd, timeouts.response);
    let mut carriage = Carriage { thread, expected, flight, reader, client, out, head_out, entry, upload };
    let head = carriage.receive_head().await?;
    if head.status == 101 {
        carriage.switch(&head)
    } else if let Some(carried) = carriage.take_whole(&head)? {
        Ok(carried)
    } else {
        carriage.stream(&head).await
    }
}

/// An answer on its way from a backend to a client, with the request going the other way beside it.
struct Carriage<'a, 'f, F> {
    thread: &'a Thread,
    expected: &'a Expected<'a>,
    flight: &'a mut Flight<'f>,
    /// From the backend.
    reader: &'a mut Reader,
    /// To the client.
    client: &'a mut Writer,
    /// Where the request goes back to when it can be sent again, and its buffer in any case.
    out: &'a mut Buffer,
    head_out: &'a mut Buffer,
    entry: &'a mut Option<Box<Entry>>,
    upload: Upload<'a, F>,
}

impl<F: Future<Output = Uploaded>> Carriage<'_, '_, F> {
    async fn receive_head(&mut self) -> Result<Head, Error> {
        let receive = receive_head(self.reader, self.client, self.expected, self.head_out);
        match self.upload.beside(receive).await {
            Ok(head) => Ok(head),
            Err(error) => {
                if self.expected.whole && matches!(error, Error::Died) {
                    // The request may be sent again, and its bytes come back only when their sending has ended.
                    self.upload.end().await;
                }
                *self.out = self.upload.take_back(self.expected.whole);
                Err(error)
            }
        }
    }

    /// Notes what the client is told, once it is certain that it is.
    fn note(&mut self, head: &Head) {
        self.thread.count(Count::Status(head.status));
        if let Some(entry) = self.entry {
            entry.status = Some(head.status);
        }
    }

    /// The connection changes its protocol.
    fn switch(&mut self, head: &Head) -> Result<Carried, Error> {
        let place = self.thread.stream(self.expected.config.limits.bodies).ok_or(Error::Busy)?;
        self.note(head);
        let sending = started_answer(head, &mut self.reader.inbound, self.head_out);
        self.flight.finish(outcome_of_status(head.status));
        self.upload.finish(self.out);
        let reply = Reply::Send(sending, Then::Close);
        Ok(Carried { reply, upstream: Keep::Close, switched: Some(place) })
    }

    /// Takes an answer of which all has been received.
    fn take_whole(&mut self, head: &Head) -> Result<Option<Carried>, Error> {
        let whole = whole_answer(head, &mut self.reader.inbound, self.head_out)?;
        let Some((sending, clean)) = whole else { return Ok(None) };
        self.note(head);
        self.flight.finish(outcome_of_status(head.status));
        let complete = self.upload.finish(self.out);
        let upstream = if clean && complete { head.upstream } else { Keep::Close };
        let reply = Reply::Send(sending, then(self.expected.meta, head, complete));
        Ok(Some(Carried { reply, upstream, switched: None }))
    }

    /// Sends the rest of an answer on as it comes.
    async fn stream(&mut self, head: &Head) -> Result<Carried, Error> {
        let (thread, config) = (self.thread, self.expected.config);
        self.flight.answered();
        // A streamed request has its place already.
        let streaming = if self.expected.whole { thread.stream(config.limits.bodies) } else { None };
        if self.expected.whole && streaming.is_none() {
            return Err(Error::Busy);
        }
        self.note(head);
        let sending = started_answer(head, &mut self.reader.inbound, self.head_out);
        let mut rest = head.body.clone();
        let piece = if self.upload.has_ended() { STREAM_BYTES } else { BESIDE_BYTES };
        let idle = config.timeouts.body_idle;
        let download = pump(self.reader, self.client, &mut rest, sending, head.unchunked, piece, idle);
        let (result, sent) = self.upload.beside_quietly(download).await;
        thread.give_buffer(sent);
        let complete = self.upload.finish(self.out);
        Ok(self.streamed(head, result, complete))
    }

    /// What an answer came to whose head was sent.
    fn streamed(&mut self, head: &Head, result: Result<(), PumpError>, complete: bool) -> Carried {
        if let Err(error) = result {
            let error = download_error(error);
            if let Some(entry) = self.entry {
                entry.set_error(&error);
            }
            self.flight.finish(outcome_of(&error));
            return Carried { reply: Reply::Abort, upstream: Keep::Close, switched: None };
        }
        self.flight.finish(outcome_of_status(head.status));
        let clean = self.reader.inbound.is_empty();
        let upstream = if clean && complete { head.upstream } else { Keep::Close };
        let reply = Reply::Sent(then(self.expected.meta, head, complete));
        Carried { reply, upstream, switched: None }
    }
}

/// If all of the answer has been received, takes it out of `inbound` as the client gets it, and says whether nothing
/// came after it.
fn whole_answer(
    head: &Head,
    inbound: &mut Buffer,
    head_out: &mut Buffer,
) -> Result<Option<(Buffer, bool)>, Error> {
    let mut rest = head.body.clone();
    let here = rest.advance(&inbound.as_slice()[head.bytes..]).map_err(Error::BadAnswer)?;
    if !rest.is_done() {
        return Ok(None);
    }
    let clean = inbound.len() == head.bytes + here;
    if head.in_place {
        inbound.truncate(head.bytes + here);
        return Ok(Some((std::mem::take(inbound), clean)));
    }
    let content = &inbound.as_slice()[head.bytes..head.bytes + here];
    if head.unchunked {
        head.body.clone().advance_into(content, head_out.end()).map_err(Error::BadAnswer)?;
    } else {
        head_out.end().extend_from_slice(content);
    }
    Ok(Some((std::mem::take(head_out), clean)))
}

/// Takes the head of an answer whose body still streams out of `inbound`, as the client gets it.
fn started_answer(head: &Head, inbound: &mut Buffer, head_out: &mut Buffer) -> Buffer {
    if head.in_place {
        head_out.end().extend_from_slice(&inbound.as_slice()[..head.bytes]);
    }
    inbound.consume(head.bytes);
    std::mem::take(head_out)
}

fn then(meta: &Meta, head: &Head, upload_complete: bool) -> Then {
    if !upload_complete {
        Then::Linger
    } else if head.client_persists {
        Then::Next
    } else if meta.client_closes {
        Then::Close
    } else {
        Then::Linger
    }
}

fn download_error(error: PumpError) -> Error {
    match error {
        PumpError::Read => Error::Truncated,
        PumpError::ReadTooSlow => Error::ResponseTimeout,
        PumpError::Framing(refusal) => Error::BadAnswer(refusal),
        PumpError::Write => Error::ClientGone,
    }
}
