//! Idle connections to backends, per thread.
//!
//! Last in, first out, so that as few as needed stay warm. This module does not connect and does not know when a
//! backend is down; the sweep is told what to keep.

use crate::socket::{Reader, Writer};

/// Idle connections kept per backend and thread: as many as requests that one thread sensibly has in flight on one
/// backend. More would only hold descriptors.
const IDLE_PER_BACKEND_MAX: usize = 512;
/// An idle connection is closed after this time. Application servers commonly close theirs after five seconds, and
/// who closes first does not see a request lost.
const IDLE_MS_MAX: u64 = 4_000;

/// A connection to a backend.
pub(crate) struct Upstream {
    pub(crate) reader: Reader,
    pub(crate) writer: Writer,
}

struct Idle {
    upstream: Upstream,
    since_ms: u64,
}

/// Idle connections by the backend's position in the cluster.
pub(crate) struct Pool {
    idle: Vec<Vec<Idle>>,
}

impl Pool {
    pub(crate) fn new(backends: usize) -> Self {
        Self { idle: (0..backends).map(|_| Vec::new()).collect() }
    }

    /// The connection used last, if any. With `must_live`, only one that its backend has not closed.
    pub(crate) fn checkout(&mut self, backend: usize, must_live: bool) -> Option<Upstream> {
        while let Some(idle) = self.idle[backend].pop() {
            if !must_live || !idle.upstream.writer.is_stale() {
                return Some(idle.upstream);
            }
        }
        None
    }

    /// Keeps a connection whose last answer is read to its end.
    pub(crate) fn checkin(&mut self, backend: usize, upstream: Upstream) {
        let idle = &mut self.idle[backend];
        if idle.len() < IDLE_PER_BACKEND_MAX {
            let since_ms = upstream.reader.now_ms();
            idle.push(Idle { upstream, since_ms });
        }
    }

    /// Closes what has been idle for too long, and everything of backends for which `keeps` does not hold.
    pub(crate) fn sweep(&mut self, now_ms: u64, keeps: impl Fn(usize) -> bool) {
        for (backend, idle) in self.idle.iter_mut().enumerate() {
            if idle.is_empty() {
                continue;
            }
            if keeps(backend) {
                // The oldest are in front, since the last one in is the first one out.
                let old = idle.iter().take_while(|idle| idle.since_ms + IDLE_MS_MAX <= now_ms).count();
                idle.drain(..old);
            } else {
                idle.clear();
            }
        }
    }

    /// Takes over the connections that `other` has to its backend `from`.
    pub(crate) fn adopt(&mut self, backend: usize, other: &mut Self, from: usize) {
        self.idle[backend] = std::mem::take(&mut other.idle[from]);
    }
}
