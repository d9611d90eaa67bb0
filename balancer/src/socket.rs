//! One TCP connection as two halves, each with its deadline.

use std::cell::UnsafeCell;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use monoio::io::{AsyncReadRent, AsyncWriteRent};
use monoio::net::TcpStream;
use rustix::net::{SendFlags, Shutdown};

use crate::buffer::Buffer;
use crate::watch::{self, Deadline, Timer, Traffic, Watch};

type Shared = Rc<UnsafeCell<TcpStream>>;

/// The receiving half, with what it has received.
pub(crate) struct Reader {
    // Before the stream: a slot is freed before its socket is closed.
    timer: Timer,
    stream: Shared,
    way: Traffic,
    pub(crate) inbound: Buffer,
}

/// The sending half.
pub(crate) struct Writer {
    timer: Timer,
    stream: Shared,
    way: Traffic,
    /// Bytes so far.
    pub(crate) sent: u64,
}

/// Whose connection it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    Client,
    Backend,
}

/// Splits a connection. Both halves may be used at the same time; the socket closes with the later one.
pub(crate) fn split(stream: TcpStream, watch: &Rc<Watch>, inbound: Buffer, peer: Peer) -> (Reader, Writer) {
    let (inward, outward) = match peer {
        Peer::Client => (Traffic::FromClient, Traffic::ToClient),
        Peer::Backend => (Traffic::FromBackend, Traffic::ToBackend),
    };
    let fd = stream.as_raw_fd();
    let stream = Rc::new(UnsafeCell::new(stream));
    let timer = watch.timer(fd, Shutdown::Read);
    let reader = Reader { timer, stream: Rc::clone(&stream), way: inward, inbound };
    let writer = Writer { timer: watch.timer(fd, Shutdown::Both), stream, way: outward, sent: 0 };
    (reader, writer)
}

impl Reader {
    /// Receives once, behind what is there already, and returns how many bytes came; 0 is the end, or the deadline
    /// (see [`Self::is_overdue`]). There must be room. Dropping the future loses the buffer and maybe bytes: the
    /// connection is then good for nothing but closing.
    pub(crate) async fn receive(&mut self, wait: Duration) -> io::Result<usize> {
        self.timer.arm(wait);
        self.receive_armed().await
    }

    /// Like [`Self::receive`], with a deadline on the scale of [`Watch::now_ms`].
    pub(crate) async fn receive_until(&mut self, due_ms: u64) -> io::Result<usize> {
        self.timer.arm_until(due_ms);
        self.receive_armed().await
    }

    async fn receive_armed(&mut self) -> io::Result<usize> {
        let result = self.receive_untimed().await;
        self.timer.disarm();
        result
    }

    /// Like [`Self::receive`], under whatever deadline [`Self::deadline`] was given from outside.
    pub(crate) async fn receive_untimed(&mut self) -> io::Result<usize> {
        assert!(self.inbound.room() > 0, "an empty read cannot be told from the end");
        let buffer = std::mem::take(&mut self.inbound);
        // SAFETY: monoio's stream may be read and written at once (its `Split`); nobody else reads, since this needs
        // `&mut self`, and the reference does not outlive the call.
        let stream = unsafe { &mut *self.stream.get() };
        let (result, buffer) = stream.read(buffer).await;
        self.inbound = buffer;
        if let Ok(count) = result {
            self.timer.watch().count(self.way, count);
        }
        result
    }

    /// See [`Watch::end_requests`].
    pub(crate) fn carries_requests(&self) {
        self.timer.carries_requests();
    }

    /// A handle on the deadline of this half, to set it while a receive is pending.
    pub(crate) fn deadline(&self) -> Deadline {
        self.timer.deadline()
    }

    pub(crate) fn is_overdue(&self) -> bool {
        self.timer.is_overdue()
    }

    /// Whether the client for whom this half waited is gone.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.timer.is_abandoned()
    }

    /// See [`Writer::break_off`].
    pub(crate) fn break_off(&self) {
        // SAFETY: the stream is alive as long as `self`.
        let _ = rustix::net::shutdown(unsafe { BorrowedFd::borrow_raw(self.fd()) }, Shutdown::Both);
    }

    /// Whether the peer has closed its side; costs a system call.
    pub(crate) fn is_gone(&self) -> bool {
        // SAFETY: as above.
        watch::is_gone(unsafe { BorrowedFd::borrow_raw(self.fd()) })
    }

    pub(crate) fn fd(&self) -> RawFd {
        // SAFETY: no reference to the stream is held beyond the call.
        unsafe { (*self.stream.get()).as_raw_fd() }
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.timer.watch().now_ms()
    }
}

impl Writer {
    /// Sends all of `buffer` and gives it back empty; each step must be done within `wait`.
    pub(crate) async fn send(&mut self, mut buffer: Buffer, wait: Duration) -> (io::Result<()>, Buffer) {
        while !buffer.is_empty() {
            self.timer.arm(wait);
            // SAFETY: as in `Reader::receive_armed`; nobody else writes.
            let stream = unsafe { &mut *self.stream.get() };
            let (result, returned) = stream.write(buffer).await;
            buffer = returned;
            self.timer.disarm();
            match result {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), buffer),
                Ok(sent) => {
                    self.timer.watch().count(self.way, sent);
                    self.sent += sent as u64;
                    buffer.consume(sent);
                }
                Err(error) => return (Err(error), buffer),
            }
        }
        (Ok(()), buffer)
    }

    /// Sends all of `buffer` and then the end of the stream, in one segment as far as that goes without waiting: it
    /// saves the work of a packet on both sides, and the client wakes once. Gives the buffer back.
    pub(crate) async fn send_last(&mut self, mut buffer: Buffer, wait: Duration) -> (io::Result<()>, Buffer) {
        let flags = SendFlags::MORE | SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        // What fails here fails again below.
        let sent = rustix::net::send(self.fd(), buffer.as_slice(), flags).unwrap_or(0);
        self.timer.watch().count(self.way, sent);
        buffer.consume(sent);
        let (result, buffer) = self.send(buffer, wait).await;
        if result.is_ok() {
            self.finish();
        }
        (result, buffer)
    }

    /// Sends the end of the stream. The other half still receives.
    pub(crate) fn finish(&self) {
        // The peer may be gone already, which is as good.
        let _ = rustix::net::shutdown(self.fd(), Shutdown::Write);
    }

    /// Ends both directions, so that whatever is pending on this connection returns.
    pub(crate) fn break_off(&self) {
        let _ = rustix::net::shutdown(self.fd(), Shutdown::Both);
    }

    /// Makes the close that follows a reset, so that the peer cannot take a cut message for a whole one.
    pub(crate) fn reset_on_close(&self) {
        let _ = rustix::net::sockopt::set_socket_linger(self.fd(), Some(Duration::ZERO));
    }

    /// Whether the peer has closed, or has sent something that nobody asked for: an idle connection is then of no
    /// use. Costs a system call.
    pub(crate) fn is_stale(&self) -> bool {
        let mut byte = [0u8; 1];
        let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
        !matches!(rustix::net::recv(self.fd(), &mut byte, flags), Err(rustix::io::Errno::AGAIN))
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the stream is alive as long as `self`, and its descriptor is open as long as it is alive.
        unsafe { BorrowedFd::borrow_raw((*self.stream.get()).as_raw_fd()) }
    }
}
