//! A request in flight on one backend.

use std::sync::Arc;
use std::time::Instant;

use monoio::net::TcpStream;
use select::{Outcome, Ticket};

use super::plan::Job;
use crate::buffer::Buffer;
use crate::clock;
use crate::error::{Error, Side};
use crate::pool::{Keep, Upstream};
use crate::site::{Member, Site};
use crate::socket::{self, Peer};
use crate::thread::{Count, Thread};

/// Holds the ticket of a request. Whatever happens, the ticket is finished: dropped before an outcome is known, it
/// counts as cancelled.
pub(crate) struct Flight<'a> {
    site: &'a Site,
    cluster: usize,
    backend: usize,
    ticket: Option<Ticket>,
}

impl<'a> Flight<'a> {
    /// Chooses a backend that is not among `tried`.
    pub(crate) fn pick(job: &'a Job, tried: &[usize], now: Instant) -> Option<Self> {
        let (site, cluster) = (&*job.site, job.cluster);
        let ticket = site.pickers[cluster].borrow_mut().cluster.pick_other(tried, now)?;
        Some(Self { site, cluster, backend: ticket.backend(), ticket: Some(ticket) })
    }

    pub(crate) fn backend(&self) -> usize {
        self.backend
    }

    /// Names of the cluster and the backend.
    pub(crate) fn names(&self) -> (&str, &str) {
        let member = self.member();
        (&member.cluster, member.backend.id())
    }

    fn member(&self) -> &Arc<Member> {
        &self.site.generation.clusters[self.cluster].members[self.backend]
    }

    /// A connection to the backend, and whether it was used before. `must_live` makes sure that a used one was not
    /// closed by the backend, at the price of a system call.
    pub(crate) async fn connect(&self, thread: &Thread, must_live: bool) -> Result<(Upstream, bool), Error> {
        let pooled = self.site.pickers[self.cluster].borrow_mut().pool.checkout(self.backend, must_live);
        if let Some(upstream) = pooled {
            return Ok((upstream, true));
        }
        let wait = self.site.generation.config.timeouts.connect;
        let stream = match monoio::time::timeout(wait, TcpStream::connect_addr(self.member().address)).await {
            Err(_) => return Err(Error::ConnectTimeout),
            Ok(Err(error)) => {
                let error = Error::of_connect(error);
                if matches!(error, Error::Exhausted(_)) {
                    self.site.close_idle();
                }
                return Err(error);
            }
            Ok(Ok(stream)) => stream,
        };
        stream.set_nodelay(true).map_err(Error::of_connect)?;
        let (reader, writer) = socket::split(stream, &thread.watch, Buffer::default(), Peer::Backend);
        thread.count(Count::Connect);
        Ok((Upstream { reader, writer }, false))
    }

    /// Gives a connection back whose last answer is read to its end.
    pub(crate) fn checkin(&self, upstream: Upstream, keep: Keep) {
        self.site.pickers[self.cluster].borrow_mut().pool.checkin(self.backend, upstream, keep);
    }

    /// Closes the idle connections to this backend: one of them turned out to be dead, and the others are older.
    pub(crate) fn forget_idle(&self) {
        self.site.pickers[self.cluster].borrow_mut().pool.forget(self.backend);
    }

    /// Notes that a long answer has begun, which is where its latency ends.
    pub(crate) fn answered(&mut self) {
        if let Some(ticket) = &mut self.ticket {
            ticket.answered(clock::now());
        }
    }

    /// Takes the request off its backend and notes how it ended. The first outcome counts.
    pub(crate) fn finish(&mut self, outcome: Outcome) {
        let Some(ticket) = self.ticket.take() else { return };
        let now = clock::now();
        if outcome != Outcome::Cancelled {
            self.member().stats.record(outcome == Outcome::Failure, ticket.latency(now));
        }
        self.site.pickers[self.cluster].borrow_mut().cluster.finish(ticket, outcome, now);
        if !self.site.generation.clusters[self.cluster].queue.is_empty() {
            self.site.tell_first(self.cluster);
        }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.finish(Outcome::Cancelled);
    }
}

/// What an error says about the backend.
pub(crate) fn outcome_of(error: &Error) -> Outcome {
    match error.side() {
        Side::Upstream => Outcome::Failure,
        Side::Downstream | Side::Internal => Outcome::Cancelled,
    }
}

/// What an answer's status says about the backend. An error of the application's own making is an answer as well,
/// but one that a quick backend must not gain from: 5xx count as failures, except for what the request itself asked
/// for and cannot have (501, 505).
pub(crate) fn outcome_of_status(status: u16) -> Outcome {
    if status >= 500 && !matches!(status, 501 | 505) { Outcome::Failure } else { Outcome::Success }
}
