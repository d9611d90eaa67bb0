//! Makes the load: threads with a runtime of their own, each with its share of the connections and its recorder.
//!
//! Nothing is shared between threads per request but two counters that only their own thread writes. Does not judge.

use std::{
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::{
    runtime::{Builder, LocalOptions, LocalRuntime},
    sync::{oneshot, watch},
    task::JoinSet,
    time::{interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Progress, limits,
    link::Link,
    plan::{Load, Plan, Share},
    record::{Recorder, Sample},
};
use crate::error::{Context, Error, Kind};

const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// After an error a connection of the closed loop waits this long before its next request is due, so that a
/// target which refuses at once is asked 100 times a second per connection and not 50,000 times.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// What one thread counted.
pub(super) struct Part {
    pub(super) recorder: Recorder,
    /// CPU time of the thread over `elapsed`, which begins with the run and ends with the load.
    pub(super) cpu: Duration,
    pub(super) elapsed: Duration,
}

/// Runs a plan to its end. Dropping the future closes every connection and ends every thread before it returns.
pub(super) async fn run(
    plan: &Arc<Plan>,
    address: SocketAddr,
    progress: &dyn Fn(Progress),
) -> Result<Vec<Part>, Error> {
    let mut generator = Generator::launch(plan, address)?;
    for ready in std::mem::take(&mut generator.ready) {
        // A thread that failed says why in its part.
        let _ = ready.await;
    }
    let start = Instant::now();
    generator.start.send_replace(Some(start));
    let mut ticks = interval(PROGRESS_EVERY);
    let parts = std::mem::take(&mut generator.parts);
    let mut collected = pin!(collect(parts));
    loop {
        tokio::select! {
            parts = &mut collected => {
                progress(generator.progress(plan, start));
                return parts;
            }
            _ = ticks.tick() => progress(generator.progress(plan, start)),
        }
    }
}

async fn collect(parts: Vec<oneshot::Receiver<Result<Part, Error>>>) -> Result<Vec<Part>, Error> {
    let mut collected = Vec::with_capacity(parts.len());
    for part in parts {
        collected.push(part.await.map_err(|_| Error::internal("a thread of the benchmark ended early"))??);
    }
    Ok(collected)
}

/// The threads of a run; dropping it cancels and joins them.
struct Generator {
    cancel: CancellationToken,
    start: watch::Sender<Option<Instant>>,
    ready: Vec<oneshot::Receiver<()>>,
    parts: Vec<oneshot::Receiver<Result<Part, Error>>>,
    live: Vec<Arc<Live>>,
    threads: Vec<thread::JoinHandle<()>>,
}

/// Written by one thread, read by whoever shows progress.
#[derive(Default)]
struct Live {
    done: AtomicU64,
    errors: AtomicU64,
}

impl Generator {
    fn launch(plan: &Arc<Plan>, address: SocketAddr) -> Result<Self, Error> {
        let mut generator = Self {
            cancel: CancellationToken::new(),
            start: watch::channel(None).0,
            ready: Vec::new(),
            parts: Vec::new(),
            live: Vec::new(),
            threads: Vec::new(),
        };
        for (index, share) in plan.shares.iter().enumerate() {
            generator
                .add_thread(index, *share, plan, address)
                .context(Kind::Internal, || "start a thread of the benchmark".to_owned())?;
        }
        Ok(generator)
    }

    fn add_thread(
        &mut self,
        index: usize,
        share: Share,
        plan: &Arc<Plan>,
        address: SocketAddr,
    ) -> io::Result<()> {
        let (ready, is_ready) = oneshot::channel();
        let (part, is_done) = oneshot::channel();
        let live = Arc::new(Live::default());
        let lane = Lane {
            plan: Arc::clone(plan),
            share,
            cpu: plan.options.cpus.get(index).copied(),
            address,
            cancel: self.cancel.clone(),
            start: self.start.subscribe(),
            live: Arc::clone(&live),
        };
        let work = move || {
            if let Some(result) = lane.run(ready).transpose() {
                let _ = part.send(result);
            }
        };
        self.threads.push(thread::Builder::new().name(format!("bench-{index}")).spawn(work)?);
        self.ready.push(is_ready);
        self.parts.push(is_done);
        self.live.push(live);
        Ok(())
    }

    fn progress(&self, plan: &Plan, start: Instant) -> Progress {
        let sum = |read: fn(&Live) -> &AtomicU64| self.live.iter().map(|live| read(live).load(Relaxed)).sum();
        Progress {
            done: sum(|live| &live.done),
            errors: sum(|live| &live.errors),
            total: plan.requests(),
            elapsed: start.elapsed(),
            duration: match plan.load {
                Load::Burst => None,
                Load::Closed { duration } => Some(duration),
            },
        }
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        self.cancel.cancel();
        for thread in self.threads.drain(..) {
            // A panic there has already ended the run with an error.
            let _ = thread.join();
        }
    }
}

/// What one thread is given.
struct Lane {
    plan: Arc<Plan>,
    share: Share,
    /// Where its thread runs; anywhere when absent.
    cpu: Option<u16>,
    address: SocketAddr,
    cancel: CancellationToken,
    start: watch::Receiver<Option<Instant>>,
    live: Arc<Live>,
}

impl Lane {
    /// `None` when cancelled. All connections are closed on return.
    fn run(self, ready: oneshot::Sender<()>) -> Result<Option<Part>, Error> {
        self.cpu.map_or(Ok(()), limits::pin)?;
        let runtime: LocalRuntime = Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())
            .context(Kind::Internal, || "start a runtime of the benchmark".to_owned())?;
        let cancel = self.cancel.clone();
        Ok(runtime.block_on(async {
            tokio::select! {
                biased;
                () = cancel.cancelled() => None,
                part = self.work(ready) => part,
            }
        }))
    }

    async fn work(mut self, ready: oneshot::Sender<()>) -> Option<Part> {
        let _ = ready.send(());
        let start = (*self.start.wait_for(Option::is_some).await.ok()?)?;
        let cpu = limits::thread_cpu();
        let work = Rc::new(Work {
            plan: Arc::clone(&self.plan),
            address: self.address,
            start,
            budget: Cell::new(self.share.requests),
            recorder: RefCell::new(Recorder::new()),
            live: self.live,
        });
        let mut tasks = JoinSet::new();
        for _ in 0..self.share.connections {
            let work = Rc::clone(&work);
            match self.plan.load {
                Load::Burst => tasks.spawn_local(async move { work.send_once().await }),
                Load::Closed { duration } => {
                    tasks.spawn_local(async move { work.send_until(duration).await })
                }
            };
        }
        let end = load_end(self.plan.load, start);
        let _ = timeout(end.saturating_duration_since(Instant::now()), drain(&mut tasks)).await;
        let (cpu, elapsed) = (limits::thread_cpu() - cpu, start.elapsed());
        drain(&mut tasks).await;
        let recorder = work.recorder.replace(Recorder::new());
        Some(Part { recorder, cpu, elapsed })
    }
}

/// When no further request is due; for a burst, a time that its requests never reach (they time out before).
fn load_end(load: Load, start: Instant) -> Instant {
    match load {
        Load::Burst => start + Duration::from_secs(3600),
        Load::Closed { duration } => start + duration,
    }
}

async fn drain(tasks: &mut JoinSet<()>) {
    while let Some(ended) = tasks.join_next().await {
        // A panic in a task is a bug; it must not become a result with a request missing.
        ended.expect("a task of the benchmark does not panic");
    }
}

/// What the connections of one thread share.
struct Work {
    plan: Arc<Plan>,
    address: SocketAddr,
    start: Instant,
    /// Requests that may still be sent.
    budget: Cell<u64>,
    recorder: RefCell<Recorder>,
    live: Arc<Live>,
}

impl Work {
    async fn send_once(&self) {
        self.exchange(&mut Link::new(self.address), self.start).await;
    }

    /// The closed loop of one connection.
    async fn send_until(&self, duration: Duration) {
        let mut link = Link::new(self.address);
        let mut due = self.start;
        while due.duration_since(self.start) < duration && self.budget.get() > 0 {
            self.budget.set(self.budget.get() - 1);
            let (end, is_answered) = self.exchange(&mut link, due).await;
            due = end;
            if !is_answered {
                sleep(ERROR_PAUSE).await;
                due = Instant::now();
            }
        }
    }

    /// One request; gives its end, and whether a complete answer came, of whatever status.
    async fn exchange(&self, link: &mut Link, due: Instant) -> (Instant, bool) {
        self.recorder.borrow_mut().scheduled += 1;
        let outcome = link.exchange(&self.plan, due).await;
        let end = Instant::now();
        let is_answered = outcome.is_ok();
        let (connect_time, stale_count) = (link.take_connect_time(), link.take_stale_count());
        let since_start = end.duration_since(self.start);
        let sample = Sample {
            latency: end.duration_since(due),
            end: since_start,
            is_inside: match self.plan.load {
                Load::Burst => true,
                Load::Closed { duration } => since_start <= duration,
            },
            outcome,
            backend: link.backend(),
            connect_time,
            stale_count,
        };
        let mut recorder = self.recorder.borrow_mut();
        recorder.record(&sample);
        self.live.done.store(recorder.all.count(), Relaxed);
        self.live.errors.store(recorder.errors(), Relaxed);
        (end, is_answered)
    }
}
