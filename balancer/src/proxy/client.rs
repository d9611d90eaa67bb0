//! A client's connection.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;

use monoio::net::TcpStream;
use rustix::net::{RecvFlags, SendFlags, Shutdown};

use super::plan::{Meta, Plan, plan};
use super::{Reply, Then, answer::Answer};
use crate::access::Entry;
use crate::buffer::Buffer;
use crate::clock;
use crate::error::Error;
use crate::http::Refusal;
use crate::socket::{self, Peer, Reader, Writer};
use crate::thread::{IDLE_BYTES, Thread};

/// How long and how much is read and thrown away after the last answer, until the client closes too.
const LINGER_MS: u64 = 1_000;
const LINGER_BYTES: usize = 1 << 20;

pub(crate) struct Client {
    pub(crate) reader: Reader,
    pub(crate) writer: Writer,
    /// The request as it goes to a backend.
    pub(crate) out: Buffer,
    address: String,
    /// When the head that is being received must be complete.
    head_due_ms: u64,
    /// Bytes of that head in which no end was found.
    searched: usize,
    /// For the log of requests, if there is one.
    pub(crate) entry: Option<Box<Entry>>,
    counted: Counted,
}

impl Client {
    pub(crate) fn new(stream: TcpStream, address: IpAddr, thread: &Rc<Thread>) -> Self {
        let (reader, writer) = socket::split(stream, &thread.watch, thread.take_idle_buffer(), Peer::Client);
        reader.carries_requests();
        let head = thread.site().generation.config.timeouts.head;
        Self {
            reader,
            writer,
            out: Buffer::default(),
            address: address.to_canonical().to_string(),
            head_due_ms: thread.watch.now_ms() + head.as_millis() as u64,
            searched: 0,
            entry: thread.recorder.as_ref().map(|_| Box::default()),
            counted: Counted::new(thread),
        }
    }

    /// Receives the next head and decides what it asks for; `None` when the client closes instead.
    pub(crate) async fn next_plan(&mut self, thread: &Thread) -> Result<Option<(Meta, Plan)>, Error> {
        loop {
            self.skip_empty_line();
            if !self.reader.inbound.is_empty()
                && let Some(planned) = self.plan(thread).map_err(Error::Refused)?
            {
                return Ok(Some(planned));
            }
            self.make_room(thread);
            match self.reader.receive_until(self.head_due_ms).await {
                Ok(0) if self.reader.is_overdue() && !self.reader.inbound.is_empty() => {
                    return Err(Error::ClientTooSlow);
                }
                Ok(0) | Err(_) => return Ok(None),
                Ok(_) => {}
            }
        }
    }

    fn plan(&mut self, thread: &Thread) -> Result<Option<(Meta, Plan)>, Refusal> {
        if self.out.capacity() == 0 {
            self.out = thread.take_buffer();
        }
        self.out.clear();
        let bytes = self.reader.inbound.as_slice();
        let planned = plan(bytes, self.searched, thread, &mut self.out, &self.address)?;
        self.searched = bytes.len();
        Ok(planned.map(|(meta, plan, head_bytes)| {
            if let Some(entry) = &mut self.entry {
                entry.begin(&self.reader.inbound.as_slice()[..head_bytes], self.writer.sent);
            }
            self.reader.inbound.consume(head_bytes);
            self.searched = 0;
            (meta, plan)
        }))
    }

    /// What is known of a request whose head is refused.
    pub(crate) fn unread(&self) -> Meta {
        Meta { is_head: self.reader.inbound.as_slice().starts_with(b"HEAD "), ..Meta::default() }
    }

    /// RFC 9112, 2.2: one empty line before a request is tolerated, also when its two bytes come apart.
    fn skip_empty_line(&mut self) {
        if self.searched <= 1 && self.reader.inbound.as_slice().starts_with(b"\r\n") {
            self.reader.inbound.consume(2);
            self.searched = 0;
        }
    }

    /// Room for the rest of a head: the idle size first, doubled up to the limit on heads.
    fn make_room(&mut self, thread: &Thread) {
        let inbound = &mut self.reader.inbound;
        if inbound.is_empty() && inbound.capacity() > 2 * IDLE_BYTES {
            *inbound = Buffer::default();
        }
        inbound.compact();
        if inbound.room() == 0 {
            let limit = thread.site().generation.config.limits.head.head_bytes;
            let size = (2 * inbound.len()).max(IDLE_BYTES).min(limit + 1);
            inbound.reserve(size - inbound.len().min(size - 1));
        }
    }

    /// Sends the last bytes of the last answer, and the end of the stream; whether that succeeded.
    pub(crate) async fn send_last(&mut self, thread: &Thread, buffer: Buffer) -> bool {
        thread.give_buffer(std::mem::take(&mut self.out));
        let wait = thread.site().generation.config.timeouts.body_idle;
        let (sent, buffer) = self.writer.send_last(buffer, wait).await;
        thread.give_buffer(buffer);
        sent.is_ok()
    }

    /// Sends the last bytes of an answer; whether that succeeded.
    async fn send(&mut self, thread: &Thread, buffer: Buffer) -> bool {
        let wait = thread.site().generation.config.timeouts.body_idle;
        let (sent, buffer) = self.writer.send(buffer, wait).await;
        thread.give_buffer(buffer);
        sent.is_ok()
    }

    /// Sends the last bytes of an answer and waits for the next request meanwhile. `None` when the connection ends.
    pub(crate) async fn send_and_receive(&mut self, thread: &Thread, buffer: Buffer) -> Option<Then> {
        thread.give_buffer(std::mem::take(&mut self.out));
        if !self.reader.inbound.is_empty() {
            self.start_head(thread);
            return self.send(thread, buffer).await.then_some(Then::Next);
        }
        self.make_room(thread);
        let site = thread.site();
        let timeouts = &site.generation.config.timeouts;
        let (reader, writer) = (&mut self.reader, &mut self.writer);
        let send = async {
            let (sent, buffer) = writer.send(buffer, timeouts.body_idle).await;
            // Now, not when the next request is there: an idle connection holds no answer.
            thread.give_buffer(buffer);
            sent
        };
        let (sent, received) = monoio::join!(send, reader.receive(timeouts.keepalive));
        self.start_head(thread);
        (sent.is_ok() && received.is_ok_and(|count| count > 0)).then_some(Then::Next)
    }

    fn start_head(&mut self, thread: &Thread) {
        let head = thread.site().generation.config.timeouts.head;
        self.head_due_ms = thread.watch.now_ms() + head.as_millis() as u64;
        self.searched = 0;
    }

    /// Ends the stream if that is not done, then reads until the client has closed, for a bounded time.
    pub(crate) async fn linger(mut self, thread: &Thread) {
        self.writer.finish();
        let due_ms = thread.watch.now_ms() + LINGER_MS;
        let mut left = LINGER_BYTES;
        while left > 0 {
            // A dropped receive has taken the buffer with it.
            self.reader.inbound.clear();
            self.reader.inbound.reserve(IDLE_BYTES);
            match self.reader.receive_until(due_ms).await {
                Ok(0) | Err(_) => return,
                Ok(count) => left = left.saturating_sub(count),
            }
        }
    }

    /// Writes the line of a request whose answer is `reply`, of which some may be sent.
    pub(crate) fn record(&mut self, thread: &Thread, reply: &Reply) {
        if let (Some(recorder), Some(entry)) = (&thread.recorder, &mut self.entry) {
            let pending = if let Reply::Send(buffer, _) = reply { buffer.len() as u64 } else { 0 };
            recorder.record(entry, &self.address, self.writer.sent + pending);
        }
    }

    pub(crate) fn reset(self) {
        self.writer.reset_on_close();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.counted.0.give_idle_buffer(std::mem::take(&mut self.reader.inbound));
    }
}

/// One connection in the counters of the thread and of the process.
struct Counted(Rc<Thread>);

impl Counted {
    fn new(thread: &Rc<Thread>) -> Self {
        thread.clients.set(thread.clients.get() + 1);
        thread.shared.totals.connections.fetch_add(1, Relaxed);
        Self(Rc::clone(thread))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.clients.set(self.0.clients.get() - 1);
        self.0.shared.totals.connections.fetch_sub(1, Relaxed);
    }
}

/// Tells a client 503 without waiting for it or serving it, because there are no descriptors to serve it with.
pub(crate) fn turn_away_at_once(socket: OwnedFd) {
    let mut answer = Vec::new();
    Answer::error(503).write(&mut answer, &Meta::default(), clock::date());
    // Whatever fails, the close says it as well.
    let _ = rustix::net::send(&socket, &answer, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    let _ = rustix::net::shutdown(&socket, Shutdown::Write);
    // Unread, the request would make the close a reset, which may overtake the answer.
    let mut request = [0u8; IDLE_BYTES];
    let _ = rustix::net::recv(&socket, &mut request, RecvFlags::DONTWAIT);
}

/// Answers a connection over the limit with 503, as far as that goes without waiting.
pub(crate) async fn turn_away(mut client: Client, thread: Rc<Thread>) {
    let mut buffer = thread.take_buffer();
    Answer::error(503).write(buffer.end(), &Meta::default(), clock::date());
    if client.send_last(&thread, buffer).await {
        client.linger(&thread).await;
    }
}
