//! One connection to the target: connects when it has to, sends one request at a time, reads the answer.
//!
//! Knows nothing of when requests are due or how they are counted, and keeps no body.

use std::{
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    task::Poll,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Sleep, sleep_until},
};

use super::{
    codec::{Body, Head, Malformed},
    fault::{Fault, FaultKind},
    plan::Plan,
};

/// A small answer fits in one read; larger bodies pass through in pieces of this size.
const READ_BYTES: usize = 8 << 10;
/// The largest head accepted; servers stay below 16 KiB.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Interim answers before the real one; a server that sends more never answers.
const INTERIM_MAX: usize = 16;

/// A connection, open or not yet.
pub(super) struct Link {
    address: SocketAddr,
    stream: Option<TcpStream>,
    /// `buffer[..filled]` is read and not yet consumed.
    buffer: Vec<u8>,
    filled: usize,
    stage: Stage,
    timer: Option<Pin<Box<Sleep>>>,
    /// The answer's backend; empty when it names none. Kept here so that no request allocates.
    backend: Vec<u8>,
    connect_time: Option<Duration>,
    /// When the request's first byte was first handed to the kernel.
    sent_at: Option<Instant>,
    stale_count: u64,
}

/// How far the request has come: decides the kind of a timeout or a broken connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Connecting,
    Writing,
    /// Written; no byte of an answer yet.
    Waiting,
    Headers,
    Body,
}

impl Link {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            stream: None,
            buffer: vec![0; READ_BYTES],
            filled: 0,
            stage: Stage::Connecting,
            timer: None,
            backend: Vec::new(),
            connect_time: None,
            sent_at: None,
            stale_count: 0,
        }
    }

    /// Sends the plan's request and reads its answer, within the plan's timeout from `due`; gives the status.
    ///
    /// After an error the connection is closed and the next call opens another. May be dropped at any time.
    pub(super) async fn exchange(&mut self, plan: &Plan, due: Instant) -> Result<u16, Fault> {
        let deadline = due + plan.options.timeout.0;
        let mut timer = self.timer.take().unwrap_or_else(|| Box::pin(sleep_until(deadline.into())));
        let outcome = within(&mut timer, deadline, self.exchange_untimed(plan)).await;
        self.timer = Some(timer);
        let result = outcome.unwrap_or_else(|| Err(self.timed_out()));
        if result.is_err() {
            self.stream = None;
        }
        result
    }

    /// Notices that the server has closed the connection, or has said something unasked, while it was idle; the next
    /// exchange then uses another. Without this a request that may not be sent twice would fail.
    pub(super) fn drop_if_stale(&mut self) {
        let is_silent = |stream: &TcpStream| {
            // No system call while nothing has come: Tokio remembers.
            stream.try_read(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
        };
        if self.stream.as_ref().is_some_and(|stream| !is_silent(stream)) {
            self.stream = None;
            self.stale_count += 1;
        }
    }

    /// The backend that the last answer named; `None` when it named none.
    pub(super) fn backend(&self) -> Option<&[u8]> {
        (!self.backend.is_empty()).then_some(self.backend.as_slice())
    }

    /// How long connecting took, if the last exchange had to connect.
    pub(super) fn take_connect_time(&mut self) -> Option<Duration> {
        self.connect_time.take()
    }

    /// When the last exchange began to send its request; `None` when it did not come to that. The first time, when it
    /// was sent twice.
    pub(super) fn sent_at(&self) -> Option<Instant> {
        self.sent_at
    }

    /// How many requests, since the last call, met a connection that the server had closed while it was idle.
    pub(super) fn take_stale_count(&mut self) -> u64 {
        std::mem::take(&mut self.stale_count)
    }

    async fn exchange_untimed(&mut self, plan: &Plan) -> Result<u16, Fault> {
        let reused = self.stream.is_some();
        self.sent_at = None;
        let result = self.attempt(plan).await;
        let unanswered = matches!(self.stage, Stage::Writing | Stage::Waiting);
        if result.is_err() && reused && unanswered && plan.is_idempotent {
            self.stale_count += 1;
            self.stream = None;
            return self.attempt(plan).await;
        }
        result
    }

    async fn attempt(&mut self, plan: &Plan) -> Result<u16, Fault> {
        self.backend.clear();
        self.filled = 0;
        if self.stream.is_none() {
            self.connect(plan.options.connect_timeout.0).await?;
        }
        self.send(&plan.request).await?;
        self.receive(plan).await
    }

    async fn connect(&mut self, limit: Duration) -> Result<(), Fault> {
        self.stage = Stage::Connecting;
        let start = Instant::now();
        let connected = tokio::time::timeout(limit, TcpStream::connect(self.address)).await;
        let stream = connected.map_err(|_| self.timed_out())?.map_err(Fault::connect)?;
        stream.set_nodelay(true).map_err(Fault::connect)?;
        self.connect_time = Some(start.elapsed());
        self.stream = Some(stream);
        Ok(())
    }

    async fn send(&mut self, request: &[u8]) -> Result<(), Fault> {
        self.stage = Stage::Writing;
        self.sent_at.get_or_insert_with(Instant::now);
        let stream = self.stream.as_mut().expect("send follows connect");
        stream.write_all(request).await.map_err(|error| Fault::io(FaultKind::WriteBroken, error))?;
        self.stage = Stage::Waiting;
        Ok(())
    }

    async fn receive(&mut self, plan: &Plan) -> Result<u16, Fault> {
        let (status, mut body, keep_alive) = self.receive_head(plan).await?;
        self.stage = Stage::Body;
        loop {
            let taken = body.take(&self.buffer[..self.filled]).map_err(malformed)?;
            // Bytes after the answer belong to nothing that was asked: such a connection is not used again.
            let clean = taken.used == self.filled;
            self.filled = 0;
            if taken.done {
                if !keep_alive || !clean || !plan.options.keepalive {
                    self.stream = None;
                }
                return Ok(status);
            }
            if self.fill().await? == 0 {
                return self.closed_in_body(&body, status);
            }
        }
    }

    /// Reads up to the end of the final head; what follows it is moved to the front of the buffer.
    async fn receive_head(&mut self, plan: &Plan) -> Result<(u16, Body, bool), Fault> {
        let mut interim_count = 0;
        loop {
            let bytes = &self.buffer[..self.filled];
            let head = Head::parse(bytes, plan.is_head, &plan.options.backend_header).map_err(malformed)?;
            if let Some(head) = head {
                let (end, is_interim) = (head.bytes, head.is_interim());
                let found = (head.status, head.body, head.keep_alive);
                if !is_interim {
                    self.backend.extend_from_slice(head.backend.unwrap_or_default());
                }
                self.buffer.copy_within(end..self.filled, 0);
                self.filled -= end;
                if !is_interim {
                    return Ok(found);
                }
                interim_count += 1;
                if interim_count > INTERIM_MAX {
                    return Err(malformed("more than 16 interim answers"));
                }
            } else if self.fill().await? == 0 {
                return Err(self.closed_in_head());
            }
        }
    }

    /// Reads more bytes behind those in the buffer; 0 at the end of the connection.
    async fn fill(&mut self) -> Result<usize, Fault> {
        if self.filled == self.buffer.len() {
            if self.filled >= HEAD_BYTES_MAX {
                return Err(malformed("a head of more than 64 KiB"));
            }
            self.buffer.resize(HEAD_BYTES_MAX, 0);
        }
        let stream = self.stream.as_mut().expect("fill follows connect");
        let kind = match self.stage {
            Stage::Body => FaultKind::EofInBody,
            Stage::Headers => FaultKind::EofInHeaders,
            _ => FaultKind::ResetBeforeResponse,
        };
        let read =
            stream.read(&mut self.buffer[self.filled..]).await.map_err(|error| Fault::io(kind, error))?;
        if read > 0 && self.stage == Stage::Waiting {
            self.stage = Stage::Headers;
        }
        self.filled += read;
        Ok(read)
    }

    fn closed_in_head(&self) -> Fault {
        match self.stage {
            Stage::Waiting => {
                Fault::new(FaultKind::ResetBeforeResponse, "closed before any byte of an answer")
            }
            _ => Fault::new(FaultKind::EofInHeaders, "closed within the head of the answer"),
        }
    }

    fn closed_in_body(&mut self, body: &Body, status: u16) -> Result<u16, Fault> {
        self.stream = None;
        match body {
            Body::Close => Ok(status),
            _ => Err(Fault::new(FaultKind::EofInBody, "closed before the body was complete")),
        }
    }

    fn timed_out(&self) -> Fault {
        match self.stage {
            Stage::Connecting => Fault::new(FaultKind::ConnectTimeout, "not connected in time"),
            Stage::Writing | Stage::Waiting => {
                Fault::new(FaultKind::TtfbTimeout, "no byte of an answer in time")
            }
            Stage::Headers | Stage::Body => {
                Fault::new(FaultKind::TotalTimeout, "the answer began but was not complete in time")
            }
        }
    }
}

fn malformed(words: Malformed) -> Fault {
    Fault::new(FaultKind::BadHttp, words)
}

/// Runs a future up to a deadline; `None` when it was not ready by then.
///
/// The timer is shared by the requests of a connection and moved only when it fires too early or stands too late,
/// so that a request which is answered in time costs no change to the timer wheel.
async fn within<F: Future>(timer: &mut Pin<Box<Sleep>>, deadline: Instant, future: F) -> Option<F::Output> {
    if timer.deadline() > deadline.into() {
        timer.as_mut().reset(deadline.into());
    }
    let mut future = pin!(future);
    poll_fn(|context| {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(Some(output));
        }
        while timer.as_mut().poll(context).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(None);
            }
            timer.as_mut().reset(deadline.into());
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};

    use super::*;
    use crate::bench::options::Options;

    /// No step here takes a second on an idle machine.
    const DEADLINE: Duration = Duration::from_secs(60);

    /// Answers the first request of each of two connections, and closes.
    fn closing_server() -> (SocketAddr, std::thread::JoinHandle<()>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serve = move || {
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                while !lines.next().unwrap().unwrap().is_empty() {}
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
            }
        };
        (address, std::thread::spawn(serve))
    }

    #[tokio::test]
    async fn a_connection_closed_while_idle_is_not_used_for_what_may_be_sent_only_once() {
        let (address, server) = closing_server();
        let options = Options { method: "POST".to_owned(), ..Options::default() };
        let plan = Plan::new(&format!("http://{address}/"), &options, 1).unwrap();
        let mut link = Link::new(address);
        assert_eq!(link.exchange(&plan, Instant::now()).await.unwrap(), 200);
        while let Some(stream) = &link.stream {
            tokio::time::timeout(DEADLINE, stream.readable()).await.unwrap().unwrap();
            link.drop_if_stale();
        }
        assert_eq!(link.exchange(&plan, Instant::now()).await.unwrap(), 200);
        assert_eq!(link.take_stale_count(), 1);
        server.join().unwrap();
    }
}
