//! Idle connections to backends, per thread.
//!
//! Last in, first out, so that as few as needed stay warm.
//!
//! What a backend sends behind the end of an answer must never be taken for the next one. What comes together with the
//! answer is seen by who reads it, who does not give the connection back. What comes later waits in the socket, and
//! asking there costs a system call. So a connection is asked when it has been idle since an earlier tick, which under
//! load it rarely is; and one whose answer had no body by rule (to HEAD, 204, 304), which is where backends get it
//! wrong, is not used at all until a tick or two have passed and it is still silent. What this cannot see is surplus
//! behind an ordinary answer that comes too late for its reader and too early for the next tick, and any that is still
//! under way when the next request is sent: HTTP/1.1 has nothing that tells it from an answer.
//!
//! This module does not connect and does not know when a backend is down; the sweep is told what to keep.

use crate::socket::{Reader, Writer};
use crate::watch::TICK;

/// Idle connections kept per backend and thread: as many as requests that one thread sensibly has in flight on one
/// backend. More would only hold descriptors.
const IDLE_PER_BACKEND_MAX: usize = 512;
/// An idle connection is closed after this time. Application servers commonly close theirs after five seconds, and
/// who closes first does not see a request lost.
const IDLE_MS_MAX: u64 = 4_000;
/// How long a connection rests after an answer that had no body by rule. Times are good to a tick, so that one to two
/// ticks really pass.
const REST_MS: u64 = 2 * TICK.as_millis() as u64;

/// A connection to a backend.
pub(crate) struct Upstream {
    pub(crate) reader: Reader,
    pub(crate) writer: Writer,
}

struct Idle {
    upstream: Upstream,
    /// When it was known to be silent.
    since_ms: u64,
}

/// What to do with a connection whose answer is read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    Close,
    /// It may be used again at once.
    Ready,
    /// It may be used again when nothing has followed for a while.
    Resting,
}

/// Idle connections of one backend. The oldest are in front, since the last one in is the first one out.
#[derive(Default)]
struct Place {
    ready: Vec<Idle>,
    resting: Vec<Idle>,
}

impl Place {
    /// Closes what has been idle for too long, and makes what has rested ready.
    fn sweep(&mut self, now_ms: u64) {
        let older = |idle: &[Idle], age_ms| idle.iter().take_while(|i| i.since_ms + age_ms <= now_ms).count();
        self.ready.drain(..older(&self.ready, IDLE_MS_MAX));
        let rested = older(&self.resting, REST_MS);
        let silent = self.resting.drain(..rested).filter(|idle| !idle.upstream.writer.is_stale());
        self.ready.extend(silent.map(|idle| Idle { since_ms: now_ms, ..idle }));
    }
}

/// Idle connections by the backend's position in the cluster.
pub(crate) struct Pool {
    places: Vec<Place>,
}

impl Pool {
    pub(crate) fn new(backends: usize) -> Self {
        Self { places: (0..backends).map(|_| Place::default()).collect() }
    }

    /// The connection used last, if any. With `must_live`, only one that its backend has neither closed nor sent
    /// anything on.
    pub(crate) fn checkout(&mut self, backend: usize, must_live: bool) -> Option<Upstream> {
        while let Some(Idle { upstream, since_ms }) = self.places[backend].ready.pop() {
            let unsure = must_live || since_ms < upstream.reader.now_ms();
            if !unsure || !upstream.writer.is_stale() {
                return Some(upstream);
            }
        }
        None
    }

    /// Keeps a connection whose last answer is read to its end.
    pub(crate) fn checkin(&mut self, backend: usize, upstream: Upstream, keep: Keep) {
        let place = &mut self.places[backend];
        if keep != Keep::Close && place.ready.len() + place.resting.len() < IDLE_PER_BACKEND_MAX {
            let idle = Idle { since_ms: upstream.reader.now_ms(), upstream };
            if keep == Keep::Ready { place.ready.push(idle) } else { place.resting.push(idle) }
        }
    }

    /// Closes what has been idle for too long, and everything of backends for which `keeps` does not hold.
    pub(crate) fn sweep(&mut self, now_ms: u64, keeps: impl Fn(usize) -> bool) {
        for (backend, place) in self.places.iter_mut().enumerate() {
            if place.ready.is_empty() && place.resting.is_empty() {
                continue;
            }
            if keeps(backend) { place.sweep(now_ms) } else { *place = Place::default() }
        }
    }

    /// Closes all idle connections to one backend.
    pub(crate) fn forget(&mut self, backend: usize) {
        self.places[backend] = Place::default();
    }

    /// Closes all idle connections; how many there were.
    pub(crate) fn clear(&mut self) -> usize {
        let emptied = self.places.iter_mut().map(std::mem::take);
        emptied.map(|place| place.ready.len() + place.resting.len()).sum()
    }

    /// Takes over the connections that `other` has to its backend `from`.
    pub(crate) fn adopt(&mut self, backend: usize, other: &mut Self, from: usize) {
        self.places[backend] = std::mem::take(&mut other.places[from]);
    }
}
