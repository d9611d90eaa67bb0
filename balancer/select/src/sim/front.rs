//! The balancer's side of a simulation: its threads, what they know, and the tickets they hold.

#![expect(
    clippy::disallowed_methods,
    reason = "a starting point for the virtual clock, which moves by itself"
)]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::contender::Contender;
use super::reports::Reports;
use super::scenario::{Scenario, Sharing};
use crate::backend::Backend;
use crate::cluster::Cluster;
use crate::ticket::{Outcome, Ticket};
use crate::view::{Limits, View};

/// What one thread hears of another's request, in time or late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    Picked { job: u32, backend: usize },
    Finished { job: u32, outcome: Outcome },
}

/// The pickers of all threads, driven as the live balancer drives them.
pub(super) struct Front {
    clusters: Vec<Cluster>,
    /// One, or one per thread.
    views: Vec<Arc<View>>,
    /// Tickets that stand for other threads' requests, by thread and job.
    heard: HashMap<(usize, u32), Ticket>,
    epoch: Instant,
}

impl Front {
    pub(super) fn new(scenario: &Scenario, contender: &Contender, reports: &Reports, seed: u64) -> Self {
        let epoch = Instant::now();
        let view = || {
            let backend = |n: usize| Arc::new(Backend::new(&format!("i-{n}"), epoch));
            let view = View::new((0..scenario.backends.len()).map(backend).collect(), scenario.ejection);
            Arc::new(match scenario.waiting {
                Some(waiting) => {
                    view.limited(Limits { deadline: waiting.deadline, learns: true, in_flight_max: u32::MAX })
                }
                None => view,
            })
        };
        let threads = scenario.threads.count;
        let views: Vec<_> = match scenario.threads.sharing {
            Sharing::Shared => vec![view()],
            Sharing::Private | Sharing::Late(_) => (0..threads).map(|_| view()).collect(),
        };
        let cluster = |thread: usize| {
            let view = Arc::clone(&views[thread % views.len()]);
            let seed = seed ^ (thread as u64).wrapping_mul(0x9e37_79b9);
            Cluster::with_policy(view, contender.build(scenario, reports, seed), seed)
        };
        Self { clusters: (0..threads).map(cluster).collect(), views, heard: HashMap::new(), epoch }
    }

    pub(super) fn pick(&mut self, thread: usize, tried: &[usize], now_ns: u64) -> Option<Ticket> {
        let now = self.instant(now_ns);
        self.clusters[thread].pick_other(tried, now)
    }

    /// How long a request that was not picked for may wait, with `ahead` before it.
    pub(super) fn wait(&self, thread: usize, ahead: usize, now_ns: u64) -> Option<Duration> {
        self.clusters[thread].view().wait(ahead, self.instant(now_ns))
    }

    pub(super) fn finish(&mut self, thread: usize, ticket: Ticket, outcome: Outcome, now_ns: u64) {
        let now = self.instant(now_ns);
        self.clusters[thread].finish(ticket, outcome, now);
    }

    pub(super) fn set_up(&mut self, backend: usize, up: bool) {
        for view in &self.views {
            view.backends()[backend].set_up(up);
        }
    }

    pub(super) fn set_draining(&mut self, backend: usize, draining: bool) {
        for view in &self.views {
            view.backends()[backend].set_draining(draining);
        }
    }

    pub(super) fn probed(&mut self, backend: usize, latency: Duration) {
        for view in &self.views {
            view.backends()[backend].probed(latency);
        }
    }

    /// Tells `thread` what another did. It is told of picks by taking a ticket of its own for the same backend.
    pub(super) fn hear(&mut self, thread: usize, news: News, now_ns: u64) {
        let now = self.instant(now_ns);
        let cluster = &mut self.clusters[thread];
        match news {
            News::Picked { job, backend } => {
                let others: Vec<usize> =
                    (0..cluster.view().backends().len()).filter(|&other| other != backend).collect();
                if let Some(ticket) = cluster.pick_other(&others, now) {
                    self.heard.insert((thread, job), ticket);
                }
            }
            News::Finished { job, outcome } => {
                if let Some(ticket) = self.heard.remove(&(thread, job)) {
                    cluster.finish(ticket, outcome, now);
                }
            }
        }
    }

    fn instant(&self, now_ns: u64) -> Instant {
        self.epoch + Duration::from_nanos(now_ns)
    }
}
