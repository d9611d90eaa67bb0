//! Listening sockets: one per thread on one address, bound here or inherited.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

/// Connections waiting to be accepted, per listener. The kernel cuts it to net.core.somaxconn.
const BACKLOG: i32 = 4096;
/// The first descriptor passed in by the protocol of `LISTEN_FDS`.
const FIRST_PASSED: RawFd = 3;
/// Passed listeners that are looked at; more is a mistake.
const PASSED_MAX: RawFd = 1024;

/// A port that cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error(
        "listen on {address}: another process listens there; find it with `ss -ltnp`, or choose another port"
    )]
    Taken { address: SocketAddr },
    #[error("listen on {address}: ports below 1024 need CAP_NET_BIND_SERVICE")]
    NotAllowed { address: SocketAddr },
    #[error("listen on {address}")]
    Bind { address: SocketAddr, source: io::Error },
    #[error("use the inherited listener {fd}")]
    Inherited { fd: RawFd, source: io::Error },
}

/// Opens `count` listeners that share `address`. Port 0 takes a free port for all of them.
pub(crate) fn bind(address: SocketAddr, count: usize) -> Result<Vec<TcpListener>, ListenError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::Taken { address },
        io::ErrorKind::PermissionDenied => ListenError::NotAllowed { address },
        _ => ListenError::Bind { address, source },
    };
    if address.port() != 0 {
        // With SO_REUSEPORT a second balancer of the same user would silently share the port, so a plain bind asks
        // first whether anybody is there.
        drop(TcpListener::bind(address).map_err(failed)?);
    }
    let mut listeners: Vec<TcpListener> = Vec::with_capacity(count);
    for _ in 0..count {
        let address = match listeners.first() {
            Some(first) => first.local_addr().map_err(failed)?,
            None => address,
        };
        listeners.push(open(address).map_err(failed)?);
    }
    Ok(listeners)
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    prepare(&socket)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(TcpListener::from(socket))
}

/// Accepted sockets inherit this, which saves a system call for each.
fn prepare(socket: &OwnedFd) -> io::Result<()> {
    Ok(sockopt::set_tcp_nodelay(socket, true)?)
}

/// The listeners that a predecessor or systemd passed (`LISTEN_PID`, `LISTEN_FDS`), spread over `count` threads;
/// `None` when there are none.
pub(crate) fn inherited(count: usize) -> Result<Option<Vec<TcpListener>>, ListenError> {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<RawFd>().ok());
    let for_us = number("LISTEN_PID") == RawFd::try_from(std::process::id()).ok();
    let passed = number("LISTEN_FDS").filter(|&passed| for_us && (1..=PASSED_MAX).contains(&passed));
    let Some(passed) = passed else { return Ok(None) };
    let mut listeners = Vec::with_capacity(count);
    for fd in FIRST_PASSED..FIRST_PASSED + passed {
        // SAFETY: by the protocol these descriptors are ours, and nobody else in this process uses them.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let error = |source| ListenError::Inherited { fd, source };
        prepare(&socket).map_err(error)?;
        let listener = TcpListener::from(socket);
        listener.set_nonblocking(true).map_err(error)?;
        listeners.push(listener);
    }
    while listeners.len() < count {
        let next = listeners[listeners.len() % passed as usize].try_clone();
        listeners.push(next.map_err(|source| ListenError::Inherited { fd: FIRST_PASSED, source })?);
    }
    Ok(Some(listeners))
}
