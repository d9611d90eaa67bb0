//! One request and its answer over one connection to a backend.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::os::fd::RawFd;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use super::flight::{Flight, outcome_of, outcome_of_status};
use super::plan::{Job, Meta};
use super::pump::{BESIDE_BYTES, PumpError, STREAM_BYTES, pump};
use super::tunnel::tunnel;
use super::{Client, Reply, Then};
use crate::buffer::Buffer;
use crate::config::Config;
use crate::error::Error;
use crate::http::{self, Body, Refusal};
use crate::pool::{Keep, Upstream};
use crate::socket::{Reader, Writer};
use crate::thread::{Count, Streaming, Thread};
use crate::watch::Deadline;

/// Interim answers (1xx) before the real one; a backend that sends more is broken.
const INTERIM_MAX: usize = 8;
/// What a receive of an answer's head asks for at least.
const ROOM_MIN: usize = 2 << 10;

type Uploaded = (Result<(), PumpError>, Buffer);

/// The head of an answer, judged; its bytes, as the client gets them, may be in a buffer beside it.
struct Head {
    status: u16,
    /// Length of the head as received.
    bytes: usize,
    body: Body,
    upstream: Keep,
    client_persists: bool,
    /// The head goes to the client as it came, and was not copied.
    in_place: bool,
    unchunked: bool,
}

/// What the head of an answer is judged by.
struct Expected<'a> {
    meta: &'a Meta,
    config: &'a Config,
    /// Whether the request was whole from the start, and whether its sending is under way.
    whole: bool,
    uploading: Cell<bool>,
    /// The protocols that the client offers to change to.
    upgrade: Option<&'a [u8]>,
}

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
    let Client { reader: client_reader, writer: client_writer, out, entry, .. } = client;
    let (deadline, client_fd) = (reader.deadline(), client_reader.fd());
    let mut upload = Upload {
        future: pin!(pump(
            client_reader,
            writer,
            &mut body,
            std::mem::take(out),
            false,
            STREAM_BYTES,
            timeouts.body_idle
        )),
        done: None,
        uploading: &expected.uploading,
        deadline: &deadline,
        client: client_fd,
        wait: timeouts.response,
    };
    let head = upload.beside(receive_head(reader, client_writer, expected, head_out)).await;
    deadline.disarm();
    let head = match head {
        Ok(head) => head,
        Err(error) => {
            if expected.whole && matches!(error, Error::Died) {
                // The request may be sent again, and its bytes come back only when their sending has ended.
                upload.end().await;
            }
            *out = upload.take_back(expected.whole);
            return Err(error);
        }
    };
    thread.count(Count::Status(head.status));
    if let Some(entry) = entry {
        entry.status = Some(head.status);
    }
    if head.status == 101 {
        let place = thread.stream(expected.config.limits.bodies).ok_or(Error::Busy)?;
        let sending = started_answer(&head, &mut reader.inbound, head_out);
        flight.finish(outcome_of_status(head.status));
        upload.finish(out);
        return Ok(Carried {
            reply: Reply::Send(sending, Then::Close),
            upstream: Keep::Close,
            switched: Some(place),
        });
    }
    if let Some((sending, clean)) = whole_answer(&head, &mut reader.inbound, head_out)? {
        flight.finish(outcome_of_status(head.status));
        let complete = upload.finish(out);
        let upstream = if clean && complete { head.upstream } else { Keep::Close };
        let reply = Reply::Send(sending, then(expected.meta, &head, complete));
        return Ok(Carried { reply, upstream, switched: None });
    }
    flight.answered();
    // A streamed request has its place already.
    let streaming = if expected.whole { thread.stream(expected.config.limits.bodies) } else { None };
    if expected.whole && streaming.is_none() {
        return Err(Error::Busy);
    }
    let sending = started_answer(&head, &mut reader.inbound, head_out);
    let mut rest = head.body.clone();
    let piece = if upload.done.is_some() { STREAM_BYTES } else { BESIDE_BYTES };
    let download = pump(reader, client_writer, &mut rest, sending, head.unchunked, piece, timeouts.body_idle);
    let (result, sent) = upload.beside_quietly(download).await;
    thread.give_buffer(sent);
    let complete = upload.finish(out);
    if let Err(error) = result {
        let error = download_error(error);
        if let Some(entry) = entry {
            entry.set_error(&error);
        }
        flight.finish(outcome_of(&error));
        return Ok(Carried { reply: Reply::Abort, upstream: Keep::Close, switched: None });
    }
    flight.finish(outcome_of_status(head.status));
    let upstream = if reader.inbound.is_empty() && complete { head.upstream } else { Keep::Close };
    Ok(Carried { reply: Reply::Sent(then(expected.meta, &head, complete)), upstream, switched: None })
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

/// The request on its way to the backend, driven beside the answer's way back.
struct Upload<'a, F> {
    future: Pin<&'a mut F>,
    done: Option<Uploaded>,
    uploading: &'a Cell<bool>,
    /// Of the answer's head; armed with `wait` once the request is sent, since only then the backend owes an answer.
    deadline: &'a Deadline,
    client: RawFd,
    wait: Duration,
}

impl<F: Future<Output = Uploaded>> Upload<'_, F> {
    fn drive(&mut self, cx: &mut Context<'_>) -> bool {
        if self.done.is_none()
            && let Poll::Ready(done) = self.future.as_mut().poll(cx)
        {
            self.uploading.set(done.0.is_err());
            self.done = Some(done);
            return true;
        }
        false
    }

    /// Runs until the answer's head is there, or until the client breaks its request.
    async fn beside(&mut self, receive: impl Future<Output = Result<Head, Error>>) -> Result<Head, Error> {
        let mut receive = pin!(receive);
        poll_fn(|cx| {
            if self.drive(cx) {
                self.deadline.arm_for(self.wait, self.client);
            }
            if let Some((Err(error), _)) = &self.done
                && let Some(error) = upload_error(error)
            {
                return Poll::Ready(Err(error));
            }
            receive.as_mut().poll(cx)
        })
        .await
    }

    /// Runs until `download` is done. Nobody can be told any more that the upload failed.
    async fn beside_quietly<T>(&mut self, download: impl Future<Output = T>) -> T {
        let mut download = pin!(download);
        poll_fn(|cx| {
            self.drive(cx);
            download.as_mut().poll(cx)
        })
        .await
    }

    /// Runs until the sending has ended, well or not.
    async fn end(&mut self) {
        poll_fn(|cx| if self.done.is_some() || self.drive(cx) { Poll::Ready(()) } else { Poll::Pending })
            .await;
    }

    /// Gives the buffer back to `out`, and tells whether every byte of the request was sent.
    fn finish(self, out: &mut Buffer) -> bool {
        let Some((result, buffer)) = self.done else { return false };
        *out = buffer;
        out.clear();
        result.is_ok()
    }

    /// The request as it was, if it was `whole` and its sending has ended; an empty buffer otherwise.
    fn take_back(self, whole: bool) -> Buffer {
        match self.done {
            Some((_, mut out)) if whole => {
                out.rewind();
                out
            }
            _ => Buffer::default(),
        }
    }
}

/// What a broken upload says while no answer is there: the client's faults end the request; when the backend does
/// not take it, its answer may still come.
fn upload_error(error: &PumpError) -> Option<Error> {
    match error {
        PumpError::Read => Some(Error::ClientGone),
        PumpError::ReadTooSlow => Some(Error::ClientTooSlow),
        PumpError::Framing(refusal) => Some(Error::Refused(*refusal)),
        PumpError::Write => None,
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

/// Receives until the head of the final answer is there. Interim answers are passed on, but for 100, which the
/// balancer sends itself.
async fn receive_head(
    reader: &mut Reader,
    writer: &mut Writer,
    expected: &Expected<'_>,
    head_out: &mut Buffer,
) -> Result<Head, Error> {
    let (mut searched, mut interims) = (0, 0);
    loop {
        let bytes = reader.inbound.as_slice();
        let head = judge(bytes, searched, expected, head_out).map_err(Error::BadAnswer)?;
        searched = bytes.len();
        match head {
            Some(head) if head.status == 101 => return Ok(head),
            Some(head) if head.status < 200 => {
                interims += 1;
                if interims > INTERIM_MAX {
                    return Err(Error::BadAnswer(Refusal::Malformed("interim answer")));
                }
                if head.status != 100 && expected.meta.version == 1 {
                    let idle = expected.config.timeouts.body_idle;
                    let interim = if head.in_place { &bytes[..head.bytes] } else { head_out.as_slice() };
                    send_interim(writer, interim, idle).await?;
                }
                head_out.clear();
                reader.inbound.consume(head.bytes);
                searched = 0;
            }
            Some(head) => return Ok(head),
            None => receive_more(reader, interims == 0).await?,
        }
    }
}

/// `untouched` says that no answer was taken from this connection yet.
async fn receive_more(reader: &mut Reader, untouched: bool) -> Result<(), Error> {
    reader.inbound.reserve(ROOM_MIN);
    let before = reader.inbound.len();
    match reader.receive_untimed().await {
        Ok(0) | Err(_) if reader.is_abandoned() => Err(Error::ClientGone),
        Ok(0) if reader.is_overdue() => Err(Error::ResponseTimeout),
        Ok(0) | Err(_) if before == 0 && untouched => Err(Error::Died),
        Ok(0) | Err(_) => Err(Error::Truncated),
        Ok(_) => Ok(()),
    }
}

async fn send_interim(writer: &mut Writer, head: &[u8], idle: Duration) -> Result<(), Error> {
    let mut buffer = Buffer::with_capacity(head.len());
    buffer.end().extend_from_slice(head);
    writer.send(buffer, idle).await.0.map_err(|_| Error::ClientGone)
}

/// Parses an answer's head and writes what the client gets of it to `head_out`, unless it can be sent in place.
fn judge(
    bytes: &[u8],
    searched: usize,
    expected: &Expected<'_>,
    head_out: &mut Buffer,
) -> Result<Option<Head>, Refusal> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let (meta, limits) = (expected.meta, &expected.config.limits.head);
    let mut space = http::space();
    let Some(response) = http::parse_response(bytes, searched, meta.is_head, limits, &mut space)? else {
        return Ok(None);
    };
    if response.status == 101 && !switches(expected, &response) {
        return Err(Refusal::Malformed("change of protocol that was not asked for"));
    }
    let upload_complete = expected.whole || !expected.uploading.get();
    let unchunked = meta.version == 0 && matches!(response.body, Body::Chunked(_));
    let client_persists = meta.persists && upload_complete && !unchunked && response.body != Body::UntilClose;
    let connection: Option<&[u8]> = match (client_persists, meta.version) {
        // The final answer says what becomes of the connection.
        _ if response.is_interim() => None,
        (false, _) => Some(b"close"),
        (true, 0) => Some(b"keep-alive"),
        (true, _) => None,
    };
    let in_place = !http::write_response(head_out.end(), &response, connection, meta.version);
    Ok(Some(Head {
        status: response.status,
        bytes: response.head_bytes,
        upstream: keep(&response, meta),
        client_persists,
        in_place,
        unchunked,
        body: response.body,
    }))
}

/// What may become of the backend's connection when all goes well.
fn keep(response: &http::Response<'_, '_>, meta: &Meta) -> Keep {
    if !response.persists {
        Keep::Close
    } else if meta.is_head || matches!(response.status, 204 | 304) {
        Keep::Resting
    } else {
        Keep::Ready
    }
}

/// Whether a 101 is to what the client offers, and the whole request was sent before.
fn switches(expected: &Expected<'_>, response: &http::Response<'_, '_>) -> bool {
    let both = expected.upgrade.zip(response.upgrade);
    !expected.uploading.get() && both.is_some_and(|(offered, chosen)| http::offers(offered, chosen))
}
