//! Listening sockets: opened here, passed in at the start, or taken over from a predecessor.
//!
//! There may be more or fewer of them than threads. None is ever closed while another process may still serve it
//! but by the last holder, because what waits in a socket's queue is reset with it.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

/// Connections waiting to be accepted, per listener. The kernel cuts it to net.core.somaxconn.
const BACKLOG: i32 = 4096;
/// How long a client may be silent before it is accepted nevertheless, in seconds: the kernel counts in
/// retransmissions, of which the first comes after one.
const SILENT_S: libc::c_int = 1;
/// The first descriptor passed in by the protocol of `LISTEN_FDS`.
const FIRST_PASSED: RawFd = 3;
/// Passed listeners that are looked at; more is a mistake.
const PASSED_MAX: RawFd = 1024;

/// A port that cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error(
        "listen on {address}: another process listens there; find it with `ss -ltnp`, choose another port, or \
         replace a balancer with --replace"
    )]
    Taken { address: SocketAddr },
    #[error("listen on {address}: ports below 1024 need CAP_NET_BIND_SERVICE")]
    NotAllowed { address: SocketAddr },
    #[error("listen on {address}")]
    Bind { address: SocketAddr, source: io::Error },
    #[error("use the inherited listener {fd}")]
    Inherited { fd: RawFd, source: io::Error },
}

/// All listening sockets of a process.
#[derive(Debug)]
pub(crate) struct Listeners(Vec<TcpListener>);

impl Listeners {
    /// Opens `count` listeners that share `address`. Port 0 takes a free port for all of them.
    pub(crate) fn bind(address: SocketAddr, count: usize) -> Result<Self, ListenError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => ListenError::Taken { address },
            io::ErrorKind::PermissionDenied => ListenError::NotAllowed { address },
            _ => ListenError::Bind { address, source },
        };
        if address.port() != 0 {
            // With SO_REUSEPORT a second balancer of the same user would silently share the port, so a plain bind
            // asks first whether anybody is there.
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
        Ok(Self(listeners))
    }

    /// The listeners that systemd passed (`LISTEN_PID`, `LISTEN_FDS`), if it passed any.
    pub(crate) fn inherited() -> Result<Option<Self>, ListenError> {
        let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<RawFd>().ok());
        let for_us = number("LISTEN_PID") == RawFd::try_from(std::process::id()).ok();
        let passed = number("LISTEN_FDS").filter(|&passed| for_us && (1..=PASSED_MAX).contains(&passed));
        let Some(passed) = passed else { return Ok(None) };
        // SAFETY: by the protocol these descriptors are ours, and nobody else in this process uses them.
        let socket = |fd| unsafe { OwnedFd::from_raw_fd(fd) };
        Self::adopt((FIRST_PASSED..FIRST_PASSED + passed).map(socket).collect()).map(Some)
    }

    /// Sockets that somebody else has opened.
    pub(crate) fn adopt(sockets: Vec<OwnedFd>) -> Result<Self, ListenError> {
        let adopt = |socket: OwnedFd| {
            let fd = socket.as_raw_fd();
            let listener = prepare(&socket).map(|()| TcpListener::from(socket));
            let listener = listener.and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
            listener.map_err(|source| ListenError::Inherited { fd, source })
        };
        sockets.into_iter().map(adopt).collect::<Result<_, _>>().map(Self)
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0[0].local_addr()
    }

    pub(crate) fn sockets(&self) -> &[TcpListener] {
        &self.0
    }

    /// A share for each of `threads`. Every socket is in some share, and no share is empty: threads beyond the
    /// sockets share theirs with another.
    pub(crate) fn shares(&self, threads: usize) -> io::Result<Vec<Vec<TcpListener>>> {
        let mut shares: Vec<Vec<TcpListener>> = (0..threads).map(|_| Vec::new()).collect();
        for index in 0..threads.max(self.0.len()) {
            shares[index % threads].push(self.0[index % self.0.len()].try_clone()?);
        }
        Ok(shares)
    }
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

/// Accepted sockets inherit `TCP_NODELAY`, which saves a system call for each.
fn prepare(socket: &OwnedFd) -> io::Result<()> {
    sockopt::set_tcp_nodelay(socket, true)?;
    // Refused, clients are accepted before their requests, which only costs more.
    let _ = accept_with_request(socket.as_fd());
    Ok(())
}

/// Leaves a client in the kernel until its request is there, or until it has said nothing for [`SILENT_S`]: the thread
/// then wakes once for both and finds something to receive.
fn accept_with_request(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, &SILENT_S)
}

fn set_option<T>(socket: BorrowedFd<'_>, level: i32, option: i32, value: &T) -> io::Result<()> {
    let size = size_of_val(value) as libc::socklen_t;
    // SAFETY: the kernel reads `size` bytes of `value` during the call, and the caller knows the option's type.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, std::ptr::from_ref(value).cast(), size)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// From now on `listener` ignores attempts to connect, so that its queue can be emptied for good: a client that is
/// half way through comes in, and one that comes later tries again after a second, as it does when a packet is lost.
pub(crate) fn ignore_new_clients(listener: BorrowedFd<'_>) -> io::Result<()> {
    /// Where the flags are in a TCP header, and two of them.
    const FLAGS_OFFSET: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    // Classic BPF, which sees a TCP socket's packets from the TCP header on; it returns how much of one to keep.
    let mut program = [
        step(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, FLAGS_OFFSET),
        step(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, SYN | ACK),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, SYN),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // The kernel copies the program, which lives through the call.
    set_option(listener, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &filter)
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::time::Duration;

    use super::*;

    fn sizes(sockets: usize, threads: usize) -> Vec<usize> {
        let listeners = Listeners::bind("127.0.0.1:0".parse().expect("an address"), sockets).expect("bound");
        listeners.shares(threads).expect("shared").iter().map(Vec::len).collect()
    }

    #[test]
    fn every_socket_is_served_and_no_thread_is_idle() {
        assert_eq!(sizes(2, 2), [1, 1]);
        assert_eq!(sizes(3, 2), [2, 1]);
        assert_eq!(sizes(1, 3), [1, 1, 1]);
    }

    #[test]
    fn client_is_accepted_with_its_request() {
        let listeners = Listeners::bind("127.0.0.1:0".parse().expect("an address"), 1).expect("bound");
        let (fd, mut seconds) = (listeners.sockets()[0].as_raw_fd(), 0i32);
        let mut size = size_of_val(&seconds) as libc::socklen_t;
        let value = (&raw mut seconds).cast();
        // SAFETY: the kernel writes `size` bytes, which `seconds` has.
        let result =
            unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, value, &raw mut size) };
        assert_eq!((result, seconds), (0, SILENT_S));
    }

    #[test]
    fn listener_that_ignores_new_clients_keeps_those_it_has() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("bound");
        let _early = TcpStream::connect(address).expect("it waits");
        ignore_new_clients(listener.as_fd()).expect("set");
        assert!(TcpStream::connect_timeout(&address, Duration::from_millis(50)).is_err());
        listener.set_nonblocking(true).expect("set");
        assert!(listener.accept().is_ok());
        assert!(listener.accept().is_err(), "nobody else");
    }
}
