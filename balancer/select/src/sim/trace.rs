//! What a balancer did, to be done again.

#![expect(
    clippy::disallowed_methods,
    reason = "a starting point for the virtual clock, which moves by itself"
)]

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::Backend;
use crate::cluster::Cluster;
use crate::policy::PolicyKind;
use crate::ticket::{Outcome, Ticket};
use crate::view::{Ejection, View};

/// Everything that a cluster's pickers were told, in the order in which they were told it, and what they chose. Times
/// are nanoseconds since the epoch of the backends. Of threads that decide at the same time the order is that of the
/// trace, so a trace is exact when whatever writes it also orders the decisions.
#[derive(Debug, Clone)]
pub struct Trace {
    pub backends: usize,
    pub policy: PolicyKind,
    pub ejection: Ejection,
    /// One per thread.
    pub seeds: Vec<u64>,
    pub events: Vec<Told>,
}

/// One thing that the pickers were told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// [`Cluster::pick_other`] and what it gave.
    Pick { thread: usize, at_ns: u64, tried: Vec<usize>, chosen: Option<usize> },
    /// [`Ticket::answered`] of the ticket from this event.
    Answered { pick: usize, at_ns: u64 },
    /// [`Cluster::finish`] of the ticket from this event.
    Finish { thread: usize, at_ns: u64, pick: usize, outcome: Outcome },
    /// [`Backend::set_up`].
    Up { backend: usize, up: bool },
    /// [`Backend::set_draining`].
    Draining { backend: usize, draining: bool },
    /// [`Backend::probed`].
    Probed { backend: usize, latency: Duration },
}

/// The first choice of a trace that comes out otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub event: usize,
    pub traced: Option<usize>,
    pub replayed: Option<usize>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { event, traced, replayed } = self;
        write!(f, "event {event} of the trace chose {traced:?}, and {replayed:?} when replayed")
    }
}

impl std::error::Error for Difference {}

impl Trace {
    /// Tells fresh pickers the same on a virtual clock and compares what they choose.
    ///
    /// # Errors
    /// The first choice that differs.
    pub fn replay(&self) -> Result<(), Difference> {
        let epoch = Instant::now();
        let at = |at_ns: u64| epoch + Duration::from_nanos(at_ns);
        let backends = (0..self.backends).map(|n| Arc::new(Backend::new(&format!("i-{n}"), epoch))).collect();
        let view = Arc::new(View::new(backends, self.ejection));
        let mut clusters: Vec<Cluster> =
            self.seeds.iter().map(|&seed| Cluster::new(Arc::clone(&view), self.policy, seed)).collect();
        let mut tickets: Vec<Option<Ticket>> = Vec::with_capacity(self.events.len());
        for (event, told) in self.events.iter().enumerate() {
            let mut ticket = None;
            match told {
                Told::Pick { thread, at_ns, tried, chosen } => {
                    ticket = clusters[*thread].pick_other(tried, at(*at_ns));
                    let replayed = ticket.as_ref().map(Ticket::backend);
                    if replayed != *chosen {
                        return Err(Difference { event, traced: *chosen, replayed });
                    }
                }
                Told::Answered { pick, at_ns } => {
                    if let Some(ticket) = &mut tickets[*pick] {
                        ticket.answered(at(*at_ns));
                    }
                }
                Told::Finish { thread, at_ns, pick, outcome } => {
                    if let Some(ticket) = tickets[*pick].take() {
                        clusters[*thread].finish(ticket, *outcome, at(*at_ns));
                    }
                }
                Told::Up { backend, up } => view.backends()[*backend].set_up(*up),
                Told::Draining { backend, draining } => view.backends()[*backend].set_draining(*draining),
                Told::Probed { backend, latency } => view.backends()[*backend].probed(*latency),
            }
            tickets.push(ticket);
        }
        Ok(())
    }
}
