//! A thread: accepts connections, starts a task for each, keeps time, drains.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Instant;

use monoio::net::{TcpListener, TcpStream};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use crate::clock;
use crate::driver::{AnyRuntime, Driver};
use crate::proxy::{self, Client};
use crate::site::Shared;
use crate::thread::Thread;
use crate::watch::TICK;

/// Connections over the limit that are being told so; beyond, they are closed without a word.
const TURNED_AWAY_MAX: usize = 64;

/// Serves `listener` until the process drains and this thread's clients are gone, or the drain time is over.
pub(crate) fn run(
    mut runtime: AnyRuntime,
    driver: &Driver,
    listener: std::net::TcpListener,
    shared: Arc<Shared>,
    seed: u64,
) -> io::Result<()> {
    let nonblocking = matches!(driver, Driver::Epoll { .. });
    runtime.block_on(async {
        let thread = Rc::new(Thread::new(shared, seed, clock::now()));
        let listener = TcpListener::from_std(listener)?;
        accept_until_draining(&thread, &listener, nonblocking).await;
        drop(listener);
        drain(&thread).await;
        Ok(())
    })
}

/// Readiness is awaited and the accept is a plain system call: an accept that is dropped in a race would lose its
/// connection, and a batch of them costs one wake-up.
async fn accept_until_draining(thread: &Rc<Thread>, listener: &TcpListener, nonblocking: bool) {
    let mut swept = clock::now();
    while !thread.shared.is_draining() {
        let ready = monoio::time::timeout(TICK, listener.readable(false)).await;
        if ready.is_ok() && accept_all(thread, listener, nonblocking).is_err() {
            // Out of descriptors or memory: the listener stays ready, so asking again at once would spin.
            monoio::time::sleep(TICK).await;
        }
        let now = clock::now();
        if now.saturating_duration_since(swept) >= TICK {
            swept = now;
            thread.tick(now);
        }
    }
    // What the kernel has accepted already would be reset by the close.
    let _ = accept_all(thread, listener, nonblocking);
}

async fn drain(thread: &Rc<Thread>) {
    let time = thread.site().generation.config.timeouts.drain;
    let due = clock::now() + time;
    while thread.clients.get() > 0 && clock::now() < due {
        monoio::time::sleep(TICK / 2).await;
        thread.tick(clock::now());
    }
}

/// Accepts what is waiting. An error is one that will not pass at once.
fn accept_all(thread: &Rc<Thread>, listener: &TcpListener, nonblocking: bool) -> io::Result<()> {
    // SAFETY: the listener outlives the call, and so its descriptor.
    let listener = unsafe { BorrowedFd::borrow_raw(listener.as_raw_fd()) };
    let mut flags = SocketFlags::CLOEXEC;
    flags.set(SocketFlags::NONBLOCK, nonblocking);
    loop {
        match rustix::net::acceptfrom_with(listener.as_fd(), flags) {
            Ok((socket, address)) => {
                let address = address.and_then(|address| SocketAddr::try_from(address).ok());
                start(thread, socket, address.map(|address| address.ip()))?;
            }
            Err(Errno::AGAIN) => return Ok(()),
            // The client was gone before it was accepted.
            Err(Errno::INTR | Errno::CONNABORTED | Errno::PROTO) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn start(thread: &Rc<Thread>, socket: OwnedFd, address: Option<IpAddr>) -> io::Result<()> {
    let stream = TcpStream::from_std(std::net::TcpStream::from(socket))?;
    let Some(address) = address else { return Ok(()) };
    let totals = &thread.shared.totals;
    let limit = thread.site().generation.config.limits.connections;
    let open = totals.connections.load(Relaxed);
    if open < limit {
        totals.connections_accepted.fetch_add(1, Relaxed);
        let client = Client::new(stream, address, thread);
        spawn(thread, proxy::serve(client, Rc::clone(thread)));
    } else {
        totals.connections_refused.fetch_add(1, Relaxed);
        if open < limit + TURNED_AWAY_MAX {
            let client = Client::new(stream, address, thread);
            spawn(thread, proxy::turn_away(client, Rc::clone(thread)));
        }
    }
    Ok(())
}

fn spawn(thread: &Rc<Thread>, future: impl Future<Output = ()> + 'static) {
    monoio::spawn(Contained { future, thread: Rc::clone(thread) });
}

/// A task whose panic ends the task and nothing else: monoio would take the whole thread down.
struct Contained<F> {
    future: F,
    thread: Rc<Thread>,
}

impl<F: Future<Output = ()>> Future for Contained<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // SAFETY: `future` is not moved: `Contained` gives no other access to it, and it has no drop of its own.
        let this = unsafe { self.get_unchecked_mut() };
        // SAFETY: as above.
        let future = unsafe { Pin::new_unchecked(&mut this.future) };
        catch_unwind(AssertUnwindSafe(|| future.poll(cx))).unwrap_or_else(|_| {
            this.thread.shared.totals.panics.fetch_add(1, Relaxed);
            Poll::Ready(())
        })
    }
}

/// The time until which the whole process waits for its threads once it drains.
pub(crate) fn drain_due(shared: &Shared, now: Instant) -> Instant {
    now + shared.generation().config.timeouts.drain + 2 * TICK
}
