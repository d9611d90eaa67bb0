//! Handing the listening sockets to a successor, over the admin socket.
//!
//! The successor connects to the admin socket of its predecessor and asks with `POST /handover`. The answer is HTTP,
//! with the `listen` of the predecessor's configuration and a number of listeners; then one byte per listener, each
//! with a descriptor (`SCM_RIGHTS`). From then on both processes hold the same sockets, so that no connection that
//! waits in one of them is lost whatever happens to either. Once the successor has built everything that can fail it
//! sends [`READY`]; the predecessor begins to drain and sends [`YOURS`], with the backends that an operator has drained
//! (JSON, to the end of the stream); and the successor accepts. A successor that ends before that changes nothing.
//!
//! Both sides make sure that the other runs as the same user. Nothing else is handed over: connections stay where they
//! are, and what was learnt of a backend is learnt again.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

use crate::listen::Listeners;
use crate::site::{Drained, Shared, lock};
use crate::{notify, place};

/// How long one side waits for the other's next word. The admin socket may be busy with somebody for four seconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a successor may take from the sockets to [`READY`]: rings, threads and first probes take one second.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// As many listeners as there can be threads.
const LISTENERS_MAX: usize = 256;
const HEAD_BYTES_MAX: usize = 1 << 10;
/// The names of thousands of drained backends.
const DRAINED_BYTES_MAX: u64 = 1 << 20;

/// With each listener.
const LISTENER: u8 = b'L';
/// The successor can serve.
const READY: u8 = b'R';
/// The successor can serve, but on another address: it holds none of the sockets.
const READY_ELSEWHERE: u8 = b'E';
/// The predecessor accepts no more.
const YOURS: u8 = b'Y';

const REQUEST: &[u8] = b"POST /handover HTTP/1.1\r\nHost: balancer\r\n\r\n";

/// Why a running balancer could not be replaced. It goes on.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    #[error(
        "take over from {path}: the balancer there runs as user {uid}; only the same user may replace it"
    )]
    OtherUser { path: PathBuf, uid: u32 },
    #[error("take over from {path}: the balancer there says `{answer}`")]
    Refused { path: PathBuf, answer: String },
    #[error("take over from {path}: no word from the balancer there; if it hangs, end it with SIGKILL first")]
    Broken { path: PathBuf, source: io::Error },
}

/// A running balancer that lets itself be replaced.
pub(crate) struct Predecessor {
    path: PathBuf,
    stream: UnixStream,
    /// `listen` of its configuration.
    listen: SocketAddr,
    listeners: Option<Vec<OwnedFd>>,
}

impl Predecessor {
    /// Asks the balancer whose admin socket is at `path` for its listeners; `None` when nobody is there.
    pub(crate) fn ask(path: &Path) -> Result<Option<Self>, HandoverError> {
        let broken = |source| HandoverError::Broken { path: path.to_owned(), source };
        let mut stream = match place::connect(path) {
            Ok(stream) => stream,
            // Never there, or left behind by a process that was killed.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(broken(error)),
        };
        if let Some(uid) = foreign_user(&stream).map_err(broken)? {
            return Err(HandoverError::OtherUser { path: path.to_owned(), uid });
        }
        stream.set_read_timeout(Some(PATIENCE)).map_err(broken)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(broken)?;
        stream.write_all(REQUEST).map_err(broken)?;
        let head = read_head(&mut stream).map_err(broken)?;
        let Some((listen, count)) = parse_offer(&head) else {
            let answer = head.lines().next().unwrap_or("").to_owned();
            return Err(HandoverError::Refused { path: path.to_owned(), answer });
        };
        let listeners = (0..count).map(|_| receive(&stream)).collect::<Result<_, _>>().map_err(broken)?;
        Ok(Some(Self { path: path.to_owned(), stream, listen, listeners: Some(listeners) }))
    }

    /// The sockets, once, if `listen` is where they are.
    pub(crate) fn listeners_at(&mut self, listen: SocketAddr) -> Option<Vec<OwnedFd>> {
        if self.listen == listen { self.listeners.take() } else { None }
    }

    /// Says that this process can serve, and returns when the predecessor accepts no more: with the backends that an
    /// operator has drained.
    pub(crate) fn replace(mut self) -> Result<Vec<Drained>, HandoverError> {
        // Dropped before, or the predecessor could not close them.
        let word = if self.listeners.take().is_some() { READY_ELSEWHERE } else { READY };
        let result = self.stream.write_all(&[word]);
        let mut word = [0];
        let result = result.and_then(|()| self.stream.read_exact(&mut word));
        match result {
            Ok(()) if word == [YOURS] => Ok(self.read_drained()),
            Ok(()) => Err(HandoverError::Refused { path: self.path, answer: "something unknown".to_owned() }),
            Err(source) => Err(HandoverError::Broken { path: self.path, source }),
        }
    }

    /// Reads what follows [`YOURS`]. There is no way back by now, so that a failure is only said.
    fn read_drained(&self) -> Vec<Drained> {
        let mut text = Vec::new();
        let read = (&self.stream).take(DRAINED_BYTES_MAX).read_to_end(&mut text).map_err(|e| e.to_string());
        // Nothing at all is what an older version says.
        let parse = |_| match text.as_slice() {
            [] => Ok(Vec::new()),
            text => serde_json::from_slice(text).map_err(|error| error.to_string()),
        };
        read.and_then(parse).unwrap_or_else(|error| {
            tracing::warn!(
                %error,
                "the predecessor's list of drained backends is lost, drain them again: {error}"
            );
            Vec::new()
        })
    }
}

/// Answers a successor that has asked on `stream`: gives it the listeners and, when it is ready, ends this process's
/// accepting.
pub(crate) fn give(stream: UnixStream, shared: &Arc<Shared>) {
    match try_give(stream, shared) {
        Ok(pid) => tracing::info!(pid, "handed over to process {pid}"),
        Err(error) => tracing::warn!(%error, "not handed over, this process goes on: {error}"),
    }
}

fn try_give(mut stream: UnixStream, shared: &Arc<Shared>) -> io::Result<i32> {
    stream.set_write_timeout(Some(PATIENCE))?;
    if let Some(uid) = foreign_user(&stream)? {
        stream.write_all(b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\n\r\n")?;
        return Err(io::Error::other(format!("asked by user {uid}")));
    }
    // Two successors at once would both believe that the sockets are theirs.
    let Ok(_only_one) = shared.succession.try_lock() else {
        stream.write_all(b"HTTP/1.1 409 Another Successor Is Starting\r\nConnection: close\r\n\r\n")?;
        return Err(io::Error::other("another successor is starting"));
    };
    offer(&mut stream, shared)?;
    stream.set_read_timeout(Some(START_PATIENCE))?;
    let mut word = [0];
    stream.read_exact(&mut word).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::other("the successor ended before it was ready"),
        _ => error,
    })?;
    if word != [READY] && word != [READY_ELSEWHERE] {
        return Err(io::Error::other("the successor sent something unknown"));
    }
    let pid = rustix::net::sockopt::socket_peercred(&stream)?.pid.as_raw_nonzero().get();
    // Before this process may end, or systemd would take that for the end of the service.
    notify::send(&format!("MAINPID={pid}"));
    match word {
        [READY] => shared.hand_over(),
        _ => shared.drain(),
    }
    // From here on the successor serves; if it did not hear this it would believe us dead and serve as well.
    let drained = serde_json::to_vec(&shared.drained()).unwrap_or_default();
    let _ = stream.write_all(&[&[YOURS], drained.as_slice()].concat());
    Ok(pid)
}

fn offer(stream: &mut UnixStream, shared: &Shared) -> io::Result<()> {
    let listeners = lock(&shared.listeners);
    let listeners: &[_] = listeners.as_ref().map(Listeners::sockets).unwrap_or_default();
    if listeners.is_empty() {
        stream.write_all(b"HTTP/1.1 409 Draining\r\nConnection: close\r\n\r\n")?;
        return Err(io::Error::other("draining"));
    }
    let (listen, count) = (shared.generation().config.listen, listeners.len());
    write!(stream, "HTTP/1.1 200 OK\r\nListen: {listen}\r\nListeners: {count}\r\n\r\n")?;
    listeners.iter().try_for_each(|listener| pass(stream, listener.as_fd()))
}

/// The user at the other end, if it is not ours.
fn foreign_user(stream: &UnixStream) -> io::Result<Option<u32>> {
    let uid = rustix::net::sockopt::socket_peercred(stream)?.uid;
    Ok((uid != rustix::process::geteuid()).then(|| uid.as_raw()))
}

fn pass(stream: &UnixStream, listener: impl AsFd) -> io::Result<()> {
    let descriptors = [listener.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fits = control.push(SendAncillaryMessage::ScmRights(&descriptors));
    assert!(fits, "the space is made for one descriptor");
    rustix::net::sendmsg(stream, &[IoSlice::new(&[LISTENER])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let into = &mut [IoSliceMut::new(&mut byte)];
    let received = rustix::net::recvmsg(stream, into, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    match descriptor {
        Some(descriptor) if received.bytes == 1 && byte == [LISTENER] => Ok(descriptor),
        _ => Err(io::Error::other("a listener was promised and did not come")),
    }
}

/// Byte by byte: what follows the head carries descriptors and must not be read with it.
fn read_head(stream: &mut UnixStream) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match stream.read_exact(&mut byte) {
            Ok(()) if head.len() < HEAD_BYTES_MAX => head.push(byte[0]),
            Ok(()) => return Err(io::Error::other("its answer is too long")),
            // A refusal of some other version may end like this.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && !head.is_empty() => break,
            Err(error) => return Err(error),
        }
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// `Listen` and `Listeners` of a head that offers a hand-over.
fn parse_offer(head: &str) -> Option<(SocketAddr, usize)> {
    let mut lines = head.split("\r\n");
    lines.next().filter(|line| *line == "HTTP/1.1 200 OK")?;
    let fields: Vec<_> = lines.filter_map(|line| line.split_once(": ")).collect();
    let field = |name| fields.iter().find(|(found, _)| *found == name).map(|(_, value)| *value);
    let count = field("Listeners")?.parse().ok().filter(|count| (1..=LISTENERS_MAX).contains(count))?;
    Some((field("Listen")?.parse().ok()?, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_are_read_strictly() {
        let offer = "HTTP/1.1 200 OK\r\nListen: 127.0.0.1:80\r\nListeners: 2\r\n\r\n";
        assert_eq!(parse_offer(offer), Some(("127.0.0.1:80".parse().expect("an address"), 2)));
        for (from, to) in [("200 OK", "404 Not Found"), (": 2", ": 0"), (": 2", ": 257"), ("Listen:", "L:")] {
            assert_eq!(parse_offer(&offer.replace(from, to)), None, "{to}");
        }
    }

    #[test]
    fn passed_listener_keeps_what_waits_in_it() {
        let (here, there) = UnixStream::pair().expect("a pair");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let mut client = std::net::TcpStream::connect(address).expect("it waits");
        client.write_all(b"early").expect("sent");
        pass(&here, &listener).expect("passed");
        drop(listener);
        let listener = std::net::TcpListener::from(receive(&there).expect("received"));
        let mut text = [0; 5];
        listener.accept().expect("it waited").0.read_exact(&mut text).expect("read");
        assert_eq!(&text, b"early");
    }
}
