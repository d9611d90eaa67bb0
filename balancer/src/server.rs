//! A thread: accepts connections, starts a task for each, keeps time, drains.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use monoio::net::{TcpListener, TcpStream};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use crate::access::Recorder;
use crate::bell::Bell;
use crate::driver::{AnyRuntime, Driver};
use crate::proxy::{self, Client};
use crate::site::Shared;
use crate::thread::Thread;
use crate::watch::TICK;
use crate::{clock, crew, listen};

/// Connections over the limit that are being told so; beyond, they are closed without a word. Without descriptors, so
/// many are told so per tick.
const TURNED_AWAY_MAX: usize = 64;
/// When nobody takes the listeners over, clients that are half way through the handshake have this long to come in:
/// one round trip to the far side of the world.
const HANDSHAKE_GRACE: Duration = Duration::from_millis(250);
/// How long requests that came right at the end of the drain time may take.
pub(crate) const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// Serves `listeners` until the process drains and this thread's clients are gone, or the drain time is over.
pub(crate) fn run(
    mut runtime: AnyRuntime,
    driver: &Driver,
    listeners: Vec<std::net::TcpListener>,
    shared: Arc<Shared>,
    seed: u64,
) -> io::Result<()> {
    let nonblocking = matches!(driver, Driver::Epoll { .. });
    runtime.block_on(async {
        let (bell, hearing) = Bell::new()?;
        let thread = Rc::new(Thread::new(shared, bell, seed, clock::now()));
        let heard = Rc::clone(&thread);
        monoio::spawn(async move {
            // Without it, requests that wait look for room at each tick.
            let _ = hearing.listen(nonblocking, || heard.hear()).await;
        });
        thread.reserve_descriptor();
        let accepting = Rc::new(Cell::new(listeners.len()));
        for listener in listeners {
            let listener = TcpListener::from_std(listener)?;
            let (thread, accepting) = (Rc::clone(&thread), Rc::clone(&accepting));
            monoio::spawn(async move {
                accept_until_draining(&thread, &listener, nonblocking).await;
                drop(listener);
                accepting.set(accepting.get() - 1);
            });
        }
        while !thread.shared.is_draining() {
            monoio::time::sleep(TICK).await;
            thread.tick(clock::now());
        }
        drain(&thread, &accepting).await;
        thread.recorder.iter().for_each(Recorder::flush);
        thread.crew.dismiss();
        Ok(())
    })
}

/// Readiness is awaited and the accept is a plain system call: an accept that is dropped in a race would lose its
/// connection, and a batch of them costs one wake-up.
async fn accept_until_draining(thread: &Rc<Thread>, listener: &TcpListener, nonblocking: bool) {
    while !thread.shared.is_draining() {
        accept_within(thread, listener, nonblocking, TICK).await;
    }
    // A successor takes what waits in the queue; otherwise the close would reset it.
    if !thread.shared.is_handed_over() {
        empty_queue(thread, listener, nonblocking).await;
    }
}

/// Accepts everybody who has connected or is about to, and nobody else.
async fn empty_queue(thread: &Rc<Thread>, listener: &TcpListener, nonblocking: bool) {
    // Refused, the wait below is a little less exact.
    let _ = listen::ignore_new_clients(descriptor(listener));
    let due = clock::now() + HANDSHAKE_GRACE;
    loop {
        let left = due.saturating_duration_since(clock::now());
        if left.is_zero() {
            break;
        }
        accept_within(thread, listener, nonblocking, left).await;
    }
    let _ = accept_all(thread, listener, nonblocking);
}

async fn accept_within(thread: &Rc<Thread>, listener: &TcpListener, nonblocking: bool, wait: Duration) {
    let ready = monoio::time::timeout(wait, listener.readable(false)).await;
    if ready.is_ok() && !accept_ready(thread, listener, nonblocking) {
        // The listener stays ready, so asking again at once would spin.
        monoio::time::sleep(TICK).await;
    }
}

/// Accepts who waits. `false` when there are no descriptors or no memory for anybody.
fn accept_ready(thread: &Rc<Thread>, listener: &TcpListener, nonblocking: bool) -> bool {
    // The last descriptor is for saying no.
    if thread.reserve_descriptor() {
        let _with_others = thread.shared.accepting.read().unwrap_or_else(PoisonError::into_inner);
        if accept_all(thread, listener, nonblocking).is_ok() {
            return true;
        }
    }
    // Clients come before connections that are only kept for later.
    if thread.site().close_idle() > 0 {
        return true;
    }
    refuse_waiting(thread, listener);
    false
}

/// Tells those who wait to be accepted that they cannot be, one by one with the descriptor that is kept for this.
fn refuse_waiting(thread: &Thread, listener: &TcpListener) {
    for _ in 0..TURNED_AWAY_MAX {
        // Or another thread's client would take the descriptor, and these would wait for nothing.
        let _alone = thread.shared.accepting.write().unwrap_or_else(PoisonError::into_inner);
        thread.free_descriptor();
        let accepted = rustix::net::accept_with(descriptor(listener), SocketFlags::CLOEXEC);
        let refused = accepted.map(proxy::turn_away_at_once);
        thread.reserve_descriptor();
        if refused.is_err() {
            return;
        }
        thread.shared.totals.connections_refused.fetch_add(1, Relaxed);
    }
}

async fn drain(thread: &Rc<Thread>, accepting: &Cell<usize>) {
    let is_busy = || thread.clients.get() + accepting.get() > 0;
    let due = clock::now() + thread.site().generation.config.timeouts.drain;
    while is_busy() && clock::now() < due {
        monoio::time::sleep(TICK / 2).await;
        thread.tick(clock::now());
    }
    // Time is over: nothing more is received from clients. Who is idle is closed; a request that came at the last
    // moment is still answered.
    thread.watch.end_requests();
    let due = clock::now() + LAST_ANSWERS;
    while is_busy() && clock::now() < due {
        monoio::time::sleep(TICK / 10).await;
        thread.tick(clock::now());
    }
}

/// Accepts what is waiting. An error is one that will not pass at once.
fn accept_all(thread: &Rc<Thread>, listener: &TcpListener, nonblocking: bool) -> io::Result<()> {
    let mut flags = SocketFlags::CLOEXEC;
    flags.set(SocketFlags::NONBLOCK, nonblocking);
    loop {
        match rustix::net::acceptfrom_with(descriptor(listener), flags) {
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

fn descriptor(listener: &TcpListener) -> BorrowedFd<'_> {
    // SAFETY: the listener is alive as long as the borrow, and its descriptor is open as long as it is alive.
    unsafe { BorrowedFd::borrow_raw(listener.as_raw_fd()) }
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
        if let Some(client) = thread.crew.take_on(client) {
            spawn(thread, crew::work(client, Rc::clone(thread)));
        }
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
