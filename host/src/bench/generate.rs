//! Makes the load: threads with a runtime of their own, each with its share of the connections and its recorder.
//!
//! Nothing is shared between threads per request but two counters that only their own thread writes. Knows bursts and
//! the closed loop; the open loop is in [`super::open`]. Does not judge.

use std::{
    cell::{Cell, RefCell, RefMut},
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
    Progress,
    book::Book,
    fault::{Fault, FaultKind},
    limits,
    link::Link,
    open,
    plan::{Load, Plan, Share},
    record::{Recorder, Sample},
};
use crate::error::{Context, Error, Kind};

const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// After an error a connection of the closed loop waits this long before its next request is due, so that a
/// target which refuses at once is asked 100 times a second per connection and not 50,000 times.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// The first request of an open loop is due so long after the threads are told of it, or it would always be late.
const LEAD: Duration = Duration::from_millis(5);

/// What one thread counted.
pub(super) struct Part {
    pub(super) book: Book,
    /// CPU time of the thread over `elapsed`, which begins with the run and ends with the load.
    pub(super) cpu: Duration,
    /// Over the same time: how long the thread was ready and waited for a CPU.
    pub(super) wait: Duration,
    pub(super) elapsed: Duration,
    /// How many connections there were at the most.
    pub(super) connections: u64,
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
    let start = Instant::now() + if matches!(plan.load, Load::Open { .. }) { LEAD } else { Duration::ZERO };
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
            index,
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
            duration: plan.load.duration(),
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
    /// Which of the threads this is.
    index: usize,
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
        runtime.block_on(async {
            tokio::select! {
                biased;
                () = cancel.cancelled() => Ok(None),
                part = self.work(ready) => part,
            }
        })
    }

    async fn work(mut self, ready: oneshot::Sender<()>) -> Result<Option<Part>, Error> {
        let _ = ready.send(());
        let Ok(Some(start)) = self.start.wait_for(Option::is_some).await.map(|start| *start) else {
            return Ok(None);
        };
        let (cpu, wait) = (limits::thread_cpu(), limits::thread_wait());
        let work = Rc::new(Work {
            plan: Arc::clone(&self.plan),
            address: self.address,
            start,
            budget: Cell::new(self.share.requests),
            book: RefCell::new(self.plan.book()),
            live: self.live,
        });
        let mut tasks = JoinSet::new();
        match self.plan.load {
            Load::Burst => work.spawn_each(self.share, &mut tasks, Work::send_once),
            Load::Closed { duration } => {
                work.spawn_each(self.share, &mut tasks, |work| work.send_until(duration));
            }
            Load::Open { .. } => open::run(&work, self.index, self.share.connections, &mut tasks)
                .await
                .context(Kind::Internal, || "set a timer of the benchmark".to_owned())?,
        }
        let connections = tasks.len() as u64;
        let end = start + self.plan.load_end().unwrap_or(BURST_END);
        let _ = timeout(end.saturating_duration_since(Instant::now()), drain(&mut tasks)).await;
        let (cpu, wait) = (limits::thread_cpu() - cpu, limits::thread_wait().saturating_sub(wait));
        let elapsed = start.elapsed();
        drain(&mut tasks).await;
        let book = work.book.replace(self.plan.book());
        Ok(Some(Part { book, cpu, wait, elapsed, connections }))
    }
}

/// The requests of a burst time out before.
const BURST_END: Duration = Duration::from_secs(3600);

async fn drain(tasks: &mut JoinSet<()>) {
    while let Some(ended) = tasks.join_next().await {
        // A panic in a task is a bug; it must not become a result with a request missing.
        ended.expect("a task of the benchmark does not panic");
    }
}

/// What the connections of one thread share.
pub(super) struct Work {
    pub(super) plan: Arc<Plan>,
    pub(super) address: SocketAddr,
    pub(super) start: Instant,
    /// Requests that a closed loop may still send.
    budget: Cell<u64>,
    book: RefCell<Book>,
    live: Arc<Live>,
}

impl Work {
    /// One task for each connection.
    fn spawn_each<F>(self: &Rc<Self>, share: Share, tasks: &mut JoinSet<()>, send: impl Fn(Rc<Self>) -> F)
    where
        F: Future<Output = ()> + 'static,
    {
        for _ in 0..share.connections {
            tasks.spawn_local(send(Rc::clone(self)));
        }
    }

    async fn send_once(self: Rc<Self>) {
        self.come(self.start);
        self.exchange(&mut Link::new(self.address), self.start).await;
    }

    /// The closed loop of one connection.
    async fn send_until(self: Rc<Self>, duration: Duration) {
        let mut link = Link::new(self.address);
        let mut due = self.start;
        while due.duration_since(self.start) < duration && self.budget.get() > 0 {
            self.budget.set(self.budget.get() - 1);
            self.come(due);
            let (end, is_answered) = self.exchange(&mut link, due).await;
            due = end;
            if !is_answered {
                sleep(ERROR_PAUSE).await;
                due = Instant::now();
            }
        }
    }

    /// One request; gives its end, and whether a complete answer came, of whatever status.
    pub(super) async fn exchange(&self, link: &mut Link, due: Instant) -> (Instant, bool) {
        let outcome = link.exchange(&self.plan, due).await;
        let end = Instant::now();
        let is_answered = outcome.is_ok();
        let (connect_time, stale_count) = (link.take_connect_time(), link.take_stale_count());
        self.record(&Sample {
            service: link.sent_at().map(|sent| end.duration_since(sent)),
            backend: link.backend(),
            connect_time,
            stale_count,
            ..self.sample(due, end, outcome)
        });
        (end, is_answered)
    }

    /// A request that was given up at its deadline without being sent.
    pub(super) fn give_up(&self, due: Instant) {
        let fault =
            Fault::new(FaultKind::QueueTimeout, "every connection was busy until the timeout was over");
        self.record(&self.sample(due, due + self.plan.options.timeout.0, Err(fault)));
    }

    /// What is known of a request by the clock alone.
    fn sample(&self, due: Instant, end: Instant, outcome: Result<u16, Fault>) -> Sample<'static> {
        let (due_at, end_at) = (due.duration_since(self.start), end.duration_since(self.start));
        let load_end = self.plan.load_end().unwrap_or(BURST_END);
        let is_unfinished_at = |time| due_at <= time && end_at > time;
        Sample {
            due: due_at,
            latency: end.duration_since(due),
            service: None,
            end: end_at,
            is_inside: self.plan.load.duration().is_none_or(|duration| end_at <= duration),
            is_unfinished: [is_unfinished_at(load_end / 2), is_unfinished_at(load_end)],
            outcome,
            backend: None,
            connect_time: None,
            stale_count: 0,
        }
    }

    /// A request is due; it will be recorded when it ends.
    pub(super) fn come(&self, due: Instant) {
        self.book.borrow_mut().come(due.duration_since(self.start));
    }

    /// Where a request that was due then is counted.
    pub(super) fn recorder(&self, due: Instant) -> RefMut<'_, Recorder> {
        RefMut::map(self.book.borrow_mut(), |book| book.recorder(due.duration_since(self.start)))
    }

    fn record(&self, sample: &Sample<'_>) {
        let mut book = self.book.borrow_mut();
        book.go(sample);
        let (done, errors) = book.ended();
        self.live.done.store(done, Relaxed);
        self.live.errors.store(errors, Relaxed);
    }
}
