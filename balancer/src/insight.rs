//! What the threads' pickers believe and decided, for a reader of another thread.
//!
//! A reader asks; for [`RECORDED`] from then on each thread lets its pickers remember their choices and tells, at each
//! tick, what they hold. While nobody asks a choice pays one look at a flag of its own thread, and a tick one load.
//!
//! The last choices before the first question are not known. Requests do not wait for readers, and what is told
//! lags by up to two ticks.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use select::{Belief, DECISIONS_MAX, Decision};

use crate::clock;
use crate::site::{Generation, Site, lock};
use crate::watch::TICK;

/// How long after a question choices are remembered: long enough for somebody who looks again and again, short
/// enough that a forgotten question costs nothing.
pub(crate) const RECORDED: Duration = Duration::from_secs(10);
/// How long a reader waits for the threads: they tell at each tick, and one more begins to record. Less than a
/// client of the admin socket has.
const WAIT: Duration = Duration::from_millis(500);

/// What one thread's pickers hold, in step with the clusters and members of a generation.
pub(crate) struct Report {
    pub(crate) generation: Arc<Generation>,
    clusters: Vec<Held>,
    at: Instant,
}

struct Held {
    /// By backend.
    beliefs: Vec<Vec<Belief>>,
    decisions: Vec<Decision>,
}

/// A choice, with where it belongs.
pub(crate) struct Told {
    pub(crate) generation: Arc<Generation>,
    pub(crate) thread: usize,
    /// Position in the generation.
    pub(crate) cluster: usize,
    pub(crate) decision: Decision,
}

impl Report {
    /// What the pickers of `site` hold now.
    pub(crate) fn of(site: &Site, now: Instant) -> Self {
        let held = |picker: &std::cell::RefCell<crate::site::Picker>| {
            let cluster = &picker.borrow().cluster;
            let beliefs = (0..cluster.view().backends().len()).map(|backend| {
                let mut all = Vec::new();
                cluster.believes(backend, now, &mut |belief| all.push(belief));
                all
            });
            Held { beliefs: beliefs.collect(), decisions: cluster.decisions().copied().collect() }
        };
        let clusters = site.pickers.iter().map(held).collect();
        Self { generation: Arc::clone(&site.generation), clusters, at: now }
    }

    /// What is believed of a backend, by position of its cluster and of itself; nothing when the report is of another
    /// configuration.
    pub(crate) fn beliefs(&self, generation: &Generation, cluster: usize, backend: usize) -> &[Belief] {
        let known = self.generation.number == generation.number;
        let held = self.clusters.get(cluster).filter(|_| known);
        held.and_then(|held| held.beliefs.get(backend)).map_or(&[], Vec::as_slice)
    }
}

/// Where threads and readers meet.
#[derive(Default)]
pub(crate) struct Insight {
    /// Recording ends so many milliseconds after the start; 0 when nobody has asked.
    until_ms: AtomicU64,
    /// By thread.
    reports: Mutex<Vec<Option<Report>>>,
    told: Condvar,
}

impl Insight {
    pub(crate) fn new(threads: usize) -> Self {
        Self { reports: Mutex::new((0..threads).map(|_| None).collect()), ..Self::default() }
    }

    /// At each tick of a thread, `uptime` after the start.
    pub(crate) fn tick(&self, thread: usize, site: &Site, uptime: Duration, now: Instant) {
        let until_ms = self.until_ms.load(Relaxed);
        if until_ms == 0 {
            return;
        }
        let asked = (uptime.as_millis() as u64) < until_ms;
        let report = asked.then(|| Report::of(site, now));
        for picker in &site.pickers {
            picker.borrow_mut().cluster.set_recording(asked);
        }
        let mut reports = lock(&self.reports);
        if let Some(place) = reports.get_mut(thread) {
            *place = report;
        }
        if !asked && reports.iter().all(Option::is_none) {
            // The last thread to stop; a question that comes in at this moment is asked again by its reader.
            let _ = self.until_ms.compare_exchange(until_ms, 0, Relaxed, Relaxed);
        }
        drop(reports);
        self.told.notify_all();
    }

    /// Asks, and gives what `read` makes of the threads' reports since then once it is enough for it, or what there
    /// is when the time is over.
    fn ask<T>(&self, uptime: Duration, read: impl Fn(&[Option<Report>], Instant) -> (T, bool)) -> T {
        let asked = clock::now();
        self.until_ms.store((uptime + RECORDED).as_millis() as u64, Relaxed);
        let mut reports = lock(&self.reports);
        loop {
            let left = WAIT.saturating_sub(clock::now().saturating_duration_since(asked));
            let (read, is_enough) = read(&reports, asked);
            if is_enough || left.is_zero() {
                return read;
            }
            // Asked again, in case a thread was just stopping.
            self.until_ms.store((uptime + RECORDED).as_millis() as u64, Relaxed);
            let wait = left.min(TICK);
            reports = self.told.wait_timeout(reports, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What the first thread that tells believes: `render` of its report, or of none if no thread tells in time.
    pub(crate) fn beliefs<T>(&self, uptime: Duration, render: impl Fn(Option<&Report>) -> T) -> T {
        self.ask(uptime, |reports, asked| {
            let fresh = reports.iter().flatten().find(|report| report.at >= asked);
            (render(fresh), fresh.is_some())
        })
    }

    /// The last choices of all threads, the newest first.
    pub(crate) fn decisions(&self, uptime: Duration) -> Vec<Told> {
        self.ask(uptime, |reports, asked| {
            let told = merged(reports);
            let is_fresh = reports.iter().flatten().all(|report| report.at >= asked);
            let is_enough = is_fresh && told.len() >= DECISIONS_MAX;
            (told, is_enough)
        })
    }
}

fn merged(reports: &[Option<Report>]) -> Vec<Told> {
    let mut all = Vec::new();
    for (thread, report) in reports.iter().enumerate() {
        let Some(report) = report else { continue };
        for (cluster, held) in report.clusters.iter().enumerate() {
            all.extend(held.decisions.iter().map(|&decision| Told {
                generation: Arc::clone(&report.generation),
                thread,
                cluster,
                decision,
            }));
        }
    }
    all.sort_by_key(|told| std::cmp::Reverse(told.decision.at_ns));
    all.truncate(DECISIONS_MAX);
    all
}
